"""All promises about speed and memory, measured: ``python -m benchmarks.speed``.

Every row compares two processes that run in turns, start-up and all, with the file in the page
cache; it prints the median ratio (or difference) and whether that keeps the promise.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .files import MANY
from .timing import Pairs, pairs, print_table

HERE = Path(__file__).parent
MIB = 1 << 20
CHECK_NUMPY = """
import json, math, struct, sys
import numpy as np
with open(sys.argv[1], "rb") as file:
    length, = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(length))
for row in header.values():
    start = 8 + length + row["data_offsets"][0]
    tensor = np.fromfile(sys.argv[1], np.float32, math.prod(row["shape"]), offset=start)
    assert np.isfinite(tensor).all()
"""
# `numpy.memmap` would take a third of that: no copy at all, and a process killed by SIGBUS when the
# file shrinks under it.  This package does not map files for that reason.
CHECK_H5PY = """
import sys
import h5py, numpy as np
def check(name, item):
    if isinstance(item, h5py.Dataset):
        assert np.isfinite(item[...]).all()
with h5py.File(sys.argv[1]) as file:
    file.visititems(check)
"""
CHECK_TORCH = """
import sys
import torch
for tensor in torch.load(sys.argv[1], weights_only=True).values():
    assert not (torch.isnan(tensor).any() or torch.isinf(tensor).any())
"""
RESAVE_TORCH = """
import sys
import torch
torch.save(torch.load(sys.argv[1], weights_only=True), sys.argv[2])
"""
READ_ONLY = """
import sys
from ckptdoctor.formats import open_path
from ckptdoctor.formats.base import ReadOptions
from ckptdoctor.measure.scan import measure
with open_path(sys.argv[1], ReadOptions()) as table:
    measure(table)
"""
IMPORTS = "import numpy, h5py"


@dataclass(frozen=True, slots=True)
class Row:
    """One promise.

    Parameters
    ----------
    name
        For ``--only``.
    what
        The two sides.
    kind
        What to write, see `benchmarks.files`.
    size
        Of the file in bytes or tensors; None for ``--size``.
    target, unit
        What the number must not exceed (or, with a negative target, not stay below).
    number
        Of the measured pairs.
    against
        The other command; ``FILE`` is replaced.  ``pread`` is the compiled reader, ``KIND:SIZE``
        the same command on another file.
    options
        Of ``ckptdoctor inspect``.
    first
        The command that is measured, in place of ``ckptdoctor inspect``; ``FILE`` and ``OUT`` are
        replaced, in ``against`` too.
    needs
        A module or program without which the row is left out.
    """

    name: str
    what: str
    kind: str
    size: int | None
    target: float
    unit: str
    number: Callable[[Pairs], float]
    against: Sequence[str]
    options: Sequence[str] = ("--quiet",)
    needs: str = ""
    first: Sequence[str] = ()


def ratio(found: Pairs) -> float:
    """First over second."""
    return found.ratio


def fastest(found: Pairs) -> float:
    """Fastest run over fastest run."""
    return found.fastest


def fastest_inverse(found: Pairs) -> float:
    """How many times faster the first is, fastest run against fastest run; negative as below."""
    return -1 / found.fastest


def inverse(found: Pairs) -> float:
    """How many times faster the first is; negative, as such a target is a lower bound."""
    return -1 / found.ratio


def memory(found: Pairs) -> float:
    """MiB above the second."""
    return found.more_memory / MIB


def each(found: Pairs) -> float:
    """Microseconds per tensor, the time for one tensor taken off."""
    return found.difference / MANY * 1e6


def python(code: str, *arguments: str) -> tuple[str, ...]:
    """Command that runs some code."""
    return (sys.executable, "-c", code, *arguments)


PREAD = ("pread", "FILE")
JSON = ("--format", "json")
REPAIR = (sys.executable, "-m", "ckptdoctor", "repair", "FILE", "-o", "OUT", "--bn-reset",
          "--force", "--quiet")  # fmt: skip
COPY = ("sh", "-c", "cp FILE OUT.copy && sync OUT.copy")
ROWS = (
    Row("f32", "float32 : pread in C", "f32", None, 4, "x", ratio, PREAD, needs="cc"),
    Row("pt", ".pt with CRCs : pread in C", "pt", None, 6, "x", ratio, PREAD, needs="cc"),
    Row("bf16", "bfloat16 : pread in C", "bf16", None, 10, "x", ratio, PREAD, needs="cc"),
    Row("f16", "float16 : pread in C", "f16", None, 10, "x", ratio, PREAD, needs="cc"),
    Row("nan", "half NaN : clean float32", "nan", None, 2, "x", ratio, ("f32:",)),
    *(Row(f"diagnosis-{name}", f"inspect : reading alone, {name}", name, None, 1.15, "x", ratio,
          python(READ_ONLY, "FILE")) for name in ("f32", "resnet", "bf16", "h5")),
    Row("torch", ".pt, faster than torch.load + isnan/isinf", "pt", None, -8, "x", inverse,
        python(CHECK_TORCH, "FILE"), needs="torch"),
    Row("numpy", "float32 : NumPy finite check", "f32", None, 1.15, "x", ratio,
        python(CHECK_NUMPY, "FILE")),
    Row("h5py", "HDF5 : h5py finite check", "h5", None, 1.15, "x", ratio,
        python(CHECK_H5PY, "FILE")),
    *(Row(f"memory-{name}", f"peak memory, {name}, {label} : imports", name, size, 80, "MiB",
          memory, python(IMPORTS))
      for name in ("f32", "pt", "h5") for label, size in (("2 MiB", 2 * MIB), ("full size", None))),
    *(Row(f"small-{name}", f"1 MB {name} : import numpy, h5py", name, 10**6, target, "x", ratio,
          python(IMPORTS)) for name, target in (("f32", 2.5), ("pt", 2.5), ("h5", 3))),
    *(Row(f"small-{name}-torch", f"1 MB {name} : import torch", name, 10**6, 0.25, "x", ratio,
          python("import torch"), needs="torch") for name in ("f32", "pt", "h5")),
    Row("many", "100,000 tensors, safetensors --quiet", "many", MANY, 6, "us", each, ("many:1",)),
    Row("many-json", "100,000 tensors, safetensors JSON", "many", MANY, 15, "us", each,
        ("many:1",), JSON),
    *(Row(f"repair-{name}", f"repair of 4 KiB, {name} : cp and fsync", f"sick-{name}", None, 2, "x",
          fastest, COPY, first=REPAIR) for name in ("f32", "pt", "h5")),
    *(Row(f"repair-memory-{name}", f"peak memory of repair, {name} : imports", f"sick-{name}", None,
          80, "MiB", memory, python(IMPORTS), first=REPAIR) for name in ("f32", "pt", "h5")),
    Row("repair-torch", "repair of a .pt, faster than torch.load + save", "sick-pt", None, -5, "x",
        fastest_inverse, python(RESAVE_TORCH, "FILE", "OUT.copy"), needs="torch", first=REPAIR),
    Row("many-pt", "100,000 tensors, .pt --quiet", "many-pt", MANY, 30, "us", each,
        ("many-pt:1",)),
)  # fmt: skip


SUFFIXES = {"pt": "pt", "many-pt": "pt", "h5": "h5", "sick-pt": "pt", "sick-h5": "h5"}


class Files:
    """Files of the run, written when needed; at most two large ones exist at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[tuple[str, int], Path] = {}

    def get(self, kind: str, size: int) -> str:
        """Path of a file of this kind and size."""
        path = self.made.get((kind, size))
        if path is None:
            large = [key for key in self.made if key[1] > 100 * MIB and key[0] != "f32"]
            for key in large:
                self.made.pop(key).unlink()
            path = self.folder / f"{kind}-{size}.{SUFFIXES.get(kind, 'safetensors')}"
            command = [sys.executable, "-m", "benchmarks.files", kind, str(path), str(size)]
            subprocess.run(command, check=True, cwd=HERE.parent)
            self.made[kind, size] = path
        return str(path)


def compile_reader(folder: Path) -> str:
    """Build ``pread.c``."""
    target = folder / "pread"
    subprocess.run(["cc", "-O2", "-o", target, HERE / "pread.c"], check=True)
    return str(target)


def measure(row: Row, files: Files, full: int, runs: int) -> float:
    """Measure one row."""
    size = full if row.size is None else row.size
    path = files.get(row.kind, size)
    inspect = (sys.executable, "-m", "ckptdoctor", "inspect")
    places = {"FILE": path, "OUT": f"{path}.out"}
    other = placed(row.against, places)
    if other[0] == "pread":
        other = (compile_reader(files.folder), *other[1:])
    elif ":" in other[0]:
        kind, _, amount = other[0].partition(":")
        other = (*inspect, files.get(kind, int(amount or full)), *row.options)
    first = placed(row.first, places) or (*inspect, path, *row.options)

    def tidy() -> None:
        """Remove what the last command wrote, and let the disk come to rest."""
        if row.first:
            for written in (f"{path}.out", f"{path}.out.copy"):
                Path(written).unlink(missing_ok=True)
            os.sync()

    return row.number(pairs(first, other, runs, tidy))


def placed(words: Sequence[str], places: Mapping[str, str]) -> tuple[str, ...]:
    """Words of a command with the paths in their places."""
    return tuple(re.sub(r"\b(FILE|OUT)\b", lambda m: places[m[0]], word) for word in words)


def lines(only: Sequence[str], full: int, runs: int) -> Iterator[tuple[str, bool]]:
    """Yield a printed line for each row, and whether its promise was kept."""
    with tempfile.TemporaryDirectory(prefix="ckptdoctor-bench-") as folder:
        files = Files(Path(folder))
        for row in ROWS:
            if only and row.name not in only:
                continue
            bound = f"{'at least' if row.target < 0 else 'at most'} {abs(row.target):g} {row.unit}"
            head = f"{row.name:16} {row.what:44}"
            if row.needs and not (shutil.which(row.needs) or importlib.util.find_spec(row.needs)):
                yield f"{head} left out: no {row.needs}", True
                continue
            number = measure(row, files, full, runs)
            kept = number <= row.target
            yield (
                f"{head} {abs(number):8.2f} {row.unit:4} {bound:16} {'ok' if kept else 'MISSED'}",
                kept,
            )


def main() -> int:
    """Print the table."""
    return print_table("benchmarks.speed", __doc__, [row.name for row in ROWS], lines)


if __name__ == "__main__":
    sys.exit(main())
