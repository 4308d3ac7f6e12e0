"""What the rules about training state share: what an optimizer keeps for which parameter, and how.

Three layouts are known.  torch: ``optimizer.state.0.exp_avg_sq`` beside the numbers
``optimizer.param_groups.0.lr``.  Keras with names: ``optimizer_weights/adam/fc_kernel_velocity``,
``optimizer_weights/v/fc/kernel:0`` and ``optimizer_weights/Adam/fc/kernel/v:0``, one for each
generation, beside the numbers of its configuration.  Keras by number: ``optimizer/vars/7``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..tensors import Array, Role, TensorInfo, TensorTable
from .base import Context

__all__ = [
    "COMPLETE_BELOW",
    "Group",
    "Parameters",
    "as_float",
    "groups_of",
    "infos_of",
    "is_finite",
    "is_second_moment",
    "model_parameters",
    "nonfinite",
    "numbered_variables",
    "only_value",
    "owners_of",
    "parameters_of",
    "rows_of",
    "rows_where",
    "second_moments",
    "shapes_of",
    "shown",
]

COMPLETE_BELOW = 20_000
"""Numbers of a checkpoint below which none is missing: an adapter that meets more stops there."""

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


def _once(ctx: Context, topic: str, compute: Callable[[], Any]) -> Any:
    """Keep what is asked of the whole checkpoint, not of one tensor, for the next rule."""
    first = next(iter(ctx.table.infos.values()), None)
    return compute() if first is None else ctx.once(topic, first, compute)


def rows_of(ctx: Context) -> Mapping[Role, tuple[Array, list[TensorInfo]]]:
    """Rows and tensors of every role that occurs."""

    def compute() -> dict[Role, tuple[Array, list[TensorInfo]]]:
        found: dict[Role, tuple[list[int], list[TensorInfo]]] = {}
        for row, info in enumerate(ctx.table.infos.values()):
            rows, infos = found.setdefault(info.role, ([], []))
            rows.append(row)
            infos.append(info)
        return {role: (np.asarray(rows), infos) for role, (rows, infos) in found.items()}

    rows: Mapping[Role, tuple[Array, list[TensorInfo]]] = _once(ctx, "rows by role", compute)
    return rows


def infos_of(ctx: Context, role: Role) -> list[TensorInfo]:
    """Tensors of a role, in table order."""
    found = rows_of(ctx).get(role)
    return found[1] if found else []


def rows_where(ctx: Context, role: Role, screen: Array) -> Iterator[TensorInfo]:
    """Yield the tensors of a role for which ``screen`` (one value per tensor) is not zero."""
    found = rows_of(ctx).get(role)
    if found:
        rows, infos = found
        for index in np.flatnonzero(screen[rows]).tolist():
            yield infos[index]


def nonfinite(ctx: Context) -> Array:
    """NaN and infinite elements of every tensor."""
    return ctx.stats.nan + ctx.stats.posinf + ctx.stats.neginf


def shown(number: float) -> str:
    """Give a number of any size in a few characters.

    Examples
    --------
    >>> shown(5e7), shown(0.001), shown(10**400)
    ('5e+07', '0.001', 'inf')
    """
    return f"{as_float(number):.4g}"


def only_value(ctx: Context, info: TensorInfo) -> float | None:
    """Value of a tensor of one real element, from its statistics; None where it is not known."""
    stats = ctx.stats[info.name]
    if stats.count != 1 or info.kind.kind not in ("float", "int"):
        return None
    if stats.nonfinite:
        return math.nan if stats.nan else math.inf if stats.posinf else -math.inf
    return stats.minimum


class Group(NamedTuple):
    """Numbers that an optimizer uses for some of its parameters.

    Parameters
    ----------
    optimizer
        Path of the optimizer (``optimizer_states.0``); empty for Keras.
    prefix
        What comes before a setting's name in the path of its number.
    settings
        ``lr``, ``eps``, ``betas.0``; for Keras ``learning_rate``, ``epsilon``, ``beta_1``.
    parameters
        Names of its parameters in the optimizer's state, in order; empty where not stored.
    """

    optimizer: str
    prefix: str
    settings: dict[str, float]
    parameters: list[str]

    def first(self, *names: str) -> tuple[str, float] | None:
        """Path and value of the first of these settings that there is."""
        return next(
            ((self.prefix + name, self.settings[name]) for name in names if name in self.settings),
            None,
        )


def groups_of(ctx: Context) -> tuple[Group, ...]:
    """Parameter groups of torch's optimizers and configurations of Keras'."""
    found: tuple[Group, ...] = _once(ctx, "parameter groups", lambda: _groups(ctx.table))
    return found


def _groups(table: TensorTable) -> tuple[Group, ...]:
    groups: dict[str, Group] = {}
    for name, value in table.scalars.items():
        if "param_groups." in name:
            head, _, rest = name.rpartition("param_groups.")
            if head and not head.endswith("."):
                continue
            number, _, setting = rest.partition(".")
            prefix = f"{head}param_groups.{number}."
            optimizer = head[:-1]
        elif "optimizer" in name and "/config/" in name:
            cut = name.rindex("/config/") + len("/config/")
            optimizer, prefix, setting = "", name[:cut], name[cut:]
        else:
            continue
        group = groups.get(prefix)
        if group is None:
            group = groups[prefix] = Group(optimizer, prefix, {}, [])
        if setting.startswith("params."):
            group.parameters.append(str(value) if isinstance(value, float) else _label(value))
        else:
            group.settings[setting] = as_float(value)
    return tuple(groups.values())


def _label(number: int) -> str:
    """Give the key of a parameter's state; Python refuses to print integers of 4,300 digits."""
    return str(number) if number.bit_length() < 128 else ""


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


def numbered_variables(ctx: Context) -> Mapping[str, list[TensorInfo]]:
    """Variables of Keras optimizers that are stored by number, in order, by their group."""

    def compute() -> dict[str, list[TensorInfo]]:
        found: dict[str, list[tuple[int, TensorInfo]]] = {}
        for info in infos_of(ctx, "optimizer"):
            if info.path[0] == "optimizer" and info.path[-2:-1] == ("vars",):
                number = info.path[-1]
                if number.isdecimal() and len(number) < 9:
                    group = info.name[: -len(number)]
                    found.setdefault(group, []).append((int(number), info))
        return {
            group: [info for _, info in sorted(rows, key=lambda row: row[0])]
            for group, rows in found.items()
        }

    variables: Mapping[str, list[TensorInfo]] = _once(ctx, "numbered variables", compute)
    return variables


_NONNEGATIVE_SHARE = 0.5
"""Share of the second variables of all pairs that must be free of negative values."""


def second_moments(ctx: Context) -> list[TensorInfo]:
    """Tensors of second moments: those with the name of one, and of numbered pairs the second.

    Adam numbers momentum, velocity, momentum, velocity ...; that a file does so is seen from
    shapes that come in pairs of which the first has negative values and the second mostly has
    none.  No other optimizer's variables look like it: SGD's momenta are negative everywhere.
    """
    found: list[TensorInfo] = _once(ctx, "second moments", lambda: _second_moments(ctx))
    return found


def _second_moments(ctx: Context) -> list[TensorInfo]:
    infos = infos_of(ctx, "optimizer")
    found = [info for info in infos if is_second_moment(info)]
    for variables in numbered_variables(ctx).values():
        slots = [info for info in variables if info.shape]
        firsts, seconds = slots[::2], slots[1::2]
        if not seconds or [i.shape for i in firsts] != [i.shape for i in seconds]:
            continue
        signed = [_has_negatives(ctx, info) for info in firsts]
        wrong = sum(_has_negatives(ctx, info) for info in seconds)
        if any(signed) and wrong < _NONNEGATIVE_SHARE * len(seconds):
            found += seconds
    return found


def _has_negatives(ctx: Context, info: TensorInfo) -> bool:
    low = ctx.stats[info.name].minimum
    return low is not None and low < 0


def shapes_of(ctx: Context) -> Mapping[str, dict[str, TensorInfo]]:
    """Per torch optimizer: a parameter's name in its state -> a tensor that is shaped like it."""

    def compute() -> dict[str, dict[str, TensorInfo]]:
        found: dict[tuple[str, ...], dict[str, TensorInfo]] = {}
        for info in infos_of(ctx, "optimizer"):
            path = info.path
            if len(path) >= 3 and path[-3] == "state" and path[-1] in _SHAPED_LIKE_PARAMETER:
                found.setdefault(path[:-3], {}).setdefault(path[-2], info)
        return {".".join(path): slots for path, slots in found.items()}

    shapes: Mapping[str, dict[str, TensorInfo]] = _once(ctx, "optimizer shapes", compute)
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

    owners: Mapping[tuple[str, str], str] = _once(ctx, "owners of slots", compute)
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


def as_float(number: float) -> float:
    """Give an integer of any size as a float.

    Examples
    --------
    >>> as_float(3), as_float(-(10**400))
    (3.0, -inf)
    """
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def is_finite(number: float) -> bool:
    """Whether a number of any size is neither NaN nor infinite.

    Examples
    --------
    >>> is_finite(10**400), is_finite(float("inf"))
    (True, False)
    """
    return isinstance(number, int) or math.isfinite(number)
