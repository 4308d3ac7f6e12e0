"""What preflight adds to the start of a server: ``python -m benchmarks.preflight``.

Fresh processes in turns: preflight of a file against importing the framework, loading the same
file, and touching every byte of it. The file is in the page cache for both, which is the worst case
for preflight: reading from a disk costs whoever comes first, and the other finds it read.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .speed import Files, placed, python, ratio
from .timing import Pairs, pairs, print_table

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
# A server has its weights in a model, not in a dictionary; one that was made without values first,
# which is the least that making it can cost.
INTO_MODEL = """
import sys
import torch
from safetensors.torch import load_file
file = sys.argv[1]
state = torch.load(file, weights_only=True) if file.endswith(".pt") else load_file(file)
layers = [torch.nn.Linear(*reversed(w.shape), bias=False, device="meta") for w in state.values()]
model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList(layers)}).to_empty(device="cpu")
model.load_state_dict(state)
for tensor in model.state_dict().values():
    tensor.sum().item()
"""
# Nothing is loaded here before it is touched: the tensors are the file's pages, mapped.
MAPPED = """
import sys
import torch
from safetensors.torch import load_file
for tensor in load_file(sys.argv[1]).values():
    tensor.sum().item()
"""
# Less than `keras.Model.load_weights` does, which also draws initial weights first.
KERAS = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
import h5py, keras, tensorflow
with h5py.File(sys.argv[1]) as file:
    for layer in file.attrs["layer_names"]:
        group = file[layer]
        for name in group.attrs["weight_names"]:
            tensorflow.reduce_sum(tensorflow.constant(group[name][...])).numpy()
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One promise: two commands, and what the first may cost of the second; see `benchmarks.speed`."""

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
        python(INTO_MODEL, "FILE"), "torch"),
    Row("pt", "preflight : import torch, load, touch", "pt", 25, "%", percent, FRESH,
        python(INTO_MODEL, "FILE"), "torch"),
    Row("mapped", "preflight : import torch, map, touch", "f32", math.inf, "%", percent, FRESH,
        python(MAPPED, "FILE"), "torch"),
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
            bound = f"at most {row.target:g} {'ok' if kept else 'MISSED'}"
            promise = bound if math.isfinite(row.target) else "for comparison"
            yield f"{head} {medians:20} {number:8.1f} {row.unit:2} {promise}", kept


def main() -> int:
    """Print the table."""
    return print_table("benchmarks.preflight", __doc__, [row.name for row in ROWS], lines)


if __name__ == "__main__":
    sys.exit(main())
