"""The gate in front of a server: a checkpoint that is fit, or an exception; never "don't know"."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..config import Settings
from ..errors import InternalError, ReadError, UsageError
from ..report.escape import display
from ..results import CastTo, FailOn, Purpose, Report, Weights
from .cache import VerdictCache
from .digests import mismatch, told
from .outcome import Outcome, not_checked, weighed
from .scanning import known_or_scanned
from .terms import ExpectKeys, Terms

if TYPE_CHECKING:
    from ..measure.scan import Progress

__all__ = ["apreflight", "check", "preflight"]


def preflight(
    path: str | os.PathLike[str],
    *,
    fail_on: FailOn = "error",
    purpose: Purpose = "serve",
    weights: Weights = "auto",
    cast_to: CastTo | None = None,
    expect_sha256: str | Mapping[str, str] | None = None,
    expect_keys: ExpectKeys | None = None,
    cache: str | os.PathLike[str] | VerdictCache | None = None,
    allow_unsafe_load: bool = False,
    config: str | os.PathLike[str] | Settings | None = None,
    trust_hdf5: bool = False,
) -> Report:
    """Examine a checkpoint that is about to be loaded; return only if it may be.

    It may be called from any thread. Nothing is kept between calls but what ``cache`` keeps.

    Parameters
    ----------
    path
        As in `ckptdoctor.open_checkpoint`.
    fail_on
        Lowest severity that is unfit: ``error``, ``warning``, or ``never``, where only danger in
        loading, another SHA-256, and what cannot be checked stop it.
    purpose, weights, cast_to, config, trust_hdf5
        As in `ckptdoctor.inspect`.
    expect_sha256
        SHA-256 of the file in hexadecimal; for a set of shards a mapping of file names to SHA-256
        that has every file of it, the index too. Names of other files in it do not matter.
    expect_keys
        Names of the weights that the model needs, or a file that says so: each that is missing, and
        each that is surplus, is a finding. A ``config.json`` beside the checkpoint is heard anyway.
    cache
        Folder of verdicts that are known already, or a `ckptdoctor.VerdictCache`. Of processes that
        start at once, one scans. What cannot be checked is never kept.
    allow_unsafe_load
        Let pass what runs code, hangs or exhausts memory when the framework loads it its default
        way: because it is loaded another way, or trusted.

    Returns
    -------
    Report
        Of a checkpoint that may be loaded; ``report.cached`` says whether it was scanned now.

    Raises
    ------
    UnfitCheckpointError
        If it must not be used. Its text is one line with the first diagnosis; ``error.report`` has
        the rest. It can be pickled.
    UncheckedCheckpointError
        If that could not be found out: there is no such path, it cannot be read, nothing reads its
        format, an argument does not fit the file, a rule crashed. ``__cause__`` is what was raised.
    UsageError
        If an argument is wrong whatever the file.
    """
    terms = Terms.of(
        config=config,
        fail_on=fail_on,
        purpose=purpose,
        weights=weights,
        cast_to=cast_to,
        expect_sha256=expect_sha256,
        expect_keys=expect_keys,
        cache=cache,
        allow_unsafe_load=allow_unsafe_load,
        trust_hdf5=trust_hdf5,
    )
    outcome = check(_path(path), terms)
    if outcome.error is not None:
        raise outcome.error
    return outcome.report


async def apreflight(path: str | os.PathLike[str], **terms: Any) -> Report:
    """`preflight` in a thread, so that an event loop goes on; the same arguments and exceptions.

    A task that is cancelled returns at once; the thread finishes its scan, and nobody hears of it.
    """
    import asyncio  # noqa: PLC0415  (whoever calls has it)

    return await asyncio.to_thread(preflight, path, **terms)


def _path(path: Any) -> str:
    try:
        name = os.fspath(path)
    except TypeError:
        name = None
    if not isinstance(name, str):
        raise UsageError(f"expected the path of a checkpoint, found {path!r:.100}")
    return name


def check(
    path: str,
    terms: Terms,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> Outcome:
    """Examine a checkpoint, and say whether it passes; whatever fails is part of the answer.

    Parameters
    ----------
    path, progress
        As in `ckptdoctor.inspect`.
    terms
        On which it passes.
    warn
        Hears a line about a cache that cannot be used; the log does where None.
    """
    try:
        kept = known_or_scanned(path, terms, progress, warn or _log)
        report = kept.report
        wanted = terms.expect_sha256
        wrong = mismatch(path, wanted, kept.digests) if wanted else None
        report = told(report, wrong) if wrong else report
        return weighed(report, terms)
    except Exception as error:  # noqa: BLE001  whatever it was, the file was not checked
        return not_checked(path, terms, _in_words(error, path))


def _in_words(error: Exception, path: str) -> Exception:
    """Give what to tell: a process that may not have the memory it asks for is no bug."""
    within = error.__cause__ if isinstance(error, InternalError) else error
    if not isinstance(within, MemoryError):
        return error
    short = ReadError("there is not enough memory to check it", where=path, hint="allow more of it")
    short.findings = getattr(error, "findings", ())
    short.__cause__ = within
    return short


def _log(text: str) -> None:
    import logging  # noqa: PLC0415  (10 ms, for the few who have something to hear)

    logging.getLogger("ckptdoctor").warning("%s", display(text))
