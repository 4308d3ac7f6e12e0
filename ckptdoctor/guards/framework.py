"""The callback classes themselves: made when they are asked for, because they need the framework."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from ..errors import UsageError

__all__ = ["callback_class"]


@functools.cache
def callback_class(
    module: str, guard: type, bases: tuple[tuple[str, str], ...], package: str, install: str
) -> type[Any]:
    """Make ``CheckpointGuard`` of a guard and the framework's own classes.

    Parameters
    ----------
    module
        Where it is imported from.
    guard
        What it does, without the framework.
    bases
        Modules and names of the framework's classes.
    package, install
        What to name, and to ask pip for, where it is missing.

    Raises
    ------
    UsageError
        If the framework is not installed, cannot be imported, or has no such classes.
    """
    try:
        found = [getattr(importlib.import_module(home), name) for home, name in bases]
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package.partition(".")[0]:
            raise UsageError(f"{module} needs {package}, whose import fails: {error}") from None
        message = f"{module} needs {package}, which is not installed"
        raise UsageError(message, hint=f"pip install '{install}'") from None
    except (ImportError, AttributeError) as error:
        message = f"{module} needs another version of {package}: {error}"
        raise UsageError(message, hint=f"pip install --upgrade '{install}'") from None
    names = {"__doc__": guard.__doc__, "__module__": module}
    return type("CheckpointGuard", (guard, *found), names)
