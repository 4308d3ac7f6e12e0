"""Options of the command line: what each is called, what it says, and the examples below the help."""

from __future__ import annotations

from typing import Any, Literal

import typer

__all__ = [
    "CAST_TO",
    "COLOR",
    "CONFIG",
    "DEBUG",
    "EXAMPLES",
    "EXPLAIN_EXAMPLES",
    "FAIL_ON",
    "FORMAT",
    "IGNORE",
    "PATHS",
    "PREFLIGHT",
    "PREFLIGHT_EXAMPLES",
    "PROBE",
    "PROBE_EXAMPLES",
    "PURPOSE",
    "QUIET",
    "REPAIR",
    "REPAIR_EXAMPLES",
    "REPORT",
    "RULES_EXAMPLES",
    "SELECT",
    "SORT",
    "TENSOR",
    "TENSORS",
    "TRUST",
    "UNHEEDED",
    "WEIGHTS",
    "WORDS",
    "Color",
    "Layers",
    "PageFormat",
]

EXAMPLES = """\
\b
Examples:
  ckptdoctor inspect model.pt
  ckptdoctor inspect runs/*.ckpt --purpose resume
  ckptdoctor inspect model.pt --select BN,nan-values --cast-to float16
  ckptdoctor inspect model.safetensors --tensors all --sort max
  ckptdoctor inspect model.h5 --format json > report.json
  ckptdoctor explain BN003

\b
Exit codes:
  0 clean, 1 findings, 2 wrong usage, 3 could not be checked, 130 interrupted
  Of several files the highest counts."""

REPAIR_EXAMPLES = """\
\b
Examples:
  ckptdoctor repair model.pt -n
  ckptdoctor repair model.h5 --bn-reset
  ckptdoctor repair model.pt --donor epoch_12.pt -o fixed.pt --receipt fixed.json
  ckptdoctor repair model.pt --donor epoch_12.pt --tensor 'layer4.*'
  ckptdoctor repair model.pt --recalibrate model.py:build --data batch.npy
  ckptdoctor repair last.ckpt --drop-optimizer --in-place
  ckptdoctor repair last.pt --set optimizer.param_groups.0.lr=0.001

\b
Classes of changes, from harmless to not:
  lossless     provably the same model, or a file that could not be used
  statistical  an estimate of what was there
  destructive  invented values; only when asked for by name, or with --allow

\b
Exit codes:
  0 done as asked, 1 written with a remainder, 2 declined before any work,
  3 could not be checked or written, 130 interrupted"""

PREFLIGHT_EXAMPLES = """\
\b
Examples:
  ckptdoctor preflight model.safetensors && exec my-server
  ckptdoctor preflight model.pt --report json=/reports/model.json
  ckptdoctor preflight /mnt/models --cache /var/cache/ckptdoctor
  ckptdoctor preflight model.safetensors --expect-sha256 SHA256SUMS
  ckptdoctor preflight model.pt --expect-keys names.json

\b
Exit codes:
  0 fit, 1 unfit, 2 wrong usage, 3 could not be checked, 130 interrupted
  Of several files the highest counts."""

PROBE_EXAMPLES = """\
\b
Examples:
  ckptdoctor probe model.keras --data batch.npy
  ckptdoctor probe model.py:build --weights-file model.pt --data batch.npz
  ckptdoctor probe package.models:make_resnet --data random:64x3,224,224
  ckptdoctor probe model.py:build --weights-file model.pt --data batch.npy --bisect

\b
Naming FILE.py:FACTORY or PACKAGE.MODULE:FACTORY runs that code.

\b
Exit codes:
  0 clean, 1 findings, 2 wrong usage, 3 could not be probed, 130 interrupted"""

EXPLAIN_EXAMPLES = """\
\b
Examples:
  ckptdoctor explain NF001
  ckptdoctor explain nan-values checksum-mismatch
  ckptdoctor explain CK002 --format markdown"""

RULES_EXAMPLES = """\
\b
Examples:
  ckptdoctor rules
  ckptdoctor rules --format json"""


def _option(
    text: str,
    *names: str,
    metavar: str | None = None,
    default: bool | str | None = None,
    **more: Any,
) -> Any:
    """Make an option; a default in words stands for None, others are told where they are a choice."""
    if isinstance(default, str):  # typer puts words in brackets of their own
        text, default = f"{text}  [default: {default}]", False
    shown = metavar is None if default is None else default
    return typer.Option(*names, help=text, metavar=metavar, show_default=shown, **more)


Color = Literal["auto", "always", "never"]
PageFormat = Literal["text", "json", "markdown"]
Layers = Literal["near", "all", "none"]

PATHS = typer.Argument(
    metavar="PATH...", help="Files, folders that hold one checkpoint, or index.json files."
)
WORDS = typer.Argument(metavar="CODE...", help="Codes such as NF001, or names: nan-values.")
PURPOSE = _option("Let only what serving or resuming uses decide the exit code.", default="any")
WEIGHTS = _option(
    "Weights that will be served; auto takes the EMA where its framework would.", default="auto"
)
SELECT = _option("Report only these codes or names, such as NF001,CK.", metavar="CODES")
IGNORE = _option("Leave these codes or names out.", metavar="CODES")
TENSOR = _option("Judge and list only tensors whose name matches.", metavar="GLOB")
CAST_TO = _option("Judge also what a cast to this type would lose.")
TENSORS = _option("Rows to list; text lists suspects, JSON all tensors.")
SORT = _option("Order of the rows.")
FAIL_ON = _option("Lowest severity that makes the exit code 1.", default="error")
FORMAT = _option("Format of the standard output.")
REPORT = _option("Write a report to a file, too: text=FILE or json=FILE.", metavar="FMT=FILE")
CONFIG = _option(
    "Settings; else those of ckptdoctor.toml or pyproject.toml, from here upwards.",
    metavar="FILE",
)
TRUST = _option("Run HDF5's library without its guard process.", "--trust-hdf5")
QUIET = _option("Print only what fails.", "--quiet", "-q")
COLOR = _option("When to use colours.")
DEBUG = _option("Show the traceback of an unexpected error.", "--debug")
PATH = typer.Argument(
    metavar="PATH", help="A file, a folder that holds one checkpoint, or an index.json file."
)
REPAIR: dict[str, Any] = {
    "output": _option(
        "Where to write; by default STEM.repaired.EXT.", "--output", "-o", metavar="FILE"
    ),
    "in_place": _option("Replace the input, and keep it as NAME.orig.", "--in-place"),
    "backup": _option("Keep no NAME.orig.", "--no-backup"),
    "force": _option(
        "Replace an output that exists; recalibrate on fewer than 16 samples.", "--force"
    ),
    "dry_run": _option("Print the plan and write nothing.", "--dry-run", "-n"),
    "bn_reset": _option("Broken BatchNorm statistics to mean 0 and variance 1.", "--bn-reset"),
    "bn_scope": _option(
        "What to reset or recalibrate: broken channels, their whole layers, or everything."
    ),
    "bn_silence": _option("Broken BatchNorm channels off: gamma and beta 0.", "--bn-silence"),
    "donor": _option(
        "An older or sibling checkpoint of the model to take values from.", metavar="FILE"
    ),
    "recalibrate": _option(
        "Recompute broken BatchNorm statistics with a model: FILE.py:FACTORY, "
        "PACKAGE.MODULE:FACTORY, or a file that holds one. Runs that code.",
        metavar="MODEL",
    ),
    "data": _option(
        "Inputs for --recalibrate: .npy or .npz, 64 samples of the training data or more.",
        metavar="FILE",
    ),
    "trust": _option("Let a framework load files that can run code.", "--trust"),
    "tensor": _option(
        "Treat tensors whose name matches, whatever the rules say; with --donor, take them whole.",
        metavar="GLOB",
    ),
    "reinit": _option("Draw tensors anew, by their layer's own law or =LAW.", metavar="GLOB[=LAW]"),
    "seed": _option("Of --reinit.", metavar="N", default=True),
    "set": _option(
        "A new value for a number, such as a learning rate.", "--set", metavar="NAME=VALUE"
    ),
    "drop_optimizer": _option("Leave the optimizer's state out.", "--drop-optimizer"),
    "allow": _option("The worst class of change that may be made unasked."),
    "write_plan": _option("Store the plan as JSON.", metavar="FILE"),
    "from_plan": _option("Do what a stored plan says.", metavar="FILE"),
    "quiet": _option("Print one line.", "--quiet", "-q"),
    "receipt": _option("Store what was replaced, enough to put it back by hand.", metavar="FILE"),
}
PREFLIGHT: dict[str, Any] = {
    "purpose": _option("What it is about to be used for."),
    "expect_sha256": _option(
        "The SHA-256 it must have, or a file of them as sha256sum writes it.",
        metavar="HEX|FILE",
    ),
    "expect_keys": _option(
        "Weights it must hold: names as JSON or lines, an index.json, a config.json, or a checkpoint.",
        metavar="FILE",
    ),
    "cache": _option("Folder of verdicts that are known already.", metavar="DIR"),
    "cache_key": _option(
        "What a verdict is known by: the file's stat and samples, or its whole content."
    ),
    "allow_unsafe_load": _option(
        "Let pass what is unsafe to load the default way.", "--allow-unsafe-load"
    ),
    "quiet": _option("Print a line only for what does not pass.", "--quiet", "-q"),
}
PROBE: dict[str, Any] = {
    "model": typer.Argument(
        metavar="MODEL",
        help="FILE.py:FACTORY, PACKAGE.MODULE:FACTORY, or a file that holds a whole model "
        "(.keras, .h5, TorchScript, ExportedProgram).",
    ),
    "weights_file": _option("Checkpoint to take the weights from.", metavar="FILE"),
    "data": _option(
        "Inputs: .npy, .npz, FILE.npz:NAME, random, or random:64x3,32,32.",
        metavar="DATA",
        default=True,
    ),
    "samples": _option(
        "How many samples to take of the data; 0 for all.", metavar="N", default=True
    ),
    "batch_size": _option("How many samples to run together.", metavar="N", default=True),
    "bisect": _option("Find the samples that break it.", "--bisect"),
    "precision": _option(
        "Narrower types to try on 32 of the samples: of float16 and bfloat16, or none.",
        metavar="TYPES",
        default=True,
    ),
    "layers": _option("Rows to list: the neighbourhood of what is bad, all, or none."),
}
# Every command takes --config, --color and --quiet, so that a script need not know which heeds it.
UNHEEDED = {
    "config": _option("", "--config", metavar="FILE", hidden=True),
    "quiet": _option("", "--quiet", "-q", hidden=True),
    "color": _option("", "--color", hidden=True),
}
