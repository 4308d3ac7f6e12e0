"""Results -> text: one pure function per format, imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, get_args

from ..errors import UsageError
from ..results import Format, Report, View

if TYPE_CHECKING:
    from ..outcome import Outcome
    from ..probing.results import ProbeReport

__all__ = ["FORMATS", "Renderer", "as_text", "renderer"]

Renderer = Callable[[Iterable[Report], View], Iterator[str]]

FORMATS: tuple[str, ...] = get_args(Format)
"""What ``--format`` and ``--report`` take; each is a module here with a function ``render``."""


def renderer(name: str) -> Renderer:
    """Return the function that renders reports in one of `FORMATS`."""
    render: Renderer = importlib.import_module(f".{name}", __name__).render
    return render


def as_text(result: Report | ProbeReport | Outcome, *, width: int = 100) -> str:
    """Text that the command line prints, for a notebook or a log.

    Parameters
    ----------
    result
        What `ckptdoctor.inspect`, `ckptdoctor.preflight`, `ckptdoctor.diagnose_module`,
        `ckptdoctor.diagnose_model`, `ckptdoctor.probe` or `ckptdoctor.repair` returned.
    width
        Columns.

    Raises
    ------
    UsageError
        If it is something else.

    Examples
    --------
    >>> from ckptdoctor.results import ErrorInfo
    >>> error = ErrorInfo(type="FormatError", message="empty", where="m.pt")
    >>> print(as_text(Report(file="m.pt", error=error)))
    m.pt
      could not be checked
      empty
    """
    from ..outcome import Outcome  # noqa: PLC0415  (each with its renderer, when it is asked for)
    from ..probing.results import ProbeReport  # noqa: PLC0415

    given: Any = result
    view = View(width=width)
    if isinstance(given, Report):
        return "".join(renderer("text")([given], view)).rstrip("\n")
    if isinstance(given, ProbeReport):
        from .probe import render  # noqa: PLC0415

        return render(given, view).rstrip("\n")
    if isinstance(given, Outcome):
        from .repair import render as render_repair  # noqa: PLC0415

        return render_repair(given, view).rstrip("\n")
    kind = type(given).__qualname__
    raise UsageError(f"expected a Report, a ProbeReport or an Outcome, found {kind:.100}")
