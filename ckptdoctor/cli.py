"""The command line: options -> api -> report -> exit code, no logic."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from ._version import __version__
from .errors import CkptDoctorError, UsageError
from .report.escape import display

if TYPE_CHECKING:
    from .results import Report, View

__all__ = ["run"]

EXIT_CLEAN, EXIT_FINDINGS, EXIT_USAGE, EXIT_UNCHECKED, EXIT_INTERRUPTED = 0, 1, 2, 3, 130

EXAMPLES = """\
Examples:

\b
  ckptdoctor inspect model.pt
  ckptdoctor inspect runs/*.ckpt --purpose resume
  ckptdoctor inspect model.safetensors --tensors all --sort max
  ckptdoctor inspect model.h5 --format json > report.json

Exit codes: 0 clean, 1 findings, 2 wrong usage, 3 could not be checked, 130 interrupted."""


class Purpose(str, Enum):
    """What the findings are weighed for."""

    ANY = "any"
    SERVE = "serve"
    RESUME = "resume"


class Weights(str, Enum):
    """Which weights would be served."""

    AUTO = "auto"
    MODEL = "model"
    EMA = "ema"


class Tensors(str, Enum):
    """Which rows of the table."""

    NONE = "none"
    SUSPECT = "suspect"
    ALL = "all"


class Sort(str, Enum):
    """Order of the rows."""

    FILE = "file"
    NAME = "name"
    SIZE = "size"
    NONFINITE = "nonfinite"
    MAX = "max"


class FailOn(str, Enum):
    """Lowest severity that makes the exit code 1."""

    ERROR = "error"
    WARNING = "warning"
    NEVER = "never"


class Format(str, Enum):
    """Format of the report."""

    TEXT = "text"
    JSON = "json"


class Color(str, Enum):
    """When to use colours."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inspection:
    """What ``inspect`` was asked to do."""

    paths: tuple[str, ...]
    purpose: str
    weights: str
    select: tuple[str, ...]
    ignore: tuple[str, ...]
    globs: tuple[str, ...]
    tensors: str
    sort: str
    fail_on: str
    format: str
    reports: tuple[tuple[str, str], ...]
    trust_hdf5: bool
    debug: bool
    quiet: bool
    color: str


@dataclass(frozen=True, slots=True)
class _ListFormats:
    """``formats``, as text or JSON."""

    format: str


app = typer.Typer(
    name="ckptdoctor",
    add_completion=False,  # 0.01 s of imports that no shell here asks for
    rich_markup_mode=None,  # rich would cost more than NumPy
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"ckptdoctor {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Say whether a neural-network checkpoint is fit to serve, or to resume, and why not."""


@app.command("inspect", epilog=EXAMPLES, no_args_is_help=False)
def _inspect(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Files, folders that hold one checkpoint, or index.json files.",
            show_default=False,
        ),
    ],
    purpose: Annotated[
        Purpose, typer.Option(help="Let only what serving or resuming uses decide the exit code.")
    ] = Purpose.ANY,
    weights: Annotated[
        Weights,
        typer.Option(
            help="Weights that will be served; auto takes the EMA where its framework would."
        ),
    ] = Weights.AUTO,
    select: Annotated[
        list[str],
        typer.Option(
            metavar="CODES", help="Only these codes (NF001,CK) are reported.", show_default=False
        ),
    ] = [],  # noqa: B006
    ignore: Annotated[
        list[str],
        typer.Option(metavar="CODES", help="These codes are not reported.", show_default=False),
    ] = [],  # noqa: B006
    tensor: Annotated[
        list[str],
        typer.Option(
            metavar="GLOB",
            help="Judge and list only tensors whose name matches.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    tensors: Annotated[
        Tensors | None,
        typer.Option(help="Rows to list; text lists suspects, JSON all.", show_default=False),
    ] = None,
    sort: Annotated[Sort, typer.Option(help="Order of the rows.")] = Sort.FILE,
    fail_on: Annotated[
        FailOn, typer.Option(help="Lowest severity that makes the exit code 1.")
    ] = FailOn.ERROR,
    format: Annotated[Format, typer.Option(help="Format of the standard output.")] = Format.TEXT,  # noqa: A002
    report: Annotated[
        list[str],
        typer.Option(metavar="FMT=FILE", help="Also write a report to a file.", show_default=False),
    ] = [],  # noqa: B006
    trust_hdf5: Annotated[
        bool, typer.Option("--trust-hdf5", help="Run HDF5's library without its guard process.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only what fails.")] = False,
    color: Annotated[Color, typer.Option(help="When to use colours.")] = Color.AUTO,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")
    ] = False,
) -> _Inspection:
    """Read checkpoints, measure every tensor, and say what is wrong with them."""
    return _Inspection(
        paths=tuple(paths), purpose=purpose.value, weights=weights.value,
        select=_codes(select), ignore=_codes(ignore), globs=tuple(tensor),
        tensors=tensors.value if tensors else "", sort=sort.value, fail_on=fail_on.value,
        format=format.value, reports=tuple(_destination(text) for text in report),
        trust_hdf5=trust_hdf5, debug=debug, quiet=quiet, color=color.value,
    )  # fmt: skip


@app.command("formats")
def _formats(
    format: Annotated[Format, typer.Option(help="Format of the list.")] = Format.TEXT,  # noqa: A002
) -> _ListFormats:
    """List the formats that can be read."""
    return _ListFormats(format.value)


def _codes(texts: list[str]) -> tuple[str, ...]:
    return tuple(code.strip() for text in texts for code in text.split(",") if code.strip())


def _destination(text: str) -> tuple[str, str]:
    kind, equals, file = text.partition("=")
    if not equals or not file or kind not in [f.value for f in Format]:
        message = f"--report {text!r}: expected text=FILE or json=FILE"
        raise UsageError(message)
    return kind, file


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    debug = "--debug" in arguments
    try:
        wish = app(arguments, prog_name="ckptdoctor", standalone_mode=False)
        if isinstance(wish, _Inspection):
            return _run_inspection(wish)
        if isinstance(wish, _ListFormats):
            return _run_formats(wish)
        return int(wish or 0)
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        return EXIT_INTERRUPTED
    except UsageError as error:
        _say(str(error))
        return EXIT_USAGE
    except Exception as error:  # noqa: BLE001  the last line of defence: never a traceback unasked
        if isinstance(error, _USAGE_ERRORS):
            return _misused(error)
        if debug:
            raise
        return _unexpected(error)


# typer vendors click from 0.26 on; its own exception leads to whichever is in use.
_USAGE_ERRORS: tuple[type[Exception], ...] = tuple(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)


def _misused(error: Any) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return EXIT_USAGE
    path = context.command_path if context else "ckptdoctor"
    _say(f"{error.format_message()} Try '{path} --help'.")
    return EXIT_USAGE


def _unexpected(error: BaseException) -> int:
    if isinstance(error, CkptDoctorError):
        _say(str(error))
    else:
        text = str(error).partition("\n")[0][:200]
        _say(f"unexpected {type(error).__name__}: {text}; {_bug_hint()}")
    return EXIT_UNCHECKED


def _bug_hint() -> str:
    return (
        f"this is a bug in ckptdoctor {__version__}: please report this line; "
        "--debug shows where it happened"
    )


def _run_inspection(wish: _Inspection) -> int:
    from .diagnose import check_codes  # noqa: PLC0415  (NumPy: --help does without)

    check_codes((*wish.select, *wish.ignore))
    _check_paths(wish)
    tally = _Tally(wish)
    reports: Iterable[Report] = tally.examined()
    if wish.reports:
        reports = list(reports)
    written = True
    try:
        _emit(wish.format, reports, _view(wish, sys.stdout), sys.stdout)
        for kind, file in wish.reports:
            written &= _write_report(kind, file, list(reports), wish)
    finally:
        tally.progress.clear()
    return tally.code if written else EXIT_UNCHECKED


def _check_paths(wish: _Inspection) -> None:
    for path in wish.paths:
        if not os.path.lexists(path):  # noqa: PTH110  (pathlib has none that keeps the text as it is)
            raise UsageError("no such file or folder", where=path)
    for _, file in wish.reports:
        if any(
            os.path.exists(file) and os.path.samefile(file, p)
            for p in wish.paths
            if os.path.exists(p)
        ):  # noqa: PTH110, PTH121
            raise UsageError("--report would overwrite a checkpoint", where=file)


class _Tally:
    """Inspects path after path and keeps the worst exit code: 3 before 1."""

    def __init__(self, wish: _Inspection) -> None:
        from .progress import Progress  # noqa: PLC0415

        self.wish = wish
        self.code = EXIT_CLEAN
        self.progress = Progress(sys.stderr, enabled=not wish.quiet and sys.stderr.isatty())

    def examined(self) -> Iterator[Report]:
        from .api import Wishes, examine  # noqa: PLC0415

        wish = self.wish
        wishes = Wishes(
            purpose=wish.purpose,  # type: ignore[arg-type]  # the options' own choices
            weights=wish.weights,  # type: ignore[arg-type]
            select=wish.select,
            ignore=wish.ignore,
            tensors=wish.globs,
            trust_hdf5=wish.trust_hdf5,
        )
        for path in wish.paths:
            self.progress.start(path)
            report = examine(path, wishes, self.progress, debug=wish.debug)
            self.progress.clear()
            self.code = max(self.code, _exit_code(report, wish))
            if report.error is not None and report.error.bug:
                self._bug(report)
            yield report

    def _bug(self, report: Report) -> None:
        assert report.error is not None
        error = report.error
        what = f"{error.type} at {error.where or 'an unknown place'}: {error.message}"
        _say(f"{report.file}: unexpected {what}; {_bug_hint()}")


def _exit_code(report: Report, wish: _Inspection) -> int:
    from .diagnose import fails  # noqa: PLC0415

    if report.error is not None:
        return EXIT_UNCHECKED
    return EXIT_FINDINGS if fails(report.worst, _fail_on(wish)) else EXIT_CLEAN


def _fail_on(wish: _Inspection) -> Any:
    from .findings import Severity  # noqa: PLC0415

    return None if wish.fail_on == "never" else Severity[wish.fail_on.upper()]


def _view(wish: _Inspection, stream: TextIO | None) -> View:
    from .results import View  # noqa: PLC0415

    return View(
        tensors=wish.tensors,  # type: ignore[arg-type]
        sort=wish.sort,
        width=_width(stream) if stream else 100,
        color=stream is not None and _colored(wish.color, stream),
        quiet=wish.quiet,
        fail_on=_fail_on(wish),
    )


def _width(stream: TextIO) -> int:
    """Columns of the terminal, or 120 where there is none to ask."""
    try:
        return max(40, int(os.environ["COLUMNS"]))
    except (KeyError, ValueError):
        pass
    for candidate in (stream, sys.stderr, sys.stdin):  # piped into a pager, stderr still knows
        try:
            return max(40, os.get_terminal_size(candidate.fileno()).columns)
        except (OSError, ValueError, AttributeError):
            continue
    return 120


def _colored(when: str, stream: TextIO) -> bool:
    if when != "auto":
        return when == "always"
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not plain


def _emit(kind: str, reports: Iterable[Report], view: View, stream: TextIO) -> None:
    from .report import renderer  # noqa: PLC0415

    pieces = renderer(kind)(reports, view)
    for piece in pieces:
        if not _put(stream, piece):
            for _ in pieces:  # nobody reads on, but the exit code is of all files
                pass


def _put(stream: TextIO, text: str) -> bool:
    """Write and flush; False when the reader has gone (``| head``), which is no error."""
    encoding = stream.encoding or "utf-8"
    if not text.isascii() and encoding.lower().replace("-", "") != "utf8":
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        _silence(stream)
        return False
    return True


def _silence(stream: TextIO) -> None:
    """Point a closed pipe at nothing, so that the flush at exit does not complain either."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _write_report(kind: str, file: str, reports: list[Report], wish: _Inspection) -> bool:
    try:
        with open(file, "w", encoding="utf-8", errors="backslashreplace") as stream:  # noqa: PTH123
            _emit(kind, reports, _view(wish, None), stream)
    except OSError as error:
        _say(f"{file}: the report could not be written: {error.strerror}")
        return False
    return True


def _say(text: str) -> None:
    if sys.stderr is not None:
        _put(sys.stderr, f"ckptdoctor: {display(text)}\n")


def _run_formats(wish: _ListFormats) -> int:
    from .formats import ADAPTERS  # noqa: PLC0415

    rows = [{"name": a.name, "summary": a.summary, "spec": a.spec} for a in ADAPTERS]
    if wish.format == "json":
        from json import dumps  # noqa: PLC0415

        _put(sys.stdout, dumps({"schema": 1, "formats": rows}, indent=1) + "\n")
        return EXIT_CLEAN
    wide = max(len(row["name"]) for row in rows)
    for row in rows:
        if not _put(sys.stdout, f"{row['name']:{wide}}  {row['summary']}\n"):
            break
    return EXIT_CLEAN
