"""Makes the goldens of this folder: what transformers computes, for the Rust engine to be compared with.

Run it with the versions of requirements.txt beside it; README.md describes the files it writes. Every
random number comes from a fixed seed, so a second run writes the same files.
"""

import argparse
from pathlib import Path

import bpe_goldens
import decoders
import llama_tokenizer
import opt
import tiny_goldens
import torch

HERE = Path(__file__).resolve().parent
TINY_MODEL = HERE.parents[2] / "models" / "tiny"
PARTS = ("opt", "decoders", "tokenizer", "tiny")


def main() -> None:
    """Makes the parts that the command line names, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"what to make, of {', '.join(PARTS)} (default: all)")
    parts = parser.parse_args().parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")

    # One thread: the order of float additions, and so the last digits, no longer depend on the machine's cores.
    torch.set_num_threads(1)
    if "opt" in parts:
        opt.make(HERE)
    if "decoders" in parts:
        decoders.make(HERE)
    if "tokenizer" in parts:
        bpe_goldens.make(HERE / "tokenizer", stories_folder=TINY_MODEL)
        llama_tokenizer.make(HERE / "tokenizer-llama", stories_folder=TINY_MODEL)
    if "tiny" in parts:
        tiny_goldens.make(HERE / "tiny", model_folder=TINY_MODEL)


if __name__ == "__main__":
    main()
