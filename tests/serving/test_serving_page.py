"""What docs/serving.md shows is what runs."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess

import patients
import pytest
from serving.servers import BROKEN_LAYER, EXAMPLES, checkpoint, environment

PAGE = EXAMPLES.parent / "serving.md"
TEXT = PAGE.read_text(encoding="utf-8")
(LINES,) = re.findall(r"^<!-- lines -->\n```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [line for line in LINES.splitlines() if not line.startswith("#")]
SERVERS = ["tritonserver", "torch-model-archiver", "vllm", "python"]


def run(line, tmp_path):
    """A line of the page in a shell; servers are scripts that note how they were called."""
    programs = tmp_path / "programs"
    programs.mkdir(exist_ok=True)
    for name in SERVERS:
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" > "{tmp_path}/started"\n')
        (programs / name).chmod(0o755)
    known = environment(tmp_path)
    return subprocess.run(
        ["/bin/sh", "-c", line.replace("/models", f"{tmp_path}/models")],
        capture_output=True,
        text=True,
        check=False,
        env={**known, "PATH": f"{programs}:{known['PATH']}"},
        timeout=60,
    )


def models(tmp_path, *, broken):
    folder = tmp_path / "models"
    made = checkpoint(folder / "llama/model.safetensors", broken=broken)
    for copy in ("model.pt", "resnet/1/model.pt"):
        (folder / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made, folder / copy)
    layers = patients.keras_state()
    if broken:
        layers["bn2"]["moving_variance"][3] = float("nan")
    patients.save_keras(folder / "model.keras", layers)


@pytest.mark.parametrize("line", COMMANDS, ids=SERVERS)
def test_line_starts_the_server_after_a_fit_checkpoint(line, tmp_path):
    models(tmp_path, broken=False)
    done = run(line, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    called = (tmp_path / "started").read_text().replace(f"{tmp_path}", "").strip()
    assert line.removeprefix("exec ").endswith(called)


@pytest.mark.parametrize("line", COMMANDS, ids=SERVERS)
def test_line_starts_nothing_after_a_broken_checkpoint(line, tmp_path):
    models(tmp_path, broken=True)
    done = run(line, tmp_path)
    assert done.returncode == 1
    assert BROKEN_LAYER in done.stdout
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("broken", [False, True], ids=["a fit one", "a broken one"])
def test_first_command_starts_the_server_only_with_a_fit_checkpoint(broken, tmp_path):
    (command,) = re.findall(r"^```sh\n(ckptdoctor .*?) +#", TEXT, re.MULTILINE)
    path = checkpoint(tmp_path / "model.safetensors", broken=broken)
    done = run(
        command.replace("model.safetensors", f"{path}").replace("my-server", "vllm"), tmp_path
    )
    assert done.returncode == int(broken)
    assert (tmp_path / "started").exists() is not broken


def test_saved_model_is_refused_as_unchecked(tmp_path):
    folder = tmp_path / "models/net/1"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"\x08\x01\x12\x04")
    done = run("ckptdoctor preflight /models/net/1", tmp_path)
    assert done.returncode == 3
    assert "SavedModel" in done.stdout


def test_python_of_the_page_is_python():
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, str(PAGE), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_every_example_is_on_the_page():
    linked = set(re.findall(r"\]\(serving/([\w./-]+)\)", TEXT))
    files = {
        str(p.relative_to(EXAMPLES)) for p in EXAMPLES.rglob("*.*") if p.suffix in (".py", ".yaml")
    }
    assert files - {"classifier.py"} <= linked
    assert all((EXAMPLES / link).is_file() for link in linked)
