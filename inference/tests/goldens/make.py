"""Makes the goldens of this folder: what transformers computes, for the Rust engine to be compared with.

Run it with the versions of requirements.txt beside it; README.md describes the files it writes. Every
random number comes from a fixed seed, so a second run writes the same files.
"""

from pathlib import Path

import opt
import torch

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Makes everything."""
    # One thread: the order of float additions, and so the last digits, no longer depend on the machine's cores.
    torch.set_num_threads(1)
    opt.make(HERE)


if __name__ == "__main__":
    main()
