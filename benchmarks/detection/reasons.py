"""Why faults are missed, by code and what was done: the last column of the list of misses."""

from __future__ import annotations

import re

REASONS: tuple[tuple[str, str, str], ...] = (
    (
        "WT004",
        r"bit 2[6-9]",
        "the weight becomes tiny or stays among the others: like any small weight",
    ),
    (
        "WT003",
        r"x 1000$|rate 10$",
        "amplifies less than what is certain, with too few kernels to compare",
    ),
    ("WT008", r"", "its law has no bounds (normal), or the layer's name hides its law"),
    ("WT002", r"", "one output unit: a mean filter may be meant, so it is a note"),
    (
        "WT005",
        r"three quarters",
        "copies among a few units are searched for only where the first two agree",
    ),
    ("BN003", r"x 100$|1e2", "within what healthy layers of other networks show"),
    ("BN003", r"one channel", "its channel stays within what healthy layers show"),
    (
        "BN004",
        r"one channel",
        "like a channel that is constant by itself: thousands in healthy files",
    ),
    ("BN010", r"x 100$", "effective gains up to 1,000 are on record for healthy files"),
    ("BN009", r"copied from", "plausible statistics: only equality with another layer's tells"),
)
"""Code, pattern in what was done, reason; the first that fits."""


def reason(code: str, what: str) -> str:
    """Return the reason for a miss; ``open`` where nobody has given one."""
    return next(
        (text for own, pattern, text in REASONS if own == code and re.search(pattern, what)), "open"
    )
