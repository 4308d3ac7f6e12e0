"""What MODEL means, and what is said where it means nothing."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
import torch_bytes as tb
from patients import keras_state, save_keras, save_torch, state

from ckptdoctor.errors import CkptDoctorError, UnknownFormatError, UsageError
from ckptdoctor.live.naming import parse_model


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("def _hidden(): ...\ndef build(): ...\nclass Net: ...\nbuild()\n")
    return path


def test_a_dotted_name_and_a_factory_are_a_module():
    name = parse_model("zoo.models:resnet")
    assert (name.kind, name.place, name.factory) == ("module", "zoo.models", "resnet")
    assert (name.code, name.file) == ("zoo.models", "")


def test_a_path_and_a_factory_are_a_script(script):
    name = parse_model(f"{script}:build")
    assert (name.kind, name.place, name.factory) == ("script", str(script), "build")
    assert (name.code, name.file) == (str(script), "")


def test_a_script_beside_the_working_folder_needs_no_slash(script, monkeypatch):
    monkeypatch.chdir(script.parent)
    assert parse_model("net.py:Net.make").factory == "Net.make"
    assert parse_model("net.py:Net.make").kind == "script"


def test_a_path_with_a_slash_is_a_script_whatever_it_is_called(script):
    plain = script.rename(script.with_suffix(""))
    assert parse_model(f"{plain}:build").kind == "script"


def test_a_script_without_a_factory_is_told_what_it_defines(script):
    with pytest.raises(UsageError, match=r"net\.py:build or .*net\.py:Net$") as caught:
        parse_model(str(script))
    assert "_hidden" not in str(caught.value)


def test_factories_that_take_no_arguments_are_offered_before_others(script):
    script.write_text(
        "class Block:\n    def __init__(self, wide): ...\n"
        "class Keyword:\n    def __init__(self, *, wide): ...\n"
        "class Net:\n    def __init__(self, wide=3, *, deep=2): ...\n"
        "def sized(number): ...\n"
        "def build(number=10): ...\n"
        "class Plain: ...\n"
    )
    with pytest.raises(UsageError) as caught:
        parse_model(str(script))
    names = [word.rpartition(":")[2] for word in caught.value.hint.split() if ":" in word]
    assert names == ["Net", "build", "Plain"]


def test_factories_with_arguments_are_offered_where_there_are_no_others(script):
    script.write_text("def sized(number): ...\n")
    with pytest.raises(UsageError, match=r"net\.py:sized$"):
        parse_model(str(script))


@pytest.mark.parametrize("text", ["def broken(:", "", "\0"])
def test_a_script_that_defines_nothing_is_told_the_form(script, text):
    script.write_text(text)
    with pytest.raises(UsageError, match=r"write .*net\.py:NAME"):
        parse_model(str(script))


def test_a_script_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        parse_model(f"{tmp_path}/gone.py:build")


@pytest.mark.parametrize(
    "text",
    ["gone.pt", "folder/gone", "gone.keras", "gone.h5", "gone.py", "a\0b.pt", "x" * 5000 + "/"],
)
def test_a_file_that_is_not_there_is_said(text):
    with pytest.raises(UsageError, match="no such file"):
        parse_model(text)


def test_a_module_without_a_factory_is_told_the_form():
    with pytest.raises(UsageError, match=r"write zoo\.models:NAME"):
        parse_model("zoo.models")


@pytest.mark.parametrize("text", ["", ":build", "not a name", "zoo:not a name", "1zoo:2"])
def test_what_is_no_form_is_told_the_forms(text):
    with pytest.raises(UsageError, match=r"package\.module:factory"):
        parse_model(text)


def test_a_folder_is_no_model(tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        parse_model(str(tmp_path))


def test_a_state_dict_is_told_to_be_weights(tmp_path):
    path = save_torch(tmp_path / "state.pt", state())
    with pytest.raises(UsageError, match=r"holds weights \(torch-zip\).*--weights-file"):
        parse_model(str(path))


def test_weights_of_keras_are_told_to_be_weights(tmp_path):
    path = tmp_path / "w.h5"
    _weights_only(path)
    with pytest.raises(UsageError, match="holds weights"):
        parse_model(str(path))


def _weights_only(path):
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"dense"]
        file.attrs["keras_version"] = b"2.15"
        group = file.create_group("dense")
        group.attrs["weight_names"] = [b"dense/kernel:0"]
        group["dense/kernel:0"] = np.zeros((2, 2), np.float32)


def _keras_archive(path):
    config = {
        "class_name": "Sequential",
        "config": {
            "name": "net",
            "layers": [
                {
                    "module": "keras.layers",
                    "class_name": "Dense",
                    "config": {"name": "dense", "units": 2},
                    "registered_name": None,
                }
            ],
        },
    }
    buffer = io.BytesIO()
    import h5py

    with h5py.File(buffer, "w") as file:
        file["layers/dense/vars/0"] = np.zeros((2, 2), np.float32)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.0"}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", buffer.getvalue())


@pytest.mark.parametrize("name", ["net.keras", "net.pt", "net"])
def test_a_keras_archive_is_a_model_whatever_its_name(tmp_path, name):
    _keras_archive(tmp_path / name)
    found = parse_model(f"{tmp_path}/{name}")
    assert (found.kind, found.file, found.code) == ("keras", f"{tmp_path}/{name}", "")


def test_a_whole_keras_h5_is_a_model(tmp_path):
    path = tmp_path / "net.h5"
    save_keras(path, keras_state())
    assert parse_model(str(path)).kind == "keras"


def test_a_torchscript_archive_is_a_model(tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(
        tb.archive(
            {"w": tb.tensor(tb.storage("0"), (2, 3))},
            {"0": bytes(24)},
            more={"archive/constants.pkl": b"\x80\x02)."},
        )
    )
    assert parse_model(str(path)).kind == "torchscript"


@pytest.mark.parametrize(
    "member",
    [
        "net/models/model.json",
        "models/model.json",
        "serialized_exported_program.json",
        "archive/serialized_exported_program.json",
    ],
)
def test_an_exported_program_is_a_model(tmp_path, member):
    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, "{}")
        archive.writestr("data/weights/weight_0", bytes(8))
    assert parse_model(str(path)).kind == "exported"


@pytest.mark.parametrize("member", ["net/notes.txt", "net/models/model.jsonl", "my_models.json"])
def test_any_other_archive_is_no_model(tmp_path, member):
    path = tmp_path / "net.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, "{}")
    with pytest.raises(UnknownFormatError):
        parse_model(str(path))


def test_a_file_that_is_no_checkpoint_is_an_error_of_ours(tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(b"PK\x03\x04" + bytes(200))
    with pytest.raises(CkptDoctorError):
        parse_model(str(path))
