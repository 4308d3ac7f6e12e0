"""Why faults are missed: the last column of the list of misses.

Only reasons that were checked against the missed files, or that the rule states itself, stand
here; everything else is printed as ``open``.
"""

from __future__ import annotations

import re

REASONS: tuple[tuple[str, str, str, str], ...] = (
    (
        "WT002",
        r"",
        "note",
        "one output unit: a mean filter may be meant, so the rule makes it a note",
    ),
    ("WT004", r"bit 2[6-9]", "nothing", "the weight becomes tiny, or stays among the others"),
    ("WT006", r"", "embedding nothing", "embedding tables are not judged"),
    ("WT010", r"", "embedding nothing", "embedding tables are not judged"),
    ("BN002", r"-1e-9", "note", "above -eps: no NaN follows, so the rule makes it a note"),
    (
        "BN003",
        r"whole layer",
        "first note",
        "the first BatchNorm: raw input looks the same; a note asks",
    ),
    ("BN004", r"one channel", "note", "like a channel that is constant by itself, so a note"),
    ("BN006", r"0 batches", "note", "no batch is counted: as after training in evaluation mode"),
)
"""Code, pattern in what was done, words that describe the miss (see `kind`), reason."""


def kind(place: str, seen: tuple[str, ...]) -> str:
    """Where a miss lies and what was said there, in the words that `REASONS` uses."""
    where = "first " if "(bn 1 of" in place else "embedding " if "(embedding " in place else ""
    return where + ("note" if any(said.endswith(" note") for said in seen) else "nothing")


def reason(code: str, what: str, kind_of: str) -> str:
    """Return the reason for a miss; ``open`` where nobody has checked one."""
    words = set(kind_of.split())
    for own, pattern, needed, text in REASONS:
        if own == code and re.search(pattern, what) and set(needed.split()) <= words:
            return text
    return "open"
