"""Runs a model as the goldens need it: logits of a prompt, and greedy tokens that rounding cannot change."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

SIGNIFICANT_DIGITS = 7
# The Rust engine is held to 1e-4 of these logits; a hundred times that keeps each argmax beyond doubt.
SMALLEST_ALLOWED_GAP = 0.01


@dataclass(frozen=True)
class Greedy:
    """The argmax tokens after a prompt, and how clearly each of them won."""

    tokens: list[int]
    smallest_gap: float


@torch.inference_mode()
def prompt_logits(model: PreTrainedModel, prompt_tokens: list[int], positions: list[int]) -> dict[str, list[float]]:
    """Logits after each of `positions` of the prompt, rounded to SIGNIFICANT_DIGITS."""
    logits = model(torch.tensor([prompt_tokens])).logits[0]  # (T, V)
    return {
        str(position): [float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in logits[position].tolist()]
        for position in positions
    }


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt_tokens: list[int], steps: int) -> Greedy:
    """`steps` argmax tokens, past any end of sequence.

    Each step reads the whole sequence again: slower than a key-value cache, and independent of one.
    """
    tokens = list(prompt_tokens)
    smallest_gap = float("inf")
    for _ in range(steps):
        best = model(torch.tensor([tokens])).logits[0, -1].topk(2)  # (2,)
        smallest_gap = min(smallest_gap, (best.values[0] - best.values[1]).item())
        tokens.append(int(best.indices[0]))
    return Greedy(tokens[len(prompt_tokens) :], smallest_gap)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes `value` compactly, one element of each top-level list a line, so that diffs stay readable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lists = []
    for key, elements in value.items():
        lines = ",\n".join(json.dumps(element, separators=(",", ":")) for element in elements)
        lists.append(f"{json.dumps(key)}: [\n{lines}\n]")
    path.write_text("{" + ",\n".join(lists) + "}\n", encoding="utf-8")
