"""TS007: an optimizer's state that is not this model's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from ..findings import Finding, Severity
from ..tensors import Role, TensorInfo
from .base import Case, Context, Rule, rule, threshold
from .optimizer_slots import (
    Parameters,
    model_parameters,
    parameters_of,
    shapes_of,
)
from .training_state import (
    COMPLETE_BELOW,
    infos_of,
)


def _state(*shapes: tuple[int, ...], head: tuple[int, ...] = (2, 3)) -> dict[str, object]:
    model = {"a.weight": (3, 3), "a.bias": (3,), "b.weight": (4, 3), "head.weight": head}
    slots = {f"optimizer.state.{n}.exp_avg": shape for n, shape in enumerate(shapes)}
    return {name: np.zeros(shape, np.float32) for name, shape in {**model, **slots}.items()}


_ROLES: Mapping[str, Role] = {f"optimizer.state.{n}.exp_avg": "optimizer" for n in range(5)}
_SHAPES = (3, 3), (3,), (4, 3), (2, 3)


def _listed(count: int) -> dict[str, float]:
    return {f"optimizer.param_groups.0.params.{n}": n for n in range(count)}


@rule
class OptimizerModelMismatch(Rule):
    """The optimizer's state does not fit the model in the same file.

    What it means
    -------------
    The optimizer matches its state to parameters by position, and does not compare shapes when it
    is loaded.  A state of another shape ends in an error at the first step, or is broadcast without
    a word; one shifted by a layer gives every weight its neighbour's history.  Serving is not
    affected.

    How it happens
    --------------
    A head was replaced, layers were added, pruned or frozen in the model and the optimizer of the
    earlier one was saved beside it; files of two runs were merged; the groups were built from
    another model's parameters.

    When to ignore it
    -----------------
    When the optimizer trains a second model too that is stored elsewhere (a discriminator), or
    keeps its state sharded, flattened or projected (ZeRO, FSDP, GaLore), or when only the weights
    are used.
    """

    code = "TS007"
    name = "optimizer-model-mismatch"
    severity = Severity.WARNING
    since = "0.1"
    references = (
        "https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.load_state_dict.html",
        "Zhao et al. 2024, arXiv:2403.03507: GaLore keeps projected moments",
    )
    matching: float = threshold(
        0.5,
        unit="share of the parameters with state whose shape the model has, inclusive",
        why="below it the state is sharded, flattened or of another model: it cannot be told which",
        healthy="every state of 15 healthy torch checkpoints matches whole",
    )
    healthy = (
        Case("one for each", _state(*_SHAPES), _ROLES, scalars=_listed(4)),
        Case("a frozen layer", _state(*_SHAPES[2:]), _ROLES),
        Case(
            "decayed weights first",
            _state(_SHAPES[0], *_SHAPES[2:], (3,)),
            _ROLES,
            scalars=_listed(4),
        ),
        Case("flattened", _state((26,)), _ROLES),
        Case("an optimizer alone", {"optimizer.state.0.exp_avg": [1.0]}, _ROLES),
        Case("more parameters than state", _state((3, 3)), _ROLES, scalars=_listed(4)),
    )
    sick = (
        Case("another head", _state(*_SHAPES, head=(5, 3)), _ROLES, Severity.ERROR, scalars=_listed(4)),
        Case("a shape twice that the model has once", _state((3, 3), (3,), (4, 3), (4, 3))  , _ROLES),
        Case("more parameters than the model", _state(*_SHAPES), _ROLES, scalars=_listed(5)),
        Case("state of a parameter in no group", _state(*_SHAPES), _ROLES, scalars=_listed(3)),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        model = infos_of(ctx, "model")
        if not model or any(not info.size for info in model):
            return  # parameters saved empty (ZeRO-3) are WT009's: their shapes say nothing
        for optimizer, slots in shapes_of(ctx).items():
            if _projected(ctx, optimizer):
                continue
            known = parameters_of(ctx, optimizer)
            found = list(self._shapes(ctx, known, slots))
            yield from found or self._counts(ctx, optimizer, known, slots)

    def _shapes(
        self, ctx: Context, known: Parameters, slots: Mapping[str, TensorInfo]
    ) -> Iterator[Finding]:
        offered = Counter(info.shape for info in infos_of(ctx, "model"))
        surplus = Counter(info.shape for info in slots.values()) - offered
        if not surplus or sum(surplus.values()) > (1 - self.matching) * len(slots):
            return
        model = model_parameters(ctx)
        aligned = known.listed and len(known.keys) == len(model)
        pairs = zip(known.keys, model, strict=True) if aligned else ()
        at_its_place = dict(pairs)
        wrong = [key for key, info in at_its_place.items() if _differs(slots.get(key), info)]
        # one to one but for a few: the optimizer is this model's, before a change
        certain = 0 < len(wrong) <= (1 - self.matching) * len(slots)
        for key in wrong if certain else _last_of(slots, surplus):
            info = slots[key]
            shape = list(info.shape)
            if certain:
                other = at_its_place[key]
                yield self.finding(
                    info,
                    f"has shape {shape}, its parameter {other.name!r:.200} {list(other.shape)}",
                    severity=Severity.ERROR,
                    shape=shape,
                    parameter=other.name,
                    parameter_shape=list(other.shape),
                )
            else:
                yield self.finding(
                    info,
                    f"has shape {shape}, which {offered[info.shape]:,} tensors of the model have "
                    f"and {surplus[info.shape] + offered[info.shape]:,} of this optimizer",
                    limit=f"while {self.matching:.0%} or more of its shapes are the model's",
                    shape=shape,
                )

    def _counts(
        self,
        ctx: Context,
        optimizer: str,
        known: Parameters,
        slots: Mapping[str, TensorInfo],
    ) -> Iterator[Finding]:
        if not known.listed:
            return
        first = next(iter(slots.values()))
        weights = [
            info
            for info in (*infos_of(ctx, "model"), *infos_of(ctx, "other"))
            if info.kind.kind != "opaque"
        ]
        if len(known.keys) > len(weights):
            yield self.finding(
                first,
                f"the groups of {optimizer or 'the optimizer'!r:.100} list {len(known.keys):,} "
                f"parameters, the model has {len(weights):,} tensors",
                listed=len(known.keys),
                model=len(weights),
            )
            return
        listed = set(known.keys)
        stray = [info for key, info in slots.items() if key not in listed]
        if stray:
            more = f" and {len(stray) - 1:,} more" if len(stray) > 1 else ""
            yield self.finding(
                stray[0], f"state of a parameter{more} that no group lists", stray=len(stray)
            )


def _differs(slot: TensorInfo | None, parameter: TensorInfo) -> bool:
    return slot is not None and slot.shape != parameter.shape


def _last_of(slots: Mapping[str, TensorInfo], surplus: Mapping[tuple[int, ...], int]) -> list[str]:
    """Of every shape that occurs too often, the last slots: where things were added."""
    left, found = dict(surplus), []
    for key in reversed(list(slots)):
        shape = slots[key].shape
        if left.get(shape):
            left[shape] -= 1
            found.append(key)
    return found[::-1]


def _projected(ctx: Context, optimizer: str) -> bool:
    """Whether moments live in a smaller space than their parameters (GaLore and its kin)."""
    scalars = ctx.table.scalars
    return len(scalars) >= COMPLETE_BELOW or any(
        ".projector." in name and name.startswith(optimizer) for name in scalars
    )
