"""Faults of precision, of the training state and of the stored configuration.

The output in evaluation mode cannot show most of them; each says by which definition it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from ckptdoctor.findings import Severity

from .faults import PLAIN, Source, at, like, scaled, statistics, whole
from .patients import Array, Fault, Patient

TRAINING = ("checkpoint", "lightning")
RESUME = "the next step of training"


def halved(p: Patient) -> dict[str, Array]:
    """Every floating-point weight in float16, as ``.half()`` makes them."""
    with np.errstate(over="ignore"):
        return {n: v.astype(np.float16) for n, v in p.weights.items() if v.dtype == np.float32}


def raw_input(p: Patient, scale: float) -> dict[str, Array]:
    """The same model as if its input had been ``scale`` times larger: healthy, but wide."""
    spot = p.of_kind("bn")[0]
    mean, var = statistics(spot)
    return {mean: scaled(p.weights[mean], scale), var: scaled(p.weights[var], scale**2)}


def bn008(p: Patient) -> Iterator[Fault]:
    if not p.of_kind("bn"):
        return
    first = p.of_kind("bn")[0]
    yield Fault(code="BN008", what="raw input (var x 65535^2), cast to float16", place=first.layer,
                change=raw_input(p, 65535.0), targets=whole(first), cast_to="float16",
                touched=whole(first), defined="the variance becomes Inf")  # fmt: skip
    if p.framework != "torch":
        return
    names = tuple(n for s in p.of_kind("bn") for n in statistics(s))
    yield Fault(code="BN008", what="everything in float16", place=f"all {len(names) // 2}", change=halved(p),
                targets=names, layouts=PLAIN, least=Severity.NOTE,
                defined="statistics with 11 bits, at most 65504")  # fmt: skip


def precision(p: Patient) -> Iterator[Fault]:
    """PR001 to PR003, by casts asked for and by what is stored already."""
    for place, spot in p.places("kernel", "embedding"):
        name = spot.parts["kernel"]
        w = p.weights[name]
        for to, value in (("float16", 1e5), ("float8_e4m3fn", 1e3), ("float8_e5m2", 1e5)):
            yield Fault(code="PR001", what=f"one element {value:g}, cast to {to}", place=place,
                        change={name: at(w, (0,) * w.ndim, value)}, targets=(name,), cast_to=to,
                        defined="beyond the type's range")  # fmt: skip
        for to, factor in (("float16", 1e-9), ("float8_e4m3fn", 1e-5), ("float8_e5m2", 1e-7)):
            yield Fault(code="PR002", what=f"kernel x {factor:g}, cast to {to}", place=place,
                        change={name: w * np.float32(factor)}, targets=(name,), cast_to=to,
                        touched=(name,), defined="nearly all of it becomes 0")  # fmt: skip
        if p.framework != "torch":
            continue
        yield Fault(code="PR002", what="stored in float16, x 3e-7 before", place=place,
                    change={**halved(p), name: (w * np.float32(3e-7)).astype(np.float16)}, targets=(name,),
                    layouts=PLAIN, defined="most of it is 0 or subnormal")  # fmt: skip
        for dtype in (np.float16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
            limit = float(ml_dtypes.finfo(dtype).max)
            many = np.where(np.abs(w) > np.quantile(np.abs(w), 0.95), np.sign(w) * limit, w)
            yield Fault(code="PR003", what=f"5 % at the largest {np.dtype(dtype).name}", place=place,
                        change={name: many.astype(dtype)}, targets=(name,), layouts=PLAIN,
                        defined="what was larger is lost")  # fmt: skip


def slots(p: Patient, *words: str) -> list[str]:
    """Paths of the optimizer's tensors of these names, of weights with two dimensions or more."""
    return [n for n, v in p.state.items()
            if n.startswith("optimizer") and isinstance(v, np.ndarray) and v.ndim >= 2
            and any(word in n.rpartition("/")[2].rpartition(".")[2] for word in words)]  # fmt: skip


def spread(names: list[str], count: int = 3) -> list[str]:
    if not names:
        return []
    return [names[i] for i in np.unique(np.linspace(0, len(names) - 1, count).round().astype(int))]


def optimizer_values(p: Patient) -> Iterator[Fault]:
    """TS001 and TS002."""
    second = slots(p, "exp_avg_sq", "velocity")
    if p.framework == "keras":  # SGD calls its first moment a momentum, Adam its second a velocity
        layouts: tuple[str, ...] = ("h5", "keras", "weights.h5")
    else:
        layouts = TRAINING
    for name in spread(slots(p, "exp_avg", "momentum")) + spread(second):
        v = p.state[name]
        for bad in (np.nan, np.inf):
            for what, new in {
                f"one {bad}": at(v, (0,) * v.ndim, bad),
                f"all {bad}": like(v, bad),
            }.items():
                yield Fault(code="TS001", what=what, place=name, change={name: new}, targets=(name,),
                            layouts=layouts, defined=RESUME)  # fmt: skip
    for name in spread(second):
        v = p.state[name]
        one = at(v, (0,) * v.ndim, -max(float(v.max()), 1e-12))
        for what, new in {
            "one element negative": one,
            "all negated": -np.abs(v) - np.float32(1e-12),
        }.items():
            yield Fault(code="TS002", what=what, place=name, change={name: new}, targets=(name,),
                        layouts=layouts, defined=RESUME)  # fmt: skip


def numbers(p: Patient) -> Iterator[Fault]:
    """TS003, TS004, TS005 and TS009: numbers of a torch training checkpoint."""
    if p.framework != "torch":
        return

    def number(code: str, name: str, value: Any, why: str, least: Severity | None = None) -> Fault:
        return Fault(code=code, what=f"{value}", place=name, change={name: value}, targets=(name,),
                     layouts=TRAINING, defined=why, least=least)  # fmt: skip

    for value in (1e3, 1e6, float("inf"), float("nan"), -0.01):
        yield number("TS003", "optimizer.param_groups.0.lr", value, RESUME)
    if "optimizer.param_groups.0.eps" in p.state:
        if any((v == 0).any() for n, v in p.state.items() if n.endswith("exp_avg_sq")):
            yield number("TS004", "optimizer.param_groups.0.eps", 0.0, "0/0 where no gradient came")
        moments = {
            n: p.state[n].astype(np.float16)
            for n in p.state
            if n.endswith(("exp_avg", "exp_avg_sq"))
        }
        yield Fault(code="TS004", what="1e-8 with moments in float16", place="optimizer.param_groups.0.eps",
                    change={**moments, **halved(p)}, layouts=TRAINING, defined="0 in float16",
                    targets=("optimizer.param_groups.0.eps", *moments))  # fmt: skip
    for value in (0.0, 1e-30, 2.0**-20):
        yield number("TS005", "scaler.scale", value, "every step is skipped, or nearly")
    for name in ("loss", "train_loss", "best_loss", "val_loss"):
        yield number("TS009", name, float("nan"), "the loop compares with NaN", Severity.NOTE)
    yield number("TS009", "loss", float("inf"), "the last loss was Inf", Severity.NOTE)


def ema(p: Patient) -> Iterator[Fault]:
    """TS006: one of two copies is sick."""
    if p.framework != "torch":
        return
    copies = {f"ema.{n}": v for n, v in p.weights.items()}
    layouts = ("checkpoint",)
    for place, spot in p.places("bn", "kernel"):
        name = spot.parts.get("var") or spot.parts["kernel"]
        v = p.weights[name]
        for what, new in {"all NaN": like(v, np.nan), "one Inf": at(v, (0,) * v.ndim, np.inf),
                          "all x 1e6": scaled(v, 1e6)}.items():  # fmt: skip
            why = "where the EMA is served" if "1e6" not in what else "far from the other copy"
            yield Fault(code="TS006", what=f"EMA: {what}", place=place, change={**copies, f"ema.{name}": new},
                        targets=(f"ema.{name}",), layouts=layouts, defined=why)  # fmt: skip
        yield Fault(code="TS006", what="model: all NaN, EMA fine", place=place,
                    change={**copies, name: like(v, np.nan)}, targets=(name, f"ema.{name}"), layouts=layouts,
                    defined="the model is lost, its copy is not")  # fmt: skip


def mismatch(p: Patient) -> Iterator[Fault]:
    """TS007: the optimizer of another model."""
    if p.framework != "torch":
        return
    matrices = slots(p, "exp_avg", "momentum_buffer")
    for name in spread(matrices, 2):
        v = p.state[name]
        group = tuple(n for n in p.state if n.startswith(name.rpartition(".")[0] + "."))
        wider = {
            n: np.concatenate([p.state[n]] * 2) for n in group if np.ndim(p.state[n]) == v.ndim
        }
        yield Fault(code="TS007", what="moments of twice the rows", place=name, change=wider,
                    targets=(*group, "optimizer"), layouts=TRAINING, defined="loading fails or the step does")  # fmt: skip
    head = [spot for spot in p.of_kind("kernel") if spot.layer in ("fc", "classifier")]
    for spot in head:
        rows = {n: p.weights[n][:-1] for n in whole(spot)}  # a class less, and still an output
        state = [p.parameters.index(n) for n in rows]  # type: ignore[attr-defined]
        found = tuple(n for n in p.state for i in state if n.startswith(f"optimizer.state.{i}."))
        yield Fault(code="TS007", what="the head was replaced, its moments were not", place=spot.layer,
                    change=rows, targets=found, layouts=TRAINING, defined="loading or the next step fails")  # fmt: skip


def depth_profile(p: Patient) -> Iterator[Fault]:
    """TS008: second moments that vanish or explode with depth."""
    second = slots(p, "exp_avg_sq")
    if len(second) < 6:
        return
    for decades in (10, -10, 16, -16):
        step = decades / (len(second) - 1)
        new = {n: scaled(p.state[n], 10.0 ** (step * i)) for i, n in enumerate(second)}
        yield Fault(code="TS008", what=f"x 1e{decades} from first to last", place=f"{len(second)} layers", change=new,
                    targets=tuple(second), layouts=TRAINING, least=Severity.NOTE,
                    defined="gradients vanish or explode")  # fmt: skip


def configuration(p: Patient) -> Iterator[Fault]:
    """CF001 to CF004: Keras' stored configuration."""
    if p.framework != "keras":
        return

    def layers(config: dict[str, Any], word: str) -> list[dict[str, Any]]:
        return [row for row in config["config"]["layers"] if word in row["class_name"]]

    def setting(word: str, which: int, name: str, value: Any) -> Callable[[dict[str, Any]], None]:
        def edit(config: dict[str, Any]) -> None:
            layers(config, word)[which]["config"][name] = value

        return edit

    stored = ("h5", "keras")
    config = p.config()  # type: ignore[attr-defined]
    pools = layers(config, "MaxPooling")
    for i, row in enumerate(pools):
        yield Fault(code="CF001", what="strides 3 of a pool of 2", place=row["config"]["name"],
                    config=setting("MaxPooling", i, "strides", [3, 3]), targets=(row["config"]["name"],),
                    layouts=stored, defined="pixels are never seen")  # fmt: skip
    for spot in {s.layer: s for _, s in p.places("bn")}.values():
        norms = [row["config"]["name"] for row in layers(config, "BatchNormalization")]
        i = norms.index(spot.layer)
        mean, var = statistics(spot)

        def norm(code: str, what: str, name: str, value: Any, why: str, least: Severity | None,
                 change: dict[str, Array], i: int = i, spot: Any = spot) -> Fault:  # fmt: skip
            return Fault(code=code, what=what, place=spot.layer, targets=(spot.layer, *whole(spot)), layouts=stored,
                         config=setting("BatchNormalization", i, name, value), defined=why, least=least,
                         change=change, touched=whole(spot))  # fmt: skip

        yield norm("CF002", "epsilon 0, a variance of 0", "epsilon", 0.0, "division by zero", None,
                   {var: at(p.weights[var], 0, 0)})  # fmt: skip
        yield norm("CF002", "epsilon 0, no variance of 0", "epsilon", 0.0, "guards nothing",
                   Severity.NOTE, {})  # fmt: skip
        fresh = {mean: like(p.weights[mean], 0), var: like(p.weights[var], 1)}
        yield norm(
            "CF003", "momentum 1, statistics 0/1", "momentum", 1.0, "never move", None, fresh
        )
        yield norm("CF003", "momentum 1, statistics of other origin", "momentum", 1.0, "never move",
                   Severity.NOTE, {})  # fmt: skip
    head = layers(config, "Dense")[-1:]
    for row in head:

        def one(config: dict[str, Any]) -> None:
            layers(config, "Dense")[-1]["config"] |= {"units": 1, "activation": "softmax"}

        name = row["config"]["name"]
        yield Fault(code="CF004", what="a softmax over one unit", place=name, config=one, layouts=stored,
                    targets=(name,), defined="1 for every input")  # fmt: skip


def classes(p: Patient) -> Iterator[Fault]:
    """CF004 in torch: hyperparameters of another data set."""
    heads = [s for s in p.of_kind("kernel") if s.layer in ("fc", "classifier")]
    for spot in heads if p.framework == "torch" else ():
        for count in (100, 1000):
            yield Fault(code="CF004", what=f"hyper_parameters.num_classes {count}", place=spot.layer,
                        change={"hyper_parameters.num_classes": count}, targets=(spot.parts["kernel"],),
                        layouts=TRAINING, defined="labels the head does not have")  # fmt: skip


SOURCES: tuple[Source, ...] = (
    bn008, precision, optimizer_values, numbers, ema, mismatch, depth_profile, configuration,
    classes,
)  # fmt: skip
