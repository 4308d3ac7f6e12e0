"""Change one comparison or constant at a time and see whether a test dies.

    python -m benchmarks.mutants 'ckptdoctor/rules/*.py' --tests tests/rules tests/test_catalog.py

Every mutant runs the named tests in a forked process that imports the mutated source instead of
the file: nothing on disk changes.  Printed are the survivors and the share that died.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import contextlib
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_DOCUMENTATION = {"healthy", "sick", "references", "code", "name", "since", "__all__"}
"""Class attributes that are cases and texts; what tests hold them is another question."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    file: str
    line: int
    change: str
    source: str


def mutants_of(file: str) -> Iterator[Mutant]:
    tree = ast.parse(Path(file).read_text())
    for parent in ast.walk(tree):
        for node in _judged(parent):
            for change, new in _changes(node):
                mutated = copy.deepcopy(tree)
                twin = _same(mutated, node)
                if twin is None:
                    continue
                _replace(mutated, twin, new)
                yield Mutant(file, node.lineno, change, ast.unparse(mutated))


def _judged(parent: ast.AST) -> Iterator[ast.expr]:
    if getattr(parent, "skipped", False):
        for child in ast.iter_child_nodes(parent):
            child.skipped = True  # type: ignore[attr-defined]
        return
    for child in ast.iter_child_nodes(parent):
        names = _targets(child)
        texts = isinstance(child, ast.keyword) and child.arg in ("unit", "why", "healthy")
        if names & _DOCUMENTATION or texts or isinstance(child, ast.JoinedStr | ast.FormattedValue):
            child.skipped = True  # type: ignore[attr-defined]
        elif isinstance(child, ast.Compare | ast.Constant | ast.BoolOp):
            yield child


def _targets(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Assign):
        return {t.id for t in node.targets if isinstance(t, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return set()


def _changes(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.Compare):
        for index, op in enumerate(node.ops):
            other = _COMPARISONS.get(type(op))
            if other is None:
                continue
            new = copy.deepcopy(node)
            new.ops[index] = other()
            yield f"{ast.unparse(node)} -> {ast.unparse(new)}", new
    elif isinstance(node, ast.BoolOp):
        new_bool = copy.deepcopy(node)
        new_bool.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        yield f"{ast.unparse(node)} -> {ast.unparse(new_bool)}", new_bool
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = node.value
        other_value = value + 1 if isinstance(value, int) else value * 1.25 or 0.5
        yield f"{value} -> {other_value}", ast.copy_location(ast.Constant(other_value), node)


def _same(tree: ast.AST, node: ast.expr) -> ast.expr | None:
    for other in ast.walk(tree):
        if (
            type(other) is type(node)
            and other.lineno == node.lineno  # type: ignore[attr-defined]
            and other.col_offset == node.col_offset  # type: ignore[attr-defined]
            and other.end_col_offset == node.end_col_offset  # type: ignore[attr-defined]
        ):
            return other  # type: ignore[return-value]
    return None


def _replace(tree: ast.AST, old: ast.expr, new: ast.expr) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list):
                value[:] = [new if each is old else each for each in value]


class _Finder(importlib.abc.MetaPathFinder):
    """Serves the mutated source for one module."""

    def __init__(self, mutant: Mutant) -> None:
        path = mutant.file.removesuffix(".py").removesuffix("/__init__")
        self.name = path.replace("/", ".")
        self.mutant = mutant

    def find_spec(self, name, path, target=None):  # noqa: ARG002
        if name != self.name:
            return None
        file, source = self.mutant.file, self.mutant.source

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname):  # noqa: ARG002
                return compile(source, file, "exec", dont_inherit=True)

        folder = [str(Path(file).parent)] if Path(file).name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            name, file, loader=Loader(name, file), submodule_search_locations=folder
        )


def _child(mutant: Mutant, tests: list[str]) -> None:
    import pytest

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    if mutant.source:
        sys.meta_path.insert(0, _Finder(mutant))
    options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:randomly"]
    os._exit(int(pytest.main([*options, *tests])) != 0)


def died(mutant: Mutant, tests: list[str], seconds: float) -> bool:
    """Run the tests on a mutant; one that never ends has died, too."""
    process = multiprocessing.get_context("fork").Process(target=_child, args=(mutant, tests))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return True
    return process.exitcode != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", help="files or patterns")
    parser.add_argument("--tests", nargs="+", default=["tests"])
    parser.add_argument("--sample", type=int, help="this many mutants, chosen by the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=60)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    with contextlib.suppress(ImportError):  # what every mutant needs is imported once, before
        import numpy as np  # noqa: F401
        import pytest  # noqa: F401
    files = sorted(str(path) for pattern in args.files for path in Path().glob(pattern))
    mutants = [mutant for file in files for mutant in mutants_of(file)]
    if args.sample:
        mutants = random.Random(args.seed).sample(mutants, min(args.sample, len(mutants)))
    start = time.monotonic()
    if died(Mutant("", 0, "", ""), args.tests, 10 * args.timeout):
        raise SystemExit("the tests fail without any mutant")
    survivors: list[Mutant] = []
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        fates = pool.map(lambda mutant: died(mutant, args.tests, args.timeout), mutants)
        for mutant, fate in zip(mutants, fates, strict=True):
            if not fate:
                survivors.append(mutant)
                print(f"survived {mutant.file}:{mutant.line}: {mutant.change[:110]}", flush=True)
    killed = len(mutants) - len(survivors)
    share = killed / max(1, len(mutants))
    print(f"{killed} of {len(mutants)} died ({share:.1%}) in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
