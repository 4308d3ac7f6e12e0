"""TensorFlow's lines of information stay out of our own output; warnings and errors do not."""

from __future__ import annotations

import subprocess
import sys

import pytest

TALK = """
import os, sys
def tell(text): os.write(2, text.encode())
tell("WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n")
tell("I0000 00:00:1795297882.355069   26600 port.cc:153] oneDNN custom operations are on.\\n")
tell("W0000 00:00:1795297882.355069   26600 gpu.cc:1] a warning\\n")
tell("Important: not a line of a log\\n")
print("Python's own", file=sys.stderr)
here = __spec__.loader.get_source(__name__)
"""
START = "from ckptdoctor.quiet_imports import quiet_imports as quiet\n"


def said(tmp_path, code, talk=TALK, **options):
    """Exit code and stderr of a process in which TensorFlow is a package of our own."""
    (tmp_path / "tensorflow").mkdir(exist_ok=True)
    (tmp_path / "tensorflow" / "__init__.py").write_text(talk)
    (tmp_path / "tensorflow" / "inside.py").write_text("import tensorflow; name = tensorflow.here")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


KEPT = ["W0000 00:00:1795297882.355069   26600 gpu.cc:1] a warning",
        "Important: not a line of a log", "Python's own"]  # fmt: skip


def test_information_is_left_out_and_nothing_else(tmp_path):
    code, lines = said(tmp_path, START + "quiet()\nimport tensorflow.inside")
    assert (code, lines) == (0, KEPT)


def test_only_where_it_is_asked_for(tmp_path):
    _, lines = said(tmp_path, START + "import tensorflow")
    assert len(lines) == len(KEPT) + 2


def test_what_comes_after_the_import_is_not_touched(tmp_path):
    after = "quiet()\nimport tensorflow, os\nos.write(2, b'I0000 00:00:1 later\\n')\nassert not [f for f in sys.meta_path if 'quiet' in type(f).__module__]"
    code, lines = said(tmp_path, START + after)
    assert (code, lines[-1]) == (0, "I0000 00:00:1 later")


def test_import_that_fails_says_why(tmp_path):
    talk = TALK + "raise ImportError('libcudart is missing')"
    code, lines = said(tmp_path, START + "quiet()\nimport tensorflow", talk)
    assert code == 1
    assert lines[: len(KEPT)] == KEPT
    assert lines[-1] == "ImportError: libcudart is missing"


def test_where_it_is_not_installed_nothing_changes(tmp_path):
    code = "quiet()\ntry: import tensorflow_of_nobody\nexcept ImportError: pass"
    assert said(tmp_path, START + code) == (0, [])
    gone = f"sys.path.remove({str(tmp_path)!r}); sys.path[:] = []\nquiet()\nimport tensorflow"
    assert (
        said(tmp_path, START + gone)[1][-1] == "ModuleNotFoundError: No module named 'tensorflow'"
    )


def test_twice_is_once(tmp_path):
    code = "quiet(); quiet()\nassert str(sys.meta_path).count('quiet_imports') == 1\n"
    code += "import tensorflow; quiet()\nassert 'quiet_imports' not in str(sys.meta_path)"
    assert said(tmp_path, START + code) == (0, KEPT)


@pytest.mark.skipif(sys.platform == "win32", reason="closes a file descriptor as POSIX shells do")
def test_stderr_that_is_closed_is_left_alone(tmp_path):
    close = "import os\nos.close(2)\nquiet()\nimport tensorflow\n"
    assert said(tmp_path, START + close, "")[0] == 0


@pytest.mark.parametrize(
    ("command", "quiet"),
    [("probe", True), ("repair --recalibrate", True), ("repair", False), ("inspect", False)],
)
def test_commands_that_run_models_ask_for_it(tmp_path, command, quiet):
    code = "import ckptdoctor.quiet_imports as q, ckptdoctor.__main__ as m\n"
    code += f"asked = []\nq.quiet_imports = lambda: asked.append(1)\nsys.argv[1:] = {command.split()!r}\n"
    code += f"sys.stderr = open({str(tmp_path / 'err')!r}, 'w')\nm.main()\nassert bool(asked) is {quiet}"
    assert said(tmp_path, code) == (0, [])


def test_last_words_of_an_import_that_aborts_are_heard(tmp_path):
    """Such as those of a processor without AVX."""
    code, lines = said(tmp_path, START + "quiet()\nimport tensorflow", TALK + "os.abort()")
    assert code == -6
    assert "W0000 00:00:1795297882.355069   26600 gpu.cc:1] a warning" in lines
    assert not any(line.startswith("I0000") for line in lines)


def test_without_another_process_nothing_is_lost(tmp_path):
    code = "import subprocess\ndef no(*_, **__): raise OSError\nsubprocess.Popen = no\nquiet()\n"
    code, lines = said(tmp_path, START + code + "import tensorflow")
    assert (code, len(lines)) == (0, len(KEPT) + 2)
