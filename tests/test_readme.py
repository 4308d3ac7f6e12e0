"""What README says is what the code does; ``UPDATE_README=1 pytest tests/test_readme.py`` writes it."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ckptdoctor import catalog, cli, exits
from ckptdoctor.config import load_settings

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")


def block(language, number=0):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[number]


def replaced(marker, body):
    """README with what stands below a marker, up to the next empty line or fence, replaced."""
    start = TEXT.index(f"<!-- {marker} -->\n") + len(f"<!-- {marker} -->\n")
    rest = TEXT[start:]
    end = rest.index("\n```\n") + 5 if rest.startswith("```") else rest.index("\n\n") + 1
    return TEXT[:start] + body + rest[end:]


def check(marker, body):
    wanted = replaced(marker, body)
    if os.environ.get("UPDATE_README"):
        globals()["TEXT"] = wanted
        README.write_text(wanted, encoding="utf-8")
    assert wanted == TEXT


def run(command):
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    words = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(words, capture_output=True, cwd=ROOT, env=environment, check=False)
    assert done.stderr == b""
    return done


def test_first_command_installs_and_inspects_a_sick_sample():
    install, inspection = block("sh", 0).strip().split(" && ")
    assert install == "pip install ."
    done = run(inspection)
    assert done.returncode == 1
    assert b"unfit" in done.stdout


def test_second_command_runs_the_tests():
    assert block("sh", 1) == "pip install nox && nox\n"
    assert (ROOT / "noxfile.py").is_file()


def test_transcript_is_real():
    command = block("sh", 0).strip().split(" && ")[1]
    assert block("console").startswith(f"$ {command}\n")
    output = run(command).stdout.decode()
    check("transcript", f"```console\n$ {command}\n{output}```\n")


def test_repair_transcript_is_real():
    command = block("console", 1).splitlines()[0].removeprefix("$ ")
    output = run(command).stdout.decode()
    check("repair", f"```console\n$ {command}\n{output}```\n")


def test_examples_parse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in (block("sh", 2) + block("sh", 3)).strip().splitlines():
        words = shlex.split(line, comments=True)
        assert words.pop(0) == "ckptdoctor"
        words = [
            str(README) if re.search(r"\.(pt|ckpt|h5|safetensors)$", word) else word
            for word in words
        ]
        assert cli.run(words) in (0, 3)


def test_formats_are_those_of_the_program():
    rows = json.loads(run("ckptdoctor formats --format json").stdout)["formats"]
    lines = [f"| `{row['name']}` | {row['summary']} |\n" for row in rows]
    check("formats", "| Format | What it is |\n|---|---|\n" + "".join(lines))


def test_codes_are_those_of_the_program():
    check("codes", catalog.table_markdown(catalog.pages(), "docs/rules/"))


def test_settings_mean_something(tmp_path):
    (tmp_path / "pyproject.toml").write_text(block("toml"))
    settings = load_settings(tmp_path / "pyproject.toml")
    assert all((settings.ignore, settings.fail_on, settings.thresholds, settings.exempt))


def test_exit_codes_are_those_of_the_program():
    listed = re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)
    known = [value for value in vars(exits).values() if isinstance(value, int)]
    assert [int(code) for code in listed] == sorted(known)


def test_python_block_runs(monkeypatch, capsys):
    code = block("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 5
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    assert "unfit" in capsys.readouterr().out


def test_first_screen_says_what_matters():
    screen = "\n".join(TEXT.splitlines()[:24])
    assert "needs neither torch nor TensorFlow" in screen
    assert "pip install . && ckptdoctor inspect" in screen
    assert "pip install nox && nox" in screen


@pytest.mark.parametrize("path", re.findall(r"sample_checkpoints/[\w./-]+", TEXT))
def test_files_that_are_named_exist(path):
    assert (ROOT / path).exists()
