"""Sharded sets: one table of all shards, and everything that is missing, surplus or outside."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pytest
import safetensors.numpy

from ckptdoctor.errors import (
    ChangedError,
    FormatError,
    ReadError,
    UnsupportedError,
    UsageError,
)
from ckptdoctor.findings import Severity
from ckptdoctor.formats import open_path, sharded
from ckptdoctor.sources import FileSource

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
HELD = {FIRST: {"a.weight": [1, 2]}, SECOND: {"b.weight": [3], "c.bias": [4, 5, 6]}}
INDEX = "model.safetensors.index.json"


def write_shard(path, held):
    arrays = {name: np.asarray(value, np.float32) for name, value in held.items()}
    safetensors.numpy.save_file(arrays, path)


def write_index(folder, weight_map=None, **metadata):
    if weight_map is None:
        weight_map = {name: shard for shard, names in HELD.items() for name in names}
    path = folder / INDEX
    path.write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    return path


@pytest.fixture
def folder(tmp_path):
    for shard, held in HELD.items():
        write_shard(tmp_path / shard, held)
    write_index(tmp_path, total_size=24)
    return tmp_path


def said(table, code):
    return [(f.severity, f.message) for f in table.findings if f.code == code]


class TestSets:
    def test_table_holds_the_tensors_of_all_shards_in_the_order_of_the_index(self, folder):
        with open_path(folder / INDEX) as table:
            assert table.format == "safetensors-sharded"
            assert list(table) == ["a.weight", "b.weight", "c.bias"]
            assert table.read("c.bias").tolist() == [4, 5, 6]
            assert table.findings == ()
            assert len(table.files) == 3

    def test_folder_is_its_index(self, folder):
        with open_path(folder) as table:
            assert table.path == str(folder / INDEX)
            assert len(table) == 3

    def test_missing_shard_is_an_error(self, folder):
        (folder / SECOND).unlink()
        with open_path(folder) as table:
            assert list(table) == ["a.weight"]
            ((severity, message),) = said(table, "CK003")
        assert severity is Severity.ERROR
        assert SECOND in message

    def test_no_shard_at_all_is_refused(self, folder):
        for shard in HELD:
            (folder / shard).unlink()
        with pytest.raises(FormatError, match="none of the 2 shards"):
            open_path(folder)

    def test_shard_that_cannot_be_read_is_an_error(self, folder):
        (folder / SECOND).write_bytes(b"<html>")
        with open_path(folder) as table:
            assert list(table) == ["a.weight"]
            assert "HTML" in said(table, "CK003")[0][1]

    def test_cut_shard_is_truncated(self, folder):
        os.truncate(folder / SECOND, 20)
        with open_path(folder) as table:
            assert said(table, "CK004")

    def test_findings_of_shards_reach_the_table(self, folder):
        with (folder / SECOND).open("ab") as file:
            file.write(b"surplus")
        with open_path(folder) as table:
            assert "7 bytes follow" in said(table, "CK005")[0][1]

    @pytest.mark.parametrize(
        ("changed", "severity", "message"),
        [
            pytest.param({"x": FIRST}, Severity.ERROR, "first 'x'", id="key in no shard"),
            pytest.param({"b.weight": FIRST}, Severity.ERROR, "'b.weight'", id="key elsewhere"),
            pytest.param({"b.weight": None}, Severity.WARNING, "'b.weight'", id="key unknown"),
        ],
    )
    def test_index_and_shards_that_differ_are_reported(self, folder, changed, severity, message):
        weight_map = {name: shard for shard, names in HELD.items() for name in names} | changed
        write_index(folder, {k: v for k, v in weight_map.items() if v})
        with open_path(folder) as table:
            found = dict(said(table, "CK003"))
            assert message in found[severity]
            assert "b.weight" in table

    @pytest.mark.parametrize(
        ("name", "other", "meant"),
        [("b.weight", FIRST, [3]), ("a.weight", SECOND, [1, 2])],
        ids=["meant last", "meant first"],
    )
    def test_tensor_in_two_shards_is_an_error_and_the_index_decides(
        self, folder, name, other, meant
    ):
        write_shard(folder / other, {**HELD[other], name: [9]})
        with open_path(folder) as table:
            assert said(table, "CK005")[0][0] is Severity.ERROR
            assert table.read(name).tolist() == meant

    def test_shard_that_the_index_does_not_name_is_a_warning(self, folder):
        write_shard(folder / "model-00003-of-00003.safetensors", {"d": [1]})
        with open_path(folder) as table:
            ((severity, message),) = said(table, "CK003")
        assert severity is Severity.WARNING
        assert "model-00003-of-00003" in message

    def test_other_total_size_is_a_note(self, folder):
        write_index(folder, total_size=25)
        with open_path(folder) as table:
            assert [s for s, _ in said(table, "CK003")] == [Severity.NOTE]

    def test_key_given_twice_is_an_error(self, folder):
        text = f'{{"weight_map": {{"a.weight": "{FIRST}", "a.weight": "{SECOND}"}}}}'
        (folder / INDEX).write_text(text)
        with open_path(folder) as table:
            assert "a.weight" in said(table, "CK005")[0][1]

    @pytest.mark.parametrize(
        "text",
        [
            pytest.param('{"weight_map": {}}', id="empty map"),
            pytest.param('{"weight_map": ["a"]}', id="list for a map"),
            pytest.param('{"weight_map": {"a": 7}}', id="number for a name"),
            pytest.param('{"weight_map": {"a": ', id="cut off"),
            pytest.param('{"weight_map": ' + "[" * 100_000, id="nested too deep"),
        ],
    )
    def test_index_that_is_none_is_refused(self, tmp_path, text):
        (tmp_path / INDEX).write_text(text)
        with pytest.raises(FormatError):
            open_path(tmp_path / INDEX)

    @pytest.mark.oracle
    def test_shards_of_torch_share_no_storage_names(self, tmp_path):
        torch = pytest.importorskip("torch")
        tied = torch.ones(3)
        names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
        torch.save({"a": tied, "b": tied}, tmp_path / names[0])
        torch.save({"c": torch.zeros(2), "d": torch.zeros(2).t()}, tmp_path / names[1])
        weight_map = {"a": names[0], "b": names[0], "c": names[1], "d": names[1]}
        index = tmp_path / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
        with open_path(tmp_path) as table:
            assert table.format == "torch-sharded"
            assert table["a"].storage == table["b"].storage != ""
            assert table["c"].storage != table["a"].storage
            assert table.read("d").tolist() == [0, 0]
            assert not [f for f in table.findings if f.severity >= Severity.WARNING]


class TestNamesThatLeadOutside:
    @pytest.mark.parametrize(
        "name",
        [
            pytest.param("../outside.safetensors", id="folder above"),
            pytest.param("{folder}/outside.safetensors", id="absolute"),
            pytest.param("sub/../../outside.safetensors", id="down and up"),
            pytest.param("..\\outside.safetensors", id="backslash"),
            pytest.param("C:outside.safetensors", id="drive"),
            pytest.param("out\0side", id="NUL"),
            pytest.param("..", id="the folder above itself"),
            pytest.param("", id="nothing"),
        ],
    )
    def test_name_is_an_error_and_is_not_followed(self, folder, name):
        inner = folder / "set"
        inner.mkdir()
        write_shard(folder / "outside.safetensors", {"secret": [1]})
        write_shard(inner / FIRST, HELD[FIRST])
        write_index(inner, {"a.weight": FIRST, "secret": name.format(folder=folder)})
        with open_path(inner) as table:
            assert list(table) == ["a.weight"]
            assert [s for s, _ in said(table, "CK006")] == [Severity.ERROR]

    @pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
    def test_link_out_of_the_folder_is_not_followed(self, folder, absolute):
        inner = folder / "set"
        inner.mkdir()
        write_shard(inner / FIRST, HELD[FIRST])
        (inner / SECOND).symlink_to(folder / SECOND if absolute else f"../{SECOND}")
        write_index(inner)
        with open_path(inner) as table:
            assert list(table) == ["a.weight"]
            assert said(table, "CK006")

    def test_link_inside_the_folder_is_followed(self, folder):
        (folder / SECOND).rename(folder / "other")
        (folder / SECOND).symlink_to("other")
        with open_path(folder) as table:
            assert table.findings == ()

    @pytest.mark.parametrize("absolute", [False, True], ids=["snapshot", "local folder"])
    def test_links_of_a_hugging_face_cache_are_followed(self, folder, absolute):
        cache = folder / "hub" / "models--me--mine"
        blobs, snapshot = cache / "blobs", cache / "snapshots" / "c0ffee"
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        target = folder / "local" if absolute else snapshot
        target.mkdir(exist_ok=True)
        for i, name in enumerate([INDEX, FIRST, SECOND]):
            blob = blobs / f"{i}".rjust(64, "a")
            (folder / name).rename(blob)
            (target / name).symlink_to(blob if absolute else f"../../blobs/{blob.name}")
        with open_path(target) as table:
            assert len(table) == 3
            assert table.findings == ()

    def test_blob_that_is_itself_a_link_elsewhere_is_not_followed(self, folder):
        cache = folder / "cache"
        (cache / "blobs").mkdir(parents=True)
        (cache / "snapshots" / "c").mkdir(parents=True)
        blob = cache / "blobs" / ("b" * 40)
        blob.symlink_to(folder / SECOND)
        target = cache / "snapshots" / "c"
        write_shard(target / FIRST, HELD[FIRST])
        (target / SECOND).symlink_to(f"../../blobs/{blob.name}")
        write_index(target)
        with open_path(target) as table:
            assert said(table, "CK006")

    def test_index_that_names_itself_ends(self, folder):
        write_index(folder, {"a.weight": FIRST, "x": INDEX})
        with open_path(folder) as table:
            assert "JSON" in said(table, "CK003")[0][1]

    def test_pipe_for_a_shard_is_not_waited_for(self, folder):
        (folder / SECOND).unlink()
        os.mkfifo(folder / SECOND)
        with open_path(folder) as table:
            assert "regular file" in said(table, "CK003")[0][1]


@pytest.fixture
def file_limit():
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def set_soft(soft):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))

    yield set_soft
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def many(tmp_path):
    shards = {f"w{i}": f"model-{i:05}-of-00090.safetensors" for i in range(90)}
    for name, shard in shards.items():
        write_shard(tmp_path / shard, {name: [1]})
    write_index(tmp_path, shards)
    return tmp_path


class TestWhatIsNotDamage:
    def test_limit_of_open_files_is_raised_for_many_shards(self, many, file_limit):
        file_limit(64)
        with open_path(many) as table:
            assert len(table) == 90
            assert table.findings == ()

    def test_too_few_open_files_are_no_finding_about_the_shards(
        self, many, file_limit, monkeypatch
    ):
        file_limit(64)
        monkeypatch.setattr(sharded, "_allow_open_files", lambda _: None)
        with pytest.raises(ReadError, match="Too many open files"):
            open_path(many)

    @pytest.mark.parametrize("error", [ReadError, ChangedError])
    def test_shard_that_the_machine_withholds_stops_the_reading(self, folder, monkeypatch, error):
        opened = []

        def withhold(path):
            if str(path).endswith(SECOND):
                raise error("as if", where=str(path))
            opened.append(FileSource(path))
            return opened[-1]

        monkeypatch.setattr(sharded, "FileSource", withhold)
        with pytest.raises(error, match="as if"):
            open_path(folder)
        assert [source.fd for source in opened] == [-1]


class TestFolders:
    def test_names_of_hugging_face_come_first_and_others_are_named(self, folder):
        write_shard(folder / "model.safetensors", {"x": [1]})
        write_shard(folder / "weights.safetensors", {"x": [1]})
        with open_path(folder) as table:
            assert list(table) == ["x"]
            assert [s for s, _ in said(table, "CK003")] == [Severity.NOTE]

    def test_the_only_checkpoint_is_taken(self, tmp_path):
        write_shard(tmp_path / "w.safetensors", {"x": [1]})
        (tmp_path / "notes.txt").write_text("hello")
        with open_path(tmp_path) as table:
            assert list(table) == ["x"]

    def test_several_are_listed(self, tmp_path):
        for name in ("one.pt", "two.pt"):
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(UsageError, match=r"2 checkpoints: 'one.pt', 'two.pt'; name one"):
            open_path(tmp_path)

    def test_none_is_wrong_usage_and_says_what_was_looked_for(self, tmp_path):
        (tmp_path / "notes.txt").write_text("hello")
        with pytest.raises(UsageError, match=r"no checkpoint: model\.safetensors.*\.keras, \.npz"):
            open_path(tmp_path)

    def test_empty_one_is_wrong_usage_without_advice_to_name_a_file_in_it(self, tmp_path):
        with pytest.raises(UsageError, match="the folder is empty") as caught:
            open_path(tmp_path)
        assert "itself" not in caught.value.hint

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            pytest.param(["saved_model.pb"], "SavedModel", id="SavedModel"),
            pytest.param(["c.index", "c.data-00000-of-00001"], "TensorFlow checkpoint", id="TF"),
            pytest.param(["zero_to_fp32.py", "latest"], "DeepSpeed", id="DeepSpeed"),
            pytest.param([".metadata", "__0_0.distcp"], "torch.distributed", id="torch DCP"),
            pytest.param(["_METADATA", "manifest.ocdbt"], "Orbax", id="Orbax"),
            pytest.param(["data.pkl", "version"], "unpacked", id="unpacked torch archive"),
        ],
    )
    def test_folder_formats_are_refused_by_name(self, tmp_path, names, message):
        for name in names:
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(UnsupportedError, match=message) as caught:
            open_path(tmp_path)
        assert caught.value.hint

    def test_npz_in_a_folder_is_found(self, tmp_path):
        buffer = io.BytesIO()
        np.savez(buffer, a=np.ones(2))
        (tmp_path / "w.npz").write_bytes(buffer.getvalue())
        with open_path(tmp_path) as table:
            assert table.format == "npz"


class TestWeightsBeside:
    """Some loaders read every ``.safetensors`` of a folder."""

    def notes(self, folder):
        with open_path(folder) as table:
            assert {f.severity for f in table.findings} <= {Severity.NOTE}
            return [finding.message for finding in table.findings]

    def test_shards_and_what_trainers_leave_are_expected(self, folder):
        (folder / "optimizer.pt").write_bytes(b"x")
        (folder / "training_args.bin").write_bytes(b"x")
        assert self.notes(folder) == []

    def test_other_weights_are_noted(self, folder):
        write_shard(folder / "consolidated.safetensors", {"a": [1]})
        (folder / "pytorch_model.bin").write_bytes(b"x")
        assert self.notes(folder) == [
            (
                "the folder also holds pytorch_model.bin, consolidated.safetensors, which was not "
                "looked at"
            )
        ]

    def test_many_are_counted(self, tmp_path):
        for name in ("model", "a", "b", "c", "d"):
            write_shard(tmp_path / f"{name}.safetensors", {"a": [1]})
        (note,) = self.notes(tmp_path)
        assert note.startswith(
            "the folder also holds a.safetensors, b.safetensors, c.safetensors and 1"
        )
