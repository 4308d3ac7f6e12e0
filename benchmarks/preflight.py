"""What preflight adds to the start of a server: ``python -m benchmarks.preflight``.

Fresh processes in turns: preflight of a file against importing the framework, loading the same
file, and touching every byte of it. The file is in the page cache for both, which is the worst case
for preflight: reading from a disk costs whoever comes first, and the other finds it read.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .speed import MIB, Files, placed, python, ratio
from .timing import Pairs, pairs

PREFLIGHT = """
import sys
import ckptdoctor
ckptdoctor.preflight(sys.argv[1])
"""
KNOWN = """
import sys
import ckptdoctor
ckptdoctor.preflight(sys.argv[1], cache=sys.argv[2])
"""
SAFETENSORS = """
import sys
import torch
from safetensors.torch import load_file
for tensor in load_file(sys.argv[1]).values():
    tensor.sum().item()
"""
TORCH = """
import sys
import torch
for tensor in torch.load(sys.argv[1], weights_only=True).values():
    tensor.sum().item()
"""
# Less than `keras.Model.load_weights` does, which also draws initial weights first.
KERAS = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import h5py, keras, tensorflow
with h5py.File(sys.argv[1]) as file:
    for layer in file.attrs["layer_names"]:
        group = file[layer]
        for name in group.attrs["weight_names"]:
            tensorflow.reduce_sum(tensorflow.constant(group[name][...])).numpy()
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One promise: two commands, and what their difference must not exceed; see `benchmarks.speed`."""

    name: str
    what: str
    kind: str
    target: float
    unit: str
    number: Callable[[Pairs], float]
    first: Sequence[str]
    against: Sequence[str]
    needs: str = ""


def percent(found: Pairs) -> float:
    """First in percent of the second."""
    return 100 * ratio(found)


def milliseconds(found: Pairs) -> float:
    """First less second."""
    return 1000 * found.difference


FRESH = python(PREFLIGHT, "FILE")
ROWS = (
    Row("safetensors", "preflight : import torch, load, touch", "f32", 25, "%", percent, FRESH,
        python(SAFETENSORS, "FILE"), "torch"),
    Row("pt", "preflight : import torch, load, touch", "pt", 25, "%", percent, FRESH,
        python(TORCH, "FILE"), "torch"),
    Row("h5", "preflight : import keras, load, touch", "h5", 25, "%", percent, FRESH,
        python(KERAS, "FILE"), "tensorflow"),
    Row("known", "preflight with a known verdict : python", "f32", 250, "ms", milliseconds,
        python(KNOWN, "FILE", "OUT"), python("pass")),
    Row("import", "import ckptdoctor : python", "", 25, "ms", milliseconds,
        python("import ckptdoctor"), python("pass")),
)  # fmt: skip


def lines(only: Sequence[str], size: int, runs: int) -> Iterator[tuple[str, bool]]:
    """Yield a printed line for each row, and whether its promise was kept."""
    with tempfile.TemporaryDirectory(prefix="ckptdoctor-bench-") as folder:
        files = Files(Path(folder))
        for row in ROWS:
            if only and row.name not in only:
                continue
            head = f"{row.name:12} {row.what:40}"
            if row.needs and not importlib.util.find_spec(row.needs):
                yield f"{head} left out: no {row.needs}", True
                continue
            path = files.get(row.kind, size) if row.kind else ""
            places = {"FILE": path, "OUT": f"{folder}/cache"}
            found = pairs(placed(row.first, places), placed(row.against, places), runs)
            number = row.number(found)
            both = [sorted(run.seconds for run in side) for side in (found.first, found.second)]
            medians = " : ".join(f"{side[len(side) // 2]:.3f} s" for side in both)
            kept = number <= row.target
            verdict = "ok" if kept else "MISSED"
            yield (
                f"{head} {medians:20} {number:8.1f} {row.unit:2} at most {row.target:g} {verdict}",
                kept,
            )


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.preflight", description=__doc__)
    parser.add_argument("--size", type=float, default=2048, metavar="MIB", help="of the files")
    parser.add_argument("--only", nargs="+", default=[], choices=[row.name for row in ROWS])
    parser.add_argument("--runs", type=int, default=5, help="pairs per row")
    parser.add_argument("--strict", action="store_true", help="exit 1 for a missed target")
    options = parser.parse_args()
    missed = 0
    for line, kept in lines(options.only, int(options.size * MIB), options.runs):
        print(line, flush=True)
        missed += not kept
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
