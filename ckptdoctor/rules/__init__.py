"""Rules: one per module; a new one is its file and a line here."""

from __future__ import annotations

from .base import Rule
from .nf001_nan_values import NanValues
from .nf002_inf_values import InfValues
from .nf003_masked_infinities import MaskedInfinities

__all__ = ["RULES", "Rule"]

RULES: tuple[type[Rule], ...] = (
    NanValues,
    InfValues,
    MaskedInfinities,
)
"""Every rule in code order."""
