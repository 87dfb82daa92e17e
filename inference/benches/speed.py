"""Tokens a second of one model, Lantern and another engine in turns on the same threads.

    cargo build --release -p lantern-inference --example speed
    python inference/benches/speed.py model.gguf                       # beside llama.cpp, by llama-cpp-python
    python inference/benches/speed.py facebook/opt-125m --batch 8      # beside transformers, float32

Prefill: the time until every sequence has its first token. Decode: from then on. The median of all turns is printed.
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

# Prefill and decode, tokens a second.
Rates = tuple[float, float]


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
    medians = {who: [statistics.median(rates) for rates in zip(*own, strict=True)] for who, own in turns.items()}
    for who, (prefill, decode) in medians.items():
        print(f"{who:12} prefill {prefill:8.1f}  decode {decode:8.1f} tokens/s")
    ratios = [ours / theirs for ours, theirs in zip(medians["lantern"], medians[name], strict=True)]
    print(f"{'ratio':12} prefill {ratios[0]:8.2f}  decode {ratios[1]:8.2f}")


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
    prefill, decode = re.findall(r"prefill ([\d.]+) decode ([\d.]+)", output)[-1]
    return float(prefill), float(decode)


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
        start = time.perf_counter()
        model.eval([(at * 31) % 30_000 + 3 for at in range(arguments.prompt)])
        token = model.sample(temp=0.0)
        first = time.perf_counter()
        for _ in range(arguments.decode - 1):
            model.eval([token])
            token = model.sample(temp=0.0)
        last = time.perf_counter()
        return arguments.prompt / (first - start), (arguments.decode - 1) / (last - first)

    return turn


def transformers(arguments: argparse.Namespace) -> Callable[[], Rates]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    prompts = torch.arange(arguments.batch * arguments.prompt).reshape(arguments.batch, -1) * 31
    prompts = prompts % (model.config.vocab_size - 3) + 3

    def generate(tokens: int) -> float:
        start = time.perf_counter()
        model.generate(prompts, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)
        return time.perf_counter() - start

    def turn() -> Rates:
        first = generate(1)
        rest = generate(arguments.decode) - first
        return arguments.batch * arguments.prompt / first, arguments.batch * (arguments.decode - 1) / rest

    return turn


if __name__ == "__main__":
    main()
