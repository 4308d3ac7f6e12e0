"""``CheckpointGuard`` for Keras 3: ``keras.callbacks.ModelCheckpoint``, guarded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .drafts import drafted, local_path, named_path
from .framework import callback_class
from .guard import Guard, Standin
from .saving import settle
from .terms import LOSSES, KeepUnfit, Limit, OnUnfit, Terms

if TYPE_CHECKING:
    CheckpointGuard: type[Any]

__all__ = ["CheckpointGuard"]

_BASES = (("keras.callbacks", "ModelCheckpoint"),)


class KerasGuard:
    """``keras.callbacks.ModelCheckpoint`` that never replaces a good checkpoint by an unfit one.

    Parameters
    ----------
    filepath, args, kwargs
        As ``ModelCheckpoint`` has them.
    on_unfit
        ``warn`` and go on, ``stop`` training, or ``raise``.
    keep_unfit, fail_on, select, ignore
        As in `ckptdoctor.guards.guarded_save`.
    watch_every
        Batches between two looks at the live model; the step that is reported is exact where the
        backend is TensorFlow or torch.  0 for none.
    """

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        *args: Any,
        on_unfit: OnUnfit = "warn",
        keep_unfit: KeepUnfit = "both",
        fail_on: Limit = "error",
        select: Sequence[str] = LOSSES,
        ignore: Sequence[str] = (),
        watch_every: int = 50,
        **kwargs: Any,
    ) -> None:
        cast("Any", super()).__init__(filepath, *args, **kwargs)
        terms = Terms(
            on_unfit=on_unfit,
            keep_unfit=keep_unfit,
            fail_on=fail_on,
            select=select,
            ignore=ignore,
        )
        self.guard = Guard(terms, watch_every)
        self.guard.relative = not Path(filepath).is_absolute()
        local_path(filepath)
        self._step = 0
        self._batch = -1
        self._saving = False
        self._best: Any = None

    @property
    def model(self) -> Any:
        """The model; while ``ModelCheckpoint`` saves, one whose saving is guarded."""
        model = cast("Any", super()).model
        if not self._saving:
            return model
        return Standin(
            model,
            save=lambda path, **options: self._save(model.save, path, options),
            save_weights=lambda path, **options: self._save(model.save_weights, path, options),
        )

    def on_train_begin(self, logs: Any = None) -> None:
        cast("Any", super()).on_train_begin(logs)
        self.guard.folder = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        cast("Any", super()).on_epoch_begin(epoch, logs)
        self._batch = -1
        if self.guard.folder is None:  # now every callback has restored what it restores
            optimizer = getattr(self.model, "optimizer", None)
            self._step = int(optimizer.iterations) if optimizer is not None else 0
            if self.model.built:
                self._begin()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._step += batch - self._batch  # several, if the model is compiled to do so
        self._batch = batch
        if self.guard.folder is None:  # it was built by its first batch
            self._begin()
        self.guard.check(self._step)
        with self._guarding():
            cast("Any", super()).on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        with self._guarding():
            cast("Any", super()).on_epoch_end(epoch, logs)

    def on_train_end(self, logs: Any = None) -> None:
        self.guard.look_now(self._step)
        cast("Any", super()).on_train_end(logs)

    def _begin(self) -> None:
        from .keras_gauge import KerasGauge  # noqa: PLC0415

        self.guard.begin(self._folder(), self._step, lambda: KerasGauge(self.model))

    def _folder(self) -> Path:
        folder = named_path(cast("Any", self).filepath).parent
        while "{" in folder.name:  # a folder for each epoch
            folder = folder.parent
        return folder

    @contextmanager
    def _guarding(self) -> Iterator[None]:
        self._best = getattr(self, "best", None)
        if self._best is not None and self._best != self._best:
            self.best = self._best = None  # nothing would ever be better than NaN
        self._saving = True
        try:
            yield
        finally:
            self._saving = False
        if self.guard.stops:
            self.model.stop_training = True

    def _save(self, save: Any, path: str, options: dict[str, Any]) -> None:
        self.guard.folder = self._folder()  # beside the checkpoint, whatever the working folder is
        best, self.best = getattr(self, "best", None), self._best  # the best is one that is there
        self.guard.look_now(self._step)
        target = local_path(path)
        with drafted(target) as draft:
            save(str(draft), **options)
            saved = settle(draft, target, self.guard.terms, shown=path, aside=self._aside(target))
        if saved.kept:
            self.best = best
        self.guard.settled(saved, self._step)

    def _aside(self, target: Path) -> Path:
        """Path for what is refused: one for all epochs, or there would be one more each."""
        pattern = str(cast("Any", self).filepath)
        if "{" not in pattern:
            return target
        suffix = ".weights.h5" if pattern.endswith(".weights.h5") else Path(pattern).suffix
        return self._folder() / f"checkpoint{suffix}"


def __getattr__(name: str) -> Any:
    if name == "CheckpointGuard":
        return callback_class(__name__, KerasGuard, _BASES, "keras", "ckptdoctor[tensorflow]")
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
