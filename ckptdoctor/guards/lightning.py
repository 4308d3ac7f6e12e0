"""``CheckpointGuard`` for ``import lightning.pytorch``: its ``ModelCheckpoint``, guarded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .framework import callback_class
from .lightning_guard import LightningGuard

if TYPE_CHECKING:
    CheckpointGuard: type[Any]

__all__ = ["CheckpointGuard"]

_BASES = (("lightning.pytorch.callbacks", "ModelCheckpoint"),)


def __getattr__(name: str) -> Any:
    if name == "CheckpointGuard":
        return callback_class(
            __name__, LightningGuard, _BASES, "lightning", "ckptdoctor[lightning]"
        )
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
