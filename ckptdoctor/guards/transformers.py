"""``CheckpointGuard`` for the Trainer of Hugging Face transformers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WriteError
from ..report.escape import display
from .drafts import drafted, local_path, place, put_aside
from .framework import callback_class
from .guard import Guard
from .judging import judge
from .pointer import LOGGER
from .saving import Saved
from .terms import LOSSES, KeepUnfit, Limit, OnUnfit, Terms

if TYPE_CHECKING:
    CheckpointGuard: type[Any]

__all__ = ["CheckpointGuard"]

_BASES = (
    ("transformers.trainer_callback", "TrainerCallback"),
    ("transformers.trainer_callback", "ExportableState"),
)
_GOOD = "last_good"
_UNFIT = "unfit-checkpoint-"
_BEST = ("best_metric", "best_global_step", "best_model_checkpoint")


class TransformersGuard:
    """Callback that examines every checkpoint of a ``Trainer``.

    The newest that is fit is also the folder ``last_good``, which no rotation removes: its files
    are links, and take no room while ``checkpoint-N`` is there.  One that is unfit becomes
    ``unfit-checkpoint-N``, so that ``resume_from_checkpoint=True`` takes the newest good one, which
    is put back if ``save_total_limit`` has removed it.

    Parameters
    ----------
    on_unfit
        ``warn`` and go on, ``stop`` training, or ``raise``.
    keep_unfit, fail_on, select, ignore
        As in `ckptdoctor.guards.guarded_save`.
    watch_every
        Steps between two looks at the live model; the step that is reported is exact.  0 for none.
    """

    def __init__(
        self,
        *,
        on_unfit: OnUnfit = "warn",
        keep_unfit: KeepUnfit = "both",
        fail_on: Limit = "error",
        select: Sequence[str] = LOSSES,
        ignore: Sequence[str] = (),
        watch_every: int = 50,
    ) -> None:
        terms = Terms(
            on_unfit=on_unfit,
            keep_unfit=keep_unfit,
            fail_on=fail_on,
            select=select,
            ignore=ignore,
        )
        self.guard = Guard(terms, watch_every)
        self._best: dict[str, Any] = dict.fromkeys(_BEST)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> Any:
        from .torch_gauge import TorchGauge  # noqa: PLC0415

        folder = local_path(args.output_dir)
        self.guard.speaks = state.is_world_process_zero
        self.guard.agree = _agreed
        self.guard.begin(folder, state.global_step, lambda: TorchGauge(model))
        good = self.guard.last_good
        if state.is_world_process_zero and (good is None or good.file != _GOOD):
            _unshare(folder / _GOOD)
        self._best = {name: getattr(state, name, None) for name in _BEST}
        return self._stopped(control)

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> Any:
        self.guard.check(state.global_step)
        return self._stopped(control)

    def on_train_end(self, _args: Any, state: Any, control: Any, **_: Any) -> Any:
        self.guard.look_now(state.global_step)
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self.guard.look_now(state.global_step)
        folder = local_path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero:
            if folder.is_dir():
                self._examine(folder, state)
            else:
                LOGGER.warning("%s is not there, so it was not examined", folder)
        self.guard.refused = _agreed(self.guard.refused)
        return self._stopped(control)

    def state(self) -> dict[str, Any]:
        """Return what the Trainer stores with a checkpoint."""
        terms, guard = self.guard.terms, self.guard
        args = {"on_unfit": terms.on_unfit, "keep_unfit": terms.keep_unfit,
                "fail_on": terms.fail_on, "select": list(terms.select),
                "ignore": list(terms.ignore), "watch_every": guard.watch_every}  # fmt: skip
        return {"args": args, "attributes": {"restored": guard.state()}}

    @property
    def restored(self) -> dict[str, Any]:
        """What a checkpoint told of the guard; set by the Trainer."""
        return self.guard.state()

    @restored.setter
    def restored(self, state: dict[str, Any]) -> None:
        self.guard.restore(state)

    def _stopped(self, control: Any) -> Any:
        if self.guard.stops:
            control.should_training_stop = True
        return control

    def _examine(self, folder: Path, state: Any) -> None:
        found = judge(folder, self.guard.terms)
        path, aside = str(folder), ""
        if found.answer == "fit":
            path = str(_second(folder, folder.with_name(_GOOD)))
            self._best = {name: getattr(state, name, None) for name in _BEST}
        elif found.answer == "unfit":
            aside = self._set_aside(folder)
            self._put_back(folder, state)
        saved = Saved(
            path=path, answer=found.answer, why=found.why, aside=aside, reports=found.reports
        )
        self.guard.settled(saved, state.global_step)

    def _set_aside(self, folder: Path) -> str:
        """Rename what is unfit, and keep the first and the latest of those."""
        aside = folder.with_name(f"unfit-{folder.name}")
        put_aside(folder, aside)
        known = {
            int(number): path
            for path in folder.parent.glob(f"{_UNFIT}*")
            if (number := path.name.removeprefix(_UNFIT)).isdecimal()
        }
        first, keep = known[min(known)], self.guard.terms.keep_unfit
        kept = {"both": {first, aside}, "first": {first}, "latest": {aside}}.get(keep, set())
        for other in known.values():
            if other not in kept:
                shutil.rmtree(other, ignore_errors=True)
        return str(aside) if aside in kept else ""

    def _put_back(self, folder: Path, state: Any) -> None:
        """Have the Trainer find the last good checkpoint and the best one, as before this save."""
        good = self.guard.last_good
        if good is not None and good.file == _GOOD:
            there = folder.with_name(f"checkpoint-{good.step}")
            if not there.exists() and folder.with_name(good.file).is_dir():
                _linked(folder.with_name(good.file), there)
        best = state.best_model_checkpoint
        if best is not None and local_path(best) == folder:
            for name, value in self._best.items():
                setattr(state, name, value)


def _second(folder: Path, target: Path) -> Path:
    """Link a good checkpoint; where there is no room for that, it is itself the good one."""
    try:
        return _linked(folder, target)
    except (OSError, WriteError) as error:
        LOGGER.warning("%s is good, but not kept from rotation: %s", folder, display(str(error)))
        return folder


def _linked(folder: Path, target: Path) -> Path:
    """Give the files of a folder another name each, in another folder, which appears as a whole."""
    with drafted(target) as draft:
        shutil.copytree(folder, draft, copy_function=_link)
        place(draft, target)
    return target


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _unshare(good: Path) -> None:
    """Give the good checkpoint files of its own, where a run goes back and writes to the old ones."""
    try:
        for path in good.rglob("*"):
            if path.is_file() and path.stat().st_nlink > 1:
                copy = path.with_name(f".{path.name}.copy")
                shutil.copy2(path, copy)
                copy.replace(path)
    except OSError as error:
        LOGGER.warning("%s", error)


def _agreed(mine: bool) -> bool:
    """Whether the answer is yes in any process."""
    import torch  # noqa: PLC0415
    from torch import distributed  # noqa: PLC0415

    if not distributed.is_available() or not distributed.is_initialized():
        return mine
    cuda = distributed.get_backend() == "nccl"
    answer = torch.tensor(int(mine), device="cuda" if cuda else "cpu")
    distributed.all_reduce(answer, op=distributed.ReduceOp.MAX)
    return bool(answer.item())


def __getattr__(name: str) -> Any:
    if name == "CheckpointGuard":
        return callback_class(
            __name__, TransformersGuard, _BASES, "transformers", "ckptdoctor[transformers]"
        )
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
