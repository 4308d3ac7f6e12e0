"""Results -> text: one pure function per format, imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import get_args

from ..results import Format, Report, View

__all__ = ["FORMATS", "Renderer", "renderer"]

Renderer = Callable[[Iterable[Report], View], Iterator[str]]

FORMATS: tuple[str, ...] = get_args(Format)
"""What ``--format`` and ``--report`` take; each is a module here with a function ``render``."""


def renderer(name: str) -> Renderer:
    """Return the function that renders reports in one of `FORMATS`."""
    render: Renderer = importlib.import_module(f".{name}", __name__).render
    return render
