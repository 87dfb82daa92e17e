"""The byte-level BPE tokenizer of the stories, in the files that facebook/opt-125m has."""

import itertools
import json
from pathlib import Path
from typing import Any

import stories
from tokenizers import ByteLevelBPETokenizer

# They get the ids from 0 on, as in OPT's vocabulary.
RESERVED_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
DOCUMENTS = 20_000


def write_tokenizer(folder: Path, seed: int, vocabulary: int, more_config: dict[str, Any]) -> None:
    """Trains on the stories of `seed` and writes the files; tokenizer_config.json has `more_config` too."""
    tokenizer = ByteLevelBPETokenizer()
    texts = (text.replace(stories.END, "") for text in stories.documents(seed))
    tokenizer.train_from_iterator(
        itertools.islice(texts, DOCUMENTS),
        vocab_size=vocabulary,
        special_tokens=list(RESERVED_TOKENS),
        show_progress=False,
    )
    tokenizer.save_model(str(folder))

    special = {f"{role}_token": token("</s>") for role in ("bos", "eos", "unk")} | {"pad_token": token("<pad>")}
    write_json(folder / "special_tokens_map.json", special)
    config: dict[str, Any] = {role: {"__type": "AddedToken"} | content for role, content in special.items()}
    config |= {
        "add_bos_token": True,
        "add_prefix_space": False,
        "errors": "replace",
        "tokenizer_class": "GPT2Tokenizer",
    }
    write_json(folder / "tokenizer_config.json", config | more_config)


def token(content: str) -> dict[str, Any]:
    """A special token with the flags that OPT's have."""
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes `value` as people read it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
