"""The command line: options -> api -> report -> exit code, no logic."""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import Annotated, Any, Literal

import typer

from . import options
from ._version import __version__
from .commands.wishes import InspectWish, ListingWish, PreflightWish, ProbeWish, RepairWish
from .errors import CkptDoctorError, UsageError
from .exits import BUG, INTERRUPTED, UNCHECKED, USAGE
from .report import FORMATS
from .results import CastTo, FailOn, Format, Purpose, Sort, Tensors, Weights
from .terminal import (
    OutputError,
    put,
    say,
    unwritable,
)
from .wishes import Class, Scope

__all__ = ["run"]


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
) -> InspectWish:
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
    return InspectWish(
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
    recalibrate: Annotated[str | None, options.REPAIR["recalibrate"]] = None,
    data: Annotated[str | None, options.REPAIR["data"]] = None,
    trust: Annotated[bool, options.REPAIR["trust"]] = False,
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
    """Write a repaired copy; every other byte stays.

    Only what is broken changes, and the input is never opened for writing.
    """
    given = {
        "output": output, "in_place": in_place, "backup": not no_backup, "force": force,
        "dry_run": dry_run, "bn_reset": bn_reset, "bn_scope": bn_scope, "bn_silence": bn_silence,
        "donor": donor, "recalibrate": recalibrate, "data": data, "trust": trust, "tensors": tuple(tensor or ()), "reinit": tuple(reinit or ()),
        "numbers": dict(_number(text) for text in set_ or ()), "drop_optimizer": drop_optimizer,
        "allow": allow, "seed": seed, "from_plan": from_plan, "write_plan": write_plan,
        "receipt": receipt, "trust_hdf5": trust_hdf5,
    }  # fmt: skip
    return RepairWish(
        path=path, given=given, config=config, format=format, quiet=quiet, color=color, debug=debug
    )


@app.command("preflight", epilog=options.PREFLIGHT_EXAMPLES)
def _preflight(
    paths: Annotated[list[str], options.PATHS],
    purpose: Annotated[Purpose, options.PREFLIGHT["purpose"]] = "serve",
    weights: Annotated[Weights | None, options.WEIGHTS] = None,
    cast_to: Annotated[CastTo | None, options.CAST_TO] = None,
    expect_sha256: Annotated[str | None, options.PREFLIGHT["expect_sha256"]] = None,
    expect_keys: Annotated[str | None, options.PREFLIGHT["expect_keys"]] = None,
    cache: Annotated[str | None, options.PREFLIGHT["cache"]] = None,
    cache_key: Annotated[Literal["stat", "content"], options.PREFLIGHT["cache_key"]] = "stat",
    allow_unsafe_load: Annotated[bool, options.PREFLIGHT["allow_unsafe_load"]] = False,
    fail_on: Annotated[FailOn | None, options.FAIL_ON] = None,
    format: Annotated[Format, options.FORMAT] = "text",
    report: Annotated[list[str] | None, options.REPORT] = None,
    config: Annotated[str | None, options.CONFIG] = None,
    trust_hdf5: Annotated[bool, options.TRUST] = False,
    quiet: Annotated[bool, options.PREFLIGHT["quiet"]] = False,
    color: Annotated[options.Color, options.COLOR] = "auto",
    debug: Annotated[bool, options.DEBUG] = False,
) -> PreflightWish:
    """Say in one line whether a checkpoint may be loaded.

    For containers and start scripts; --report has the rest.
    """
    given = {
        "purpose": purpose, "weights": weights, "cast_to": cast_to, "trust_hdf5": trust_hdf5
    }  # fmt: skip
    return PreflightWish(
        paths=paths,
        given=given,
        config=config,
        fail_on=fail_on,
        expect_sha256=expect_sha256,
        expect_keys=expect_keys,
        cache=cache,
        cache_key=cache_key,
        allow_unsafe_load=allow_unsafe_load,
        format=format,
        reports=[_destination(text) for text in report or ()],
        debug=debug,
        quiet=quiet,
        color=color,
    )


@app.command("probe", epilog=options.PROBE_EXAMPLES)
def _probe(
    model: Annotated[str, options.PROBE["model"]],
    weights_file: Annotated[str | None, options.PROBE["weights_file"]] = None,
    data: Annotated[str, options.PROBE["data"]] = "random",
    samples: Annotated[int, options.PROBE["samples"]] = 256,
    batch_size: Annotated[int, options.PROBE["batch_size"]] = 32,
    bisect: Annotated[bool, options.PROBE["bisect"]] = False,
    precision: Annotated[str, options.PROBE["precision"]] = "float16,bfloat16",
    trust: Annotated[bool, options.REPAIR["trust"]] = False,
    layers: Annotated[options.Layers, options.PROBE["layers"]] = "near",
    format: Annotated[Format, options.FORMAT] = "text",
    config: Annotated[str | None, options.UNHEEDED["config"]] = None,  # noqa: ARG001
    quiet: Annotated[bool, options.REPAIR["quiet"]] = False,
    color: Annotated[options.Color, options.COLOR] = "auto",
    debug: Annotated[bool, options.DEBUG] = False,
) -> ProbeWish:
    """Run a model on data and name the first layer that goes wrong."""
    given = {
        "weights_file": weights_file or "", "data": data, "samples": samples,
        "batch_size": batch_size, "bisect": bisect, "trust": trust,
        "precisions": _types(precision),
    }  # fmt: skip
    return ProbeWish(
        model=model,
        given=given,
        layers=layers,
        format=format,
        quiet=quiet,
        color=color,
        debug=debug,
    )


@app.command("explain", epilog=options.EXPLAIN_EXAMPLES)
def _explain(
    codes: Annotated[list[str], options.WORDS],
    format: Annotated[options.PageFormat, options.FORMAT] = "text",
    config: Annotated[str | None, options.CONFIG] = None,
    color: Annotated[options.Color, options.COLOR] = "auto",
    quiet: Annotated[bool, options.UNHEEDED["quiet"]] = False,  # noqa: ARG001
) -> ListingWish:
    """Say what a code means, how it happens, and when to ignore it."""
    return ListingWish(what="explain", format=format, color=color, codes=codes, config=config)


@app.command("rules", epilog=options.RULES_EXAMPLES)
def _rules(
    format: Annotated[options.PageFormat, options.FORMAT] = "text",
    config: Annotated[str | None, options.UNHEEDED["config"]] = None,  # noqa: ARG001
    color: Annotated[options.Color, options.UNHEEDED["color"]] = "auto",
    quiet: Annotated[bool, options.UNHEEDED["quiet"]] = False,  # noqa: ARG001
) -> ListingWish:
    """List every code that a finding can have."""
    return ListingWish(what="rules", format=format, color=color)


@app.command("formats")
def _formats(
    format: Annotated[Format, options.FORMAT] = "text",
    config: Annotated[str | None, options.UNHEEDED["config"]] = None,  # noqa: ARG001
    color: Annotated[options.Color, options.UNHEEDED["color"]] = "auto",
    quiet: Annotated[bool, options.UNHEEDED["quiet"]] = False,  # noqa: ARG001
) -> ListingWish:
    """List the formats that can be read."""
    return ListingWish(what="formats", format=format, color=color)


def _codes(texts: list[str] | None) -> tuple[str, ...] | None:
    if not texts:
        return None
    return tuple(code.strip() for text in texts for code in text.split(","))


def _types(text: str) -> tuple[str, ...]:
    found = [word.strip() for word in text.split(",")]
    return () if found == ["none"] else tuple(dict.fromkeys(found))


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
    """Run the command line and return its exit code; ``--debug`` shows where an error is from."""
    try:
        wish = _parse(arguments)
        return _obey(wish)
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        return INTERRUPTED
    except UsageError as error:
        say(str(error))
        return USAGE
    except OutputError as error:
        say(f"standard output could not be written: {error}")
        return UNCHECKED
    except _MISUSE as error:
        return _misused(error)
    except Exception as error:  # noqa: BLE001  (whatever crashed, nothing passes)
        if "--debug" in arguments:
            import traceback  # noqa: PLC0415

            traceback.print_exception(error)
        return _unexpected(error)


def _obey(wish: Any) -> int:
    """Run a command; its module is imported only now, so that help and usage errors cost nothing."""
    home, name = _RUNNERS.get(type(wish), ("", ""))
    if not home:  # typer's own exit codes: --help, --version
        return int(wish or 0)
    module = importlib.import_module(f".commands.{home}", __package__)
    return int(getattr(module, name)(wish))


_RUNNERS: dict[type, tuple[str, str]] = {
    InspectWish: ("inspect", "run_inspection"),
    ListingWish: ("listing", "run_listing"),
    PreflightWish: ("preflight", "run_preflight"),
    ProbeWish: ("probe", "run_probe"),
    RepairWish: ("repair", "run_repair"),
}


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
        return USAGE
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "ckptdoctor"
    say(f"{error.format_message()} See '{path} --help'.")
    return USAGE


def _unexpected(error: Exception) -> int:
    if isinstance(error, CkptDoctorError):
        say(str(error))
    else:
        text = str(error).partition("\n")[0][:200]
        say(f"unexpected {type(error).__name__}: {text}; {BUG}")
    return UNCHECKED
