"""``CheckpointGuard`` for ``import pytorch_lightning``: its ``ModelCheckpoint``, guarded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .framework import callback_class
from .lightning_guard import LightningGuard

if TYPE_CHECKING:
    CheckpointGuard: type[Any]

__all__ = ["CheckpointGuard"]

_BASES = (("pytorch_lightning.callbacks", "ModelCheckpoint"),)


def __getattr__(name: str) -> Any:
    if name == "CheckpointGuard":
        return callback_class(
            __name__, LightningGuard, _BASES, "pytorch_lightning", "pytorch-lightning"
        )
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
