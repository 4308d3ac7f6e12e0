"""Many names in few words: whole layers said once, the same weight of many layers said once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..findings import Finding, Severity, container_finding

__all__ = ["IGNORED", "ignored", "listing", "numbered", "shown", "told"]

SHOWN = 6
"""Names or groups of names that a message lists."""
MEASURED = 500
"""Names that a finding keeps for machines."""
ALIKE = 3
"""Layers from which on the same weight of each is said once."""
LONGEST = 100
"""Characters of a name that are shown: names come from files."""

_NUMBERED = re.compile(r"(?:^|\.)([0-9]{1,9})\.(?=.)", re.DOTALL)

IGNORED: Mapping[str, str] = {
    "num_batches_tracked": "only counts batches",
    "position_ids": "is computed by the model",
    "token_type_ids": "is computed by the model",
    "inv_freq": "is computed by the model",
    "rotary_pos_emb.cos_cached": "is computed by the model",
    "rotary_emb.cos_cached": "is computed by the model",
    "rotary_emb.sin_cached": "is computed by the model",
    "attn.masked_bias": "is a constant mask",
    "attention.masked_bias": "is a constant mask",
    "attn.attention.masked_bias": "is a constant mask",
    "relative_position_index": "is computed by the model",
}
"""How names end that frameworks make anew and pass by on purpose, and why."""

_ENDS = tuple(f".{end}" for end in IGNORED)


def ignored(name: str) -> bool:
    """Whether loaders do without this one on purpose.

    Examples
    --------
    >>> ignored("bn1.num_batches_tracked"), ignored("bn1.running_var")
    (True, False)
    """
    return name.endswith(_ENDS) or name in IGNORED


def shown(name: str) -> str:
    """Give a name in quotes, escaped and cut.

    Examples
    --------
    >>> shown("fc.weight"), shown("x" * 200)[-8:]
    ("'fc.weight'", "xxxx...'")
    """
    kept = name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."
    return repr(kept)


def numbered(name: str) -> tuple[str, int, str] | None:
    """Split a name at its first number: stack, number, and the name inside.

    Examples
    --------
    >>> numbered("model.layers.7.mlp.up.weight"), numbered("fc.weight")
    (('model.layers', 7, 'mlp.up.weight'), None)
    """
    match = _NUMBERED.search(name)
    return match and (name[: match.start()], int(match[1]), name[match.end() :])


def listing(names: Sequence[str], others: Iterable[str]) -> str:
    """Names in few words; ``others`` are those on the other side, which make a layer not whole.

    Examples
    --------
    >>> names = ["h.1.a.weight", "h.1.b.weight", "h.2.a.weight", "h.2.b.weight", "head.bias"]
    >>> listing(names, ["h.0.a.weight"])
    "'h.1' to 'h.2': all 4 weights, 'head.bias'"
    >>> listing([f"h.{i}.norm" for i in range(9)], [f"h.{i}.fc" for i in range(9)])
    "'h.*.norm' in 9 layers"
    """
    if len(names) == 1:
        return shown(names[0])
    there = {part[:2] for part in map(numbered, others) if part}
    layers: dict[tuple[str, int], list[str]] = {}
    inner: dict[tuple[str, str], list[str]] = {}
    single: list[str] = []
    for name in names:
        part = numbered(name)
        if part is None:
            single.append(name)
        elif part[:2] in there:
            inner.setdefault((part[0], part[2]), []).append(name)
        else:
            layers.setdefault(part[:2], []).append(name)
    groups = _whole_layers(layers, single)
    for (stack, end), held in inner.items():
        if len(held) < ALIKE:
            single += held
        else:
            groups.append((f"{shown(_joined(stack, '*', end))} in {len(held)} layers", len(held)))
    groups += [(shown(name), 1) for name in single]
    text = ", ".join(group for group, _ in groups[:SHOWN])
    left = sum(count for _, count in groups[SHOWN:])
    return f"{text} and {left:,} more" if left else text


def _whole_layers(
    layers: Mapping[tuple[str, int], list[str]], single: list[str]
) -> list[tuple[str, int]]:
    groups: list[tuple[str, int]] = []
    run: list[tuple[str, int]] = []
    for key in sorted(layers):
        if len(layers[key]) == 1 and len(layers) == 1:
            single += layers[key]
            continue
        if run and (run[-1][0], run[-1][1] + 1) != key:
            groups.append(_run(run, layers))
            run = []
        run.append(key)
    if run:
        groups.append(_run(run, layers))
    return groups


def _run(
    run: Sequence[tuple[str, int]], layers: Mapping[tuple[str, int], list[str]]
) -> tuple[str, int]:
    count = sum(len(layers[key]) for key in run)
    first, last = (shown(_joined(*key)) for key in (run[0], run[-1]))
    what = "the only weight" if count == 1 else f"all {count:,} weights"
    return (f"{first}: {what}" if first == last else f"{first} to {last}: {what}"), count


def _joined(*parts: object) -> str:
    return ".".join(str(part) for part in parts if part != "")


def told(
    severity: Severity, message: str, where: str, kind: str = "", names: Sequence[str] = ()
) -> Finding:
    """Make the finding; ``kind`` says what the names are to machines."""
    measured: dict[str, Any] = {}
    if kind:
        measured = {kind: [name[:500] for name in names[:MEASURED]], "count": len(names)}
    return container_finding("CK003", severity, message, where=where, **measured)
