"""What README says is what the code does; ``UPDATE_README=1 pytest tests/test_readme.py`` writes it."""

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ckptdoctor import cli
from ckptdoctor.findings import CONTAINER_CODES
from ckptdoctor.rules import RULES

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
CONTAINER_MEANINGS = {
    "CK001": "a stored checksum differs from its data",
    "CK002": "loading it can run code, or needs more than tensors",
    "CK003": "a shard, key or member is missing, or one too many",
    "CK004": "data that was declared is not there",
    "CK005": "duplicates, overlaps, contradictions: readers disagree about it",
    "CK006": "it points to other files",
}


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


def test_examples_parse():
    for line in block("sh", 2).strip().splitlines():
        words = shlex.split(line, comments=True)
        assert words.pop(0) == "ckptdoctor"
        words = [
            str(README) if re.search(r"\.(pt|ckpt|safetensors)$", word) else word for word in words
        ]
        assert cli.run(words) in (0, 3)


def test_formats_are_those_of_the_program():
    rows = json.loads(run("ckptdoctor formats --format json").stdout)["formats"]
    lines = [f"| `{row['name']}` | {row['summary']} |\n" for row in rows]
    check("formats", "| Format | What it is |\n|---|---|\n" + "".join(lines))


def test_codes_are_those_of_the_program():
    lines = [
        f"| {code} | {name} | while reading | {CONTAINER_MEANINGS[code]} |\n"
        for code, name in CONTAINER_CODES.items()
    ]
    for rule in RULES:
        summary = inspect.getdoc(rule).partition("\n")[0].rstrip(".")
        meaning = summary[0].lower() + summary[1:]
        lines.append(f"| {rule.code} | {rule.name} | {rule.severity.name.lower()} | {meaning} |\n")
    check("codes", "| Code | Name | Severity | Meaning |\n|---|---|---|---|\n" + "".join(lines))


def test_exit_codes_are_those_of_the_program():
    listed = re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)
    known = [value for name, value in vars(cli).items() if name.startswith("EXIT_")]
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
