"""The package needs no framework: every command works where importing one fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from sample_files import FOLDER

FRAMEWORKS = ("torch", "tensorflow", "keras", "tf_keras", "jax")
SICK = str(FOLDER / "sick/bn001-overflow-skipped-step.h5")
COMMANDS = {
    "inspect": (["inspect", SICK, "--format", "json"], 1),
    "repair": (["repair", SICK, "--bn-reset", "-o", "OUT"], 0),
    "preflight": (["preflight", SICK], 1),
    "probe": (["probe", "--help"], 0),
    "formats": (["formats"], 0),
    "rules": (["rules"], 0),
    "explain": (["explain", "NF001"], 0),
}
OPTIONS = {"version": (["--version"], 0), "help": (["--help"], 0)}


@pytest.fixture
def without_frameworks(tmp_path):
    """Run Python where every framework is there and cannot be imported."""
    for name in FRAMEWORKS:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} must not be imported')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | {"PYTHONPATH": path, "COLUMNS": "80"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_frameworks_are_really_out_of_reach(without_frameworks):
    for name in FRAMEWORKS:
        assert "must not be imported" in without_frameworks("-c", f"import {name}").stderr


@pytest.mark.parametrize("case", [*COMMANDS, *OPTIONS])
def test_a_command_works_without_any_framework(without_frameworks, case, tmp_path):
    arguments, expected = {**COMMANDS, **OPTIONS}[case]
    arguments = [str(tmp_path / "out.h5") if word == "OUT" else word for word in arguments]
    done = without_frameworks("-m", "ckptdoctor", *arguments)
    assert (done.returncode, done.stderr) == (expected, "")
    assert done.stdout


def test_inspecting_every_sample_works_without_any_framework(without_frameworks):
    samples = [str(path) for folder in ("healthy", "sick") for path in (FOLDER / folder).iterdir()]
    done = without_frameworks("-m", "ckptdoctor", "inspect", *samples, "--format", "json")
    reports = json.loads(done.stdout)["reports"]
    assert len(reports) == len(samples)
    assert not [r for r in reports if r["error"] and "Import" in r["error"]["type"]]


def test_every_command_is_tried_here():
    from typer.main import get_command

    from ckptdoctor import cli

    assert set(get_command(cli.app).commands) == set(COMMANDS)  # type: ignore[attr-defined]


def test_importing_the_package_imports_neither_numpy_nor_the_command_line(without_frameworks):
    code = (
        "import sys, ckptdoctor;"
        "print([m for m in ('numpy', 'h5py', 'typer', 'json', 'ctypes') if m in sys.modules])"
    )
    done = without_frameworks("-c", code)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_opening_a_torch_file_imports_neither_hdf5_nor_the_command_line(without_frameworks):
    code = (
        "import sys, ckptdoctor;"
        f"ckptdoctor.inspect({str(FOLDER / 'healthy/state-dict.pt')!r});"
        "print([m for m in ('h5py', 'typer', 'ml_dtypes') if m in sys.modules])"
    )
    done = without_frameworks("-c", code)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
