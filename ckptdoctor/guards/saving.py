"""``guarded_save``: call a function that saves, and keep what it wrote only if it is fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UncheckedCheckpointError, UnfitCheckpointError, UsageError, WriteError
from ..live.arguments import whole
from ..report.escape import display
from .drafts import check_saved, drafted, local_path, named_path, place, put_aside
from .judging import Answer, judge
from .pointer import LOGGER, Good, write_pointer
from .terms import LOSSES, KeepUnfit, Limit, Terms

if TYPE_CHECKING:
    from ..results import Purpose, Report

__all__ = ["Saved", "guarded_save", "refusal", "settle", "stepwise", "told"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What became of a save.

    Parameters
    ----------
    path
        Where the checkpoint was to go.
    answer
        ``fit``, ``unfit``, or ``unchecked`` where nobody can tell.
    why
        In one sentence; empty where it is fit.
    aside
        Where it lies if it was not kept; empty for nowhere.
    reports
        What was found: one report for each file that was examined, the one that decided first.
    """

    path: str
    answer: Answer
    why: str
    aside: str
    reports: tuple[Report, ...]

    def __repr__(self) -> str:
        """One line; the reports have the rest."""
        from ..results import one_line  # noqa: PLC0415

        what = "kept" if self.kept else f"{self.answer}, not kept: {one_line(self.why)}"
        return f"<Saved {one_line(self.path)}: {what}>"

    @property
    def kept(self) -> bool:
        """Whether it is at ``path`` now; otherwise what was there still is."""
        return self.answer == "fit"

    @property
    def report(self) -> Report:
        """The report that decided."""
        return self.reports[0]


def guarded_save(
    save: Callable[[str], object],
    path: str | os.PathLike[str],
    *,
    on_unfit: Literal["warn", "raise"] = "warn",
    keep_unfit: KeepUnfit = "both",
    fail_on: Limit = "error",
    purpose: Purpose = "any",
    select: Sequence[str] = LOSSES,
    ignore: Sequence[str] = (),
    step: int | None = None,
) -> Saved:
    """Save a checkpoint, and let it replace the one before only if it is fit.

    Parameters
    ----------
    save
        Writes a file or a folder to the path it is given: the same name in a hidden folder beside
        ``path``.  What it raises passes through, and ``path`` is as it was.
    path
        Where the checkpoint goes; folders on the way are made.
    on_unfit
        ``warn`` (logger ``ckptdoctor``) and go on, or ``raise``.
    keep_unfit
        Which of those that were refused to keep beside it: the ``first``, which is nearest to the
        cause (``unfit-NAME``), the ``latest``, whose weights are the most trained
        (``unfit-latest-NAME``), ``both`` or ``none``.
    fail_on, purpose, select, ignore
        As in `ckptdoctor.inspect`; by default errors of `LOSSES`.
    step
        Steps done; named in messages and in ``last_good.json``.

    Returns
    -------
    Saved
        ``saved.kept`` is the answer, ``saved.report`` the reasons.  What is kept is also what
        `ckptdoctor.guards.last_good` tells of its folder.

    Raises
    ------
    UnfitCheckpointError
        If asked to, and it is unfit.
    UncheckedCheckpointError
        If asked to, and it could not be examined.
    WriteError
        If nothing was saved, or it cannot be put in place.
    UsageError
        If ``save`` is no function, a choice does not exist, ``step`` is no number, or the path is
        not on this machine.
    """
    given: Any = save
    if not callable(given):
        message = f"expected a function that saves to the path it is given, found {given!r:.100}"
        raise UsageError(message, hint="guarded_save(lambda path: torch.save(state, path), path)")
    if on_unfit not in ("warn", "raise"):
        raise UsageError(f"expected on_unfit to be warn or raise, found {on_unfit!r:.100}")
    terms = Terms(
        on_unfit=on_unfit,
        keep_unfit=keep_unfit,
        fail_on=fail_on,
        purpose=purpose,
        select=select,
        ignore=ignore,
    )
    done = None if step is None else whole(step, "step", 0)
    target = local_path(path)
    named = named_path(path)
    with drafted(target) as draft:
        save(str(draft))
        saved = settle(draft, target, terms, shown=os.fspath(path))
    if saved.kept:
        write_pointer(named.parent, Good(named.name, done))
    elif on_unfit == "raise":
        raise refusal(saved)
    else:
        LOGGER.warning("%s%s", stepwise(done), told(saved))
    return saved


def settle(
    draft: Path, target: Path, terms: Terms, *, shown: str = "", aside: Path | None = None
) -> Saved:
    """Put a draft in its place if it is fit, else aside.

    Parameters
    ----------
    draft, target
        As `ckptdoctor.guards.drafts.place`.
    terms
        What is unfit, and which of the unfit are kept.
    shown
        The target as the caller wrote it.
    aside
        Path to keep it under, ``unfit-`` before its name; the target's where None.
    """
    shown = shown or str(target)
    check_saved(draft, target)
    found = judge(draft, terms)
    if found.answer == "fit":
        place(draft, target)
        return Saved(path=shown, answer="fit", why="", aside="", reports=found.reports)
    kept = _aside(draft, aside or target, found.answer, terms.keep_unfit)
    return Saved(path=shown, answer=found.answer, why=found.why, aside=kept, reports=found.reports)


def _aside(draft: Path, target: Path, answer: Answer, keep: KeepUnfit) -> str:
    """Keep what was refused; returns where, or nothing."""
    if answer == "unchecked":  # it may be sound, and the only copy
        where = target.with_name(f"unchecked-{target.name}")
    else:
        first = target.with_name(f"unfit-{target.name}")
        latest = target.with_name(f"unfit-latest-{target.name}")
        if keep in ("both", "first") and not os.path.lexists(first):
            where = first
        elif keep in ("both", "latest"):
            where = latest
        else:
            return ""
    try:
        put_aside(draft, where)
    except WriteError as error:  # evidence, which is not worth the training
        LOGGER.warning("%s", display(str(error)))
        return ""
    return str(where)


def stepwise(step: int | None) -> str:
    """Start of a message.

    Examples
    --------
    >>> stepwise(1234), stepwise(None)
    ('step 1,234: ', '')
    """
    return "" if step is None else f"step {step:,}: "


def told(saved: Saved) -> str:
    """Say in one line why a checkpoint was not kept, and where it is instead."""
    what = "is unfit" if saved.answer == "unfit" else "could not be checked"
    text = f"{saved.path} {what} and was not kept: {saved.why}"
    if saved.aside:
        aside = Path(saved.aside)
        beside = aside.parent == Path(os.path.realpath(saved.path)).parent
        text += f"; it lies in {aside.name if beside else aside}"
    return display(text)


def refusal(saved: Saved) -> UnfitCheckpointError | UncheckedCheckpointError:
    """Error for a save that was refused."""
    cls = UnfitCheckpointError if saved.answer == "unfit" else UncheckedCheckpointError
    why = told(saved).removeprefix(f"{display(saved.path)} ").removeprefix("is ")
    return cls(why, where=display(saved.path), report=saved.report)
