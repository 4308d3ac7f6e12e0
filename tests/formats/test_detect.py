"""Detection: content decides, never the name; nobody is believed who claims to be two things."""

from __future__ import annotations

import gc
import io
import pickle
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import safetensors.numpy
from sample_files import READABLE

from ckptdoctor import formats
from ckptdoctor.errors import FormatError, UsageError
from ckptdoctor.findings import Severity
from ckptdoctor.formats import ADAPTERS, open_path


def npz():
    buffer = io.BytesIO()
    np.savez(buffer, w=np.ones(2))
    return buffer.getvalue()


def zipped(*members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members:
            file.writestr(name, data)
    return buffer.getvalue()


def torch_zip():
    """The smallest archive that torch.load takes: an empty state dict."""
    return zipped(("archive/data.pkl", pickle.dumps({}, 2)), ("archive/version", b"3\n"))


def legacy_stream():
    """What torch.save of before 1.6 makes of a dictionary without tensors."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    parts = (0x1950A86A20F9469CFC6C, 1001, system, {"epoch": 3}, [])
    return b"".join(pickle.dumps(part, 2) for part in parts)


SAFE = safetensors.numpy.save({"w": np.ones(2, np.float32)})


def write(tmp_path, data, name="model.bin"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["m.pt", "m.h5", "m.keras", "m.safetensors", "m", "m.npz"])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(SAFE, "safetensors", id="safetensors"),
        pytest.param(npz(), "npz", id="npz"),
        pytest.param(torch_zip(), "torch-zip", id="torch zip"),
    ],
)
def test_content_decides_not_the_name(tmp_path, data, expected, name):
    with open_path(write(tmp_path, data, name)) as table:
        assert table.format == expected


@pytest.mark.parametrize("start", [0, 512, 4096, 8192])
def test_hdf5_is_found_behind_a_user_block_of_any_size(tmp_path, start):
    path = tmp_path / "m.h5"
    with h5py.File(path, "w", userblock_size=start) as file:
        file["w"] = np.arange(3, dtype="f4")
    with open_path(path) as table:
        assert (table.format, table.findings) == ("hdf5", ())
        assert table.read("w").tolist() == [0, 1, 2]


def test_every_adapter_states_what_it_is():
    names = [name for adapter in ADAPTERS for name in adapter.names]
    assert len(set(names)) == len(names)
    for adapter in ADAPTERS:
        assert next(iter(adapter.names.items())) == (adapter.name, adapter.summary)
        assert adapter.spec.startswith("https://")
        assert all(0 < len(summary) < 100 for summary in adapter.names.values())


def test_every_format_of_the_samples_is_one_that_an_adapter_names():
    assert {row.format for row in READABLE} <= {name for a in ADAPTERS for name in a.names}


def hdf5():
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_group("nothing")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(torch_zip(), id="torch zip"),
        pytest.param(legacy_stream(), id="torch before 1.6"),
        pytest.param(hdf5(), id="HDF5"),
        pytest.param(safetensors.numpy.save({}), id="safetensors"),
        pytest.param(zipped(("config.json", b"{}"), ("metadata.json", b"{}")), id="keras"),
    ],
)
def test_file_without_tensors_is_warned_of_once(tmp_path, data):
    with open_path(write(tmp_path, data)) as table:
        said = [f for f in table.findings if f.message == "it holds no tensors"]
    assert [(f.code, f.severity) for f in said] == [("CK003", Severity.WARNING)]


def test_set_of_shards_without_tensors_is_warned_of_once(tmp_path):
    write(tmp_path, safetensors.numpy.save({}), "a.safetensors")
    write(tmp_path, b'{"weight_map": {"w": "a.safetensors"}}', "model.safetensors.index.json")
    with open_path(tmp_path) as table:
        assert sum(f.message == "it holds no tensors" for f in table.findings) == 1


def test_what_macos_adds_to_an_archive_is_no_checkpoint(tmp_path):
    extra = ("__MACOSX/data.pkl", pickle.dumps({"w": 1}, 2))
    held = ("archive/data.pkl", pickle.dumps({}, 2))
    with open_path(write(tmp_path, zipped(extra, held, ("archive/version", b"3\n")))) as table:
        assert (table.format, table.scalars) == ("torch-zip", {})


class TestTwoThingsAtOnce:
    def test_zip_behind_safetensors_is_an_error(self, tmp_path):
        held = {"w": np.frombuffer(torch_zip(), np.uint8)}
        with open_path(write(tmp_path, safetensors.numpy.save(held))) as table:
            (finding,) = table.findings
        assert (finding.code, finding.severity) == ("CK005", Severity.ERROR)
        assert "also as a zip archive" in finding.message

    def test_bytes_before_a_zip_are_an_error(self, tmp_path):
        with open_path(write(tmp_path, b"\xfejunk" * 9 + torch_zip())) as table:
            assert table.format == "torch-zip"
            assert "stand before the archive" in table.findings[0].message

    def test_end_of_a_zip_by_chance_is_nothing_to_report(self, tmp_path):
        held = {"w": np.frombuffer(b"PK\5\6" + bytes(60), np.uint8)}
        with open_path(write(tmp_path, safetensors.numpy.save(held))) as table:
            assert table.findings == ()

    @pytest.mark.parametrize("second", range(6))
    def test_header_length_that_looks_like_a_pickle_is_nothing_to_report(self, tmp_path, second):
        length = 0x80 | second << 8
        text = b'{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'.ljust(length)
        data = length.to_bytes(8, "little") + text + bytes(4)
        with open_path(write(tmp_path, data)) as table:
            assert table.findings == ()

    def test_archive_of_keras_and_torch_is_refused(self, tmp_path):
        data = zipped(
            ("archive/data.pkl", pickle.dumps({}, 2)),
            ("config.json", b"{}"),
            ("metadata.json", b"{}"),
        )
        with pytest.raises(FormatError, match="at once"):
            open_path(write(tmp_path, data))

    @pytest.mark.parametrize("place", [512, 8192])
    def test_hdf5_hidden_in_a_zip_is_an_error(self, tmp_path, place):
        info = zipfile.ZipInfo("archive/data.pkl")
        data = zipped((info, pickle.dumps({}, 2)), ("archive/version", b"3\n"))
        # an extra field long enough to reach an offset where HDF5's library looks as well
        start = 30 + len(info.filename)
        extra = b"XX" + (place + 200).to_bytes(2, "little") + bytes(place + 200)
        at = place - start
        extra = extra[:at] + b"\x89HDF\r\n\x1a\n" + extra[at + 8 :]
        data = data[:28] + len(extra).to_bytes(2, "little") + data[30:start] + extra + data[start:]
        shifted = bytearray(data)
        end = data.rindex(b"PK\5\6")
        directory = int.from_bytes(data[end + 16 : end + 20], "little") + len(extra)
        shifted[end + 16 : end + 20] = directory.to_bytes(4, "little")
        second = data.rindex(b"PK\1\2")
        header = int.from_bytes(data[second + 42 : second + 46], "little") + len(extra)
        shifted[second + 42 : second + 46] = header.to_bytes(4, "little")
        with open_path(write(tmp_path, shifted)) as table:
            assert any("also reads as HDF5" in f.message for f in table.findings)


class TestHousekeeping:
    def test_missing_path_is_wrong_usage(self, tmp_path):
        with pytest.raises(UsageError, match="no such file"):
            open_path(tmp_path / "nothing")

    def test_file_is_closed_when_it_is_refused(self, tmp_path, monkeypatch):
        seen = []
        real = formats.open_source
        monkeypatch.setattr(formats, "open_source", lambda s, o: seen.append(s) or real(s, o))
        with pytest.raises(FormatError):
            open_path(write(tmp_path, b"<html>"))
        assert [source.fd for source in seen] == [-1]

    def test_garbage_collector_of_a_server_is_left_alone(self, tmp_path, monkeypatch):
        for name in ("disable", "freeze", "set_threshold", "collect"):
            monkeypatch.setattr(gc, name, pytest.fail)
        open_path(write(tmp_path, SAFE)).close()

    def test_reading_one_format_imports_no_other(self, tmp_path):
        path = write(tmp_path, SAFE)
        code = (
            "import sys; from ckptdoctor.formats import open_path; open_path(sys.argv[1]); "
            "print(*(m for m in sys.modules if m.startswith('ckptdoctor.')))"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
        )
        loaded = set(run.stdout.split())
        assert "ckptdoctor.formats.safetensors" in loaded
        others = {"keras_h5", "keras_zip", "torch_zip", "npz", "refused", "sharded", "torch_legacy"}
        assert not loaded & {f"ckptdoctor.formats.{name}" for name in others}
        assert not loaded & {f"ckptdoctor.containers.{name}" for name in ("zip", "pickle", "hdf5")}
