"""What the rules about training state share: what an optimizer keeps for which parameter, and how.

Three layouts are known.  torch: ``optimizer.state.0.exp_avg_sq`` beside the numbers
``optimizer.param_groups.0.lr``.  Keras with names: ``optimizer_weights/adam/fc_kernel_velocity``,
``optimizer_weights/v/fc/kernel:0`` and ``optimizer_weights/Adam/fc/kernel/v:0``, one for each
generation, beside the numbers of its configuration.  Keras by number: ``optimizer/vars/7``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..tensors import Array, Role, TensorInfo, TensorTable
from .base import Context

__all__ = [
    "COMPLETE_BELOW",
    "Group",
    "as_float",
    "groups_of",
    "infos_of",
    "is_finite",
    "nonfinite",
    "once",
    "only_value",
    "rows_of",
    "rows_where",
    "shown",
]

COMPLETE_BELOW = 20_000
"""Numbers of a checkpoint below which none is missing: an adapter that meets more stops there."""


def once(ctx: Context, topic: str, compute: Callable[[], Any]) -> Any:
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

    rows: Mapping[Role, tuple[Array, list[TensorInfo]]] = once(ctx, "rows by role", compute)
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
    found: tuple[Group, ...] = once(ctx, "parameter groups", lambda: _groups(ctx.table))
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
