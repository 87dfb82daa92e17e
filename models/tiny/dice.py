"""The one source of chance that the story grammar draws from."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """Choices drawn from a seeded generator."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def chance(self, probability: float) -> bool:
        """True this often."""
        return self.random.random() < probability

    def evenly(self, options: Sequence[T]) -> T:
        """One of `options`, all alike."""
        return self.random.choice(options)

    def two(self, options: Sequence[T]) -> list[T]:
        """Two different ones of `options`."""
        return self.random.sample(options, 2)

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`, the earlier ones more often: a model of it then has a clear favourite."""
        return self.random.choices(options, [1 / (rank + 1.5) for rank in range(len(options))])[0]

    def weighted(self, options: Sequence[tuple[T, int]]) -> T:
        """One of `options`, each with its weight."""
        values, weights = zip(*options, strict=True)
        return self.random.choices(values, weights)[0]
