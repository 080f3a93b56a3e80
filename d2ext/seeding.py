"""Seed the global random generators of Python, numpy and torch."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_torch(seed: int) -> None:
    """Seed torch's global generators as `torch.manual_seed` does, which is slow without a GPU.

    Without one, `torch.manual_seed` formats a stack trace in case a GPU is used later.
    """
    if torch.cuda.is_initialized():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def generators_seeded(*key: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's global generators from integers; restore them at exit."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(key).generate_state(3)
    try:
        random.seed(int(words[0]))
        np.random.seed(words[1])
        seed_torch(int(words[2]))
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
