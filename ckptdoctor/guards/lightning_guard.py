"""What ``CheckpointGuard`` does for Lightning, under both of the names it is installed by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from ..errors import CkptDoctorError, UnfitCheckpointError, UsageError, WriteError
from .drafts import drafted, local_path
from .guard import Guard, Standin
from .saving import settle
from .terms import LOSSES, KeepUnfit, Limit, OnUnfit, Terms

__all__ = ["LightningGuard"]

_STATE = "ckptdoctor"


class _RefusedError(Exception):
    """Leaves Lightning's saving before it removes a good checkpoint for the sake of a new one."""


class LightningGuard:
    """``ModelCheckpoint`` that never replaces a good checkpoint by an unfit one.

    What is refused leaves no trace in it: ``best_model_path``, the top k, ``last.ckpt`` and its
    link stay as they were, and nothing is removed.

    Parameters
    ----------
    args, kwargs
        As ``ModelCheckpoint`` has them.
    on_unfit
        ``warn`` and go on, ``stop`` training, or ``raise``.
    keep_unfit, fail_on, select, ignore
        As in `ckptdoctor.guards.guarded_save`.
    watch_every
        Batches between two looks at the live model; the step that is reported is exact.  0 for
        none.
    """

    def __init__(
        self,
        *args: Any,
        on_unfit: OnUnfit = "warn",
        keep_unfit: KeepUnfit = "both",
        fail_on: Limit = "error",
        select: Sequence[str] = LOSSES,
        ignore: Sequence[str] = (),
        watch_every: int = 50,
        **kwargs: Any,
    ) -> None:
        cast("Any", super()).__init__(*args, **kwargs)
        terms = Terms(
            on_unfit=on_unfit,
            keep_unfit=keep_unfit,
            fail_on=fail_on,
            select=select,
            ignore=ignore,
        )
        self.guard = Guard(terms, watch_every)
        self._refused_at = -1

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        cast("Any", super()).setup(trainer, pl_module, stage)
        local_path(cast("Any", self).dirpath)
        if type(trainer.strategy.checkpoint_io).__name__ == "AsyncCheckpointIO":
            hint = "leave AsyncCheckpointIO out, or ckptdoctor's CheckpointGuard"
            raise UsageError("cannot examine what is saved later, in a thread", hint=hint)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        from .torch_gauge import TorchGauge  # noqa: PLC0415

        cast("Any", super()).on_train_start(trainer, pl_module)
        self._refused_at = -1
        self.guard.speaks = trainer.is_global_zero
        self.guard.agree = lambda mine: trainer.strategy.reduce_boolean_decision(mine, all=False)
        folder = local_path(cast("Any", self).dirpath)
        self.guard.begin(folder, trainer.global_step, lambda: TorchGauge(pl_module))
        self._stop(trainer)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.guard.check(trainer.global_step)
        cast("Any", super()).on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._stop(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        cast("Any", super()).on_train_epoch_end(trainer, pl_module)
        self._stop(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        cast("Any", super()).on_validation_end(trainer, pl_module)
        self._stop(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.guard.look_now(trainer.global_step)
        cast("Any", super()).on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._undone(cast("Any", super()).on_exception, trainer, pl_module, exception)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = cast("Any", super()).state_dict()
        return {**state, _STATE: self.guard.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        cast("Any", super()).load_state_dict(state_dict)
        self.guard.restore(state_dict.get(_STATE, {}))

    def _stop(self, trainer: Any) -> None:
        if self.guard.stops:
            trainer.should_stop = True

    def _save_topk_checkpoint(self, trainer: Any, monitor_candidates: Any) -> None:
        self._undone(cast("Any", super())._save_topk_checkpoint, trainer, monitor_candidates)

    def _save_last_checkpoint(self, trainer: Any, monitor_candidates: Any) -> None:
        self._undone(cast("Any", super())._save_last_checkpoint, trainer, monitor_candidates)

    def _undone(self, save: Callable[..., Any], *args: Any) -> None:
        """Save; if that is refused, or fails, nothing of it has happened."""
        before = {**vars(self), "best_k_models": dict(cast("Any", self).best_k_models)}
        try:
            save(*args)
        except BaseException as error:
            vars(self).update(before, _refused_at=self._refused_at)
            if not isinstance(error, _RefusedError):
                raise

    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        if self._refused_at == trainer.global_step:
            raise _RefusedError  # nothing has changed since, and once is enough
        guarded = Standin(
            trainer, save_checkpoint=lambda *args, **kwargs: self._guarded(trainer, *args, **kwargs)
        )
        cast("Any", super())._save_checkpoint(guarded, filepath)

    def _guarded(self, trainer: Any, filepath: str, *args: Any, **kwargs: Any) -> None:
        """Save on all processes to one path, and judge it on the first."""
        step = trainer.global_step
        self.guard.look_now(step)
        target = local_path(filepath)
        with ExitStack() as stack:
            writes = trainer.is_global_zero
            draft, saved, failed = Path(), None, None
            if writes:
                try:
                    draft = stack.enter_context(drafted(target))
                except (CkptDoctorError, OSError) as error:
                    failed = error
            shared = _heard(trainer, "failed" if failed else str(draft), failed, filepath)
            trainer.save_checkpoint(shared, *args, **kwargs)
            if writes:
                aside = (self.guard.folder or target.parent) / _ASIDE
                try:
                    saved = settle(draft, target, self.guard.terms, shown=filepath, aside=aside)
                except (CkptDoctorError, OSError) as error:
                    failed = error
            answer = _heard(trainer, saved.answer if saved else "failed", failed, filepath)
        if answer != "fit":
            self._refused_at = step
        if saved is not None:
            self.guard.settled(saved, step)
        else:
            self.guard.refused = answer == "unfit"
        if answer == "fit":
            return
        if self.guard.terms.on_unfit == "raise":
            raise UnfitCheckpointError("the first process found it unfit", where=filepath)
        raise _RefusedError


def _heard(trainer: Any, said: str, failed: Exception | None, filepath: str) -> str:
    """Return what the first process says; if it failed, raise in all, which wait for its answer."""
    heard: str = trainer.strategy.broadcast(said)
    if heard == "failed":
        raise failed or WriteError("the first process could not keep it", where=filepath)
    return heard


_ASIDE = "checkpoint.ckpt"
"""One name for what is refused, or there would be one more file for each epoch."""
