"""Hooks on all modules of a model for one run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .torch_calls import Calls, Kind

if TYPE_CHECKING:
    from torch import nn

__all__ = ["class_name_of", "hooked", "kind_of", "scripted", "watched"]

_PARAMETRIZED = "parametrizations"
"""Child in which torch keeps modules that make weights: what they return are no samples."""


def watched(module: nn.Module) -> dict[str, nn.Module]:
    """Modules in which hooks are called by name, each once, in declaration order."""
    closed = scripted(module)
    return {
        name: each
        for name, each in module.named_modules()
        if _PARAMETRIZED not in name.split(".") and not any(_below(name, root) for root in closed)
    }


def scripted(module: nn.Module) -> list[str]:
    """Names of the TorchScript modules that are in no other: in them no hook is called."""
    from torch import jit  # noqa: PLC0415

    found: list[str] = []
    for name, each in module.named_modules():
        if isinstance(each, jit.ScriptModule) and not any(_below(name, root) for root in found):
            found.append(name)
    return found


def _below(name: str, root: str) -> bool:
    return name.startswith(f"{root}.") if root else bool(name)


def kind_of(module: nn.Module) -> Kind:
    """Class of a module, and whether none is inside it."""
    leaf = all(key == _PARAMETRIZED for key, _ in module.named_children())
    return Kind(class_name_of(module), leaf)


def class_name_of(module: nn.Module) -> str:
    """Class of a module, of a scripted one that which was scripted."""
    return str(getattr(module, "original_name", None) or type(module).__name__)


@contextmanager
def hooked(
    modules: Mapping[str, nn.Module], calls: Calls, named: Callable[[str], str] = str
) -> Iterator[None]:
    """Tell of every call of these modules, behind the hooks that they have already.

    ``named`` turns their names into those that are told.
    """
    handles: list[Any] = []
    outside = sys.exc_info()[1]
    try:
        for name, module in modules.items():
            handles += _attached(named(name), module, calls, outside)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attached(
    name: str, module: nn.Module, calls: Calls, outside: BaseException | None
) -> list[Any]:
    from torch.nn import Module  # noqa: PLC0415

    def before(_module: Any, args: Any, kwargs: Any) -> Any:
        given = calls.enter(name, (args, kwargs))
        return None if calls.narrow is None else given

    def after(_module: Any, _args: Any, outputs: Any) -> Any:
        error = sys.exc_info()[1]
        if outputs is None and error is not None and error is not outside:
            calls.fail(name, error)
            return None
        outputs = calls.leave(name, outputs)
        return None if calls.narrow is None else outputs

    # by the base class: TorchScript modules forbid the method, and yet call what it registers
    return [
        Module.register_forward_pre_hook(module, before, with_kwargs=True),
        Module.register_forward_hook(module, after, always_call=True),
    ]
