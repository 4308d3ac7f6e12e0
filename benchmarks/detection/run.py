"""One patient from training to verdicts: the unit that is run in parallel."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from ckptdoctor.api import examine
from ckptdoctor.results import Report, Wishes

from . import faults, lived, state_faults
from .patients import HARM, NOISE, Fault, Patient, half_of
from .score import Control, Row, judge, judge_control


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A patient to be examined, or the special controls of one framework and seed."""

    framework: str
    model: str
    seed: int
    cache: Path
    only: str = ""

    @property
    def key(self) -> str:
        return f"{self.framework}/{self.model}/{self.seed}"

    @property
    def half(self) -> str:
        return half_of(self.framework, self.model, self.seed)


def patient_of(framework: str, model: str, seed: int, cache: Path) -> Patient:
    if framework == "keras":
        from .keras_patient import KerasPatient

        return KerasPatient(model, seed, cache)
    from .torch_patient import TorchPatient

    return TorchPatient(model, seed, cache)


def faults_of(p: Patient) -> Iterator[Fault]:
    for module in (faults, state_faults, lived):
        for source in module.SOURCES:
            yield from source(p)


def inspected(path: Path, cast_to: str = "") -> Report:
    # the limited child process that reads HDF5 is for hostile files; here it only costs time
    return examine(str(path), Wishes(trust_hdf5=True, cast_to=cast_to))


def run(unit: Unit) -> tuple[list[Row], list[Control]]:
    """Train or load a patient, damage it in every way, and judge every file."""
    import torch

    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="ckptdoctor-detection-run-"))
    try:
        if unit.model == "controls":
            return [], list(_special(unit, folder))
        p = patient_of(unit.framework, unit.model, unit.seed, unit.cache)
        healthy = [] if unit.only else list(_healthy(unit, p, folder))
        return list(_damaged(unit, p, folder)), healthy
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _healthy(unit: Unit, p: Patient, folder: Path) -> Iterator[Control]:
    for layout in p.layouts:
        report = inspected(p.write(folder, layout, {}).path)
        yield judge_control(f"{unit.key} as {layout}", unit.half, report)


def _special(unit: Unit, folder: Path) -> Iterator[Control]:
    if unit.framework == "keras":
        from .keras_controls import controls
    else:
        from .torch_controls import controls
    for name, path in controls(unit.seed, unit.cache, folder):
        control = judge_control(
            f"{unit.framework}: {name}, seed {unit.seed}", unit.half, inspected(path)
        )
        yield control


def _damaged(unit: Unit, p: Patient, folder: Path) -> Iterator[Row]:
    for fault in faults_of(p):
        if not fault.code.startswith(unit.only):
            continue
        layouts = [name for name in fault.layouts or p.layouts if name in p.layouts]
        if not layouts:
            continue
        layout = layouts[crc32(f"{p.key}{fault.what}{fault.place}".encode()) % len(layouts)]
        effect = 0.0 if fault.defined else p.effect(fault)
        written = p.write(folder, layout, fault.change, fault.config)
        report = inspected(written.path, fault.cast_to)
        yield judge(
            fault, written, report, patient=unit.key, half=unit.half, layout=layout, effect=effect,
            noise=p.noise, effective=bool(fault.defined) or effect > NOISE * p.noise,
            harmful=bool(fault.defined) or effect > HARM,
        )  # fmt: skip
