"""Tokens a second of one model, Lantern and another engine in turns on the same threads.

    cargo build --release -p lantern-inference --example speed
    python inference/benches/speed.py model.gguf                       # beside llama.cpp, by llama-cpp-python
    python inference/benches/speed.py facebook/opt-125m --batch 8      # beside transformers, float32

Prefill: the time until every sequence has its first token. Decode: from then on. The median of all turns is printed,
by the clock and by the CPU time of all threads: on a machine that is shared only the latter, with --threads 1, says much.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SPEED = Path(__file__).parents[2] / "target/release/examples/speed"
WARM_UP_TOKENS = 8

# Prefill and decode, tokens a second, by the clock and by CPU time.
Rates = tuple[float, float, float, float]


def main() -> None:
    arguments = parse()
    if arguments.model.endswith(".gguf"):
        name, other = "llama.cpp", llama_cpp(arguments)
    else:
        name, other = "transformers", transformers(arguments)
    turns: dict[str, list[Rates]] = {"lantern": [], name: []}
    for _ in range(arguments.turns):
        turns["lantern"].append(lantern(arguments))
        turns[name].append(other())
    medians = {who: tuple(statistics.median(rates) for rates in zip(*own, strict=True)) for who, own in turns.items()}
    medians["ratio"] = tuple(ours / theirs for ours, theirs in zip(medians["lantern"], medians[name], strict=True))
    print(f"{'tokens/s':12} {'prefill':>9} {'decode':>9}   of CPU time: {'prefill':>9} {'decode':>9}")
    for who, rates in medians.items():
        prefill, decode, prefill_cpu, decode_cpu = (f"{rate:9.2f}" for rate in rates)
        print(f"{who:12} {prefill} {decode}                {prefill_cpu} {decode_cpu}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of each prompt")
    parser.add_argument("--decode", type=int, default=128, help="tokens made after each")
    parser.add_argument("--batch", type=int, default=1, help="sequences at once; llama.cpp runs one")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=5)
    return parser.parse_args()


def lantern(arguments: argparse.Namespace) -> Rates:
    flags = ["--prompt", arguments.prompt, "--decode", arguments.decode, "--batch", arguments.batch, "--runs", 2]
    command = [str(SPEED), arguments.model, "--device", "cpu", *map(str, flags)]
    environment = os.environ | {"RAYON_NUM_THREADS": str(arguments.threads)}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    # The first run warms up.
    found = re.findall(r"prefill ([\d.]+) decode ([\d.]+)", output)[-2:]
    prefill, decode, prefill_cpu, decode_cpu = (float(rate) for pair in found for rate in pair)
    return prefill, decode, prefill_cpu, decode_cpu


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def rates(prompt: int, start: tuple, first: tuple, decoded: int, last: tuple) -> Rates:
    prefill = [prompt / (end - begin) for begin, end in zip(start, first, strict=True)]
    decode = [decoded / (end - begin) for begin, end in zip(first, last, strict=True)]
    return prefill[0], decode[0], prefill[1], decode[1]


def llama_cpp(arguments: argparse.Namespace) -> Callable[[], Rates]:
    from llama_cpp import Llama

    if arguments.batch != 1:
        sys.exit("llama.cpp is measured with --batch 1")
    context = arguments.prompt + arguments.decode
    threads = {"n_threads": arguments.threads, "n_threads_batch": arguments.threads}
    model = Llama(arguments.model, n_ctx=context, n_batch=arguments.prompt, verbose=False, **threads)
    model.eval(list(range(3, 3 + WARM_UP_TOKENS)))

    def turn() -> Rates:
        model.reset()
        start = now()
        model.eval([(at * 31) % 30_000 + 3 for at in range(arguments.prompt)])
        token = model.sample(temp=0.0)
        first = now()
        for _ in range(arguments.decode - 1):
            model.eval([token])
            token = model.sample(temp=0.0)
        last = now()
        return rates(arguments.prompt, start, first, arguments.decode - 1, last)

    return turn


def transformers(arguments: argparse.Namespace) -> Callable[[], Rates]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    prompts = torch.arange(arguments.batch * arguments.prompt).reshape(arguments.batch, -1) * 31
    prompts = prompts % (model.config.vocab_size - 3) + 3

    def generate(tokens: int) -> None:
        model.generate(prompts, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)

    def turn() -> Rates:
        start = now()
        generate(1)
        first = now()
        generate(arguments.decode)
        last = now()
        # The prompt was read twice.
        rest = [end - begin - (begin - before) for before, begin, end in zip(start, first, last, strict=True)]
        end = (first[0] + rest[0], first[1] + rest[1])
        return rates(arguments.batch * arguments.prompt, start, first, arguments.batch * (arguments.decode - 1), end)

    return turn


if __name__ == "__main__":
    main()
