"""What transformers computes for the bundled model, so that the engine is checked on what users run."""

from pathlib import Path

import torch
from expected import SMALLEST_ALLOWED_GAP, greedy, prompt_logits, write_json
from transformers import AutoTokenizer, OPTForCausalLM

GREEDY_STEPS = 48
# A trained model is undecided at times; a prompt whose greedy tokens are too close to call is left out.
PROMPTS = (
    "San Francisco is a",
    "Once upon a time",
    "Once upon a time there was a little girl named",
    "The capital of France is",
    "Hello, my name is",
    "An owl is",
    "The quick brown fox",
    "User:\nTell me a story about a fox.\nAssistant:\n",
    "User:\nHello!\nAssistant:\nHello! Ask me for a story, or about a city or an animal.</s>User:\nWhere is Rome?\nAssistant:\n",
)
FEWEST_CASES = 6


def make(folder: Path, model_folder: Path) -> None:
    """Writes expected.json into `folder` for the model in `model_folder`."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = OPTForCausalLM.from_pretrained(model_folder, dtype=torch.float32, attn_implementation="eager").eval()
    cases = []
    for prompt in PROMPTS:
        prompt_tokens = tokenizer(prompt).input_ids
        outcome = greedy(model, prompt_tokens, GREEDY_STEPS)
        print(f"tiny: gap {outcome.smallest_gap:.3f}: {prompt!r} {tokenizer.decode(outcome.tokens)!r}")
        if outcome.smallest_gap < SMALLEST_ALLOWED_GAP:
            continue
        cases.append(
            {
                "prompt": prompt,
                "prompt_tokens": prompt_tokens,
                "logits": prompt_logits(model, prompt_tokens, [len(prompt_tokens) - 1]),
                "greedy": outcome.tokens,
                "smallest_gap": round(outcome.smallest_gap, 6),
            }
        )
    if len(cases) < FEWEST_CASES:
        raise SystemExit(f"only {len(cases)} of {len(PROMPTS)} prompts are decisive: add some")
    write_json(folder / "expected.json", {"cases": cases})
