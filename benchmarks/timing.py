"""Whole processes against each other, in turns, so that a busy machine slows both."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Pairs", "Run", "pairs", "print_table", "run"]


@dataclass(frozen=True, slots=True)
class Run:
    """One process: wall-clock seconds, and its peak memory in bytes."""

    seconds: float
    memory: int


@dataclass(frozen=True, slots=True)
class Pairs:
    """Results of two commands in the order in which they ran."""

    first: tuple[Run, ...]
    second: tuple[Run, ...]

    @property
    def ratio(self) -> float:
        """Median over the pairs of first time / second time."""
        both = zip(self.first, self.second, strict=True)
        return statistics.median(a.seconds / b.seconds for a, b in both)

    @property
    def fastest(self) -> float:
        """Least first time / least second time: where a run is now and then twice as slow.

        Writing gigabytes is: the same copy took 1.1 or 2.4 s, by what the machine did with the
        memory that the file before had filled.
        """
        return min(a.seconds for a in self.first) / min(b.seconds for b in self.second)

    @property
    def difference(self) -> float:
        """Median over the pairs of first time - second time, in seconds."""
        both = zip(self.first, self.second, strict=True)
        return statistics.median(a.seconds - b.seconds for a, b in both)

    @property
    def more_memory(self) -> float:
        """Least peak of the first command less that of the second, in bytes."""
        return min(a.memory for a in self.first) - min(b.memory for b in self.second)


def run(command: Sequence[str]) -> Run:
    """Run a command with its output thrown away.

    Raises
    ------
    RuntimeError
        If it fails: findings (exit code 1) are no failure, no answer (2, 3) is.
    """
    start = time.perf_counter()
    # Not close_fds: that would fork instead of vfork, and copy page tables.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, close_fds=False)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        raise RuntimeError(f"exit code {process.returncode}: {' '.join(command)}")
    return Run(seconds, usage.ru_maxrss << 10)


def pairs(
    first: Sequence[str],
    second: Sequence[str],
    count: int,
    tidy: Callable[[], None] = lambda: None,
) -> Pairs:
    """Run two commands in turns (A B, B A, ...), after one that warms caches and is not counted.

    ``tidy`` is called before each, and not timed.
    """
    results: tuple[list[Run], list[Run]] = ([], [])
    for turn in range(count + 1):
        both = list(zip((first, second), results, strict=True))
        for command, found in both if turn % 2 else reversed(both):
            tidy()
            result = run(command)
            if turn:
                found.append(result)
    return Pairs(tuple(results[0]), tuple(results[1]))


def print_table(
    prog: str,
    about: str | None,
    rows: Sequence[str],
    lines: Callable[[Sequence[str], int, int], Iterable[tuple[str, bool]]],
) -> int:
    """Print the lines of a bench as they come; returns the exit code."""
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("--size", type=float, default=2048, metavar="MIB", help="of large files")
    parser.add_argument("--only", nargs="+", default=[], choices=rows)
    parser.add_argument("--runs", type=int, default=5, help="pairs per row")
    parser.add_argument("--strict", action="store_true", help="exit 1 for a missed target")
    options = parser.parse_args()
    missed = 0
    for line, kept in lines(options.only, int(options.size * 2**20), options.runs):
        print(line, flush=True)
        missed += not kept
    return 1 if missed and options.strict else 0
