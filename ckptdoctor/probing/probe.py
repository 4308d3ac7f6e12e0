"""A model probed: opened, run on data in several ways, and judged."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..live.arguments import whole
from ..live.data import Data, data_for
from ..live.naming import parse_model
from ..live.opening import Opened, open_subject
from ..live.subject import Arrays, Subject
from ..tensors import Array
from .bisect import Search, search_inference, search_training
from .feed import Feed, bad_rows, by_sample
from .judge import signs
from .next_steps import next_steps
from .origin import first_bad, frozen_row
from .precision import TYPES, Precision, in_precision, poisoned_in_training
from .results import ProbeReport, Samples
from .samples import look_at
from .trace import Trace
from .training import with_norms
from .values import varies
from .weights import File, file_report, known_weights

__all__ = ["BATCH", "SAMPLES", "STEPS", "probe"]

BATCH = 32
"""Samples that are run together."""
SAMPLES = 256
"""Samples that are taken of the data unless asked for more."""

ROUNDED = 32
"""Of those, samples that are run in narrower types too: rounding costs more than the model."""

STEPS = ("opening", "weights", "inference mode", "training mode", *TYPES, "searching the samples")
"""What ``note`` is told, in this order."""

Note = Callable[[str], None]


def probe(
    model: Any,
    data: Any = "random",
    *,
    weights_file: str | os.PathLike[str] | None = None,
    trust: bool = False,
    bisect: bool = False,
    samples: int = SAMPLES,
    batch_size: int = BATCH,
    precisions: Sequence[str] = TYPES,
    note: Note | None = None,
) -> ProbeReport:
    """Run a model on data, and say which of its layers do harm.

    A live model is as it was afterwards, but for weights that were loaded into it and what its code
    keeps outside of parameters and buffers.  Meanwhile its statistics are exchanged: no other thread
    may use it.

    Parameters
    ----------
    model
        ``package.module:factory``, ``file.py:factory``, a file that holds a whole model, or a live
        model: a ``torch.nn.Module`` or a ``keras.Model``.
    data
        A ``.npy`` or ``.npz`` file, ``random``, arrays or tensors (a tuple of them, or a mapping,
        for several inputs), or a loader of batches; see `ckptdoctor.live.data.read_data`, and for
        what a list is `ckptdoctor.live.inputs.in_memory`.
    weights_file
        Checkpoint that the model takes its weights from; they stay in a live model.
    trust
        Unpickle a whole module, load what is unsafe to load.
    bisect
        Find the samples that break it.
    samples
        How many to take of the data, the first; 0 for all.  All of them are searched by ``bisect``.
    batch_size
        How many to run together, where the model takes any number.
    precisions
        Types to compare with float32, of ``float16`` and ``bfloat16``, on 32 of the samples.
    note
        Called with what is being done.

    Returns
    -------
    ProbeReport
        ``report.clean`` is the answer, ``report.signs`` the reasons.

    Raises
    ------
    UsageError
        If there is no such model or data, or they do not fit each other.
    CkptDoctorError
        If a file cannot be read, or the user's code fails.
    """
    note = note or _unheard
    samples, batch_size = whole(samples, "samples", 0), whole(batch_size, "batch_size", 1)
    _check(precisions)
    note("opening")
    model = os.fspath(model) if isinstance(model, os.PathLike) else model
    held = os.fspath(weights_file) if weights_file else ""
    limit = 0 if bisect else samples
    opened, file, read = _opened(model, data, held, limit, trust=trust)
    told, found = look_at(read, limit)
    used = found[:samples] if samples else found
    folder = str(Path(opened.code).parent) if opened.code.endswith(".py") else ""
    feed = Feed(opened.subject, read, batch_size, folder)
    report = ProbeReport(
        model=model if isinstance(model, str) else _called(opened.subject, model),
        framework=opened.subject.framework,
        file=opened.file,
        code=opened.code,
        samples=told,
        notes=_notes(opened, file, told, len(used)),
    )
    if len(used):
        note("weights")
        report = _run(report, feed, used, opened, file, precisions, note)
        if bisect:
            note("searching the samples")
            report = replace(report, searches=_searches(feed, found, precisions))
    report = replace(report, signs=signs(report))
    return replace(report, next=next_steps(report, trust=trust))


def _check(precisions: Sequence[str]) -> None:
    unknown = [dtype for dtype in precisions if dtype not in TYPES]
    if unknown:
        raise UsageError(
            f"expected {' or '.join(TYPES)} to compare with, found {unknown[0]!r:.100}"
        )


def _unheard(_: str) -> None:
    """Hear of progress, and say nothing."""


def _opened(
    model: Any, data: Any, weights_file: str, limit: int, *, trust: bool
) -> tuple[Opened, File | None, Data]:
    """Make the model, inspect its file and read the data, the cheapest to fail first."""
    held = weights_file or (parse_model(model).file if isinstance(model, str) else "")
    file = file_report(held) if held else None

    read: list[Data] = []  # a loader may give its batches once only

    def sample(subject: Subject) -> Sequence[Any]:
        read.append(data_for(subject, data, limit))
        return read[0].filled([0])

    opened = open_subject(
        model,
        weights_file=weights_file,
        which=file.which if file is not None else "model",
        trust=trust,
        sample=sample,
    )
    return opened, file, data_for(opened.subject, read[0] if read else data, limit)


def _called(subject: Subject, model: Any) -> str:
    held = getattr(subject, "module", getattr(subject, "model", model))
    return type(held).__name__


def _notes(opened: Opened, file: File | None, samples: Samples, used: int) -> tuple[str, ...]:
    notes = [f"runs the code of {opened.code}"] if opened.code else []
    if opened.loaded is not None:
        if file is not None and file.which == "ema":
            notes.append(f"the moving average of {file.path} is run, which is what is served of it")
        notes += opened.loaded.notes
    if used < samples.used:
        notes.append(f"all samples are searched, the first {used:,} are looked at layer by layer")
    return (*notes, *samples.notes)


def _run(
    report: ProbeReport,
    feed: Feed,
    used: Array,
    opened: Opened,
    file: File | None,
    precisions: Sequence[str],
    note: Note,
) -> ProbeReport:
    """Run the samples in inference mode, in training mode and in narrower types."""
    note("inference mode")
    trace = Trace()
    outputs: list[Arrays] = []
    bad = 0
    for batch in feed.batches(used):
        trace.start(feed.data.batch or len(batch))
        outputs.append(feed.run(batch, trace))
        bad += int(bad_rows(outputs[-1], len(batch)).sum())
    known = known_weights(opened, file)
    report = replace(
        report,
        rows=trace.rows(),
        bad=bad,
        constant=not bad
        and not (report.samples and report.samples.alike)
        and _constant(outputs, [len(batch) for batch in feed.batches(used)]),
        said=known.said,
        layers=known.layers,
        tensors=known.names,
    )
    note("training mode")
    report = with_norms(report, feed, used, outputs)
    report = replace(
        report,
        first=first_bad(report.rows, known, report.norms),
        frozen=frozen_row(report.rows, report.norms, constant=report.constant),
    )
    return _in_types(report, feed, used, precisions, note)


def _in_types(
    report: ProbeReport, feed: Feed, used: Array, precisions: Sequence[str], note: Note
) -> ProbeReport:
    """Run some of the samples in narrower types, and in float32 to compare them with."""
    few = _few(report, used) if precisions else used
    plain = [feed.run(batch) for batch in feed.batches(few)] if precisions else []
    found: list[Precision] = []
    for dtype in precisions:
        note(dtype)
        rounded = in_precision(feed, few, dtype, plain)
        found.append(replace(rounded, training=poisoned_in_training(feed, few, dtype)))
    bad = sum(
        int(bad_rows(outputs, len(batch)).sum())
        for batch, outputs in zip(feed.batches(few), plain, strict=False)
    )
    own = Precision(
        dtype="float32",
        first=report.first.row.layer if report.first else "",
        index=report.first.row.index if report.first else 0,
        bad=bad if precisions else report.bad,
        samples=len(few),
        training=poisoned_in_training(feed, few, ""),
    )
    return replace(report, precisions=(own, *found))


def _few(report: ProbeReport, used: Array) -> Array:
    """Choose samples to run in narrower types: some from all over the data, and the outlying."""
    step = -(-len(used) // ROUNDED)
    far = report.samples.outliers if report.samples is not None else ()
    known = np.array([sample.index for sample in far[:ROUNDED]], np.int64)
    return np.union1d(used[::step], np.intersect1d(known, used))


def _constant(outputs: Sequence[Arrays], sizes: Sequence[int]) -> bool:
    """Whether all outputs are the same for all samples; False for a single one.

    An output that is of no sample leaves it open, but for a mere number, such as a loss.
    """
    rows = by_sample(outputs, sizes)
    more = any(array.ndim for run in outputs for at, array in enumerate(run) if at not in rows)
    joined = [np.concatenate(parts) for parts in rows.values()]
    return bool(joined) and not more and all(varies(a, sum(sizes)) is False for a in joined)


def _searches(feed: Feed, used: Array, precisions: Sequence[str]) -> tuple[Search, ...]:
    """Search in inference and in training mode; in a narrower type where float32 is clean."""
    found: list[Search] = []
    for search in (search_inference, search_training):
        if search is search_training and not feed.subject.norms:
            continue
        for rounding in ("", *precisions):
            if rounding and not found[-1].clean:
                continue
            found.append(search(feed, used, rounding))
    return tuple(search for search in found if not search.clean or " in " not in search.mode)
