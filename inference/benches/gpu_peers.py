"""Decode steps of OPT-125m's shapes at context 512 on a GPU, by PyTorch: what the engine's own bench is compared with.

    python inference/benches/gpu_peers.py                  # needs torch and transformers, and a GPU

The same random weights in float16 three ways: a plain model with a static cache that torch.compile makes kernels of and
that is captured in one CUDA graph, the same without torch.compile, and transformers' `generate`. Greedy; medians in
microseconds, by the clock, from one step's token to the next one's.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from transformers import OPTConfig, OPTForCausalLM

CONTEXT = 512
WARM_UP_STEPS = 3
STEPS = 50
GENERATED = 32
Step = Callable[[], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 256])
    batches = parser.parse_args().batches
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    model = OPTForCausalLM(OPTConfig()).half().cuda().eval()
    ways = {
        "torch.compile, one CUDA graph": lambda batch: graph_step(model, batch, compiled=True),
        "PyTorch's operations, one CUDA graph": lambda batch: graph_step(model, batch, compiled=False),
        "transformers' generate": lambda batch: generate_step(model, batch),
    }
    print(f"| {torch.cuda.get_device_name()}, torch {torch.__version__} | " + " | ".join(map(str, batches)) + " |")
    print("|---|" + "---:|" * len(batches))
    for name, way in ways.items():
        medians = [f"{way(batch):.0f} µs" for batch in batches]
        print(f"| {name} | " + " | ".join(medians) + " |", flush=True)


class Decoder:
    """One token of each sequence through the model: (B) token ids -> (B) the best next ones."""

    def __init__(self, model: OPTForCausalLM, batch: int) -> None:
        self.decoder = model.model.decoder
        self.heads = model.config.num_attention_heads
        shape = (batch, self.heads, CONTEXT, model.config.hidden_size // self.heads)
        self.layers = []
        for layer in self.decoder.layers:
            parts = [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]
            weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
            keys, values = (torch.randn(shape, dtype=weight.dtype, device="cuda") for _ in range(2))
            self.layers.append((layer, weight, bias, keys, values))
        # The newest token is the last that the cache has room for.
        self.position = torch.tensor([CONTEXT - 1], device="cuda")

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        decoder = self.decoder
        x = decoder.embed_tokens.weight[tokens] + decoder.embed_positions.weight[self.position + 2]
        for layer, weight, bias, keys, values in self.layers:
            heads = F.linear(layer.self_attn_layer_norm(x), weight, bias).view(len(tokens), 3, self.heads, 1, -1)
            query, key, value = heads.unbind(1)
            keys.index_copy_(2, self.position, key)
            values.index_copy_(2, self.position, value)
            attended = F.scaled_dot_product_attention(query, keys, values)
            x = x + layer.self_attn.out_proj(attended.reshape(x.shape))
            x = x + layer.fc2(F.relu(layer.fc1(layer.final_layer_norm(x))))
        return (decoder.final_layer_norm(x) @ decoder.embed_tokens.weight.T).argmax(-1)


def graph_step(model: OPTForCausalLM, batch: int, *, compiled: bool) -> float:
    step = Decoder(model, batch)
    if compiled:
        torch.compiler.reset()
        step = torch.compile(step.__call__, dynamic=False)
    tokens = torch.zeros(batch, dtype=torch.long, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_STEPS):
            step(tokens)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens.copy_(step(tokens))
    return timed(graph.replay)


def timed(step: Callable[[], None]) -> float:
    times = []
    for _ in range(WARM_UP_STEPS + STEPS):
        begun = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return 1e6 * statistics.median(times[WARM_UP_STEPS:])


def generate_step(model: OPTForCausalLM, batch: int) -> float:
    prompts = torch.arange(batch * (CONTEXT - GENERATED), device="cuda").reshape(batch, -1) * 31 % 50_000 + 3

    def generate(tokens: int) -> float:
        begun = time.perf_counter()
        model.generate(prompts, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)
        torch.cuda.synchronize()
        return time.perf_counter() - begun

    generate(2)
    # The prompt is read in both.
    steps = [(generate(GENERATED) - generate(1)) / (GENERATED - 1) for _ in range(3)]
    return 1e6 * statistics.median(steps)


if __name__ == "__main__":
    main()
