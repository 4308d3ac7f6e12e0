"""A loss scale that collapsed: back to where scaling starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..edits import Change, Edit, NumberEdit, Refusal
from ..rules.optimizer_slots import numbered_variables
from ..rules.training_state import groups_of, infos_of, only_value
from ..tensors import TensorInfo
from .base import Ailment, Patient, Remedy
from .reinit import fits

__all__ = ["GradScaler"]

TORCH_SCALE = 65536.0
"""``init_scale`` of torch.amp.GradScaler, apex and DeepSpeed."""

KERAS_SCALE = 32768.0
"""``initial_scale`` of Keras' LossScaleOptimizer, 2 and 3."""

_NUMBER_TRACKERS = ("_growth_tracker", "growth_tracker", "_growth_step", "unskipped")
_TENSOR_TRACKERS = (*_NUMBER_TRACKERS, "step_counter", "good_steps", "growth_tracker")
"""Steps since the last overflow: torch, Megatron, apex; Keras 3 and Keras 2."""


class GradScaler(Remedy):
    """Set a collapsed loss scale back to where it starts, and the steps counted since to 0.

    What it does
    ------------
    torch starts at 65536, Keras at 32768 or what its configuration says (``initial_scale``).  The
    counter of steps since the last overflow starts at 0 with it.

    What it costs
    -------------
    A few skipped steps: the scale is halved until gradients fit.  It does not cure what drove it
    down: where NaN in the data or in running statistics did, it falls again.

    How well it does
    ----------------
    A scale of 0 never recovers by itself, since 0 times anything is 0; from the default, torch's
    scaler is back at a working scale after at most 16 skipped steps.
    """

    name = "grad-scaler"
    kind = "statistical"

    def propose(self, patient: Patient, ailments: Sequence[Ailment]) -> Iterator[Change | Refusal]:
        del ailments
        table = patient.ctx.table
        done: set[str] = set()
        for finding in patient.about("TS005"):
            name = finding.tensor
            if name in done or name in patient.orders.numbers:
                continue
            done.add(name)
            if name in table.infos:
                yield from self._tensor(patient, table[name])
            elif name in table.scalars:
                yield from self._number(table.scalars, name)

    def _number(self, numbers: Mapping[str, float | int], name: str) -> Iterator[Change]:
        before = numbers[name]
        scale: float | int = int(TORCH_SCALE) if isinstance(before, int) else TORCH_SCALE
        yield self._edit_number(name, before, scale, f"loss scale {TORCH_SCALE:g}, torch's default")
        above = name[: -len(_leaf(name))]
        for word in _NUMBER_TRACKERS:
            tracker = numbers.get(above + word)
            if tracker:  # 0 is what it is to be
                zero: float | int = 0 if isinstance(tracker, int) else 0.0
                title = "no steps since the last overflow"
                yield self._edit_number(above + word, tracker, zero, title)

    def _edit_number(self, name: str, before: float, value: float, title: str) -> NumberEdit:
        return NumberEdit(
            name=name, before=before, value=value, title=title,
            remedy=self.name, kind=self.kind, cures=("TS005",),
        )  # fmt: skip

    def _tensor(self, patient: Patient, info: TensorInfo) -> Iterator[Change | Refusal]:
        if info.encoding != "plain" or info.size != 1:
            yield self.refusal(info.name, f"is stored as {info.encoding} values", ("TS005",))
            return
        scale, source = _start(patient, info)
        while scale > 1 and not fits(scale, info.kind):  # float16 ends at 65504
            scale /= 2
        yield self._edit_tensor(info, scale, f"loss scale {scale:g}, {source}")
        tracker = _tracker(patient, info)
        if tracker is not None and only_value(patient.ctx, tracker) != 0:
            yield self._edit_tensor(tracker, 0, "no steps since the last overflow")

    def _edit_tensor(self, info: TensorInfo, value: float, title: str) -> Edit:
        return Edit(
            tensor=info.name,
            indices=np.zeros(1, np.int64),
            values=np.array([value]).astype(info.kind.numpy),
            remedy=self.name,
            kind=self.kind,
            cures=("TS005",),
            title=title,
        )


def _leaf(name: str) -> str:
    return name[max(name.rfind("."), name.rfind("/")) + 1 :]


def _start(patient: Patient, info: TensorInfo) -> tuple[float, str]:
    """Scale that the optimizer starts with, and where that is known from."""
    if "/" not in info.name:
        return TORCH_SCALE, "torch's default"
    for group in groups_of(patient.ctx):
        stored = group.settings.get("initial_scale", 0.0)
        if "/" in group.prefix and 1 <= stored <= 2.0**40:
            return stored, "as its configuration says"
    return KERAS_SCALE, "Keras' default"


def _tracker(patient: Patient, info: TensorInfo) -> TensorInfo | None:
    """Counter of steps since the last overflow that belongs to a scale."""
    table = patient.ctx.table
    above = info.name[: -len(info.path[-1])]
    for word in _TENSOR_TRACKERS:
        for name in (above + word, f"{above}{word}:0"):
            found = table.get(name)
            if found is not None and found.size == 1 and found.encoding == "plain":
                return found
    infos = infos_of(patient.ctx, "optimizer")
    for places in numbered_variables(patient.ctx).values():
        names = [infos[place] for place in places[:6] if not infos[place].shape]
        # iteration, rate, step counter, scale: see TS005
        if len(names) > 3 and names[3].name == info.name and names[2].kind.kind == "int":
            return names[2]
    return None
