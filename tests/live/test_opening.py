"""Code that the user names: run by name only, and every failure one line."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import textwrap
import zipfile
from fractions import Fraction
from pathlib import Path

import pytest
from live.numpy_subject import NumpySubject, classifier
from patients import save_torch, state

from ckptdoctor.errors import ModelError, UsageError
from ckptdoctor.live import calling
from ckptdoctor.live.calling import needs, user_code
from ckptdoctor.live.opening import open_subject, subject_of


@pytest.fixture
def script(tmp_path):
    def write(text: str, name: str = "net.py") -> str:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


FACTORY = """
    from live.numpy_subject import classifier
    model = classifier()
    def build():
        return classifier()
    class Made:
        @staticmethod
        def small():
            return classifier()
"""


@pytest.mark.parametrize("factory", ["build", "Made.small", "model"])
def test_a_factory_of_a_script_is_called_and_its_file_named(script, factory):
    path = script(FACTORY)
    opened = open_subject(f"{path}:{factory}")
    assert isinstance(opened.subject, NumpySubject)
    assert (opened.code, opened.file, opened.loaded) == (path, "", None)
    assert opened.name.factory == factory


def test_a_factory_of_a_module_is_called(script, tmp_path, monkeypatch):
    script(FACTORY, "zoo_of_this_test.py")
    monkeypatch.chdir(tmp_path)  # the working folder is importable, as with python -m
    opened = open_subject("zoo_of_this_test:build")
    assert (opened.subject.framework, opened.code) == ("numpy", "zoo_of_this_test")
    sys.modules.pop("zoo_of_this_test")


def test_files_beside_a_script_are_importable_while_it_is_loaded(script):
    script("from live.numpy_subject import classifier as make\n", "sibling_of_this_test.py")
    path = script("""
        def build():
            import sibling_of_this_test
            return sibling_of_this_test.make()
    """)
    before = list(sys.path)
    open_subject(f"{path}:build")
    assert sys.path == before
    sys.modules.pop("sibling_of_this_test")


def test_a_script_is_imported_under_a_name_of_its_own(script):
    path = script("NAME = __name__\n" + textwrap.dedent(FACTORY), "json.py")
    import json

    open_subject(f"{path}:build")
    assert sys.modules["json"] is json
    names = [name for name in sys.modules if name.startswith("_ckptdoctor_model_")]
    open_subject(f"{path}:build")
    again = [name for name in sys.modules if name.startswith("_ckptdoctor_model_")]
    assert len(again) == len(names) + 1


def test_a_subject_and_a_live_model_are_taken_as_they_are():
    subject = classifier()
    opened = open_subject(subject)
    assert opened.subject is subject
    assert (opened.code, opened.name) == ("", None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nothing_like_this\n", "cannot be imported: ModuleNotFoundError: No module named"),
        ("def build(:\n", "cannot be imported: SyntaxError"),
        ("raise SystemExit('no weights')\n", "cannot be imported: SystemExit: no weights"),
        (
            "def build():\n    raise ValueError('seven\\nlines')\n",
            "build failed: ValueError: seven$",
        ),
        ("def build():\n    raise KeyError\n", "build failed: KeyError: without a message$"),
        ("def build():\n    import sys\n    sys.exit(4)\n", "build failed: SystemExit: 4"),
    ],
    ids=["import", "syntax", "exit", "failure", "silence", "exit inside"],
)
def test_a_failure_of_the_users_code_is_one_line_with_its_place(script, text, reason):
    path = script(text)
    with pytest.raises(ModelError, match=reason) as caught:
        open_subject(f"{path}:build")
    assert "\n" not in str(caught.value)
    line = next(
        n
        for n, x in enumerate(text.splitlines(), 1)
        if any(word in x for word in ("nothing", "(:", "raise", "exit("))
    )
    assert caught.value.where == f"{path}:{line}"


def test_the_place_is_that_in_the_users_code_not_in_a_library(script):
    path = script("""
        import json
        def build():
            return json.loads("{")
    """)
    with pytest.raises(ModelError) as caught:
        open_subject(f"{path}:build")
    assert caught.value.where == f"{path}:4"


def test_a_failed_script_leaves_no_module_behind(script):
    path = script("raise ValueError\n")
    before = set(sys.modules)
    with pytest.raises(ModelError):
        open_subject(f"{path}:build")
    assert not {name for name in set(sys.modules) - before if "_ckptdoctor_model_" in name}


def test_interrupting_is_no_failure_of_the_users_code():
    with pytest.raises(KeyboardInterrupt), user_code("it failed"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("package", "extra"),
    [("torch", "torch"), ("keras", "tensorflow"), ("tensorflow", "tensorflow")],
)
def test_a_framework_that_is_missing_is_told_with_its_extra(package, extra):
    with pytest.raises(UsageError, match=rf"needs {package}, .*'ckptdoctor\[{extra}\]'"):  # noqa: SIM117
        with user_code("net.py"):
            raise ModuleNotFoundError(name=package)
    assert needs("torch", "it").hint == "pip install 'ckptdoctor[torch]'"
    assert needs("else", "it").hint == ""


def test_a_script_whose_framework_is_missing_is_one_sentence(script):
    path = script("raise ModuleNotFoundError(name='torch')")
    with pytest.raises(UsageError) as caught:
        open_subject(f"{path}:build")
    assert caught.value.message == (
        f"{path} cannot be imported: it needs torch, which is not installed"
    )


@pytest.mark.parametrize("trust", [False, True])
def test_a_file_whose_framework_is_missing_is_named(tmp_path, monkeypatch, trust):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else found(name)
    )
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("m/models/model.json", "{}")
    message = "m.pt2: it needs torch, which" if trust else "m.pt2: is not loaded"
    with pytest.raises(UsageError, match=message):
        open_subject(str(tmp_path / "m.pt2"), trust=trust)


def test_a_module_that_is_not_there_is_wrong_usage():
    with pytest.raises(UsageError, match="no module named 'nothing_like_this'"):
        open_subject("nothing_like_this.models:build")


def test_an_attribute_that_is_not_there_is_told_with_those_there_are(script):
    path = script("def build(): ...\ndef _hidden(): ...\nimport json\n")
    with pytest.raises(UsageError, match=r"has no 'made'; it has build$"):
        open_subject(f"{path}:made")


def test_attributes_beyond_six_are_counted(script):
    path = script("\n".join(f"def make{at}(): ..." for at in range(8)))
    with pytest.raises(UsageError, match=r"it has make0, .*, make5 and 2 more$"):
        open_subject(f"{path}:zzz")


def test_an_attribute_that_was_meant_is_suggested(script):
    path = script("def build(): ...\ndef other(): ...\n")
    with pytest.raises(UsageError, match=r"has no 'buidl'; did you mean 'build'\?$"):
        open_subject(f"{path}:buidl")


def test_a_factory_that_takes_arguments_is_not_called(script):
    path = script("def build(depth): raise AssertionError\n")
    with pytest.raises(UsageError, match=r"takes arguments: .*'depth'.*takes none"):
        open_subject(f"{path}:build")


def test_arguments_with_defaults_are_no_obstacle(script):
    path = script("""
        from live.numpy_subject import classifier
        def build(depth=3, *rest, **more):
            return classifier()
    """)
    assert open_subject(f"{path}:build").subject.framework == "numpy"


@pytest.mark.parametrize(
    ("text", "found"), [("build = 5", "found int"), ("def build(): return None", "found NoneType")]
)
def test_what_is_no_model_is_said(script, text, found):
    with pytest.raises(UsageError, match=found):
        open_subject(f"{script(text)}:build")


def test_what_is_no_model_is_told_with_its_module():
    with pytest.raises(UsageError, match=r"found fractions\.Fraction"):
        subject_of(Fraction(1, 2), "it")


# Weights.


def test_a_subject_loads_the_table_of_a_file(tmp_path):
    path = save_torch(tmp_path / "w.pt", state())
    seen = []

    class Loading(NumpySubject):
        def load(self, table):
            seen.append(list(table))
            return "loaded"

    subject = Loading(*classifier().root.children)
    opened = open_subject(subject, weights_file=str(path))
    assert (opened.loaded, opened.file) == ("loaded", str(path))
    assert "bn1.running_var" in seen[0]


def test_a_subject_that_cannot_load_says_so(tmp_path):
    path = save_torch(tmp_path / "w.pt", state())
    with pytest.raises(UsageError, match="cannot be loaded into a model of numpy"):
        open_subject(classifier(), weights_file=str(path))


def test_a_file_with_a_model_takes_no_other_weights(tmp_path):
    from live.test_naming import _keras_archive

    _keras_archive(tmp_path / "net.keras")
    with pytest.raises(UsageError, match="holds weights already; leave --weights-file out"):
        open_subject(f"{tmp_path}/net.keras", weights_file="w.h5")


def test_an_exported_program_is_not_loaded_unless_trusted(tmp_path):
    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
    with pytest.raises(UsageError, match=r"is not loaded: torch.export.load can run.*--trust"):
        open_subject(str(path))


def test_torchscript_that_is_unsafe_is_not_loaded_unless_trusted(tmp_path, monkeypatch):
    from ckptdoctor import formats
    from ckptdoctor.findings import Severity, container_finding
    from ckptdoctor.tensors import TensorTable

    finding = container_finding("CK002", Severity.ERROR, "it calls os.system", unsafe=True)
    table = dataclasses.replace(
        TensorTable.from_arrays({}), format="torchscript", findings=(finding,)
    )
    monkeypatch.setattr(formats, "open_path", lambda _path: table)
    (tmp_path / "net.pt").touch()
    with pytest.raises(UsageError, match=r"is not loaded: CK002 .*: it calls os.system; .*--trust"):
        open_subject(f"{tmp_path}/net.pt")


# With the frameworks.


@pytest.mark.oracle
def test_a_pickled_module_is_unpickled_only_where_trusted(tmp_path):
    torch = pytest.importorskip("torch")
    path = str(tmp_path / "net.pt")
    torch.save(torch.nn.Linear(3, 2), path)
    with pytest.raises(UsageError, match=r"is a pickled module.*--trust"):
        open_subject(path)
    assert open_subject(path, trust=True).subject.framework == "torch"
    torch.save({"epoch": 3, "model": torch.nn.Linear(3, 2)}, path)
    assert open_subject(path, trust=True).subject.framework == "torch"
    torch.save({"a": torch.nn.Linear(3, 2), "b": torch.nn.Linear(3, 2)}, path)
    with pytest.raises(UsageError, match="there is a model in it"):
        open_subject(path, trust=True)


@pytest.mark.oracle
@pytest.mark.parametrize("where", ["working folder", "beside the file"])
def test_classes_of_a_pickled_module_are_found(where, script, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    name = f"net_of_this_test_{len(where)}"
    script("import torch\nclass Net(torch.nn.Sequential): ...\n", f"{name}.py")
    with monkeypatch.context() as patched:
        patched.syspath_prepend(tmp_path)
        torch.save(importlib.import_module(name).Net(torch.nn.Linear(3, 2)), tmp_path / "whole.pt")
        sys.modules.pop(name)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = str(tmp_path / "whole.pt")
    if where == "working folder":
        path = str(Path(path).rename(elsewhere / "whole.pt"))
        monkeypatch.chdir(tmp_path)
    assert open_subject(path, trust=True).subject.framework == "torch"
    sys.modules.pop(name)


@pytest.mark.oracle
def test_weights_of_a_file_get_into_a_module(tmp_path, script):
    torch = pytest.importorskip("torch")
    made = torch.nn.Linear(3, 2)
    torch.save(made.state_dict(), tmp_path / "w.pt")
    path = script("import torch\ndef build():\n    return torch.nn.Linear(3, 2)\n")
    opened = open_subject(f"{path}:build", weights_file=f"{tmp_path}/w.pt")
    assert torch.equal(opened.subject.module.weight, made.weight)
    assert opened.loaded.pairs == {"weight": "weight", "bias": "bias"}


@pytest.mark.oracle
def test_an_exported_program_given_live_is_run_as_a_module():
    torch = pytest.importorskip("torch")
    program = torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(1, 3),))
    assert subject_of(program, "it").framework == "torch"


@pytest.mark.oracle
def test_a_live_keras_model_is_a_keras_subject():
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    assert subject_of(model, "it").framework == "keras"
    assert calling.is_keras(model)
    assert not calling.is_torch(model)
