"""The classic decision tree for NaN, asked of a file: what is bad tells where it went wrong.

At the time of training one asks: is the loss NaN before the backward pass (the forward pass is to
blame), are parameters finite before the step and NaN after it (the step is)?  A file answers the
same by what of it is bad: statistics are written by the forward pass, the optimizer's state by the
gradients, weights by the step.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from .facts import Facts

__all__ = ["Branch", "branch_of"]

Key = Literal[
    "nothing", "forward-statistics", "update-step", "after-spread", "caught-in-time", "weights"
]


class Branch(NamedTuple):
    """Where it went wrong, and the observation that says so."""

    key: Key
    text: str


_TEXTS: dict[Key, str] = {
    "nothing": "Every stored value is finite.",
    "forward-statistics": "Every weight is finite: a forward pass went wrong, no update did.",
    "update-step": "The optimizer's state is finite: the update step, or what wrote the weights, "
    "went wrong.",
    "after-spread": "The optimizer's state is bad as well: the file was written after the damage "
    "had spread.",
    "caught-in-time": "Every weight is finite: no step with these gradients reached them.",
    "weights": "There is no optimizer state in the file to compare with.",
}


def branch_of(facts: Facts) -> Branch:
    """Ask the tree."""
    statistics, weights, optimizer = (
        bool(facts.bad[kind]) for kind in ("statistics", "weights", "optimizer")
    )
    key: Key = "nothing"
    if weights and optimizer:
        key = "after-spread"
    elif weights:
        key = "update-step" if facts.roles.get("optimizer") else "weights"
    elif optimizer:
        key = "caught-in-time"
    elif statistics:
        key = "forward-statistics"
    return Branch(key, _TEXTS[key])
