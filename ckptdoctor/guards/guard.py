"""What the callbacks share: the watch on the live model, the last good checkpoint, what is said."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..errors import CkptDoctorError, UnfitCheckpointError, UsageError
from ..report.escape import display
from .drafts import named_path
from .pointer import LOGGER, Good, read_pointer, write_pointer
from .saving import Saved, refusal, stepwise, told
from .terms import Terms
from .watching import Bad, Gauge, Watch

__all__ = ["Guard", "Standin"]

_T = TypeVar("_T")


def _alone(mine: bool) -> bool:
    return mine


class Guard:
    """One training run's guard, whatever the framework.

    Parameters
    ----------
    terms
        What is unfit, and what to do about it.
    watch_every
        Steps between two looks at the live model; 0 for none.

    Attributes
    ----------
    first_bad
        The first bad step, as long as the model is bad.
    last_good
        The newest checkpoint that was accepted.
    relative
        Whether the user wrote a relative path, so that what is said has relative paths throughout.
    speaks
        Whether this process tells the user; in a distributed run one does.
    agree
        Says whether the answer is yes in any process; called by all of them at the same steps.
    """

    def __init__(self, terms: Terms, watch_every: int) -> None:
        if type(watch_every) is not int or watch_every < 0:
            message = (
                f"expected watch_every to be a number of steps or 0, found {watch_every!r:.100}"
            )
            raise UsageError(message)
        self.terms, self.watch_every = terms, watch_every
        self.folder: Path | None = None
        self.first_bad: Bad | None = None
        self.last_good: Good | None = None
        self.refused = False
        self.speaks = True
        self.relative = False
        self.agree: Callable[[bool], bool] = _alone
        self._watch: Watch | None = None
        self._since = 0

    @property
    def stops(self) -> bool:
        """Whether training is to end now."""
        return self.terms.on_unfit == "stop" and (self.refused or self.first_bad is not None)

    def begin(self, folder: Path, step: int, make: Callable[[], Gauge]) -> None:
        """Start to watch: first of all, whether the model is finite as training begins."""
        self.folder, self.refused, self._since = folder, False, 0
        self.last_good = _earlier(folder, step)
        if not self.watch_every:
            return
        known, self.first_bad = self.first_bad, None
        self._watch = self._attempt(lambda: Watch(make()))
        mine = self._found(step)
        if self.agree(mine is not None):
            self._report(known or replace(mine or _elsewhere(step), from_start=True))

    def check(self, step: int) -> None:
        """Measure after a step, and look when it is time."""
        if not self.watch_every or self.first_bad is not None:
            return
        self._since += 1
        due = self._since >= self.watch_every
        if self._watch is not None and (due or not self._watch.dear):
            self._attempt(partial(self._watch.measure, step))
        if due:
            self._look(step)

    def look_now(self, step: int) -> None:
        """Look before something is saved."""
        if not self.watch_every:
            return
        if self.first_bad is None:
            if self._watch is not None and self._watch.dear:
                self._attempt(partial(self._watch.measure, step))
            self._look(step)
        elif not self.agree(self._found(step) is not None):
            self.first_bad = None  # somebody put it right

    def settled(self, saved: Saved, step: int) -> None:
        """Remember what became of a save, and say so; on the process that wrote it.

        Raises
        ------
        UnfitCheckpointError
            If it was refused, and that is asked for.
        UncheckedCheckpointError
            If it could not be checked, likewise.
        """
        self.refused = saved.answer == "unfit"
        if saved.kept:
            self._accept(Path(saved.path), step)
        elif self.terms.on_unfit == "raise":
            raise refusal(saved)
        else:
            LOGGER.warning("%s%s; %s", stepwise(step), told(saved), self._last_good())

    def state(self) -> dict[str, Any]:
        """Return plain values that say what is known, for a checkpoint."""
        return {"first_bad": asdict(self.first_bad) if self.first_bad else None}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what a checkpoint says; what it does not say is unknown."""
        try:
            self.first_bad = Bad(**state["first_bad"])
        except (KeyError, TypeError):
            self.first_bad = None

    def _accept(self, path: Path, step: int) -> None:
        if self.folder is None:
            return
        named = named_path(path)
        if named.is_relative_to(self.folder):
            self.last_good = Good(named.relative_to(self.folder).as_posix(), step)
            write_pointer(self.folder, self.last_good, self.state()["first_bad"])

    def _look(self, step: int) -> None:
        self._since = 0
        mine = self._attempt(self._watch.look) if self._watch is not None else None
        if self.agree(mine is not None):
            self._report(mine or _elsewhere(step))

    def _found(self, step: int) -> Bad | None:
        """Look at the model as it is."""
        watch = self._watch
        if watch is None:
            return None
        self._attempt(partial(watch.measure, step))
        return self._attempt(watch.look)

    def _report(self, bad: Bad) -> None:
        self.first_bad = bad
        text = display(f"{bad.told()}; {self._last_good()}")
        if self.speaks:
            self._point()
        if self.terms.on_unfit == "raise":
            raise UnfitCheckpointError(text)
        if self.speaks:
            LOGGER.warning("%s", text)

    def _last_good(self) -> str:
        good = self._newest()
        if good is None or self.folder is None:
            return "no good checkpoint yet"
        path = good.path(self.folder)
        if path is None:
            return f"the last good one, {good.file}, is gone"
        here = Path(os.path.realpath(os.curdir))
        if self.relative and path.is_relative_to(here):
            path = path.relative_to(here)
        return f"last good: {path}" + ("" if good.step is None else f" (step {good.step:,})")

    def _point(self) -> None:
        """Write ``last_good.json``; training goes on without it."""
        good = self._newest()
        if self.folder is not None and good is not None:
            write_pointer(self.folder, good, self.state()["first_bad"])

    def _newest(self) -> Good | None:
        """Return the last good checkpoint: one of another guard in this folder may be newer."""
        mine = self.last_good
        if mine is None or self.folder is None:
            return mine
        with suppress(CkptDoctorError):
            other = read_pointer(self.folder)
            if other is None or other.path(self.folder) is None:
                return mine
            # without a step: whoever saved it wrote over what this guard had said there
            if other.step is None or other.step >= (mine.step or 0):
                return other
        return mine

    def _attempt(self, what: Callable[[], _T]) -> _T | None:
        """Do something with the model that must not end its training."""
        try:
            return what()
        except Exception:  # noqa: BLE001  whatever a model is made of, its training goes on
            self._watch = None
            message = "the live model is not watched any more; what is saved is still examined"
            LOGGER.warning(message, exc_info=True)
            return None


def _elsewhere(step: int) -> Bad:
    return Bad(step=step, tensor="a tensor in another process", kind="weight", value="NaN or Inf")


def _earlier(folder: Path, step: int) -> Good | None:
    """Return what a run that is being resumed left; a run from the start has nothing good yet."""
    try:
        good = read_pointer(folder)
    except CkptDoctorError as error:
        LOGGER.warning("%s", error)
        return None
    if good is None or good.path(folder) is None:
        return None
    before = step > 0 if good.step is None else good.step <= step
    return good if before else None


class Standin:
    """An object with some of its methods replaced: what a framework saves by is one of them."""

    def __init__(self, real: Any, **replaced: Any) -> None:
        self._real = real
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
