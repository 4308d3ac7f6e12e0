"""Faults made by really running what causes them, with no idea of what the rules look for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from .faults import Source, whole
from .patients import Array, Fault, Patient, Spot

if TYPE_CHECKING:
    from .torch_patient import TorchPatient

LEAST = 512
"""Weights of a layer below which nobody can tell a fresh one from a trained one."""
MOVED = 10.0
"""A variance counts as hit by a run when it changed by more than this factor."""


def floats(p: Patient) -> bool:
    return p.inputs(2).dtype.kind == "f"


def hit(p: Patient, new: dict[str, Array]) -> tuple[list[Spot], list[Spot], list[Spot]]:
    """BatchNorms whose variance is no longer finite, grew, or shrank."""
    nonfinite, grew, shrank = [], [], []
    for spot in p.of_kind("bn"):
        old = p.weights[spot.parts["var"]].astype(np.float64)
        now = new[spot.parts["var"]].astype(np.float64)
        if not (np.isfinite(now).all() and np.isfinite(new[spot.parts["mean"]]).all()):
            nonfinite.append(spot)
            continue
        ratio = float(np.median((now + 1e-30) / (old + 1e-30)))
        if ratio > MOVED:
            grew.append(spot)
        elif ratio < 1 / MOVED:
            shrank.append(spot)
    return nonfinite, grew, shrank


def batches(p: Patient) -> Iterator[Fault]:
    """One exploded, NaN or overflowing batch; constant batches; batches of one."""
    if not (floats(p) and p.of_kind("bn")):
        return
    x = p.inputs(32)
    scale = (np.ptp(x[:, :1]) + 1) * 1.0
    many = 300 if p.framework == "torch" else 1500  # 0.9 and 0.99 of the old statistics stay
    events = {
        "one batch x 1e2": [x * 1e2],
        "one batch x 1e3": [x * 1e3],
        "one batch x 1e6": [x * 1e6],
        "one batch of x + 1e4 noise": [
            x + p.rng("noise").normal(0, 1e4, x.shape).astype(x.dtype) * scale
        ],
        "one batch x 1e25 (overflow)": [x * np.float32(1e25)],
        "one batch with a NaN": [
            np.where(np.arange(x.size).reshape(x.shape) == 5, np.nan, x).astype(x.dtype)
        ],
        "many batches of zeros": [x * 0] * many,
        "many batches of one image": [np.broadcast_to(x[:1], x.shape).copy()] * many,
    }
    if p.model == "mlp_bn":
        events["300 batches of one row each"] = [p.inputs(300)[i : i + 1] for i in range(300)]
    for what, run in events.items():
        new = p.live([b.astype(np.float32) for b in run])
        nonfinite, grew, shrank = hit(p, new)
        change = {n: v for s in p.of_kind("bn") for n, v in ((n, new[n]) for n in whole(s))}
        touched = tuple(change)
        for code, spots in (("BN001", nonfinite), ("BN003", grew), ("BN004", shrank)):
            if spots:
                place = f"{len(spots)} of {len(p.of_kind('bn'))} layers, first {spots[0].layer}"
                yield Fault(code=code, what=f"lived: {what}", place=place, change=change, touched=touched,
                            targets=tuple(n for s in spots for n in (s.parts["var"], s.parts["mean"])))  # fmt: skip


def extrapolated(p: Patient) -> Iterator[Fault]:
    """BN002 by arithmetic on checkpoints: start + 2 (end - start)."""
    if p.framework != "torch" or not p.of_kind("bn"):
        return
    start = {n: t.numpy() for n, t in p.initial.items()}  # type: ignore[attr-defined]
    for factor in (2.0, 4.0):
        new = {n: (start[n] + factor * (v - start[n])).astype(v.dtype) for n, v in p.weights.items()
               if v.dtype == np.float32 and np.isfinite(v).all()}  # fmt: skip
        bad = tuple(s.parts["var"] for s in p.of_kind("bn") if (new[s.parts["var"]] < 0).any())
        if bad:
            yield Fault(code="BN002", what=f"lived: start + {factor:g} (end - start)", place=f"{len(bad)} layers",
                        change=new, targets=bad, touched=tuple(new))  # fmt: skip


def reinitialised(p: Patient) -> Iterator[Fault]:
    """WT008: a layer that was never loaded stands at its initialiser, its BatchNorm with it."""
    if p.framework != "torch":
        return
    from .torch_patient import build

    fresh = {n: t.numpy() for n, t in build(p.model, p.seed + 78)[0].state_dict().items()}
    norms = {s.feeder: s for s in p.of_kind("bn") if s.feeder}
    for place, spot in p.places("kernel", "embedding", count=8):
        if p.weights[spot.parts["kernel"]].size < LEAST:
            continue
        names = [*whole(spot)]
        if norm := norms.get(spot.parts["kernel"]):
            names += whole(norm)
        yield Fault(code="WT008", what="a fresh layer (with its BatchNorm)", place=place,
                    change={n: fresh[n] for n in names}, targets=tuple(names))  # fmt: skip


def diverged(p: Patient) -> Iterator[Fault]:
    """WT003 by SGD with a learning rate far too high, stopped while everything is finite."""
    if p.framework != "torch":
        return
    import torch

    patient: TorchPatient = p  # type: ignore[assignment]
    for lr in (10.0, 1e4):
        net = copy.deepcopy(patient.net).train()
        optimizer = torch.optim.SGD(net.parameters(), lr=lr)
        rng = torch.Generator().manual_seed(p.seed)
        last = None
        for _ in range(20):
            x, target = patient.task.batch(rng, 8)
            out = net(x)
            loss = (
                out[:, -1].sum()
                if hasattr(net, "discriminator")
                else patient.task.loss(out, target)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            now = patient.read(net)
            if not all(
                np.isfinite(v).all() for n, v in now.items() if np.isfinite(p.weights[n]).all()
            ):
                break
            last = now
        if last is None:
            continue
        large = [
            s.parts["kernel"] for s in p.of_kind("kernel", "embedding")
            if np.abs(last[s.parts["kernel"]]).max() > 1e3 * np.abs(p.weights[s.parts["kernel"]]).max()
        ]  # fmt: skip
        if large:
            yield Fault(code="WT003", what=f"lived: SGD with learning rate {lr:g}", place=f"{len(large)} kernels",
                        change=last, targets=tuple(large), touched=tuple(last))  # fmt: skip


def constant_start(p: Patient) -> Iterator[Fault]:
    """WT005: every kernel starts at one constant and is trained for real."""
    if p.framework != "torch" or p.model not in ("mlp_bn", "unet", "lstm", "resnet_v1"):
        return
    import torch

    from .torch_patient import build, optimizer_of, train

    patient: TorchPatient = p  # type: ignore[assignment]
    net, task = build(p.model, p.seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim >= 2:
                parameter.fill_(0.05)
    train(net, task, optimizer_of(net, p.seed), p.seed, 60)
    inner = [s.parts["kernel"] for s in p.of_kind("kernel")]
    new = patient.read(net)
    alike = tuple(
        n
        for n in inner
        if np.ptp(new[n], axis=0).max() < 1e-6 * np.abs(new[n]).max() and new[n].shape[0] > 1
    )
    if alike:
        yield Fault(code="WT005", what="lived: constant initialiser, trained", place=f"{len(alike)} kernels",
                    change=new, targets=alike, touched=tuple(new))  # fmt: skip


SOURCES: tuple[Source, ...] = (
    batches, extrapolated, reinitialised, diverged, constant_start,
)  # fmt: skip
