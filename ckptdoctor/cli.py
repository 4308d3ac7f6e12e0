"""The command line: options -> api -> report -> exit code, no logic."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ._version import __version__
from .errors import CkptDoctorError, UsageError
from .findings import Severity
from .report import FORMATS, renderer
from .results import Format, Purpose, Sort, Tensors, View, Weights, Wishes
from .terminal import (
    OutputError,
    ProgressLine,
    colored,
    is_terminal,
    put,
    say,
    unwritable,
    width_of,
)

if TYPE_CHECKING:
    from .results import Report

__all__ = ["run"]

EXIT_CLEAN, EXIT_FINDINGS, EXIT_USAGE, EXIT_UNCHECKED, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
_REPORT_WIDTH = 100
"""Columns of a text report in a file."""

EXAMPLES = """\
\b
Examples:
  ckptdoctor inspect model.pt
  ckptdoctor inspect runs/*.ckpt --purpose resume
  ckptdoctor inspect model.safetensors --tensors all --sort max
  ckptdoctor inspect model.h5 --format json > report.json

\b
Exit codes:
  0 clean, 1 findings, 2 wrong usage, 3 could not be checked, 130 interrupted
  Of several files the highest counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inspection:
    """What ``inspect`` was asked to do."""

    paths: list[str]
    wishes: Wishes
    tensors: Tensors | None
    sort: Sort
    fail_on: Severity | None
    format: str
    reports: list[tuple[str, str]]
    debug: bool
    quiet: bool
    color: str


@dataclass(frozen=True, slots=True)
class _ListFormats:
    """``formats``, as text or JSON."""

    format: str


app = typer.Typer(
    name="ckptdoctor",
    add_completion=False,
    rich_markup_mode=None,  # rich costs more to import than NumPy
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        put(sys.stdout, f"ckptdoctor {__version__}\n")
        raise typer.Exit


def _option(text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, show_default=metavar is None)


_PATHS = typer.Argument(
    metavar="PATH...", help="Files, folders that hold one checkpoint, or index.json files."
)
_VERSION = typer.Option(
    "--version", callback=_show_version, is_eager=True, help="Show the version."
)
_PURPOSE = _option("Let only what serving or resuming uses decide the exit code.")
_WEIGHTS = _option("Weights that will be served; auto takes the EMA where its framework would.")
_SELECT = _option("Report only these codes, such as NF001,CK.", metavar="CODES")
_IGNORE = _option("Leave these codes out.", metavar="CODES")
_TENSOR = _option("Judge and list only tensors whose name matches.", metavar="GLOB")
_TENSORS = _option("Rows to list; text lists suspects, JSON all tensors.")
_SORT = _option("Order of the rows.")
_FAIL_ON = _option("Lowest severity that makes the exit code 1.")
_FORMAT = _option("Format of the standard output.")
_REPORT = _option("Write a report to a file, too: text=FILE or json=FILE.", metavar="FMT=FILE")
_TRUST = _option("Run HDF5's library without its guard process.", "--trust-hdf5")
_QUIET = _option("Print only what fails.", "--quiet", "-q")
_COLOR = _option("When to use colours.")
_DEBUG = _option("Show the traceback of an unexpected error.", "--debug")


@app.callback()
def _common(version: Annotated[bool, _VERSION] = False) -> None:
    """Say whether a neural-network checkpoint is fit to serve, or to resume, and why not."""


@app.command("inspect", epilog=EXAMPLES)
def _inspect(
    paths: Annotated[list[str], _PATHS],
    purpose: Annotated[Purpose, _PURPOSE] = "any",
    weights: Annotated[Weights, _WEIGHTS] = "auto",
    select: Annotated[list[str] | None, _SELECT] = None,
    ignore: Annotated[list[str] | None, _IGNORE] = None,
    tensor: Annotated[list[str] | None, _TENSOR] = None,
    tensors: Annotated[Tensors | None, _TENSORS] = None,
    sort: Annotated[Sort, _SORT] = "file",
    fail_on: Annotated[Literal["error", "warning", "never"], _FAIL_ON] = "error",
    format: Annotated[Format, _FORMAT] = "text",
    report: Annotated[list[str] | None, _REPORT] = None,
    trust_hdf5: Annotated[bool, _TRUST] = False,
    quiet: Annotated[bool, _QUIET] = False,
    color: Annotated[Literal["auto", "always", "never"], _COLOR] = "auto",
    debug: Annotated[bool, _DEBUG] = False,
) -> _Inspection:
    """Measure every tensor and say what is wrong."""
    wishes = Wishes(
        purpose=purpose,
        weights=weights,
        select=_codes(select),
        ignore=_codes(ignore),
        tensors=tuple(tensor or ()),
        trust_hdf5=trust_hdf5,
    )
    return _Inspection(
        paths=paths,
        wishes=wishes,
        tensors=tensors,
        sort=sort,
        fail_on=None if fail_on == "never" else Severity[fail_on.upper()],
        format=format,
        reports=[_destination(text) for text in report or ()],
        debug=debug,
        quiet=quiet,
        color=color,
    )


@app.command("formats")
def _formats(
    format: Annotated[Format, _FORMAT] = "text",
) -> _ListFormats:
    """List the formats that can be read."""
    return _ListFormats(format)


def _codes(texts: list[str] | None) -> tuple[str, ...]:
    return tuple(code.strip() for text in texts or () for code in text.split(","))


def _destination(text: str) -> tuple[str, str]:
    kind, _, file = text.partition("=")
    if not file or kind not in FORMATS:
        message = f"--report {text}: expected text=FILE or json=FILE"
        raise UsageError(message)
    return kind, file


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code; only with ``--debug`` can it raise."""
    try:
        wish = _parse(arguments)
        if isinstance(wish, _Inspection):
            return _run_inspection(wish)
        if isinstance(wish, _ListFormats):
            return _run_formats(wish)
        return int(wish or 0)
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        return EXIT_INTERRUPTED
    except UsageError as error:
        say(str(error))
        return EXIT_USAGE
    except OutputError as error:
        say(f"standard output could not be written: {error}")
        return EXIT_UNCHECKED
    except _MISUSE as error:
        return _misused(error)
    except Exception as error:
        if "--debug" in arguments:
            raise
        return _unexpected(error)


def _parse(arguments: list[str]) -> Any:
    try:
        return app(arguments, prog_name="ckptdoctor", standalone_mode=False)
    except OSError as error:  # nothing is opened yet: the help could not be printed
        raise unwritable(sys.stdout, error) from None


# From 0.26 on typer brings its own click; its exceptions lead to whichever is in use.
_MISUSE: Any = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)


def _misused(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        put(sys.stdout, error.format_message() + "\n")
        return EXIT_USAGE
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "ckptdoctor"
    say(f"{error.format_message()} See '{path} --help'.")
    return EXIT_USAGE


def _unexpected(error: Exception) -> int:
    if isinstance(error, CkptDoctorError):
        say(str(error))
    else:
        text = str(error).partition("\n")[0][:200]
        say(f"unexpected {type(error).__name__}: {text}; {_BUG}")
    return EXIT_UNCHECKED


_BUG = f"a bug in ckptdoctor {__version__}: please report this line (--debug shows the traceback)"


def _run_inspection(wish: _Inspection) -> int:
    from .diagnose import check_codes  # noqa: PLC0415  (NumPy: --help does without)

    check_codes((*wish.wishes.select, *wish.wishes.ignore))
    _check_paths(wish)
    run = _Run(wish)
    if not wish.reports:
        _emit(wish, run.reports())
        return run.code
    reports = list(run.reports())
    _emit(wish, reports)
    for kind, file in wish.reports:
        run.code = max(run.code, _write_report(kind, file, reports, wish))
    return run.code


def _check_paths(wish: _Inspection) -> None:
    for path in wish.paths:
        if not path or not _exists(Path(path)):
            raise UsageError("no such file or folder", where=path or "''")
    if wish.reports:
        from .report.files import check_target  # noqa: PLC0415  (tempfile costs 5 ms)

        for _, file in wish.reports:
            check_target(file, wish.paths)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, a NUL
        return False


class _Run:
    """Inspects path after path and keeps the worst exit code: 3, then 2, then 1."""

    def __init__(self, wish: _Inspection) -> None:
        self.wish = wish
        self.code = EXIT_CLEAN
        seen = not wish.quiet and is_terminal(sys.stderr)
        self.progress = ProgressLine(sys.stderr, enabled=seen)

    def reports(self) -> Iterator[Report]:
        from .api import examine  # noqa: PLC0415

        wish = self.wish
        for path in wish.paths:
            self.progress.start(path)
            try:
                report = examine(path, wish.wishes, self.progress, debug=wish.debug)
            finally:
                self.progress.clear()
            self.weigh(report)
            yield report

    def weigh(self, report: Report) -> None:
        error = report.error
        if error is not None and error.usage:
            self.code = max(self.code, EXIT_USAGE)
            say(str(UsageError(error.message, where=error.where, hint=error.hint)))
        elif error is not None:
            self.code = EXIT_UNCHECKED
            if error.bug:
                say(f"{report.file}: {error.type} at {error.where}: {error.message}; {_BUG}")
        elif report.fails(self.wish.fail_on):
            self.code = max(self.code, EXIT_FINDINGS)


def _view(wish: _Inspection, width: int, *, color: bool = False, encoding: str = "utf-8") -> View:
    return View(
        tensors=wish.tensors,
        sort=wish.sort,
        width=width,
        encoding=encoding,
        color=color,
        quiet=wish.quiet,
        fail_on=wish.fail_on,
    )


def _emit(wish: _Inspection, reports: Iterable[Report]) -> None:
    stream = sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    view = _view(wish, width_of(stream), color=colored(wish.color, stream), encoding=encoding)
    listening = True
    for piece in renderer(wish.format)(reports, view):
        # When nobody reads on, the exit code still is that of all files.
        listening = listening and put(stream, piece)


def _write_report(kind: str, file: str, reports: Iterable[Report], wish: _Inspection) -> int:
    from .report.files import guard_inputs, write  # noqa: PLC0415

    try:
        guard_inputs(file, reports)
        write(file, renderer(kind)(reports, _view(wish, _REPORT_WIDTH)))
    except UsageError as error:
        say(str(error))
        return EXIT_USAGE
    except OSError as error:
        say(f"{file}: the report could not be written: {error.strerror}")
        return EXIT_UNCHECKED
    return EXIT_CLEAN


def _run_formats(wish: _ListFormats) -> int:
    from .formats import ADAPTERS  # noqa: PLC0415

    rows = [
        {"name": name, "summary": summary, "spec": adapter.spec}
        for adapter in ADAPTERS
        for name, summary in adapter.names.items()
    ]
    if wish.format == "json":
        from json import dumps  # noqa: PLC0415

        text = dumps({"schema": 1, "formats": rows}, indent=1) + "\n"
    else:
        wide = max(len(row["name"]) for row in rows)
        text = "".join(f"{row['name']:{wide}}  {row['summary']}\n" for row in rows)
    put(sys.stdout, text)
    return EXIT_CLEAN
