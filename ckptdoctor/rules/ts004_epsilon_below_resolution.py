"""TS004: an optimizer's epsilon that the type of its moments cannot hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ..findings import Finding, Severity
from ..tensors import Role, TensorInfo
from .base import Case, Context, Rule, rule, threshold
from .optimizer_slots import second_moments
from .training_state import Group, groups_of, shown

_SMALLEST: Mapping[str, float] = {
    "float16": 2.0**-24,
    "bfloat16": 2.0**-133,
    "float32": 2.0**-149,
}
"""Smallest positive number of the types that moments are kept in; only float16 is too narrow for a
usual epsilon, none holds an epsilon of 0."""

_HALF: Mapping[str, Role] = {"optimizer.state.0.exp_avg_sq": "optimizer"}


def _moments(dtype: str) -> Mapping[str, object]:
    return {"optimizer.state.0.exp_avg_sq": np.zeros(2, dtype)}


@rule
class EpsilonBelowResolution(Rule):
    """Epsilon is smaller than anything that the optimizer's moments can hold.

    What it means
    -------------
    Adam divides by the root of the second moment plus epsilon.  Computed in float16, an epsilon of
    1e-8 is 0, and so is the square of every gradient below 2e-4: the step of such an element is
    its momentum divided by 0, which is infinite or NaN.

    How it happens
    --------------
    The model was cast to half precision before the optimizer was made, so that its state is
    float16 too, and epsilon stayed at the default of 1e-8 that is meant for float32.

    When to ignore it
    -----------------
    When the optimizer keeps its state in float16 but computes in float32 (fused kernels with
    master weights do): there epsilon is added after the conversion.
    """

    code = "TS004"
    name = "epsilon-below-resolution"
    severity = Severity.WARNING
    since = "0.1"
    references = (
        "IEEE 754-2019, table 3.5: binary16 ends at 2**-24, about 6e-8",
        "https://docs.pytorch.org/docs/stable/generated/torch.optim.Adam.html",
        "Micikevicius et al. 2018, arXiv:1710.03740, section 3.1: a float32 copy of the weights",
    )
    ratio: float = threshold(
        1.0,
        unit="smallest positive number of the moments' type, exclusive",
        why="below half of it epsilon rounds to 0, between half and one it doubles at most",
        healthy="0 of 24 healthy checkpoints: their 1,040 second moments are float32",
    )
    healthy = (
        Case("float32", _moments("float32"), _HALF, scalars={"optimizer.param_groups.0.eps": 1e-8}),
        Case(
            "no epsilon, and no moment of 0",
            {"optimizer.state.0.exp_avg_sq": [1e-9, 1e-12]},
            _HALF,
            scalars={"optimizer.param_groups.0.eps": 0.0},
        ),
        Case(
            "an epsilon that float16 holds",
            _moments("float16"),
            _HALF,
            scalars={"optimizer.param_groups.0.eps": 1e-7},
        ),
        Case(
            "the other group's moments",
            _moments("float16"),
            _HALF,
            scalars={
                "optimizer.param_groups.0.eps": 1e-8,
                "optimizer.param_groups.0.params.0": 1,
                "optimizer.param_groups.1.eps": 1e-4,
                "optimizer.param_groups.1.params.0": 0,
            },
        ),
    )
    sick = (
        Case("Adam in float16", _moments("float16"), _HALF, scalars={"optimizer.param_groups.0.eps": 1e-8}),
        Case("no epsilon at all", _moments("float16"), _HALF, scalars={"optimizer.param_groups.0.eps": 0.0}),
        Case("no epsilon in float32, and moments of 0", _moments("float32"), _HALF, scalars={"optimizer.param_groups.0.eps": 0.0}),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        for group in groups_of(ctx):
            epsilon = group.first("eps", "epsilon")
            if epsilon is None or not epsilon[1] < self.ratio * _SMALLEST["float16"]:
                continue
            moments = [info for info in second_moments(ctx)[1] if _in_group(info, group)]
            moments = [info for info in moments if info.dtype in _SMALLEST]
            if not moments:
                continue
            path, value = epsilon
            dtype = moments[0].dtype
            smallest = _SMALLEST[dtype]
            if not value < self.ratio * smallest:
                continue
            zeros = sum(ctx.stats[info.name].zeros for info in moments)
            if dtype != "float16" and not zeros:
                continue  # what is divided by is not 0, and cannot underflow to it as float16 does
            elements = sum(info.size for info in moments)
            yield self.number_finding(
                path,
                f"epsilon is {shown(value)}, but {dtype}, the type of {len(moments):,} second "
                f"moments, ends at {shown(smallest)}; {zeros:,} of their {elements:,} elements "
                "are 0, to be divided by 0",
                limit=f"below {shown(self.ratio * smallest)}, the smallest {dtype}",
                epsilon=value,
                dtype=dtype,
                smallest=smallest,
                zeros=zeros,
                elements=elements,
            )


def _in_group(info: TensorInfo, group: Group) -> bool:
    """Whether a group's epsilon is the one for this tensor; Keras has one for all."""
    if "/" in info.name or "/" in group.prefix:
        return "/" in info.name and "/" in group.prefix
    return ".".join(info.path[:-3]) == group.optimizer and (
        not group.parameters or info.path[-2] in group.parameters
    )
