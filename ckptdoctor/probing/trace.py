"""Every call of every layer during some runs, as rows: ranges, what went bad, and where it began."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ..live.subject import Arrays, Call
from ..tensors import Array
from .values import Span, span_of, varies

__all__ = ["SATURATED", "LayerRow", "Trace"]

SATURATED = 0.99
"""Of a layer's outputs at a limit of its function; a trained ReLU has 0.5 to 0.95 zeros."""

_NEAR = 1e-6
"""How near to a limit counts as there: float32 steps by 6e-8 below 1."""

_LIMITS: dict[str, tuple[float, ...]] = {
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "hardtanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "softmax": (0.0, 1.0),
    "softmax2d": (0.0, 1.0),
    "relu": (0.0,),
    "relu6": (0.0, 6.0),
}
"""Where functions stop, by the class of the layer in lower case without underscores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One call of one layer, over all batches.

    Parameters
    ----------
    layer, class_name, index, depth, leaf
        As `ckptdoctor.live.subject.Call` has them.
    shape
        Of the first output in the first batch, samples first.
    inputs, outputs
        What it took and gave.
    began
        Whether here values went bad: outputs are not finite, of inputs that are, and no layer
        inside it did it.
    between
        Where ``began``: the layer inside it that ended before that, and the one that was given the
        bad values; empty where there is none.
    constant
        Whether it gives the same for every sample though its inputs differ.
    froze
        Whether it is the innermost of those.
    saturated
        Share of the outputs at the limits of its function; None for layers without.
    """

    layer: str
    class_name: str
    index: int
    depth: int
    leaf: bool
    shape: tuple[int, ...]
    inputs: Span
    outputs: Span
    began: bool = False
    between: tuple[str, str] = ("", "")
    constant: bool = False
    froze: bool = False
    saturated: float | None = None

    @property
    def stuck(self) -> bool:
        """Whether nearly all outputs are at the limits of its function."""
        return self.saturated is not None and self.saturated >= SATURATED


@dataclass(slots=True)
class _Open:
    """A call that has begun."""

    key: tuple[str, int]
    inputs: Span
    differ: bool | None
    inside: int = 0
    froze_inside: bool = False
    ended: str = ""
    between: tuple[str, str] | None = None

    @property
    def place(self) -> tuple[str, str]:
        """Layers inside it between which values went bad, or the last one, and nothing."""
        return self.between or (self.ended, "")


@dataclass(slots=True)
class _Seen:
    """What is known of a call, batch after batch."""

    row: LayerRow
    varied: bool = False
    same: bool = False
    same_inside: bool = False
    at_limit: int = 0


@dataclass(slots=True)
class Trace:
    """Observer that keeps a row for every call, in the order in which they begin.

    ``samples`` is the size of the batch that is run next.
    """

    samples: int = 0
    _open: list[_Open] = field(default_factory=list)
    _seen: dict[tuple[str, int], _Seen] = field(default_factory=dict)

    def start(self, samples: int) -> None:
        """Prepare for a batch."""
        self.samples = samples
        self._open.clear()

    def before(self, call: Call, inputs: Arrays) -> None:
        """Look at what a layer is given."""
        key = call.layer, call.index
        span = span_of(inputs)
        if key not in self._seen:
            row = LayerRow(
                layer=call.layer,
                class_name=call.class_name,
                index=call.index,
                depth=call.depth,
                leaf=call.leaf,
                shape=(),
                inputs=Span(),
                outputs=Span(),
            )
            self._seen[key] = _Seen(row)
        if self._open and span.badness > max(self._open[-1].inputs.badness, self._open[-1].inside):
            around = self._open[-1]
            around.between = around.between or (around.ended, call.layer)
        answers = [varies(array, self.samples) for array in inputs]
        differ = True if True in answers else False if False in answers else None
        self._open.append(_Open(key, span, differ))

    def after(self, call: Call, outputs: Arrays) -> None:
        """Look at what it made of it, and whether a layer inside it is to blame."""
        while self._open and self._open[-1].key != (call.layer, call.index):
            self._open.pop()  # left by an exception that the model caught
        opened = self._open.pop()
        seen, span = self._seen[opened.key], span_of(outputs)
        worse = span.badness > opened.inputs.badness
        began = span.badness > max(opened.inputs.badness, opened.inside)
        same = opened.differ is True and bool(outputs)
        same = same and all(varies(array, self.samples) is False for array in outputs)
        if opened.differ and outputs and not same:
            seen.varied = True
        seen.same |= same
        seen.same_inside |= opened.froze_inside
        limits = _LIMITS.get(_plain(call.class_name))
        if limits and outputs:
            seen.at_limit += _at(outputs[0], limits)
        old = seen.row
        seen.row = replace(
            old,
            shape=old.shape or (outputs[0].shape if outputs else ()),
            inputs=old.inputs.merged(opened.inputs),
            outputs=old.outputs.merged(span),
            began=old.began or began,
            between=old.between if old.began or not began else opened.place,
        )
        if self._open:
            own = span.badness if worse else 0
            self._open[-1].inside = max(self._open[-1].inside, own, opened.inside)
            self._open[-1].froze_inside |= same or opened.froze_inside
            self._open[-1].ended = opened.key[0]

    def rows(self) -> tuple[LayerRow, ...]:
        """Everything seen so far."""
        return tuple(map(_finished, self._seen.values()))


def _finished(seen: _Seen) -> LayerRow:
    row, constant = seen.row, seen.same and not seen.varied
    share = None
    if _plain(row.class_name) in _LIMITS and row.outputs.size:
        share = seen.at_limit / row.outputs.size
    froze = constant and not seen.same_inside
    return replace(row, constant=constant, froze=froze, saturated=share)


def _plain(class_name: str) -> str:
    return class_name.lower().replace("_", "")


def _at(values: Array, limits: tuple[float, ...]) -> int:
    """Count what is at one of the limits."""
    near = sum((np.abs(values - limit) <= _NEAR for limit in limits), np.zeros((), bool))
    return int(np.count_nonzero(near))
