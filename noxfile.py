"""What must hold before a commit: ``nox`` runs all of it, ``nox -l`` lists it, one ``-s`` each."""

from __future__ import annotations

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", "imports", "no_frameworks", "oracle", "samples"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
CODE = ["ckptdoctor", "tests", "benchmarks", "docs/serving", "sample_checkpoints", "noxfile.py"]
FRAMEWORKS = ["torch", "tensorflow", "tf_keras"]
PINNED = ["--constraint", ".ci/constraints.txt"]
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "TF_USE_LEGACY_KERAS": "0"}
SUITE = ["pytest", "--hypothesis-profile=gate"]
IS_FREE_OF_FRAMEWORKS = """
import importlib.util, sys
found = [name for name in ("torch", "tensorflow", "keras", "tf_keras", "jax")
         if importlib.util.find_spec(name)]
sys.exit(f"this session must run without {found}" if found else 0)
"""


def _group(name: str) -> list[str]:
    return nox.project.dependency_groups(PYPROJECT, name)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    session.install(*_group("lint"))
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict."""
    session.install("-e", ".", *_group("types"))
    session.run("mypy")


@nox.session
def imports(session: nox.Session) -> None:
    """Import contracts: data flows one way."""
    session.install("-e", ".", *_group("imports"))
    session.run("lint-imports")


@nox.session
def no_frameworks(session: nox.Session) -> None:
    """The suite with neither torch nor TensorFlow installed, and proof of that."""
    session.install("-e", ".", *_group("tests"))
    session.run("python", "-c", IS_FREE_OF_FRAMEWORKS)
    session.run(*SUITE, "-m", "not oracle", *session.posargs)


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """The same suite on every supported Python; interpreters that are missing are skipped."""
    session.install("-e", ".", *_group("tests"))
    session.run(*SUITE, "-m", "not oracle", *session.posargs)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The same suite with the lowest versions of the dependencies that we promise."""
    pinned = ["--constraint", ".ci/constraints-lowest.txt"]
    session.install("-e", ".", *_group("tests"), *pinned)
    session.run(*SUITE, "-m", "not oracle", *session.posargs)


@nox.session
def oracle(session: nox.Session) -> None:
    """What real frameworks write, read, train and serve."""
    served = [*_group("serving"), *_group("training")]
    session.install("-e", ".", *_group("tests"), *served, *FRAMEWORKS, *PINNED)
    session.run(*SUITE, "-m", "oracle", *session.posargs, env=QUIET)


@nox.session
def samples(session: nox.Session) -> None:
    """Make the samples again and compare them with the committed ones."""
    session.install("-e", ".", *FRAMEWORKS, *PINNED)
    session.run("python", "sample_checkpoints/make.py", "--check", env=QUIET)


@nox.session
def properties(session: nox.Session) -> None:
    """The property tests ten times over, with other examples each time."""
    session.install("-e", ".", *_group("tests"))
    for _ in range(10):
        session.run("pytest", "-q", "-m", "hypothesis and not oracle", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Write what README and docs/rules/ show of the program; the suite tests that it is current."""
    session.install("-e", ".", *_group("tests"))
    generated = ["tests/test_readme.py", "tests/test_catalog.py", "tests/test_repair_page.py"]
    session.run("pytest", "-q", *generated, env={"UPDATE_README": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """Speed and memory as ratios; takes minutes and 5 GB of disk, so not by default."""
    session.install("-e", ".", *FRAMEWORKS, *PINNED)
    for name in session.posargs or ("speed", "preflight", "guards"):
        session.run("python", "-m", f"benchmarks.{name}", env=QUIET)


@nox.session
def detection(session: nox.Session) -> None:
    """Sensitivity and false alarms of every rule on models trained here; takes a quarter hour."""
    session.install("-e", ".", *FRAMEWORKS, *PINNED)
    session.run("python", "-m", "benchmarks.detection", *session.posargs, env=QUIET)


@nox.session
def mutants(session: nox.Session) -> None:
    """Change comparisons and constants of the rules one by one; takes an hour."""
    session.install("-e", ".", *_group("tests"))
    tested = ["--tests", "tests/rules", "tests/test_catalog.py"]
    chosen = session.posargs or ["ckptdoctor/rules/*.py", *tested]
    session.run("python", "-m", "benchmarks.mutants", *chosen)
