"""Verbs on live models: diagnose their parameters, recompute their BatchNorm statistics."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .api import settings_from
from .errors import UsageError
from .examination import examined
from .findings import Finding, Severity
from .live.arguments import whole
from .live.calling import is_keras, is_torch
from .live.data import data_for
from .live.opening import subject_of
from .live.subject import Statistics, Subject
from .recalibration.choice import Reach, Recalibration, recalibrated
from .recalibration.estimate import masked
from .remedies import Orders, Patient
from .remedies.ailments import BN_CODES, ailments_of
from .results import CastTo, Diagnosis, Exemption, Purpose, Report, Wishes
from .rules.base import Context
from .selection import check_wishes
from .tensors import TensorTable

__all__ = ["SAMPLES", "diagnose_model", "diagnose_module", "recalibrate"]

SAMPLES = 1024
"""Samples that statistics are recomputed from unless more are asked for."""


def diagnose_module(
    module: Any,
    *,
    purpose: Purpose | None = None,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    tensors: Sequence[str] = (),
    cast_to: CastTo | None = None,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    exempt: Sequence[Exemption] = (),
    config: str | os.PathLike[str] | None = None,
) -> Report:
    """Judge the live parameters and buffers of a PyTorch module, by the rules for files.

    Nothing is copied: values are read from the module's memory in blocks, from a device in chunks.

    Parameters
    ----------
    module
        A ``torch.nn.Module``.
    purpose, select, ignore, tensors, cast_to, thresholds, exempt, config
        As in `ckptdoctor.inspect`.

    Returns
    -------
    Report
        As `ckptdoctor.inspect` gives it of the file that ``torch.save`` would write, but that the
        layers' own epsilons are known.

    Raises
    ------
    UsageError
        If torch is not installed, this is no module, or an argument names nothing.
    """
    from .live.torch_table import module_table  # noqa: PLC0415

    wishes = settings_from(config).wishes(
        purpose=purpose, select=select, ignore=ignore, tensors=tensors, cast_to=cast_to or "",
        thresholds=thresholds, exempt=exempt,
    )  # fmt: skip
    return _diagnosed(module_table(module), wishes)


def diagnose_model(
    model: Any,
    *,
    purpose: Purpose | None = None,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    tensors: Sequence[str] = (),
    cast_to: CastTo | None = None,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    exempt: Sequence[Exemption] = (),
    config: str | os.PathLike[str] | None = None,
) -> Report:
    """Judge the live variables of a Keras model, and those of its optimizer, by the rules for files.

    Parameters
    ----------
    model
        A ``keras.Model``, built.
    purpose, select, ignore, tensors, cast_to, thresholds, exempt, config
        As in `ckptdoctor.inspect`.

    Returns
    -------
    Report
        As `ckptdoctor.inspect` gives it of the saved model.

    Raises
    ------
    UsageError
        If this is no Keras model, or an argument names nothing.
    """
    from .live.keras_table import model_table  # noqa: PLC0415

    if not is_keras(model):
        hint = "a torch.nn.Module is for diagnose_module" if is_torch(model) else ""
        kind = type(model).__qualname__
        raise UsageError(f"expected a keras.Model, found {kind:.100}", hint=hint)
    wishes = settings_from(config).wishes(
        purpose=purpose, select=select, ignore=ignore, tensors=tensors, cast_to=cast_to or "",
        thresholds=thresholds, exempt=exempt,
    )  # fmt: skip
    return _diagnosed(model_table(model), wishes)


def recalibrate(
    model: Any,
    batches: Any,
    *,
    reach: Reach | None = None,
    force: bool = False,
    batch_size: int = 64,
    samples: int = SAMPLES,
) -> Recalibration:
    """Recompute the running statistics of a live model's broken BatchNorms, in place.

    Parameters
    ----------
    model
        A ``torch.nn.Module`` or a ``keras.Model``.  Its mode, and all but the statistics that are
        recomputed, are as before when this returns; until then no other thread may use it.
    batches
        Training inputs: batches as a loader gives them (of a tuple or list the first entries, as
        many as the model has inputs; of a mapping those that are called like them), arrays of
        samples (a tuple of them, or a mapping, for several inputs; what a list is:
        `ckptdoctor.live.inputs.in_memory`), or a ``.npy`` or ``.npz`` file.
    reach
        ``broken`` or ``all``; by default the narrowest that agrees with training mode on held-back
        samples.
    force
        Accept fewer than 16 samples.
    batch_size
        Samples that are run together.
    samples
        How many to take at most: of a loader the first, what is beyond them is not read; of arrays
        and files some from all over, since those are often sorted.

    Returns
    -------
    Recalibration
        What was compared and taken; ``reach`` is ``none`` where the model's statistics agree with
        the data, and nothing was changed.

    Raises
    ------
    UsageError
        If there are too few samples, the model does not take them, outputs are not finite with any
        statistics, or an argument is none of these.

    Examples
    --------
    >>> ckptdoctor.recalibrate(model, train_loader)  # doctest: +SKIP
    """
    if reach not in (None, "broken", "all"):
        raise UsageError(f"expected reach to be 'broken' or 'all', found {reach!r:.100}")
    batch_size, samples = whole(batch_size, "batch_size", 1), whole(samples, "samples", 1)
    subject = subject_of(model, "the given model")
    data = data_for(subject, batches, samples)
    if data.kind == "random":
        raise UsageError("statistics of random numbers are no statistics")
    broken = _broken(subject)
    count = min(samples, len(data))
    made = recalibrated(
        subject,
        data.take(np.arange(count) * len(data) // count),
        broken,
        reach=reach,
        batch_size=data.batch or batch_size,
        force=force,
    )
    for name, statistics in made.statistics.items():
        subject.set_statistics(name, statistics)
    idle = [name for name in made.idle if name in broken]
    if idle:
        more = f" and {len(idle) - 1:,} more" if idle[1:] else ""
        warning = f"Not called on these data: {idle[0]!r:.100}{more}. What is broken there stays."
        made = replace(made, warnings=(*made.warnings, warning))
    return made


def _diagnosed(table: TensorTable, wishes: Wishes) -> Report:
    check_wishes(wishes)
    with table:
        report = examined(table.path, table, wishes)[1]
    told = tuple(_without_commands(diagnosis, report.findings) for diagnosis in report.diagnoses)
    return replace(report, diagnoses=told)


def _without_commands(diagnosis: Diagnosis, findings: Sequence[Finding]) -> Diagnosis:
    """Put what can be done to a model in the place of commands, which are for files."""
    codes = {findings[index].code for index in diagnosis.findings}
    heals = diagnosis.severity >= Severity.ERROR and bool(codes & set(BN_CODES))
    step = "ckptdoctor.recalibrate(model, batches)" if heals else ""
    tells = "Recomputes the statistics from training data, in place." if heals else ""
    return replace(diagnosis, next=step, next_tells=tells)


def _broken(subject: Subject) -> dict[str, Statistics]:
    """Broken channels by BatchNorm, as the rules find them."""
    with subject.table() as table:
        measured, report = examined(table.path, table, Wishes())
        patient = Patient(
            ctx=Context(table, measured.stats),
            findings=report.findings,
            orders=Orders(recalibrate="it"),
        )
        with np.errstate(all="ignore"):
            sick = ailments_of(patient)
    places = {norm.mean: (norm.name, "mean") for norm in subject.norms.values()}
    places |= {norm.var: (norm.name, "var") for norm in subject.norms.values()}
    return masked(
        (*places[ailment.info.name], ailment.info.size, ailment.bad)
        for ailment in sick
        if ailment.info.name in places
    )
