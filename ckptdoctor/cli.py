"""The command line: options -> api -> report -> exit code, no logic."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from ._version import __version__
from .errors import CkptDoctorError, UsageError
from .findings import Severity
from .report import FORMATS, renderer
from .results import CastTo, FailOn, Format, Purpose, Sort, Tensors, View, Weights
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
from .wishes import Class, RepairWish, Scope

if TYPE_CHECKING:
    from .config import Settings
    from .results import Report, Wishes

__all__ = ["run"]

EXIT_CLEAN, EXIT_FINDINGS, EXIT_USAGE, EXIT_UNCHECKED, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
_REPORT_WIDTH = 100
"""Columns of a text report in a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inspection:
    """What ``inspect`` was asked to do; ``given`` are wishes, None where nothing was said."""

    paths: list[str]
    given: dict[str, Any]
    config: str | None
    tensors: Tensors | None
    sort: Sort
    fail_on: FailOn | None
    format: str
    reports: list[tuple[str, str]]
    debug: bool
    quiet: bool
    color: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """What ``explain``, ``rules`` or ``formats`` was asked to show."""

    what: str
    format: str
    color: str
    codes: list[str] | None = None
    config: str | None = None


app = typer.Typer(
    name="ckptdoctor",
    add_completion=False,
    rich_markup_mode=None,  # rich costs more to import than NumPy
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    epilog=options.EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        put(sys.stdout, f"ckptdoctor {__version__}\n")
        raise typer.Exit


_VERSION = typer.Option(
    "--version", callback=_show_version, is_eager=True, help="Show the version."
)


@app.callback()
def _common(version: Annotated[bool, _VERSION] = False) -> None:
    """Say whether a neural-network checkpoint is fit to serve, or to resume, and why not."""


@app.command("inspect", epilog=options.EXAMPLES)
def _inspect(
    paths: Annotated[list[str], options.PATHS],
    purpose: Annotated[Purpose | None, options.PURPOSE] = None,
    weights: Annotated[Weights | None, options.WEIGHTS] = None,
    select: Annotated[list[str] | None, options.SELECT] = None,
    ignore: Annotated[list[str] | None, options.IGNORE] = None,
    tensor: Annotated[list[str] | None, options.TENSOR] = None,
    cast_to: Annotated[CastTo | None, options.CAST_TO] = None,
    tensors: Annotated[Tensors | None, options.TENSORS] = None,
    sort: Annotated[Sort, options.SORT] = "file",
    fail_on: Annotated[FailOn | None, options.FAIL_ON] = None,
    format: Annotated[Format, options.FORMAT] = "text",
    report: Annotated[list[str] | None, options.REPORT] = None,
    config: Annotated[str | None, options.CONFIG] = None,
    trust_hdf5: Annotated[bool, options.TRUST] = False,
    quiet: Annotated[bool, options.QUIET] = False,
    color: Annotated[options.Color, options.COLOR] = "auto",
    debug: Annotated[bool, options.DEBUG] = False,
) -> _Inspection:
    """Measure every tensor and say what is wrong."""
    given = {
        "purpose": purpose,
        "weights": weights,
        "select": _codes(select),
        "ignore": _codes(ignore),
        "tensors": tuple(tensor or ()),
        "cast_to": cast_to or "",
        "trust_hdf5": trust_hdf5,
    }
    return _Inspection(
        paths=paths,
        given=given,
        config=config,
        tensors=tensors,
        sort=sort,
        fail_on=fail_on,
        format=format,
        reports=[_destination(text) for text in report or ()],
        debug=debug,
        quiet=quiet,
        color=color,
    )


@app.command("repair", epilog=options.REPAIR_EXAMPLES)
def _repair(
    path: Annotated[str, options.PATH],
    output: Annotated[str | None, options.REPAIR["output"]] = None,
    in_place: Annotated[bool, options.REPAIR["in_place"]] = False,
    no_backup: Annotated[bool, options.REPAIR["backup"]] = False,
    force: Annotated[bool, options.REPAIR["force"]] = False,
    dry_run: Annotated[bool, options.REPAIR["dry_run"]] = False,
    bn_reset: Annotated[bool, options.REPAIR["bn_reset"]] = False,
    bn_scope: Annotated[Scope, options.REPAIR["bn_scope"]] = "channels",
    bn_silence: Annotated[bool, options.REPAIR["bn_silence"]] = False,
    donor: Annotated[str | None, options.REPAIR["donor"]] = None,
    tensor: Annotated[list[str] | None, options.REPAIR["tensor"]] = None,
    reinit: Annotated[list[str] | None, options.REPAIR["reinit"]] = None,
    seed: Annotated[int, options.REPAIR["seed"]] = 0,
    set_: Annotated[list[str] | None, options.REPAIR["set"]] = None,
    drop_optimizer: Annotated[bool, options.REPAIR["drop_optimizer"]] = False,
    allow: Annotated[Class, options.REPAIR["allow"]] = "statistical",
    write_plan: Annotated[str | None, options.REPAIR["write_plan"]] = None,
    from_plan: Annotated[str | None, options.REPAIR["from_plan"]] = None,
    receipt: Annotated[str | None, options.REPAIR["receipt"]] = None,
    format: Annotated[Format, options.FORMAT] = "text",
    config: Annotated[str | None, options.CONFIG] = None,
    trust_hdf5: Annotated[bool, options.TRUST] = False,
    quiet: Annotated[bool, options.REPAIR["quiet"]] = False,
    color: Annotated[options.Color, options.COLOR] = "auto",
    debug: Annotated[bool, options.DEBUG] = False,
) -> RepairWish:
    """Write a repaired copy: only what is broken changes, every other byte stays."""
    given = {
        "output": output, "in_place": in_place, "backup": not no_backup, "force": force,
        "dry_run": dry_run, "bn_reset": bn_reset, "bn_scope": bn_scope, "bn_silence": bn_silence,
        "donor": donor, "tensors": tuple(tensor or ()), "reinit": tuple(reinit or ()),
        "numbers": dict(_number(text) for text in set_ or ()), "drop_optimizer": drop_optimizer,
        "allow": allow, "seed": seed, "from_plan": from_plan, "write_plan": write_plan,
        "receipt": receipt, "trust_hdf5": trust_hdf5,
    }  # fmt: skip
    return RepairWish(
        path=path, given=given, config=config, format=format, quiet=quiet, color=color, debug=debug
    )


@app.command("explain", epilog=options.EXPLAIN_EXAMPLES)
def _explain(
    codes: Annotated[list[str], options.WORDS],
    format: Annotated[options.PageFormat, options.FORMAT] = "text",
    config: Annotated[str | None, options.CONFIG] = None,
    color: Annotated[options.Color, options.COLOR] = "auto",
    quiet: Annotated[bool, options.UNHEEDED["quiet"]] = False,  # noqa: ARG001
) -> _Listing:
    """Say what a code means, how it happens, and when to ignore it."""
    return _Listing(what="explain", format=format, color=color, codes=codes, config=config)


@app.command("rules", epilog=options.RULES_EXAMPLES)
def _rules(
    format: Annotated[options.PageFormat, options.FORMAT] = "text",
    config: Annotated[str | None, options.UNHEEDED["config"]] = None,  # noqa: ARG001
    color: Annotated[options.Color, options.UNHEEDED["color"]] = "auto",
    quiet: Annotated[bool, options.UNHEEDED["quiet"]] = False,  # noqa: ARG001
) -> _Listing:
    """List every code that a finding can have."""
    return _Listing(what="rules", format=format, color=color)


@app.command("formats")
def _formats(
    format: Annotated[Format, options.FORMAT] = "text",
    config: Annotated[str | None, options.UNHEEDED["config"]] = None,  # noqa: ARG001
    color: Annotated[options.Color, options.UNHEEDED["color"]] = "auto",
    quiet: Annotated[bool, options.UNHEEDED["quiet"]] = False,  # noqa: ARG001
) -> _Listing:
    """List the formats that can be read."""
    return _Listing(what="formats", format=format, color=color)


def _codes(texts: list[str] | None) -> tuple[str, ...] | None:
    if not texts:
        return None
    return tuple(code.strip() for text in texts for code in text.split(","))


def _number(text: str) -> tuple[str, float | int]:
    name, found, value = text.rpartition("=")
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            if found and name and ("inf" in value.lower() or abs(float(value)) < float("inf")):
                return name, kind(value)
    raise UsageError(f"--set {text}: expected NAME=VALUE, the value a number")


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
        if isinstance(wish, _Listing):
            return _run_listing(wish)
        if isinstance(wish, RepairWish):
            from .repairing import run_repair  # noqa: PLC0415  (inspecting does without)

            return run_repair(wish)
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
    settings = _settings(wish.config)
    wishes = settings.wishes(**wish.given)
    from .selection import check_wishes  # noqa: PLC0415  (NumPy: --help does without)

    check_wishes(wishes)
    _check_paths(wish)
    limit = wish.fail_on or settings.fail_on or "error"
    run = _Run(wish, wishes, None if limit == "never" else Severity[limit.upper()])
    if not wish.reports:
        run.emit(run.reports())
        return run.code
    reports = list(run.reports())
    run.emit(reports)
    for kind, file in wish.reports:
        run.code = max(run.code, run.write(kind, file, reports))
    return run.code


def _settings(file: str | None) -> Settings:
    from .config import find_settings, load_settings  # noqa: PLC0415  (--help does without)

    return find_settings() if file is None else load_settings(file)


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

    def __init__(self, wish: _Inspection, wishes: Wishes, fail_on: Severity | None) -> None:
        self.wish, self.wishes, self.fail_on = wish, wishes, fail_on
        self.code = EXIT_CLEAN
        seen = not wish.quiet and is_terminal(sys.stderr)
        self.progress = ProgressLine(sys.stderr, enabled=seen)

    def reports(self) -> Iterator[Report]:
        from .api import examine  # noqa: PLC0415

        for path in self.wish.paths:
            self.progress.start(path)
            try:
                report = examine(path, self.wishes, self.progress, debug=self.wish.debug)
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
        elif report.fails(self.fail_on):
            self.code = max(self.code, EXIT_FINDINGS)

    def view(self, width: int, *, color: bool = False, encoding: str = "utf-8") -> View:
        return View(
            tensors=self.wish.tensors,
            sort=self.wish.sort,
            width=width,
            encoding=encoding,
            color=color,
            quiet=self.wish.quiet,
            fail_on=self.fail_on,
        )

    def emit(self, reports: Iterable[Report]) -> None:
        stream = sys.stdout
        encoding = getattr(stream, "encoding", None) or "utf-8"
        color = colored(self.wish.color, stream)
        view = self.view(width_of(stream), color=color, encoding=encoding)
        listening = True
        for piece in renderer(self.wish.format)(reports, view):
            # When nobody reads on, the exit code still is that of all files.
            listening = listening and put(stream, piece)

    def write(self, kind: str, file: str, reports: Iterable[Report]) -> int:
        from .report.files import guard_inputs, write  # noqa: PLC0415

        try:
            guard_inputs(file, reports)
            write(file, renderer(kind)(reports, self.view(_REPORT_WIDTH)))
        except UsageError as error:
            say(str(error))
            return EXIT_USAGE
        except OSError as error:
            say(f"{file}: the report could not be written: {error.strerror}")
            return EXIT_UNCHECKED
        return EXIT_CLEAN


def _run_listing(wish: _Listing) -> int:
    from .listing import Listing  # noqa: PLC0415

    listing = Listing(
        format=wish.format, width=width_of(sys.stdout), color=colored(wish.color, sys.stdout)
    )
    if wish.what == "explain":
        text = listing.explanations(wish.codes or (), _settings(wish.config))
    elif wish.what == "rules":
        text = listing.rules()
    else:
        text = listing.formats()
    put(sys.stdout, text)
    return EXIT_CLEAN
