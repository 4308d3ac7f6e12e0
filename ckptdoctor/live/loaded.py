"""What was put into a model, and what was not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Loaded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Partners of a model's tensors in the file that its values came from.

    Parameters
    ----------
    pairs
        The model's name (of `Subject.table`) -> the file's.
    surplus
        Tensors of the file that the model has no place for.
    notes
        What the user should know, one line each.
    """

    pairs: Mapping[str, str]
    surplus: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
