"""A small tokenizer in both file layouts, and how transformers encodes and decodes awkward texts with it."""

import shutil
import sys
from pathlib import Path
from typing import Any

from expected import write_json
from transformers import AutoTokenizer, PreTrainedTokenizerBase

SEED = 7
VOCABULARY = 512
TEXTS = (
    "",
    " ",
    "The cat sat in the garden.",
    "San Francisco is a",
    " leading space",
    "trailing space ",
    "two  spaces,   three spaces,    four",
    "tabs\tand\t\ttabs",
    "line\nbreak\n\nand\r\nanother \n mixed",
    "it's we'll they've I'm you're he'd don't 'quoted'",
    "UPPER lower MiXeD snake_case camelCase",
    "0 12 345 6789 3.14 1,000,000 2026-11-23",
    "a+b=c; x<y && z>=1 | {json: [1, 2]} \\ / ~ ^ %",
    "naïve café Zürich Łódź señor",
    "Cafe\u0301 with a combining accent",
    "Привет, мир! Γειά σου",
    "日本語のテキスト。中文也可以。한국어",
    "שלום עולם مرحبا",
    "emoji 🙂 family 👩‍👩‍👧‍👦 flag 🇯🇵 skin 👍🏽",
    "zero\u200bwidth no-break\u00a0space em\u2003space \ufeffmark",
    "quotes “curly” and ‘single’ … dash — end",
    "special </s> inside</s>and<pad> pad",
    "look alike <s> <unk> < /s> <PAD>",
    "User:\nTell me a story.\nAssistant:\n",
    "supercalifragilisticexpialidocious",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "null\x00 bell\x07 escape\x1b delete\x7f",
)


def make(folder: Path, stories_folder: Path) -> None:
    """Writes both layouts and expected.json into `folder`; the stories' code is in `stories_folder`."""
    sys.path.append(str(stories_folder))
    from bpe import write_tokenizer

    shutil.rmtree(folder, ignore_errors=True)
    parts, whole = folder / "vocab-merges", folder / "tokenizer-json"
    parts.mkdir(parents=True)
    whole.mkdir()
    write_tokenizer(parts, SEED, VOCABULARY, {})
    tokenizer = AutoTokenizer.from_pretrained(parts)
    tokenizer.backend_tokenizer.save(str(whole / "tokenizer.json"))
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        shutil.copy(parts / name, whole / name)

    expected = {"cases": encode_cases(tokenizer), "decode_cases": decode_cases(tokenizer)}
    again = AutoTokenizer.from_pretrained(whole)
    if expected != {"cases": encode_cases(again), "decode_cases": decode_cases(again)}:
        raise SystemExit("the two layouts of the tokenizer differ")
    write_json(folder / "expected.json", expected)
    print(f"tokenizer: {len(tokenizer)} tokens, {len(TEXTS)} texts")


def encode_cases(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Each text with its ids, and the ids decoded."""
    return [
        {"text": text}
        | decode_case(tokenizer, tokenizer(text).input_ids)
        | {"ids_without_special_tokens": tokenizer(text, add_special_tokens=False).input_ids}
        for text in TEXTS
    ]


def decode_cases(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Ids that no text encodes to: halves of characters, reserved tokens, no token at all."""
    emoji = tokenizer("🙂", add_special_tokens=False).input_ids
    umlaut = tokenizer("ü", add_special_tokens=False).input_ids
    word = tokenizer("The cat", add_special_tokens=False).input_ids
    return [
        decode_case(tokenizer, ids)
        for ids in (
            [],
            [2, 2, *word, 2],
            [0, *word, 3, 1],
            emoji[:1],
            emoji[:-1],
            emoji[1:],
            [*word, *emoji[:2], *word],
            [umlaut[-1]],
        )
    ]


def decode_case(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> dict[str, Any]:
    """`ids` decoded without and with special tokens, spaces left as they are."""
    return {
        "ids": ids,
        "decoded": tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        "decoded_with_special_tokens": tokenizer.decode(ids, clean_up_tokenization_spaces=False),
    }
