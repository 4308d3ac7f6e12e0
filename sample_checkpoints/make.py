"""Make the sample checkpoints again, and the table about them in README.md.

    python sample_checkpoints/make.py               write all of them
    python sample_checkpoints/make.py 'sick/nf*'    write some
    python sample_checkpoints/make.py --check       make them elsewhere and compare

Needs ckptdoctor, torch, TensorFlow and tf_keras in the versions of ``.ci/constraints.txt``: other
versions may write other bytes.  Recipes are in ``recipes/``, one function a sample.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
TABLE_START = "<!-- table: made by make.py -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("patterns", nargs="*", default=["*"], help="samples to make")
    parser.add_argument("--check", action="store_true", help="compare with what is there")
    options = parser.parse_args()
    samples = [
        path for path in recipes() if any(fnmatch.fnmatch(path, p) for p in options.patterns)
    ]
    if options.check:
        with tempfile.TemporaryDirectory() as folder:
            return check(samples, Path(folder))
    write(samples, HERE)
    (HERE / "README.md").write_text(readme(HERE))
    return 0


def recipes() -> list[str]:
    """Paths of all samples, healthy ones first."""
    sys.path.insert(0, str(HERE))
    warnings.simplefilter("ignore")  # torch and Keras call half of what they still read deprecated
    from recipes import SAMPLES, arrays, damaged, keras_files, torch_files, torch_old  # noqa: F401

    return sorted(SAMPLES, key=lambda path: path.startswith("sick/"))


def write(samples: list[str], folder: Path) -> None:
    """Write samples below ``folder``; a folder's old content goes."""
    from recipes import SAMPLES

    for name in samples:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        SAMPLES[name].write(path)


def check(samples: list[str], folder: Path) -> int:
    """Make samples in ``folder`` and compare them, and the table, with what is there."""
    write(samples, folder)
    bad = []
    for name in samples:
        if same_bytes(HERE / name, folder / name):
            continue
        difference = different_content(HERE / name, folder / name)
        print(f"{name}: {difference or 'other bytes, the same tensors'}")
        if difference:
            bad.append(name)
    known = {path.partition("/")[2].partition("/")[0] for path in recipes()}
    for path in sorted([*HERE.glob("healthy/*"), *HERE.glob("sick/*")]):
        if path.name not in known:
            bad.append(path.name)
            print(f"{path.relative_to(HERE)}: no recipe makes it")
    if (HERE / "README.md").read_text() != readme(HERE):
        bad.append("README.md")
        print("README.md: its table is not what make.py would write")
    print(f"{len(samples)} samples made, {len(bad)} differ")
    return 1 if bad else 0


def same_bytes(old: Path, new: Path) -> bool:
    """Whether two files, or all files of two folders, are alike."""
    if new.is_file():
        return old.is_file() and old.read_bytes() == new.read_bytes()
    if not old.is_dir() or sorted(p.name for p in old.iterdir()) != sorted(
        p.name for p in new.iterdir()
    ):
        return False
    return all(same_bytes(old / path.name, path) for path in new.iterdir())


def different_content(old: Path, new: Path) -> str:
    """What the tensors or findings of two samples differ in; empty if in nothing."""
    import ckptdoctor

    if not old.exists():
        return "is missing"
    try:
        with ckptdoctor.open_checkpoint(old) as a, ckptdoctor.open_checkpoint(new) as b:
            if [f.code for f in a.findings] != [f.code for f in b.findings]:
                return "other findings"
            if list(a) != list(b):
                return "other tensor names"
            for name, info in a.items():
                other = b[name]
                if (info.dtype, info.shape, info.role) != (other.dtype, other.shape, other.role):
                    return f"{name}: other dtype, shape or role"
                if info.encoding != "absent" and (a.read(name).tobytes() != b.read(name).tobytes()):
                    return f"{name}: other values"
    except ckptdoctor.CkptDoctorError as error:
        return f"other bytes, and cannot be compared: {error.message}"
    return ""


def readme(folder: Path) -> str:
    """README.md with a fresh table; what stands above the table stays."""
    text = (HERE / "README.md").read_text()
    return text.partition(TABLE_START)[0] + TABLE_START + "\n\n" + "\n".join(table(folder)) + "\n"


def table(folder: Path) -> Iterator[str]:
    """One row a sample: file, size, story, what ``ckptdoctor inspect`` says."""
    from recipes import SAMPLES

    yield "| Sample | Bytes | Story | Format | `ckptdoctor inspect` says |"
    yield "|---|---:|---|---|---|"
    for name in recipes():
        path = folder / name
        files = [path] if path.is_file() else list(path.iterdir())
        size = sum(file.stat().st_size for file in files)
        slash = "" if path.is_file() else "/"
        format_name, says = what_inspect_says(path)
        yield f"| `{name}{slash}` | {size:,} | {SAMPLES[name].story} | {format_name} | {says} |"


def what_inspect_says(path: Path) -> tuple[str, str]:
    """Format and verdicts with the codes behind them, or why the file is refused."""
    import ckptdoctor

    try:
        report = ckptdoctor.inspect(path)
    except ckptdoctor.InternalError:
        raise
    except ckptdoctor.CkptDoctorError as error:
        return "-", f"refused: {error.message}".replace("|", "\\|")
    verdict = report.verdict
    if verdict is None:
        raise AssertionError(path)
    codes = sorted({finding.code for finding in report.findings if finding.severity > 1})
    notes = sorted({finding.code for finding in report.findings if finding.severity == 1})
    says = f"load {verdict.load}, serve {verdict.serve}, resume {verdict.resume}"
    says += f": {', '.join(codes)}" if codes else ""
    return report.format, says + (f" (notes: {', '.join(notes)})" if notes else "")


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # torch.jit writes the constants of a class in the order of a set.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"PYTHONHASHSEED": "0"})
    sys.exit(main())
