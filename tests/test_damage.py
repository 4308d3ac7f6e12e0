"""Damaged samples give a table or a named error: no other exception, no hang, no heap of memory.

    python tests/test_damage.py --examples 20000              every format, as many as by hand
    python tests/test_damage.py --format npz --only 1234      one example again, with its traceback

Each format runs in a process of its own, so that a hang or a crash is a failed test and not the
end of the suite.  HDF5 examples cost a child process each where the files are not trusted (0.1 s);
most of them run the C library in a fork of the warm process instead (0.03 s).  Damaged files make
it loop now and then (9 of 15,000), which the child's time limit has to end.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import pytest
from sample_files import READABLE, by_format

EXAMPLES = 200
EXAMPLES_IN_CHILD = 40
SECONDS = 30
SECONDS_IN_FORK = 4
MEMORY = 1 << 29
HDF5 = ("keras-h5", "keras-weights-h5", "keras-zip")
FORMATS = sorted({row.format for row in READABLE})


@pytest.mark.parametrize("name", FORMATS)
def test_damage_gives_a_table_or_a_named_error(name: str):
    extra = ["--fork"] if name in HDF5 else []
    _run("--format", name, "--examples", str(EXAMPLES), *extra)


@pytest.mark.parametrize("name", [name for name in FORMATS if name in HDF5])
def test_damage_below_the_child_process_gives_a_table_or_a_named_error(name: str):
    _run("--format", name, "--examples", str(EXAMPLES_IN_CHILD))


def _run(*arguments: str) -> None:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut, flip, overwrite, blank or splice, with a preference for the ends, where headers are."""
    size = len(data)
    near_end = min(size, 2048)
    place = rng.choice(
        [rng.randrange(size), rng.randrange(near_end), size - 1 - rng.randrange(near_end)]
    )
    kind = rng.randrange(7)
    changed = bytearray(data)
    if kind == 0:
        return data[:place]
    if kind <= 2:
        changed[place] ^= 1 << rng.randrange(8)
    elif kind == 3:
        for _ in range(rng.randrange(1, 9)):
            changed[rng.randrange(size)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    elif kind == 4:
        width = rng.choice([1, 2, 4, 8])
        value = rng.choice([0, 1, 2**31 - 1, 2**63 - 1, 2**64 - 1, size, rng.getrandbits(64)])
        changed[place : place + width] = (value % 256**width).to_bytes(width, "little")
    elif kind == 5:
        length = rng.choice([1, 4, 64, 512])
        changed[place : place + length] = bytes(min(length, size - place))
    else:
        other, length = rng.randrange(size), rng.choice([4, 32, 256])
        changed[place : place + rng.choice([0, length])] = data[other : other + length]
    return bytes(changed)


def make(sample: Path, folder: Path, rng: random.Random) -> Path:
    """Damaged copy of a sample; of a folder, one of its files."""
    copy = folder / sample.name
    if sample.is_dir():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(sample, copy)
        victim = rng.choice(sorted(copy.iterdir()))
        victim.write_bytes(damaged(victim.read_bytes(), rng))
    else:
        copy.write_bytes(damaged(sample.read_bytes(), rng))
    return copy


def outcome(path: Path, *, trust_hdf5: bool) -> str:
    """Inspect as the command line does, text and JSON included; raises what must not happen."""
    from ckptdoctor.api import Wishes, examine
    from ckptdoctor.report import FORMATS as REPORTS
    from ckptdoctor.report import renderer
    from ckptdoctor.results import View

    report = examine(os.fspath(path), Wishes(trust_hdf5=trust_hdf5))
    for name in REPORTS:
        for piece in renderer(name)([report], View(tensors="all")):
            piece.encode()
    if report.error is None:
        return "table"
    if report.error.bug or report.error.type in ("UsageError", "ChangedError"):
        raise AssertionError(f"{report.error}")
    return report.error.type


def forked(path: Path) -> str:
    """`outcome` in a fork of this process; where HDF5 crashes or hangs it, in the real child."""
    pid = os.fork()
    if not pid:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS_IN_FORK, SECONDS_IN_FORK))
            text = outcome(path, trust_hdf5=True)
        except BaseException:  # noqa: BLE001  a fork must end here whatever happens
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0 if text == "table" else 2)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        text = outcome(path, trust_hdf5=False)
        return f"{text} after {signal.Signals(os.WTERMSIG(status)).name}"
    code = os.WEXITSTATUS(status)
    if code == 1:
        raise AssertionError("see above")
    return "table" if code == 0 else "refused"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--format", choices=FORMATS, action="append")
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    parser.add_argument("--start", type=int, default=0, help="number of the first example")
    parser.add_argument("--only", type=int, help="run this example alone")
    parser.add_argument("--fork", action="store_true", help="HDF5 in a fork, not in its child")
    options = parser.parse_args()
    # Address space, not residence: what a lying header asks for counts even if never touched.
    import h5py  # noqa: F401
    import ml_dtypes  # noqa: F401
    import numpy as np  # noqa: F401

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    examples = range(options.start, options.start + options.examples)
    if options.only is not None:
        examples = range(options.only, options.only + 1)
    bad = 0
    for name in options.format or FORMATS:
        bad += run(name, examples, fork=options.fork and name in HDF5)
    return 1 if bad else 0


def run(name: str, examples: range, *, fork: bool) -> int:
    """Run the examples of one format; prints what came of them; gives the number of failures."""
    samples = by_format()[name]
    outcomes: collections.Counter[str] = collections.Counter()
    failures, slowest, begin = 0, (0.0, -1), time.perf_counter()
    if fork:
        outcome(samples[0], trust_hdf5=True)  # imports what a fork would import each time
    with tempfile.TemporaryDirectory() as folder:
        for number in examples:
            rng = random.Random(f"{name} {number}")
            path = make(samples[number % len(samples)], Path(folder), rng)
            start = time.perf_counter()
            signal.alarm(SECONDS)
            try:
                outcomes[forked(path) if fork else outcome(path, trust_hdf5=False)] += 1
            except Exception:  # noqa: BLE001  all of them are to be counted
                failures += 1
                print(f"{name} example {number} ({path.name}): {traceback.format_exc(limit=-6)}")
            signal.alarm(0)
            slowest = max(slowest, (time.perf_counter() - start, number))
    seconds = time.perf_counter() - begin
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) >> 10
    counts = ", ".join(f"{count} {what}" for what, count in outcomes.most_common())
    print(
        f"{name}: {len(examples)} examples in {seconds:.1f} s, {failures} failures; {counts};"
        f" slowest {slowest[0]:.2f} s (number {slowest[1]}), peak {peak} MiB"
    )
    return failures


def _too_slow(*_: object) -> None:
    raise AssertionError(f"took longer than {SECONDS} s")


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    warnings.simplefilter("error")  # what would be printed on a user's terminal
    signal.signal(signal.SIGALRM, _too_slow)
    sys.exit(main())
