"""Why faults are missed, by code and what was done: the last column of the list of misses."""

from __future__ import annotations

import re

REASONS: tuple[tuple[str, str, str], ...] = (
    ("WT002", r"", "one output unit: a mean filter may be meant, so it is a note"),
    (
        "WT003",
        r"x 1000$|rate 10$",
        "amplifies less than what is certain, with too few kernels to compare",
    ),
    (
        "WT004",
        r"bit 2[6-9]",
        "the weight becomes tiny, or stays among the others: like any small weight",
    ),
    ("WT005", r"three quarters", "copies are searched for only where the first two units agree"),
    ("WT006", r"", "embedding tables are not judged by their size"),
    ("WT008", r"", "its law has no bounds (normal), or depends on what the file does not say"),
    ("WT010", r"", "embedding tables are not judged by their size"),
    ("BN002", r"-1e-9", "above -eps: a note, as no NaN follows; collapsed like a dead channel"),
    ("BN003", r"one channel", "its channel stays within what healthy layers show"),
    (
        "BN003",
        r"x 100$|1e2",
        "the first BatchNorm (raw input looks the same), or within what healthy layers show",
    ),
    ("BN003", r"", "the first BatchNorm: raw input looks the same, a note asks for its scale"),
    (
        "BN004",
        r"one channel",
        "like a channel that is constant by itself: thousands in healthy files",
    ),
    (
        "BN006",
        r"0 batches",
        "the file says that no batch was counted: as after training in evaluation mode",
    ),
    ("BN009", r"copied from", "the copies cannot be told from statistics of their own"),
    ("BN010", r"x 100$", "effective gains up to 1,000 are on record for healthy files"),
    ("PR003", r"", "a few elements of a small kernel at the limit"),
)
"""Code, pattern in what was done, reason; the first that fits."""


def reason(code: str, what: str) -> str:
    """Return the reason for a miss; ``open`` where nobody has given one."""
    return next(
        (text for own, pattern, text in REASONS if own == code and re.search(pattern, what)), "open"
    )
