"""Families of Hugging Face Transformers whose weights are known by name."""

from __future__ import annotations

from collections.abc import Mapping

from .families_decoders import DECODERS
from .families_encoders import ENCODERS
from .families_pairs import PAIRS
from .families_senses import SENSES
from .family import Family

__all__ = ["FAMILIES"]

FAMILIES: Mapping[str, Family] = {**DECODERS, **ENCODERS, **PAIRS, **SENSES}
"""By ``model_type``."""
