"""Verbs on paths: open a checkpoint, inspect it, repair it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .config import Settings, load_settings
from .errors import CkptDoctorError, InternalError, UsageError
from .examination import examined
from .findings import Finding
from .formats import open_path
from .formats.base import ReadOptions
from .measure.scan import Progress
from .results import CastTo, ErrorInfo, Exemption, Purpose, Report, Weights, Wishes
from .selection import check_wishes
from .tensors import TensorTable

if TYPE_CHECKING:
    from .edits import Class
    from .outcome import Outcome
    from .remedies.base import Scope
    from .treatment import Note

__all__ = ["Wishes", "examine", "inspect", "look", "open_checkpoint", "refused", "repair"]


def open_checkpoint(path: str | os.PathLike[str], *, trust_hdf5: bool = False) -> TensorTable:
    """Open a file, a folder that holds one checkpoint, or an ``index.json``.

    Parameters
    ----------
    path
        What to open; the content decides what it is, never the name.
    trust_hdf5
        Run HDF5's C library in this process instead of a limited child.

    Returns
    -------
    TensorTable
        Every tensor by its name; use it as a context manager.

    Raises
    ------
    UsageError
        If there is no such path.
    CkptDoctorError
        If it cannot be read safely.
    """
    name = os.fspath(path)
    if not name:  # Path("") would be the working folder
        raise UsageError("expected the path of a checkpoint, found an empty one")
    return open_path(name, ReadOptions(trust_hdf5=trust_hdf5))


def inspect(
    path: str | os.PathLike[str],
    *,
    purpose: Purpose | None = None,
    weights: Weights | None = None,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    tensors: Sequence[str] = (),
    cast_to: CastTo | None = None,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    exempt: Sequence[Exemption] = (),
    config: str | os.PathLike[str] | None = None,
    trust_hdf5: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Read a checkpoint, measure every tensor and judge it.

    Parameters
    ----------
    path
        As in `open_checkpoint`.
    purpose
        ``serve`` and ``resume`` weigh only what they use; ``any``, the default, weighs everything.
    weights
        Which weights would be served: ``model``, ``ema``, or by ``auto``, the default, what the
        framework would take.
    select, ignore
        Codes (``NF001``), their first letters (``NF``), or names (``nan-values``).
    tensors
        Patterns of names to judge; all where empty.
    cast_to
        Judge also what a cast of the weights to this type would lose.
    thresholds
        By code or name of the rule, and name of the threshold: ``{"BN003": {"limit": 500}}``.
    exempt
        Findings that are accepted: they become notes that repeat the reason.
    config
        A file of settings, for what the other arguments leave open.  None is looked for.
    trust_hdf5
        As in `open_checkpoint`.
    progress
        Called now and then with bytes done and bytes in all, from the threads that read and
        under their lock: it must be quick, and not wait for any of them.

    Returns
    -------
    Report
        ``report.verdict.serve`` is the answer, ``report.findings`` the reasons.

    Raises
    ------
    UsageError
        If there is no such path, code, threshold, tensor, purpose, type, weights or setting.
    CkptDoctorError
        If the file cannot be checked; ``error.findings`` holds what was seen before.
    """
    settings = settings_from(config)
    wishes = settings.wishes(
        purpose=purpose,
        weights=weights,
        select=select,
        ignore=ignore,
        tensors=tensors,
        cast_to=cast_to or "",
        thresholds=thresholds,
        exempt=exempt,
        trust_hdf5=trust_hdf5,
    )
    check_wishes(wishes)
    return look(os.fspath(path), wishes, progress)


def repair(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    in_place: bool = False,
    backup: bool = True,
    force: bool = False,
    dry_run: bool = False,
    bn_reset: bool = False,
    bn_scope: Scope = "channels",
    bn_silence: bool = False,
    donor: str | os.PathLike[str] | None = None,
    recalibrate: str | None = None,
    data: str | os.PathLike[str] | None = None,
    trust: bool = False,
    tensors: Sequence[str] = (),
    reinit: Sequence[str] = (),
    numbers: Mapping[str, float | int] | None = None,
    drop_optimizer: bool = False,
    allow: Class = "statistical",
    seed: int = 0,
    from_plan: str | os.PathLike[str] | None = None,
    write_plan: str | os.PathLike[str] | None = None,
    receipt: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | Settings | None = None,
    trust_hdf5: bool = False,
    note: Note | None = None,
) -> Outcome:
    """Write a repaired copy of a checkpoint, every other byte untouched.

    Without an action (``bn_reset``, ``bn_silence``, ``recalibrate``, ``reinit``, ``numbers``,
    ``drop_optimizer``, or ``donor`` with ``tensors``) each finding gets the best remedy whose class is allowed; with
    actions, they are all that is done.

    Parameters
    ----------
    path
        As in `open_checkpoint`.
    output
        Where the copy goes; by default ``STEM.repaired.EXT`` beside the input.
    in_place, backup
        Replace the input, and keep it as ``NAME.orig``.
    force
        Replace an output that exists; recalibrate on fewer than 16 samples.
    dry_run
        Plan, and write nothing.
    bn_reset, bn_scope
        Broken BatchNorm statistics to their initial values: in broken ``channels``, in whole
        ``layers`` that have one, or in ``all`` layers.
    bn_silence
        Gamma and beta of channels with broken statistics to 0.
    donor
        An older or sibling checkpoint of the same model, in any format, to take values from.
    recalibrate, data
        A model, ``package.module:factory``, ``file.py:factory`` or a file that holds a whole one,
        and a ``.npy`` or ``.npz`` file of inputs to run it on: broken BatchNorm statistics are
        recomputed.  Code that is named is run.
    trust
        Let frameworks load what can run code of its own: a pickled model.
    tensors
        Patterns of names: treat these, whatever the rules say; with a donor, take them from it.
    reinit
        Patterns of tensors to draw anew, ``PATTERN=LAW`` for another law than the layer's own.
    numbers
        New values for numbers of the training state, by path.
    drop_optimizer
        Leave the optimizer's state out.
    allow
        ``lossless``, ``statistical`` or ``destructive``: the worst class that may be used unasked.
    seed
        Of ``reinit``.
    from_plan, write_plan
        Apply a stored plan; store the plan.
    receipt
        Store what was replaced, enough to put it back by hand.
    config, trust_hdf5
        As in `inspect`.
    note
        Called now and then with what is being done, bytes done and bytes in all.

    Returns
    -------
    Outcome
        ``outcome.done`` is the answer, ``outcome.after`` the report on what was written.

    Raises
    ------
    UsageError
        If an argument names nothing, the output exists, the donor is of another architecture, or
        the plan is for another file.
    WriteError
        If the output cannot be written; whatever was there is as before.
    CkptDoctorError
        If the input cannot be read.
    """
    from .remedies import Orders  # noqa: PLC0415  (inspecting does without)
    from .treatment import Papers, Placing, treat  # noqa: PLC0415

    settings = config if isinstance(config, Settings) else settings_from(config)
    wishes = settings.wishes(purpose="any", trust_hdf5=trust_hdf5)
    check_wishes(wishes)
    orders = Orders(
        bn_reset=bn_reset,
        bn_scope=bn_scope,
        bn_silence=bn_silence,
        donor=os.fspath(donor) if donor else "",
        recalibrate=recalibrate or "",
        data=os.fspath(data) if data else "",
        trust=trust,
        few=force and bool(recalibrate),
        tensors=tuple(tensors),
        reinit=tuple(reinit),
        numbers=dict(numbers or {}),
        drop_optimizer=drop_optimizer,
        allow=allow,
        seed=seed,
    )
    placing = Placing(
        output=None if output is None else os.fspath(output),
        in_place=in_place,
        backup=backup,
        force=force,
        dry_run=dry_run,
    )
    papers = Papers(**_paths(from_plan=from_plan, write_plan=write_plan, receipt=receipt))
    return treat(os.fspath(path), orders, placing, wishes, note or _unheard, papers=papers)


def settings_from(config: str | os.PathLike[str] | None) -> Settings:
    """Load the settings that a caller names; none are looked for."""
    return Settings() if config is None else load_settings(config)


def _paths(**given: str | os.PathLike[str] | None) -> dict[str, str]:
    return {name: os.fspath(path) for name, path in given.items() if path is not None}


def _unheard(what: str, done: int, total: int) -> None:
    """Hear of progress, and say nothing."""


def examine(
    path: str, wishes: Wishes, progress: Progress | None = None, *, debug: bool = False
) -> Report:
    """Inspect, with every failure as part of the report: fail closed, never silently.

    With ``debug``, failures that are this package's own are raised.
    """
    try:
        return look(path, wishes, progress)
    except Exception as error:  # whatever it was, the file was not checked
        if debug and (isinstance(error, InternalError) or not isinstance(error, CkptDoctorError)):
            raise
        return refused(path, wishes, error)


def look(
    path: str,
    wishes: Wishes,
    progress: Progress | None = None,
    prepared: Callable[[TensorTable], TensorTable] | None = None,
) -> Report:
    """Open a checkpoint, examine it, and see that nobody wrote to it meanwhile.

    ``prepared`` may look at the open table, and give one with further findings to examine.
    """
    with open_checkpoint(path, trust_hdf5=wishes.trust_hdf5) as opened:
        table = prepared(opened) if prepared else opened
        _, report = examined(path, table, wishes, progress)
        try:
            table.check_unchanged()
        except CkptDoctorError as error:
            error.findings = table.findings
            raise
    return report


def refused(path: str, wishes: Wishes, error: Exception) -> Report:
    """Report on a file that could not be checked, by what was raised."""
    if isinstance(error, CkptDoctorError):
        cause = error.__cause__ if isinstance(error, InternalError) else None
        info = ErrorInfo.of(error, path)
        info = replace(info, where=_place(cause)) if cause else info
        seen: Sequence[Finding] = error.findings
    else:
        text = str(error).splitlines()[0][:200] if str(error) else "no message"
        info = ErrorInfo(type=type(error).__name__, message=text, where=_place(error), bug=True)
        seen = ()
    findings = tuple(sorted(seen, key=lambda f: -f.severity))
    return Report(
        file=path,
        wishes=wishes,
        findings=findings,
        relevant=(True,) * len(findings),
        error=info,
    )


def _place(error: BaseException) -> str:
    """``module.py:line`` of the innermost frame of this package that the error passed through."""
    place, trace = "", error.__traceback__
    home = str(Path(__file__).parent) + os.sep
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename.startswith(home):
            place = f"{code.co_filename.removeprefix(home)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
