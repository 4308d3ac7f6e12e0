"""Faults of weights and running statistics: the same edits whatever the framework.

Every function is a generator of `Fault`s for one patient, at early, middle and late layers and in
several strengths; those that a real event causes are made by that event in `lived`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from .patients import Array, Fault, Patient, Spot

Source = Callable[[Patient], Iterator[Fault]]
PLAIN = ("state_dict", "parallel", "safetensors", "checkpoint")
"""Layouts in which a tensor may be missing, empty or of another type."""
KERNELS = ("kernel", "embedding")


def like(value: Array, fill: float) -> Array:
    return np.full_like(value, fill)


def at(value: Array, index: Any, new: float) -> Array:
    """Copy with some elements replaced."""
    value = value.copy()
    value[index] = new
    return value


def scaled(value: Array, factor: float) -> Array:
    """Copy times a factor, within the type's range."""
    limit = float(np.finfo(value.dtype).max)
    with np.errstate(over="ignore"):
        return np.clip(value.astype(np.float64) * factor, -limit, limit).astype(value.dtype)


def statistics(spot: Spot) -> tuple[str, ...]:
    return spot.parts["mean"], spot.parts["var"]


def whole(spot: Spot) -> tuple[str, ...]:
    return tuple(spot.parts.values())


HEADS = ("fc", "classifier", "predictions")


def masked(p: Patient) -> Iterator[Fault]:
    """NF003: infinities that are meant to be there."""
    for name, value in p.weights.items():
        if np.isneginf(value).any():
            yield Fault(
                code="NF003",
                what="a causal mask",
                place=name,
                targets=(name,),
                defined="it is there",
            )
    for spot in p.of_kind("kernel"):
        if spot.layer in HEADS:
            name = spot.parts["bias"]
            yield Fault(code="NF003", what="a class masked by the head's bias", place=spot.layer, targets=(name,),
                        change={name: at(p.weights[name], 1, -np.inf)}, defined="it is there")  # fmt: skip


def nonfinite(p: Patient) -> Iterator[Fault]:
    """NF001 and NF002: weights, gains and biases."""
    for code, bad in (("NF001", np.nan), ("NF002", np.inf), ("NF002", -np.inf)):
        for place, spot in p.places(*KERNELS):
            for part in ("kernel", "bias"):
                if name := spot.parts.get(part):
                    index = int(p.rng(place, part, code).integers(p.weights[name].size))
                    one = at(p.weights[name], np.unravel_index(index, p.weights[name].shape), bad)
                    if (
                        part == "kernel" or bad != -np.inf or spot.layer not in HEADS
                    ):  # see `masked`
                        yield Fault(code=code, what=f"{part}: one element {bad}", place=place,
                                    change={name: one}, targets=(name,))  # fmt: skip
                    yield Fault(code=code, what=f"{part}: all elements {bad}", place=place,
                                change={name: like(one, bad)}, targets=(name,))  # fmt: skip
        for place, spot in p.places("bn", count=2):
            if name := spot.parts.get("gamma"):
                one = at(p.weights[name], 0, bad)
                yield Fault(code=code, what=f"gamma: one element {bad}", place=place,
                            change={name: one}, targets=(name,))  # fmt: skip


def bn001(p: Patient) -> Iterator[Fault]:
    for place, spot in p.places("bn"):
        mean, var = (p.weights[n] for n in statistics(spot))
        channel = int(p.rng(place).integers(mean.size))
        cases: Mapping[str, tuple[Array, Array]] = {
            "mean and var NaN in one channel": (
                at(mean, channel, np.nan),
                at(var, channel, np.nan),
            ),
            "mean and var NaN everywhere": (like(mean, np.nan), like(var, np.nan)),
            "var Inf in one channel": (mean, at(var, channel, np.inf)),
            "var Inf everywhere, mean finite": (mean, like(var, np.inf)),
            "var NaN everywhere, mean finite": (mean, like(var, np.nan)),
            "mean -Inf in one channel": (at(mean, channel, -np.inf), var),
        }
        for what, (new_mean, new_var) in cases.items():
            new = dict(zip(statistics(spot), (new_mean, new_var), strict=True))
            bad = tuple(n for n, v in new.items() if not np.isfinite(v).all())
            yield Fault(code="BN001", what=what, place=place, change=new, targets=bad)


def bn002(p: Patient) -> Iterator[Fault]:
    for place, spot in p.places("bn"):
        name = spot.parts["var"]
        var = p.weights[name]
        channel = int(p.rng(place).integers(var.size))
        half = p.rng(place, "half").random(var.size) < 0.5
        cases = {
            "one channel negated": at(var, channel, -var[channel]),
            "half the channels negated": np.where(half, -var, var),
            "all channels negated": -var,
            "one channel -0.01": at(var, channel, -0.01),
            "one channel -1e-9": at(var, channel, -1e-9),
        }
        for what, new in cases.items():
            yield Fault(code="BN002", what=what, place=place, change={name: new}, targets=(name,))


def bn003(p: Patient) -> Iterator[Fault]:
    for place, spot in p.places("bn", count=4):
        name = spot.parts["var"]
        var = p.weights[name]
        channel = int(p.rng(place).integers(var.size))
        touched = (spot.parts["mean"],)
        for factor in (1e2, 1e3, 1e4, 1e6, 1e8):
            yield Fault(code="BN003", what=f"whole layer x {factor:g}", place=place,
                        change={name: scaled(var, factor)}, targets=(name,), touched=touched)  # fmt: skip
        for factor in (1e4, 1e6, 1e8):
            one = at(var, channel, max(float(var[channel]), float(np.median(var))) * factor)
            yield Fault(code="BN003", what=f"one channel x {factor:g}", place=place,
                        change={name: one}, targets=(name,), touched=touched)  # fmt: skip


def bn004(p: Patient) -> Iterator[Fault]:
    for place, spot in p.places("bn"):
        name = spot.parts["var"]
        var = p.weights[name]
        half = p.rng(place).random(var.size) < 0.5
        half[0] = True
        cases = {
            "whole layer 0": like(var, 0),
            "whole layer x 1e-6": var * np.float32(1e-6),
            "whole layer x 1e-12": var * np.float32(1e-12),
            "half the channels 0": np.where(half, 0, var).astype(var.dtype),
            "one channel 1e-12": at(var, 0, 1e-12),
        }
        for what, new in cases.items():
            yield Fault(code="BN004", what=what, place=place, change={name: new},
                        targets=(name,), touched=whole(spot))  # fmt: skip


def bn005(p: Patient) -> Iterator[Fault]:
    for place, spot in p.places("bn"):
        if name := spot.parts.get("gamma"):
            gamma = p.weights[name]
            most = p.rng(place).random(gamma.size) < 0.8
            cases = {"all 0": like(gamma, 0), "80 % x 1e-6": np.where(most, gamma * 1e-6, gamma)}
            for what, new in cases.items():
                yield Fault(code="BN005", what=what, place=place,
                            change={name: new.astype(gamma.dtype)}, targets=(name,))  # fmt: skip


def bn006(p: Patient) -> Iterator[Fault]:
    spots = p.of_kind("bn")

    def reset(*chosen: Spot) -> dict[str, Array]:
        new = {s.parts["mean"]: like(p.weights[s.parts["mean"]], 0) for s in chosen}
        return new | {s.parts["var"]: like(p.weights[s.parts["var"]], 1) for s in chosen}

    for place, spot in p.places("bn"):
        yield Fault(code="BN006", what="one layer 0/1, its batches counted", place=place,
                    change=reset(spot), targets=whole(spot))  # fmt: skip
    if spots:
        every = tuple(n for s in spots for n in whole(s))
        yield Fault(code="BN006", what="all layers 0/1, batches counted (momentum 0)",
                    place=f"all {len(spots)}", change=reset(*spots), targets=every)  # fmt: skip
        counts = {
            s.parts["count"]: p.weights[s.parts["count"]] * 0 for s in spots if "count" in s.parts
        }
        if counts:
            yield Fault(code="BN006", what="all layers 0/1 with 0 batches (averaged weights)",
                        place=f"all {len(spots)}", change=reset(*spots) | counts, targets=every)  # fmt: skip


def bn007(p: Patient) -> Iterator[Fault]:
    if p.framework != "torch":
        return
    for place, spot in p.places("bn"):
        for gone in (("mean", "var"), ("var",), ("mean",)):
            yield Fault(code="BN007", what=f"without {' and '.join(gone)}", place=place,
                        change={spot.parts[part]: None for part in gone}, targets=whole(spot),
                        layouts=PLAIN, defined="strict loading fails, lenient loading leaves 0/1")  # fmt: skip


def bn009(p: Patient) -> Iterator[Fault]:
    for place, spot in p.places("bn"):
        mean, var = statistics(spot)
        every = whole(spot)
        yield Fault(code="BN009", what="mean is a copy of var", place=place,
                    change={mean: p.weights[var]}, targets=every)  # fmt: skip
        yield Fault(code="BN009", what="var is a copy of |mean|", place=place,
                    change={var: np.abs(p.weights[mean]), mean: np.abs(p.weights[mean])}, targets=every)  # fmt: skip
        twins = [s for s in p.of_kind("bn")
                 if s is not spot and p.weights[s.parts["var"]].shape == p.weights[var].shape]  # fmt: skip
        if twins:
            twin = twins[int(p.rng(place).integers(len(twins)))]
            new = {spot.parts[k]: p.weights[twin.parts[k]] for k in ("mean", "var")}
            yield Fault(code="BN009", what="both copied from another layer", place=place, change=new,
                        targets=(*every, *whole(twin)))  # fmt: skip


def bn010(p: Patient) -> Iterator[Fault]:
    for place, spot in p.places("bn"):
        if name := spot.parts.get("gamma"):
            gamma = p.weights[name]
            for factor in (1e2, 1e3, 1e4, 1e6):
                yield Fault(code="BN010", what=f"whole layer x {factor:g}", place=place,
                            change={name: scaled(gamma, factor)}, targets=whole(spot))  # fmt: skip
            for value in (1e4, 1e6):
                yield Fault(code="BN010", what=f"one channel {value:g}", place=place,
                            change={name: at(gamma, 0, value)}, targets=whole(spot))  # fmt: skip


def kernels(
    code: str, cases: Callable[[Array, Spot], Mapping[str, Array]], count: int = 3
) -> Source:
    """Faults of kernels that need nothing but the values."""

    def source(p: Patient) -> Iterator[Fault]:
        for kind in KERNELS:
            for place, spot in p.places(kind, count=count):
                name = spot.parts["kernel"]
                for what, new in cases(p.weights[name], spot).items():
                    yield Fault(code=code, what=what, place=place,
                                change={name: new.astype(p.weights[name].dtype)}, targets=(name,))  # fmt: skip

    return source


def _zero(w: Array, _: Spot) -> Mapping[str, Array]:
    return {"all 0": like(w, 0)}


def _constant(w: Array, _: Spot) -> Mapping[str, Array]:
    return {
        "all mean |w|": like(w, float(np.abs(w).mean())),
        "all 1": like(w, 1),
        "all 0.01": like(w, 0.01),
    }


def _exploded(w: Array, _: Spot) -> Mapping[str, Array]:
    return {f"whole kernel x {f:g}": scaled(w, f) for f in (1e3, 1e4, 1e6, 1e8, 1e12)}


def _vanished(w: Array, _: Spot) -> Mapping[str, Array]:
    return {f"whole kernel x {f:g}": w * np.float32(f) for f in (1e-4, 1e-6, 1e-8, 1e-12)}


def _duplicated(w: Array, spot: Spot) -> Mapping[str, Array]:
    units = np.moveaxis(w, spot.out, 0)
    same = np.broadcast_to(units[:1], units.shape)
    most = units.copy()
    most[np.random.default_rng(w.size).permutation(len(most))[: -(-len(most) * 3 // 4)]] = units[0]
    return {
        "all units alike": np.moveaxis(same, 0, spot.out).copy(),
        "three quarters of the units alike": np.moveaxis(most, 0, spot.out).copy(),
    }


def wt004(p: Patient) -> Iterator[Fault]:
    for kind in KERNELS:
        for place, spot in p.places(kind):
            name = spot.parts["kernel"]
            for bit in (30, 29, 28, 27, 26):
                new = p.weights[name].copy()
                index = int(p.rng(place, bit).integers(new.size))
                new.reshape(-1).view(np.uint32)[index] ^= np.uint32(1 << bit)
                yield Fault(code="WT004", what=f"bit {bit} of one element", place=place,
                            change={name: new}, targets=(name,))  # fmt: skip


def wt007(p: Patient) -> Iterator[Fault]:
    for place, spot in p.places("weightnorm"):
        name = spot.parts["v"]
        for what, index in {"one direction 0": 1, "all directions 0": slice(None)}.items():
            new = at(p.weights[name], index, 0)
            yield Fault(code="WT007", what=what, place=place, change={name: new}, targets=(name,))


def wt009(p: Patient) -> Iterator[Fault]:
    if p.framework != "torch":
        return
    matrices = tuple(n for n, v in p.weights.items() if v.ndim >= 2 and np.isfinite(v).all())
    for place, spot in p.places("kernel"):
        name = spot.parts["kernel"]
        for what, names in {"one kernel": (name,), "every matrix": matrices}.items():
            yield Fault(code="WT009", what=f"{what} of shape [0]", place=place,
                        change={n: np.empty(0, np.float32) for n in names}, targets=names,
                        layouts=PLAIN, defined="cannot be loaded")  # fmt: skip


def _garbage(w: Array, _: Spot) -> Mapping[str, Array]:
    """What memory held before: pointers, text, doubles, anything."""
    rng = np.random.default_rng(w.size)
    count = w.size
    pointers = (0x7F3A_0000_0000 + rng.integers(0, 1 << 24, count // 2 + 1) * 16).astype(np.int64)
    text = rng.integers(32, 127, count * 4, dtype=np.uint8)
    doubles = rng.normal(0, 0.05, count // 2 + 1)
    indices = rng.integers(0, 1000, count).astype(np.int32)
    kinds = {"pointers": pointers, "text": text, "doubles": doubles, "small integers": indices,
             "random bytes": rng.integers(0, 256, count * 4, dtype=np.uint8)}  # fmt: skip
    return {f"all {k}": v.view(np.float32)[:count].reshape(w.shape) for k, v in kinds.items()}


def wt011(p: Patient) -> Iterator[Fault]:
    for place, spot in p.places("norm"):
        name = spot.parts["gamma"]
        gain = p.weights[name]
        for what, new in {"gain all 0": like(gain, 0), "gain all NaN": like(gain, np.nan),
                          "gain: one Inf": at(gain, 0, np.inf), "gain: one NaN": at(gain, 0, np.nan)}.items():  # fmt: skip
            yield Fault(code="WT011", what=what, place=place, change={name: new}, targets=(name,))
    for place, spot in p.places("normalization"):
        name = spot.parts["var"]
        var = p.weights[name]
        for what, new in {"variance all 0": like(var, 0), "variance: one NaN": at(var, 0, np.nan),
                          "variance: one 0": at(var, 0, 0)}.items():  # fmt: skip
            yield Fault(code="WT011", what=what, place=place, change={name: new}, targets=(name,))


SOURCES: tuple[Source, ...] = (
    masked, nonfinite, bn001, bn002, bn003, bn004, bn005, bn006, bn007, bn009, bn010,
    kernels("WT001", _zero, 4), kernels("WT002", _constant), kernels("WT003", _exploded),
    wt004, kernels("WT005", _duplicated), kernels("WT006", _vanished), wt007, wt009,
    kernels("WT010", _garbage, 2), wt011,
)  # fmt: skip
