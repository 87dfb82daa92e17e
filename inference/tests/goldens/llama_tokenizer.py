"""A small tokenizer of Llama 2's kind (SentencePiece's BPE as a tokenizer.json), and how transformers reads with it."""

import itertools
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from bpe_goldens import SEED, VOCABULARY, decode_cases, encode_cases
from expected import write_json
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

DOCUMENTS = 2_000
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
SPACE = "\u2581"


def make(folder: Path, stories_folder: Path) -> None:
    """Writes the tokenizer and expected.json into `folder`; the stories' code is in `stories_folder`."""
    sys.path.append(str(stories_folder))
    import stories

    shutil.rmtree(folder, ignore_errors=True)
    texts = (text.replace(stories.END, "") for text in stories.documents(SEED))
    backend = like_llama(itertools.islice(texts, DOCUMENTS))
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    write_json(folder / "expected.json", {"cases": encode_cases(tokenizer), "decode_cases": decode_cases(tokenizer)})
    print(f"tokenizer-llama: {len(tokenizer)} tokens")


def like_llama(texts: Iterable[str]) -> Tokenizer:
    """Trains on `texts`, with the normalizer, decoder and post-processor of Llama 2's tokenizer.json."""
    spaces = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    trained = Tokenizer(models.BPE())
    trained.normalizer = spaces
    size = VOCABULARY - len(SPECIAL_TOKENS) - len(BYTE_TOKENS)
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, show_progress=False, max_token_length=12))
    model = json.loads(trained.to_str())["model"]
    # Bytes are tokens of the vocabulary, for what it has no token for, and not special ones.
    learned = sorted(model["vocab"], key=model["vocab"].get)
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *BYTE_TOKENS, *learned))}
    merges = [tuple(merge) for merge in model["merges"]]
    bpe = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    begin = ("<s>", SPECIAL_TOKENS.index("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[begin])
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer
