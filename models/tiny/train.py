"""Trains the tiny model on the story grammar and writes it in the Hugging Face layout, tokenizer included.

It runs on a GPU when there is one, and on a CPU otherwise; all that is random comes from `--seed`. On the same machine
and versions (requirements.txt) a second run gives the same model; elsewhere float rounding differs, and so do the
last digits of the weights.
"""

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import bpe
import stories
import torch
from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM, PreTrainedTokenizerBase

HERE = Path(__file__).resolve().parent
VOCABULARY = 2048
CONTEXT_TOKENS = 512
BLOCK_TOKENS = 256
BLOCKS_PER_STEP = 8
WARM_UP_STEPS = 80
LEARNING_RATE = 2e-3
GRADIENT_LIMIT = 1.0
# The held-out documents come from a stream of their own.
HELD_OUT_SEED_OFFSET = 1_000_000
HELD_OUT_BLOCKS = 32
LOG_EVERY_STEPS = 50

# One user turn and one assistant turn as stories.py writes conversations; `</s>` ends each answer. System messages are
# left out: the model never saw any.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User:\\n' ~ message['content'] ~ '\\nAssistant:\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] ~ eos_token }}"
    "{% endif %}"
    "{% endfor %}"
)


def main() -> None:
    """Trains the tokenizer and the model and writes both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: this script's)")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    more = {"chat_template": CHAT_TEMPLATE, "model_max_length": CONTEXT_TOKENS}
    bpe.write_tokenizer(arguments.out, arguments.seed, VOCABULARY, more)
    tokenizer = AutoTokenizer.from_pretrained(arguments.out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = new_model().to(device)
    print(f"{model.num_parameters():,} parameters on {device}")
    train(model, tokenizer, arguments.steps, arguments.seed)
    write_model(model, arguments.out)


def new_model() -> OPTForCausalLM:
    """The untrained model: opt-125m's shape, made small, its positions set out as sines.

    Positions learned from nothing would need far more text: from sines, attention can tell distances at once.
    """
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=3,
        ffn_dim=768,
        max_position_embeddings=CONTEXT_TOKENS,
        dropout=0.0,
    )
    model = OPTForCausalLM(config)
    positions = model.model.decoder.embed_positions
    half = config.hidden_size // 2
    angles = torch.outer(torch.arange(positions.num_embeddings), 10_000 ** (-torch.arange(half) / half))
    with torch.no_grad():
        positions.weight.copy_(0.05 * torch.cat([angles.sin(), angles.cos()], dim=1))
    return model


def blocks(tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[torch.Tensor]:
    """An endless stream of token blocks (BLOCK_TOKENS,): documents one after another, each behind `</s>`."""
    tokens: list[int] = []
    for text in stories.documents(seed):
        tokens += tokenizer(text).input_ids  # begins with </s>, as add_bos_token says
        while len(tokens) >= BLOCK_TOKENS:
            yield torch.tensor(tokens[:BLOCK_TOKENS])
            del tokens[:BLOCK_TOKENS]


def train(model: OPTForCausalLM, tokenizer: PreTrainedTokenizerBase, steps: int, seed: int) -> None:
    """`steps` steps of AdamW on text that never repeats, with warm-up and a cosine to nothing."""
    device = model.device
    stream = blocks(tokenizer, seed)
    held_out = torch.stack(list(itertools.islice(blocks(tokenizer, seed + HELD_OUT_SEED_OFFSET), HELD_OUT_BLOCKS)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARM_UP_STEPS, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    start = time.monotonic()
    for step in range(1, steps + 1):
        batch = torch.stack(list(itertools.islice(stream, BLOCKS_PER_STEP))).to(device)  # (B, T)
        # Half of the steps begin at position 0, as most prompts do; the others somewhere in the context, so that
        # every position is trained though blocks are shorter than the context.
        offset = max(0, int(torch.randint(-BLOCK_TOKENS, CONTEXT_TOKENS - BLOCK_TOKENS + 1, ())))
        position_ids = torch.arange(offset, offset + BLOCK_TOKENS, device=device).expand_as(batch)
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(batch, labels=batch, position_ids=position_ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_LIMIT)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % LOG_EVERY_STEPS == 0 or step == steps:
            seconds = time.monotonic() - start
            print(f"step {step}/{steps}: loss {loss.item():.4f}, {seconds:.0f} s", flush=True)
    print(f"held-out loss {held_out_loss(model, held_out.to(device)):.4f} nats a token", flush=True)


@torch.inference_mode()
def held_out_loss(model: OPTForCausalLM, held_out: torch.Tensor) -> float:
    """Mean loss of the blocks (B, T) in nats a token."""
    return model(held_out, labels=held_out, use_cache=False).loss.item()


def write_model(model: OPTForCausalLM, folder: Path) -> None:
    """Writes the weights as float16, which halves the file and costs the loss nothing."""
    model.eval().to("cpu", torch.float16).save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
