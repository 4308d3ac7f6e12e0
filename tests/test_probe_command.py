"""``ckptdoctor probe``: exit codes, what goes where, what a user reads, and the commands of its page."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from live.numpy_subject import classifier, samples
from patients import save_torch

from ckptdoctor.cli import run

PAGE = Path(__file__).parents[1] / "docs" / "probe.md"

NET = """
    from live.numpy_subject import NumpySubject, classifier
    from ckptdoctor.live.loaded import Loaded

    print("a line of the user's code")

    class Loading(NumpySubject):
        def load(self, table):
            for name in table:
                layer, _, part = name.rpartition(".")
                self.layers[layer].tensors[part] = table.read(name).copy()
            return Loaded(pairs={name: name for name in table})

        def run(self, *args, **kwargs):
            print("another")
            return super().run(*args, **kwargs)

    def build():
        return Loading(*classifier().root.children)

    def broken():
        raise RuntimeError("no such thing")

    def picky(depth):
        return None
"""


def save_weights(path, **changes):
    subject = classifier()
    for name, factor in changes.items():
        subject.layers[name].tensors["running_var"] *= np.float32(factor)
    tensors = {
        f"{name}.{part}": value
        for name, layer in subject.layers.items()
        for part, value in layer.tensors.items()
    }
    return str(save_torch(path, tensors))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with a script, its weights, broken and not, and data."""
    (tmp_path / "model.py").write_text(textwrap.dedent(NET))
    save_weights(tmp_path / "sound.pt")
    save_weights(tmp_path / "sick.pt", bn1=1e6, bn2=np.nan)
    np.save(tmp_path / "batch.npy", samples(64))
    poisoned = samples(64)
    poisoned[41] = 1e30
    np.save(tmp_path / "poisoned.npy", poisoned)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def probe(*more, weights="sick.pt", data="batch.npy", model="model.py:build"):
    return run(["probe", model, "--weights-file", weights, "--data", data, *more])


def test_clean_is_0(capsys):
    assert probe(weights="sound.pt") == 0
    assert "model   fit" in capsys.readouterr().out


def test_findings_are_1_and_name_the_layers(capsys):
    assert probe() == 1
    out = capsys.readouterr().out
    assert out.startswith("model.py:build with the weights of sick.pt\n")
    assert "  runs the code of model.py\n" in out
    assert "  first     bn2 (BatchNorm): NaN in" in out
    assert re.search(r"the file +BN001 nonfinite-running-stats", out)
    assert re.search(r"error +bn1: running variance", out)
    assert "ckptdoctor repair sick.pt --recalibrate model.py:build --data batch.npy" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.keras"], "gone.keras: no such file"),
        (["model.py"], "write model.py:Loading or model.py:build"),
        (["model.py:gone"], "model.py: has no 'gone'; it has Loading, build, broken, picky"),
        (["model.py:picky"], "model.py:picky takes arguments"),
        (["sound.pt"], "holds weights (torch-zip), but no model"),
        (["model.py:build", "--data", "gone.npy"], "gone.npy: no such file"),
        (["model.py:build"], "'random': the model does not say what it takes"),
        (["model.py:build", "--data", "random:5"], "layer 'fc1' does not take"),
        (["model.py:build", "--weights-file", "gone.pt"], "gone.pt: no such file"),
        (["model.py:build", "--samples", "-1", "--data", "random:6"], "found -1"),
    ],
)
def test_wrong_usage_is_2_and_one_line(capsys, arguments, message):
    assert run(["probe", *arguments]) == 2
    captured = capsys.readouterr()
    (line,) = [x for x in captured.err.splitlines() if x.startswith("ckptdoctor: ")]
    assert message in line
    assert captured.out == ""


def test_code_that_fails_is_3_with_its_line(capsys):
    assert run(["probe", "model.py:broken"]) == 3
    err = capsys.readouterr().err
    line = NET[: NET.index("raise RuntimeError")].count("\n") + 1
    assert f"model.py:{line}: model.py:broken failed: RuntimeError: no such thing\n" in err
    assert "Traceback" not in err


def test_a_damaged_file_is_3(folder, capsys):
    (folder / "bad.pt").write_bytes((folder / "sick.pt").read_bytes()[:400])
    assert probe(weights="bad.pt") == 3
    assert len(capsys.readouterr().err.strip().splitlines()) <= 2


def test_what_the_users_code_prints_is_kept_out_of_the_report(capsys):
    probe("--format", "json")
    captured = capsys.readouterr()
    assert json.loads(captured.out)["probe"]["first"]["layer"] == "bn2"
    assert "a line of the user's code" in captured.err
    assert "another" in captured.err


def test_a_failure_in_json_is_json(capsys):
    assert run(["probe", "model.py:broken", "--format", "json"]) == 3
    error = json.loads(capsys.readouterr().out)["probe"]["error"]
    assert (error["type"], error["message"]) == (
        "ModelError",
        "model.py:broken failed: RuntimeError: no such thing",
    )


def test_quiet_is_one_line_with_the_verdict(capsys):
    assert probe("--quiet") == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("model.py:build: unfit: 4 errors: nonfinite-output: ")
    assert probe("--quiet", weights="sound.pt") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("model.py:build: fit: nothing found")


@pytest.mark.parametrize(
    ("text", "types"),
    [
        ("none", ["float32"]),
        ("bfloat16", ["float32", "bfloat16"]),
        ("float16,bfloat16,float16", ["float32", "float16", "bfloat16"]),
    ],
)
def test_narrower_types_can_be_chosen(capsys, text, types):
    probe("--precision", text, "--format", "json", weights="sound.pt")
    found = json.loads(capsys.readouterr().out)["probe"]["types"]
    assert [each["dtype"] for each in found] == types


def test_a_typo_in_a_factory_is_met_with_the_name_that_was_meant(capsys):
    assert run(["probe", "model.py:buidl", "--data", "batch.npy"]) == 2
    assert "has no 'buidl'; did you mean 'build'?" in capsys.readouterr().err


def test_debug_shows_where_a_models_error_is_from_and_keeps_the_exit_code(capsys):
    assert run(["probe", "model.py:broken", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_an_exploded_layer_that_does_no_harm_yet_is_told_with_what_the_file_says(folder, capsys):
    subject = classifier()
    subject.layers["bn1"].tensors["running_var"][3] *= np.float32(1e7)
    tensors = {
        f"{name}.{part}": value
        for name, layer in subject.layers.items()
        for part, value in layer.tensors.items()
    }
    save_torch(folder / "late.pt", tensors)
    assert probe("--layers", "none", weights="late.pt") == 0
    out = capsys.readouterr().out
    assert "model   suspect" in out
    assert re.search(r"the file +BN003 exploded-running-var: bn1\.running_var: ", out)
    assert "ckptdoctor repair late.pt --recalibrate model.py:build --data batch.npy" in out


def test_too_few_samples_to_recompute_statistics_from_are_told(folder, capsys):
    np.save(folder / "few.npy", samples(15))
    probe("--layers", "none", data="few.npy")
    out = " ".join(capsys.readouterr().out.split())
    assert "recomputing statistics takes 16 samples or more, these are 15" in out
    assert out.endswith("ckptdoctor inspect sick.pt")
    np.save(folder / "enough.npy", samples(16))
    probe("--layers", "none", data="enough.npy")
    assert "--recalibrate model.py:build --data enough.npy" in capsys.readouterr().out


def test_all_layers_can_be_listed(capsys):
    probe("--layers", "none")
    assert "relu1" not in capsys.readouterr().out
    probe("--layers", "all", weights="sound.pt")
    assert "relu1" in capsys.readouterr().out


def test_samples_that_break_it_are_found(capsys):
    assert probe("--bisect", weights="sound.pt", data="poisoned.npy") == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "1 of 64 samples breaks the model (41: 1e+30 to 1e+30)" in out


def test_batch_and_number_of_samples_are_heeded(capsys):
    probe("--batch-size", "4", "--samples", "8", "--format", "json", weights="sound.pt")
    found = json.loads(capsys.readouterr().out)["probe"]
    assert (found["data"]["used"], found["training_mode"]["batch"]) == (8, 4)


def test_colours_are_given_when_asked_for(capsys):
    probe("--color", "always")
    assert "\x1b[31;1munfit\x1b[0m" in capsys.readouterr().out


def test_as_a_process_it_needs_no_framework():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'tensorflow', 'keras')));"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r});"
        "from ckptdoctor.cli import run;"
        "sys.exit(run(['probe', 'model.py:build', '--weights-file', 'sick.pt', '--data', 'batch.npy']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert "bn2 (BatchNorm)" in done.stdout


# Its page.


def _commands():
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("ckptdoctor probe")]


WITH_KERAS = "ckptdoctor probe model.keras --data images.npy"
"""Run by the oracle tests."""


def test_the_page_has_commands():
    assert len(_commands()) >= 5
    assert WITH_KERAS in _commands()


@pytest.mark.parametrize("line", [line for line in _commands() if line != WITH_KERAS])
def test_commands_of_the_page_run(line, folder, capsys):
    words = shlex.split(line)[1:]
    package = folder / "zoo"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(textwrap.dedent(NET))
    np.savez(folder / "batch.npz", x_calib=samples(64), y=np.zeros(64))
    (folder / "model.pt").write_bytes((folder / "sick.pt").read_bytes())
    assert run(words) in (0, 1), capsys.readouterr().err
    for name in [name for name in sys.modules if name.split(".")[0] == "zoo"]:
        sys.modules.pop(name)


def test_the_page_shows_what_a_probe_prints(folder, capsys):
    """The example of the page is the text of this very model."""
    (folder / "model.pt").write_bytes((folder / "sick.pt").read_bytes())
    run(["probe", "model.py:build", "--weights-file", "model.pt", "--data", "batch.npy"])
    shown = re.search(r"```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert shown == capsys.readouterr().out


def test_kinds_of_the_page_are_those_that_are_told():
    from ckptdoctor.probing import judge

    source = Path(judge.__file__).read_text(encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    told = set(re.findall(r'kind="([a-z-]+)"', source)) | {
        "broken-statistics", "exploded-statistics", "collapsed-statistics", "shifted-statistics",
        "overflows-float16", "spoils-float16",
    }  # fmt: skip
    assert told <= set(re.findall(r"`([a-z0-9-]+)`", page))
