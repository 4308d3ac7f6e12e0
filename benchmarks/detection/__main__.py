"""``python -m benchmarks.detection``: the table of sensitivity and false alarms."""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from .page import page
from .run import Unit, run
from .score import Control, Row
from .table import alarms, by_rule, control_line, misses

TORCH = ("resnet_v1", "resnet_v2", "mobilenet", "efficientnet", "unet", "dcgan", "mlp_bn",
         "transformer", "lstm", "tcn", "controls")  # fmt: skip
KERAS = ("resnet_v2", "mobilenet", "mlp_bn", "lstm", "unet", "controls")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection", description=__doc__)
    parser.add_argument("--half", choices=("fit", "test", "both"), default="test")
    parser.add_argument("--only", default="", metavar="CODE", help="faults of codes that start so")
    parser.add_argument("--models", default="", help="framework/model prefixes, comma-separated")
    parser.add_argument("--runs", type=int, default=4, help="seeds of every model")
    parser.add_argument(
        "--first", type=int, default=0, help="first seed; new ones were never looked at"
    )
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "ckptdoctor-detection",
                        help="folder of trained models")  # fmt: skip
    parser.add_argument(
        "--misses", action="store_true", help="every missed file by model and layer"
    )
    parser.add_argument("--page", type=Path, help="write docs/detection.md")
    return parser.parse_args()


def digest() -> str:
    """Name of the code that trains: models trained by other code are trained again."""
    folder = Path(__file__).parent
    names = ("tasks", "torch_models", "keras_models", "torch_patient", "keras_patient")
    return hashlib.sha256(b"".join((folder / f"{n}.py").read_bytes() for n in names)).hexdigest()[
        :12
    ]


def units(options: argparse.Namespace) -> list[Unit]:
    options.cache /= digest()
    options.cache.mkdir(parents=True, exist_ok=True)
    wanted = tuple(options.models.split(","))
    found = [
        Unit(framework=framework, model=model, seed=seed, cache=options.cache, only=options.only)
        for framework, models in (("keras", KERAS), ("torch", TORCH))
        for model in models
        for seed in range(options.first, options.first + options.runs)
    ]
    found = [u for u in found if u.key.startswith(wanted) and options.half in (u.half, "both")]
    return [u for u in found if not (options.only and u.model == "controls")]


def main() -> int:
    options = arguments()
    started = time.monotonic()
    rows: list[Row] = []
    controls: list[Control] = []
    work = units(options)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        for unit, (more_rows, more_controls) in zip(work, pool.map(run, work), strict=True):
            rows += more_rows
            controls += more_controls
            print(
                f"{unit.key}: {len(more_rows)} damaged, {len(more_controls)} healthy",
                file=sys.stderr,
            )
    print(by_rule(rows, controls))
    print(f"\n{control_line(controls)}\n")
    print(misses(rows, patients=options.misses))
    print()
    for line in alarms(controls, rows):
        print(line[:300])
    print(f"{len(rows)} damaged files, {time.monotonic() - started:.0f} s", file=sys.stderr)
    if options.page:
        options.page.write_text(page(rows, controls, options))
    return 1 if any(control.errors for control in controls) else 0


if __name__ == "__main__":
    sys.exit(main())
