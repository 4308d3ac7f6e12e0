"""Initialisation laws: what frameworks draw new weights from, by name and numbers.

``he``, ``glorot`` and ``lecun`` are as Keras draws them (normal ones truncated at two standard
deviations), ``kaiming`` and ``xavier`` as torch does (not truncated).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ..errors import UsageError
from ..hints import shown, suggestion
from ..tensors import Array

if TYPE_CHECKING:
    from numpy.random import Generator

__all__ = ["LAWS", "Law", "draw", "generator", "law", "parse_order", "reach", "spread"]

BLOCK = 1 << 18
"""Elements that are drawn at a time: a law's float32 takes 1 MiB beside the tensor."""

TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal law that is cut at two: Keras divides by it."""

LARGEST = 1e100
"""Largest argument: its square is still a float64."""

MODES = ("fan_in", "fan_out", "fan_avg")
DISTRIBUTIONS = {
    "truncated_normal": "truncated",
    "normal": "truncated",  # what Keras means by it
    "untruncated_normal": "normal",
    "uniform": "uniform",
}
_SPELLINGS = {"stddev": "std", "minval": "low", "maxval": "high"}

Shape = Literal["normal", "truncated", "uniform", "constant", "orthogonal", "forget"]


class Law(NamedTuple):
    """A law with all of its arguments; `law` makes and checks them.

    Examples
    --------
    >>> print(law("kaiming_uniform", a=5**0.5))
    kaiming_uniform(a=2.236, mode=fan_in)
    """

    name: str
    arguments: tuple[tuple[str, float | str], ...] = ()

    def __str__(self) -> str:
        if not self.arguments:
            return self.name
        told = (f"{k}={v if isinstance(v, str) else f'{v:.4g}'}" for k, v in self.arguments)
        return f"{self.name}({', '.join(told)})"

    @property
    def by_fan(self) -> bool:
        """Whether it depends on the number of inputs or outputs."""
        return "mode" in dict(self.arguments)

    @property
    def random(self) -> bool:
        """Whether it gives different elements different values."""
        return LAWS[self.name].shape not in ("constant", "forget")


class Spread(NamedTuple):
    """Where values fall: around ``centre``, by a standard deviation, half a range or a gain."""

    shape: Shape
    centre: float
    width: float


class _Row(NamedTuple):
    shape: Shape
    defaults: Mapping[str, float | str | None] = {}
    """Arguments; None for one that has no default."""
    scale: float = 1.0
    """Variance times fan, before the arguments."""


_FAN_IN, _FAN_AVG = {"mode": "fan_in"}, {"mode": "fan_avg"}

LAWS: Mapping[str, _Row] = {
    "kaiming_normal": _Row("normal", {"a": 0.0, **_FAN_IN}, 2.0),
    "kaiming_uniform": _Row("uniform", {"a": 0.0, **_FAN_IN}, 2.0),
    "he_normal": _Row("truncated", _FAN_IN, 2.0),
    "he_uniform": _Row("uniform", _FAN_IN, 2.0),
    "xavier_normal": _Row("normal", {"gain": 1.0, **_FAN_AVG}),
    "xavier_uniform": _Row("uniform", {"gain": 1.0, **_FAN_AVG}),
    "glorot_normal": _Row("truncated", _FAN_AVG),
    "glorot_uniform": _Row("uniform", _FAN_AVG),
    "lecun_normal": _Row("truncated", _FAN_IN),
    "lecun_uniform": _Row("uniform", _FAN_IN),
    "variance_scaling": _Row(
        "truncated", {"scale": 1.0, **_FAN_IN, "distribution": "truncated_normal"}
    ),
    "orthogonal": _Row("orthogonal", {"gain": 1.0}),
    "truncated_normal": _Row("truncated", {"mean": 0.0, "std": None}),
    "normal": _Row("normal", {"mean": 0.0, "std": None}),
    "uniform": _Row("uniform", {"low": None, "high": None}),
    "constant": _Row("constant", {"value": None}),
    "zeros": _Row("constant"),
    "ones": _Row("constant"),
    "unit_forget_bias": _Row("forget"),
}
"""Every law by name.  Those with a ``mode`` scale with the fan."""

ALIASES: Mapping[str, str] = {
    "kaiming": "kaiming_normal",
    "he": "he_normal",
    "xavier": "xavier_uniform",
    "glorot": "glorot_uniform",
    "lecun": "lecun_normal",
    "random_normal": "normal",
    "random_uniform": "uniform",
    "trunc_normal": "truncated_normal",
    "zero": "zeros",
    "one": "ones",
}
"""Families stand for the law of the paper that is named after them."""


def law(name: str, /, **arguments: float | str) -> Law:
    """Law of a name or alias, with defaults for what is not given.

    Raises
    ------
    UsageError
        For a law or an argument that does not exist, a missing one, or a value that it cannot have.

    Examples
    --------
    >>> print(law("he"), law("constant", value=0.1))
    he_normal(mode=fan_in) constant(value=0.1)
    """
    name = ALIASES.get(name.lower(), name.lower())
    row = LAWS.get(name)
    if row is None:
        hint = suggestion(name, [*LAWS, *ALIASES]) or f"laws are {', '.join(LAWS)}"
        raise UsageError(f"no law {shown(name)}", hint=hint)
    given = {_SPELLINGS.get(key, key): value for key, value in arguments.items()}
    for key in given:
        if key not in row.defaults:
            hint = suggestion(key, row.defaults) or f"it has {' and '.join(row.defaults) or 'none'}"
            raise UsageError(f"{name} has no argument {shown(key)}", hint=hint)
    full = {key: given.get(key, default) for key, default in row.defaults.items()}
    checked = tuple((key, _checked(name, key, value)) for key, value in full.items())
    made = Law(name, checked)
    low, high = full.get("low"), full.get("high")
    if isinstance(low, float | int) and isinstance(high, float | int) and not low < high:
        raise UsageError(f"expected low of {made} to be below high")
    return made


def _checked(name: str, key: str, value: float | str | None) -> float | str:
    """Check an argument: a word of its kind, or a finite number that the law can have."""
    words: Sequence[str] = {"mode": MODES, "distribution": tuple(DISTRIBUTIONS)}.get(key, ())
    if words:
        if value not in words:
            raise UsageError(
                f"expected {key} of {name} to be {' or '.join(words)}, found {shown(value)}"
            )
        return str(value)
    if value is None:
        raise UsageError(f"{name} needs {key}", hint=f"write {name}({key}=NUMBER)")
    if isinstance(value, str | bool) or not abs(value) <= LARGEST:
        raise UsageError(f"expected {key} of {name} to be a finite number, found {shown(value)}")
    if (key in ("std", "scale") and value <= 0) or (key == "gain" and value == 0):
        raise UsageError(f"expected {key} of {name} to be above 0, found {shown(value)}")
    return float(value)


def parse_order(text: str) -> tuple[str, Law | None]:
    """Read ``GLOB``, ``GLOB=LAW`` or ``GLOB=LAW(argument=number, ...)``; None for no law.

    A pattern that holds ``=`` itself ends with ``=`` where it names no law.

    Raises
    ------
    UsageError
        For anything else.

    Examples
    --------
    >>> parse_order("head.*")
    ('head.*', None)
    >>> pattern, found = parse_order("conv[12].weight=normal(std=0.02)")
    >>> pattern, str(found)
    ('conv[12].weight', 'normal(mean=0, std=0.02)')
    >>> parse_order("a=b=")
    ('a=b', None)
    """
    if "=" not in text:
        if not text:
            raise UsageError("expected a pattern of tensor names, found nothing")
        return text, None
    match = re.fullmatch(r"(.+)=[ ]*(?:([A-Za-z]\w*)[ ]*(?:\(([^()]*)\))?)?[ ]*", text, re.DOTALL)
    if match is None:
        message = f"expected PATTERN=LAW or PATTERN=LAW(argument=number, ...), found {shown(text)}"
        raise UsageError(message, hint="a pattern that holds '=' itself ends with '='")
    pattern, name, inside = match.groups()
    if name is None:
        return pattern, None
    return pattern, law(name, **_arguments(name, inside or ""))


def _arguments(name: str, inside: str) -> dict[str, float | str]:
    found: dict[str, float | str] = {}
    for part in inside.split(",") if inside.strip() else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (equals and key and value) or key in found:
            what = f"argument {shown(key)} once" if key in found else "argument=number"
            raise UsageError(f"expected {what} in {name}(...), found {shown(part.strip())}")
        try:
            found[key] = float(value)
        except ValueError:
            found[key] = value
    return found


def generator(seed: int, name: str) -> Generator:
    """Make the random numbers of one tensor: they depend on the seed and its name, not on other tensors.

    Examples
    --------
    >>> generator(0, "fc.weight").integers(100, size=3).tolist()
    [84, 29, 79]
    """
    import hashlib  # noqa: PLC0415  (only where something is drawn)

    from numpy.random import PCG64, Generator, SeedSequence  # noqa: PLC0415  (8 ms)

    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    words = [seed & ((1 << 64) - 1), int.from_bytes(digest[:16], "little")]
    return Generator(PCG64(SeedSequence(words)))


def spread(law: Law, fan_in: int, fan_out: int) -> Spread:
    """Where a law's values fall for these fans.

    Examples
    --------
    >>> spread(law("glorot_uniform"), 300, 300).width
    0.1
    """
    row, given = LAWS[law.name], dict(law.arguments)

    def number(key: str, default: float = 0.0) -> float:
        return float(given.get(key, default))

    if law.by_fan:
        fan = {"fan_in": fan_in, "fan_out": fan_out}.get(str(given["mode"]), (fan_in + fan_out) / 2)
        scale = row.scale * number("scale", 1.0) * number("gain", 1.0) ** 2
        std = math.sqrt(scale / (1 + number("a") ** 2) / max(1.0, fan))
        told = DISTRIBUTIONS.get(str(given.get("distribution")), row.shape)
        if told == "uniform":
            return Spread("uniform", 0.0, math.sqrt(3.0) * std)
        if told == "truncated":
            return Spread("truncated", 0.0, std / TRUNCATED_STD)
        return Spread("normal", 0.0, std)
    if row.shape == "uniform":
        low, high = number("low"), number("high")
        return Spread("uniform", low / 2 + high / 2, high / 2 - low / 2)
    if row.shape == "constant":
        return Spread("constant", 1.0 if law.name == "ones" else number("value"), 0.0)
    if row.shape == "forget":
        return Spread("forget", 0.0, 1.0)
    return Spread(row.shape, number("mean"), number("std" if "std" in given else "gain"))


def reach(found: Spread) -> tuple[float, float]:
    """Least and largest value that a spread gives; for a normal law practically so."""
    times = {"normal": 8.0, "truncated": 2.0}.get(found.shape, 1.0)
    width = abs(found.width) * times
    low = 0.0 if found.shape == "forget" else found.centre - width
    return low, found.centre + width


def draw(
    law: Law,
    shape: tuple[int, ...],
    *,
    fan_in: int,
    fan_out: int,
    rng: Generator,
    dtype: np.dtype[Any],
    outputs_last: bool = False,
) -> Array:
    """Values of a law.

    Parameters
    ----------
    law, shape
        What to draw, and how many.
    fan_in, fan_out
        Inputs and outputs that a weight has, as its framework counts them.
    rng
        See `generator`.
    dtype
        Of the result; drawn in float32, in float64 where the result is.
    outputs_last
        Whether the last axis counts outputs (Keras) or the first (torch): an orthogonal law
        makes it the side of a matrix.

    Examples
    --------
    >>> rng = generator(0, "fc.weight")
    >>> made = draw(law("orthogonal"), (2, 8), fan_in=8, fan_out=2, rng=rng, dtype=np.dtype("f4"))
    >>> (made @ made.T).round(4).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    with np.errstate(over="ignore", invalid="ignore"):  # 1e6 as float16: the caller has looked
        return _drawn(spread(law, fan_in, fan_out), shape, rng, dtype, outputs_last)


def _drawn(
    where: Spread, shape: tuple[int, ...], rng: Generator, dtype: np.dtype[Any], outputs_last: bool
) -> Array:
    if where.shape == "constant":
        return np.full(shape, where.centre, dtype)
    if where.shape == "forget":
        return _forget(shape, dtype)
    fine: Any = np.float64 if dtype == np.float64 else np.float32
    if where.shape == "orthogonal":
        return _orthogonal(shape, rng, fine, outputs_last, where.width).astype(dtype)
    source = _source(where.shape, rng, fine)
    made = np.empty(shape, dtype)
    flat = made.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        block = source(min(BLOCK, flat.size - start))
        block *= where.width
        block += where.centre
        flat[start : start + block.size] = block
    return made


def _source(shape: Shape, rng: Generator, fine: Any) -> Callable[[int], Array]:
    """Draw in units of the width, around 0."""
    if shape == "uniform":
        return lambda count: rng.random(count, fine) * 2 - 1
    if shape == "normal":
        return lambda count: rng.standard_normal(count, fine)
    return lambda count: _truncated(rng, count, fine)


def _truncated(rng: Generator, count: int, fine: Any) -> Array:
    made = rng.standard_normal(count, fine)
    while (far := np.flatnonzero(np.abs(made) > 2)).size:
        made[far] = rng.standard_normal(far.size, fine)
    return made


def _orthogonal(
    shape: tuple[int, ...], rng: Generator, fine: Any, outputs_last: bool, gain: float
) -> Array:
    """Rows or columns, whichever are fewer, are orthonormal, times the gain."""
    side = shape[-1] if outputs_last else shape[0]
    rest = math.prod(shape) // side
    rows, columns = (rest, side) if outputs_last else (side, rest)
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns)), fine))
    q *= np.where(np.diag(r) < 0, -1, 1).astype(fine)  # else not uniform over all rotations
    made: Array = (q if rows >= columns else q.T) * fine(gain)
    return made.reshape(shape)


def _forget(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Bias of a Keras LSTM: 0, but 1 for the forget gate, the second of four."""
    made = np.zeros(shape, dtype)
    quarter = shape[-1] // 4
    made[..., quarter : 2 * quarter] = 1
    return made
