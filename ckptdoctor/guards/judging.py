"""Whether what was just saved is fit to replace what was there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import BombError, CkptDoctorError, FormatError, TruncatedError

if TYPE_CHECKING:
    from ..results import Report
    from .terms import Terms

__all__ = ["Answer", "Judgement", "judge"]

Answer = Literal["fit", "unfit", "unchecked"]
_BROKEN = frozenset(cls.__name__ for cls in (FormatError, TruncatedError, BombError))
"""Errors that mean broken bytes; others mean that nobody looked at them."""
_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".h5", ".keras", ".npz")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.\w+$")
_NO_MODEL = re.compile(r"(training_args\.bin|(rng_state|random_states).*)$")
"""Beside a model, but neither its weights nor what it is resumed by."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """An answer, why, and the reports behind it, the one that decided first."""

    answer: Answer
    why: str
    reports: tuple[Report, ...]


def judge(path: Path, terms: Terms) -> Judgement:
    """Examine a file, or all the checkpoints in a folder; whatever happens, there is an answer."""
    from ..api import examine  # noqa: PLC0415  (NumPy and the rules)

    reports = [examine(name, terms.wishes) for name in _parts(path)]
    tensors = sum(report.summary.tensors for report in reports if report.summary)
    answers = [_answer(report, terms) for report in reports]
    for answer in ("unfit", "unchecked"):
        if answer in answers:
            first = reports[answers.index(answer)]
            rest = [report for report in reports if report is not first]
            return Judgement(answer, _why(first, terms), (first, *rest))
    if not tensors:
        return Judgement("unfit", "it holds no tensors", tuple(reports))
    return Judgement("fit", "", tuple(reports))


def _answer(report: Report, terms: Terms) -> Answer:
    if report.error is not None:
        return "unfit" if report.error.type in _BROKEN else "unchecked"
    return "unfit" if report.fails(terms.limit) else "fit"


def _why(report: Report, terms: Terms) -> str:
    if report.error is not None:
        return report.error.message
    counted = [
        finding
        for finding, counts in zip(report.findings, report.relevant, strict=True)
        if counts and finding.severity >= terms.limit
    ]
    told = [d.title for d in report.diagnoses if report.findings[d.findings[0]] in counted]
    return (told or [finding.message for finding in counted])[0]


def _parts(path: Path) -> Iterator[str]:
    """Name what is to be examined: a file; in a folder the model, and the state beside it."""
    if not path.is_dir():
        yield str(path)
        return
    from ..formats.folder import find_checkpoint  # noqa: PLC0415

    beside = list(_beside(path))
    try:
        model = find_checkpoint(str(path))[0]
    except CkptDoctorError:
        # several and none of a known name: all of them count; none: the folder says what it is
        yield from beside or [str(path)]
        return
    yield model
    yield from (name for name in beside if name != model)


def _beside(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file())
    for name in names:
        if name.endswith(_ENDINGS) and not _SHARD.search(name) and not _NO_MODEL.match(name):
            yield str(folder / name)
