"""What each sample is and how it is made; ``make.py`` runs them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# No GPU, and no choice of kernels that would change the last bit.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

__all__ = ["SAMPLES", "Sample", "sample"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One file, or one folder where the checkpoint is a folder.

    ``write`` gets the path to write to; ``story`` is one sentence for the table in README.
    """

    path: str
    story: str
    write: Callable[[Path], None]


SAMPLES: dict[str, Sample] = {}
"""Every sample by its path below ``sample_checkpoints/``, in the order of the table."""


def sample(path: str, story: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Enter the decorated function as the recipe of ``path``."""

    def enter(write: Callable[[Path], None]) -> Callable[[Path], None]:
        SAMPLES[path] = Sample(path, story, write)
        return write

    return enter
