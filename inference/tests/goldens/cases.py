"""The cases of one golden model: prompts, the logits after them, and the greedy tokens that follow."""

import random
from pathlib import Path
from typing import Any

from expected import SMALLEST_ALLOWED_GAP, Greedy, greedy, prompt_logits, write_json
from transformers import PreTrainedModel

VOCABULARY = 320
CONTEXT_TOKENS = 128
PROMPT_LENGTHS = (1, 7, 33, 64)
GREEDY_STEPS = 64
# Every position of prompts up to this long has its logits stored; of longer ones every LOGITS_STRIDE-th.
LOGITS_OF_ALL_UP_TO = 7
LOGITS_STRIDE = 8
# A random model that settles on a short loop would test little: its 64 greedy tokens are to be this varied.
FEWEST_DISTINCT_TOKENS = 12
PROMPT_TRIES = 2000
BEGIN_TOKEN = 2


def write_cases(model: PreTrainedModel, seed: int, target: Path) -> None:
    """Writes expected.json into `target`, the folder of `model`."""
    cases = make_cases(model, random.Random(seed))
    write_json(target / "expected.json", {"cases": cases})
    gaps = ", ".join(f"{case['smallest_gap']:.3f}" for case in cases)
    distinct = ", ".join(str(len(set(case["greedy"]))) for case in cases)
    largest = max(abs(value) for case in cases for row in case["logits"].values() for value in row)
    print(f"{target.name}: smallest gaps {gaps}; distinct tokens {distinct}; largest logit {largest:.1f}", flush=True)


def make_cases(model: PreTrainedModel, numbers: random.Random) -> list[dict[str, Any]]:
    """One case for each of PROMPT_LENGTHS."""
    cases = []
    for length in PROMPT_LENGTHS:
        prompt_tokens, outcome = decisive_prompt(model, length, numbers)
        if length <= LOGITS_OF_ALL_UP_TO:
            positions = list(range(length))
        else:
            positions = sorted({*range(0, length, LOGITS_STRIDE), length - 1})
        cases.append(
            {
                "prompt_tokens": prompt_tokens,
                "logits": prompt_logits(model, prompt_tokens, positions),
                "greedy": outcome.tokens,
                "smallest_gap": round(outcome.smallest_gap, 6),
            }
        )
    return cases


def decisive_prompt(model: PreTrainedModel, length: int, numbers: random.Random) -> tuple[list[int], Greedy]:
    """A random prompt after which every greedy token wins clearly and the tokens vary."""
    for _ in range(PROMPT_TRIES):
        prompt_tokens = [numbers.randrange(3, VOCABULARY) for _ in range(length)]
        if length > 1:
            prompt_tokens[0] = BEGIN_TOKEN
        outcome = greedy(model, prompt_tokens, GREEDY_STEPS)
        if outcome.smallest_gap >= SMALLEST_ALLOWED_GAP and len(set(outcome.tokens)) >= FEWEST_DISTINCT_TOKENS:
            return prompt_tokens, outcome
    raise SystemExit(f"no decisive prompt of {length} tokens in {PROMPT_TRIES} tries: change the seed")
