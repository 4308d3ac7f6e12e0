"""
Guards for training: a good checkpoint is never replaced by an unfit one.

`guarded_save` stands around any function that saves; the callbacks are
``ckptdoctor.guards.keras.CheckpointGuard`` and the same in ``lightning``, ``pytorch_lightning``
and ``transformers``.  Nothing here imports a framework before its callback is asked for.

Examples
--------
>>> from ckptdoctor.guards import guarded_save
>>> import tempfile, numpy as np
>>> folder = tempfile.mkdtemp()
>>> guarded_save(lambda path: np.savez(path, w=np.ones((4, 4))), f"{folder}/model.npz").kept
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pointer import last_good
    from .saving import Saved, guarded_save
    from .terms import LOSSES

__all__ = ["LOSSES", "Saved", "guarded_save", "last_good"]

_HOMES = {
    "LOSSES": "terms",
    "Saved": "saving",
    "guarded_save": "saving",
    "last_good": "pointer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    import importlib  # noqa: PLC0415

    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
