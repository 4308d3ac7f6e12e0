"""Remedies, one per file, in ladder order: what was asked for by name, then the best first.

A rung for statistics that are recomputed from data, and one for those estimated from the graph,
belong between `donor` and `bn_reset`.
"""

from .base import Ailment, Orders, Patient, Remedy
from .bn_reset import BnReset
from .bn_silence import BnSilence

__all__ = ["LADDER", "Ailment", "Orders", "Patient", "Remedy"]

LADDER: tuple[Remedy, ...] = (
    BnSilence(),
    BnReset(),
)
"""Every remedy, in the order in which the planner asks them."""
