"""What is asked of anything before it is treated as a PyTorch module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["require_module", "require_torch", "unwrapped"]

_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}
"""Classes around the user's module, and where they keep it."""


def require_torch() -> Any:
    """Return torch.

    Raises
    ------
    UsageError
        If it is not installed.
    """
    try:
        import torch  # noqa: PLC0415
    except ImportError:
        hint = "pip install 'ckptdoctor[torch]'"
        raise UsageError("needs torch, which is not installed", hint=hint) from None
    return torch


def require_module(module: object) -> Any:
    """Return torch, of which this is a module.

    Raises
    ------
    UsageError
        If torch is not installed, or it is something else.
    """
    torch = require_torch()
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"expected a torch.nn.Module, found {type(module).__name__}")
    return torch


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the user's module without what `torch.compile` and data parallelism put around it."""
    while (held := _WRAPPERS.get(type(module).__name__)) is not None:
        inner = getattr(module, held, None)
        if inner is None:
            break
        module = inner
    return module
