"""What an optimizer keeps for which parameter, by the names that torch and Keras give it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..tensors import Array, TensorInfo
from .base import Context
from .training_state import COMPLETE_BELOW, groups_of, infos_of, once, rows_of

__all__ = [
    "Parameters",
    "is_second_moment",
    "model_parameters",
    "numbered_variables",
    "owners_of",
    "parameters_of",
    "second_moments",
    "shapes_of",
]

_SECOND_MOMENTS = frozenset(
    {
        "exp_avg_sq", "max_exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col",  # Adam, Adafactor
        "exp_avg_res_row", "exp_avg_res_col",  # CAME
        "exp_avg_var", "max_exp_avg_var",  # AdaBelief
        "exp_hessian_diag_sq",  # AdaHessian
        "exp_inf", "square_avg", "acc_delta",  # Adamax, RMSprop, Adadelta
    }
)  # fmt: skip
"""Averages of squares and absolute values in torch's optimizers and those written after them.
Adagrad's ``sum`` is one as well, but too plain a word to be believed outside ``state.N``."""

_KERAS_SUFFIXES = (
    "_velocity", "_velocity_hat", "_accumulator", "_accumulated_grad", "_accumulated_delta_var",
    "_norm",
)  # fmt: skip
"""Keras 3 ends a slot's name so; SGD and Lion keep a ``_momentum``."""

_KERAS_GROUPS = frozenset({"v", "vhat", "velocity", "accumulator", "accumulated_grad",
                           "accumulated_delta_var", "r", "c", "u"})  # fmt: skip
"""Keras 2.11 and later: the group above the variable's own path."""

_KERAS_OTHER_GROUPS = frozenset({"m", "momentum", "average_gradient", "linear", "average"})

_KERAS_LEAVES = frozenset({"v", "vhat", "rms", "accumulator", "accum_grad", "accum_var"})
"""Keras before 2.11 (its ``legacy`` optimizers): the last component."""

_KERAS_OTHER_LEAVES = frozenset({"m", "mg", "momentum", "linear"})

_SHAPED_LIKE_PARAMETER = frozenset(
    {
        "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_avg_var", "exp_inf", "momentum_buffer",
        "square_avg", "grad_avg", "acc_delta", "sum", "max_exp_avg_var",
    }
)  # fmt: skip

_BUFFERS = frozenset(
    {
        "running_mean", "running_var", "num_batches_tracked", "mask", "attn_mask", "causal_mask",
        "inv_freq", "position_ids", "relative_position_index", "weight_u", "initted", "pe",
    }
)  # fmt: skip
"""Last words of tensors in a state dict that no optimizer trains."""


def is_second_moment(info: TensorInfo) -> bool:
    """Whether an optimizer's tensor averages squares or absolute values, by its name.

    Examples
    --------
    >>> path = ("optimizer", "state", "0", "exp_avg_sq")
    >>> is_second_moment(TensorInfo(".".join(path), path, "float32", (3,), "optimizer"))
    True
    """
    path = info.path
    leaf = path[-1]
    if leaf in _SECOND_MOMENTS:
        return True
    if leaf == "sum":  # Adagrad
        return len(path) > 2 and path[-3] == "state"
    return path[0] == "optimizer_weights" and len(path) > 1 and _is_keras_second_moment(path)


def _is_keras_second_moment(path: tuple[str, ...]) -> bool:
    leaf = path[-1].partition(":")[0]
    if path[1] in _KERAS_GROUPS:
        return True
    if path[1] in _KERAS_OTHER_GROUPS:
        return False
    if path[-1].endswith(_KERAS_SUFFIXES):
        return True
    above = path[2] if len(path) > 3 else ""
    if above in _KERAS_GROUPS:
        # Adam/v/fc/kernel is a group of slots, Adam/v/kernel/m the slot of a layer named v
        return leaf in _KERAS_LEAVES or leaf not in _KERAS_OTHER_LEAVES
    return leaf in _KERAS_LEAVES and above not in _KERAS_OTHER_GROUPS


def numbered_variables(ctx: Context) -> Mapping[str, list[int]]:
    """Variables of Keras optimizers that are stored by number, by their group.

    They are given in order, as places among the optimizer's tensors.
    """

    def compute() -> dict[str, list[int]]:
        found: dict[str, list[tuple[int, int]]] = {}
        for place, info in enumerate(infos_of(ctx, "optimizer")):
            if info.path[0] == "optimizer" and info.path[-2:-1] == ("vars",):
                number = info.path[-1]
                if number.isdecimal() and len(number) < 9:
                    group = info.name[: -len(number)]
                    found.setdefault(group, []).append((int(number), place))
        return {group: [place for _, place in sorted(rows)] for group, rows in found.items()}

    variables: Mapping[str, list[int]] = once(ctx, "numbered variables", compute)
    return variables


_NONNEGATIVE_SHARE = 0.5
"""Share of the second variables of all pairs that must be free of negative values."""


def second_moments(ctx: Context) -> tuple[Array, list[TensorInfo]]:
    """Rows and tensors of second moments: those with such a name, of numbered pairs the second.

    Adam numbers momentum, velocity, momentum, velocity ...; that a file does so is seen from
    shapes that come in pairs of which the first has negative values and the second mostly has
    none.  No other optimizer's variables look like it: SGD's momenta are negative everywhere.
    """
    found: tuple[Array, list[TensorInfo]] = once(
        ctx, "second moments", lambda: _second_moments(ctx)
    )
    return found


def _second_moments(ctx: Context) -> tuple[Array, list[TensorInfo]]:
    rows, infos = rows_of(ctx).get("optimizer", (np.empty(0, np.int64), []))
    named = [place for place, info in enumerate(infos) if is_second_moment(info)]
    for variables in numbered_variables(ctx).values():
        slots = [place for place in variables if infos[place].shape]
        firsts, seconds = slots[::2], slots[1::2]
        if [infos[i].shape for i in firsts] != [infos[i].shape for i in seconds]:
            continue
        with np.errstate(invalid="ignore"):  # NaN where nothing is finite
            negative = ctx.stats.minimum[rows] < 0
        if negative[firsts].any() and negative[seconds].sum() < _NONNEGATIVE_SHARE * len(seconds):
            named += seconds
    return rows[named], [infos[place] for place in named]


def shapes_of(ctx: Context) -> Mapping[str, dict[str, TensorInfo]]:
    """Per torch optimizer: a parameter's name in its state -> a tensor that is shaped like it."""

    def compute() -> dict[str, dict[str, TensorInfo]]:
        found: dict[tuple[str, ...], dict[str, TensorInfo]] = {}
        for info in infos_of(ctx, "optimizer"):
            path = info.path
            if len(path) >= 3 and path[-3] == "state" and path[-1] in _SHAPED_LIKE_PARAMETER:
                found.setdefault(path[:-3], {}).setdefault(path[-2], info)
        return {".".join(path): slots for path, slots in found.items()}

    shapes: Mapping[str, dict[str, TensorInfo]] = once(ctx, "optimizer shapes", compute)
    return shapes


def model_parameters(ctx: Context) -> list[TensorInfo]:
    """Tensors of the model that an optimizer may train, in file order; tied ones once."""
    found: dict[tuple[str, int, int] | str, TensorInfo] = {}
    for info in infos_of(ctx, "model"):
        leaf = info.name.rpartition(".")[2]
        if leaf in _BUFFERS or info.kind.kind not in ("float", "complex"):
            continue
        key: tuple[str, int, int] | str = info.name
        if info.storage and info.extent is not None:
            key = info.storage, info.extent.offset, info.extent.length
        found.setdefault(key, info)
    return list(found.values())


class Parameters(NamedTuple):
    """Parameters of one optimizer in its own order."""

    keys: list[str]
    """Of its state: positions, memory addresses before torch 1.6, names under FSDP."""
    listed: bool
    """Whether the groups list them, rather than only their state."""


def parameters_of(ctx: Context, optimizer: str) -> Parameters:
    """Parameters of a torch optimizer as its groups list them, else as its state does."""
    listed = [key for g in groups_of(ctx) if g.optimizer == optimizer for key in g.parameters]
    if listed and len(ctx.table.scalars) < COMPLETE_BELOW:
        return Parameters(listed, listed=True)
    keys = list(shapes_of(ctx).get(optimizer, ()))
    if all(key.isdecimal() for key in keys):
        keys.sort(key=lambda key: (len(key), key))
    return Parameters(keys, listed=False)


def owners_of(ctx: Context) -> Mapping[tuple[str, str], str]:
    """``(optimizer, key of its state)`` -> the model's tensor it is for, where that is plain.

    An optimizer stores no names.  Its parameters come in the model's order, some perhaps left
    out: where only one tensor fits by order and shape, that is the one.
    """

    def compute() -> dict[tuple[str, str], str]:
        return {
            (optimizer, key): name
            for optimizer, slots in shapes_of(ctx).items()
            for key, name in _owners(ctx, optimizer, slots).items()
        }

    owners: Mapping[tuple[str, str], str] = once(ctx, "owners of slots", compute)
    return owners


def _owners(ctx: Context, optimizer: str, slots: Mapping[str, TensorInfo]) -> dict[str, str]:
    model = model_parameters(ctx)
    keys = parameters_of(ctx, optimizer).keys
    if len(keys) == len(model):
        pairs = [(key, info) for key, info in zip(keys, model, strict=True) if key in slots]
        if all(slots[key].shape == info.shape for key, info in pairs):
            return {key: info.name for key, info in pairs}
    keys = [key for key in keys if key in slots]
    wanted, offered = [slots[key].shape for key in keys], [info.shape for info in model]
    ahead = _aligned(wanted, offered)
    back = _aligned(wanted[::-1], offered[::-1])
    if ahead is None or back is None:
        return {}
    last = len(model) - 1
    return {
        key: model[i].name
        for key, i, j in zip(keys, ahead, back[::-1], strict=True)
        if i == last - j
    }


def _aligned(wanted: Sequence[Any], offered: Sequence[Any]) -> list[int] | None:
    """Give the earliest place of every wanted shape, in order; None where they do not fit."""
    places, start = [], 0
    try:
        for shape in wanted:
            places.append(offered.index(shape, start))
            start = places[-1] + 1
    except ValueError:
        return None
    return places
