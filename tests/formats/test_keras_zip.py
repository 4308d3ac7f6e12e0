"""``.keras`` archives: what is inside, in place or inflated, and what is missing or doubled."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ckptdoctor.containers.hdf5 import Contents, Hdf5Decoder
from ckptdoctor.containers.zip import read_archive
from ckptdoctor.errors import BombError, CkptDoctorError
from ckptdoctor.findings import Severity
from ckptdoctor.formats import keras_zip
from ckptdoctor.formats.base import ReadOptions
from ckptdoctor.formats.keras_zip import KerasZip
from ckptdoctor.sources import FileSource
from ckptdoctor.tensors import TensorTable

CONFIG = {
    "module": "keras", "class_name": "Sequential", "registered_name": None,
    "config": {"name": "s", "layers": [
        {"module": "keras.layers", "class_name": "Dense", "config": {"name": "first"}},
        {"module": "keras.layers", "class_name": "Dense", "config": {"name": "second"}},
    ]},
    "compile_config": {"optimizer": {"module": "keras.optimizers", "class_name": "SGD",
                                     "config": {"learning_rate": 0.25}}, "loss": "mse"},
}  # fmt: skip
PARTS = {"metadata.json": b'{"keras_version": "3.5.0"}', "config.json": json.dumps(CONFIG).encode()}


def weights(**kinds: Any) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name in ("dense", "dense_1"):
            made = file.create_group(f"layers/{name}/vars")
            made.create_dataset("0", data=np.full((50, 40), 3, "f4"), **kinds)
            made["1"] = np.zeros(40, "f4")
    return buffer.getvalue()


def archive(path: Path, parts: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in parts:
            file.writestr(name, data)
    return path


def table_of(path: Path, *, trust: bool = True) -> TensorTable:
    source = FileSource(path)
    return KerasZip().read_archive(read_archive(source), source, ReadOptions(trust_hdf5=trust))


def test_stored_weights_are_read_in_place(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.keras", [*PARTS.items(), ("model.weights.h5", weights())])
    with table_of(path, trust=False) as table:
        assert (table.format, table.findings) == ("keras-zip", ())
        assert {n: i.layer for n, i in table.items()} == {
            "layers/dense/vars/0": "first", "layers/dense/vars/1": "first",
            "layers/dense_1/vars/0": "second", "layers/dense_1/vars/1": "second",
        }  # fmt: skip
        assert list(table.layers) == ["first", "second"]
        assert table.scalars == {"compile_config/optimizer/config/learning_rate": 0.25}
        assert table.metadata["framework_version"] == "3.5.0"
        extent = table["layers/dense/vars/0"].extent
        assert extent is not None
        assert extent.source is table.files[0]
        assert table.read("layers/dense/vars/0").sum() == 6000
        (checksum,) = table.checksums
        assert checksum.extent.source is table.files[0]
        assert (
            checksum.extent.offset < extent.offset < checksum.extent.offset + checksum.extent.length
        )


@pytest.mark.parametrize("trust", [False, True], ids=["child", "in-process"])
def test_deflated_weights_are_inflated_and_leave_no_litter(
    tmp_path: Path, monkeypatch: Any, trust: bool
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    parts = [*PARTS.items(), ("model.weights.h5", weights(compression="gzip"))]
    path = archive(tmp_path / "m.keras", parts, zipfile.ZIP_DEFLATED)
    with table_of(path, trust=trust) as table:
        assert (table.findings, table.checksums) == ((), ())
        assert table.read("layers/dense/vars/0").sum() == 6000
        assert table.read("layers/dense_1/vars/1").shape == (40,)
        assert list(scratch.iterdir()) == []
        assert len(table.files) == 2


def test_a_checksum_that_differs_is_seen_while_inflating(tmp_path: Path) -> None:
    parts = [*PARTS.items(), ("model.weights.h5", weights())]
    path = archive(tmp_path / "m.keras", parts, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path) as file:
        crc = struct.pack("<I", file.getinfo("model.weights.h5").CRC)
    path.write_bytes(path.read_bytes().replace(crc, b"\1\2\3\4"))
    with table_of(path) as table:
        assert [(f.code, f.severity) for f in table.findings] == [("CK001", Severity.ERROR)]
        assert len(table) == 4


def test_a_file_of_its_own_cannot_change_meanwhile(tmp_path: Path) -> None:
    parts = [*PARTS.items(), ("model.weights.h5", weights())]
    with table_of(archive(tmp_path / "m.keras", parts, zipfile.ZIP_DEFLATED)) as table:
        for file in table.files:
            file.check_unchanged()


def test_the_process_that_decodes_ends_when_reading_fails(tmp_path: Path, monkeypatch: Any) -> None:
    parts = [*PARTS.items(), ("model.weights.h5", weights(compression="gzip"))]
    path = archive(tmp_path / "m.keras", parts)
    opened: list[Contents] = []
    closed: list[Hdf5Decoder] = []
    real_close = Hdf5Decoder.close
    real = keras_zip.read_hdf5
    monkeypatch.setattr(
        keras_zip, "read_hdf5", lambda *a, **k: opened.append(real(*a, **k)) or opened[-1]
    )
    monkeypatch.setattr(
        Hdf5Decoder, "close", lambda decoder: closed.append(decoder) or real_close(decoder)
    )

    def crash(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(keras_zip, "name_layers", crash)
    with pytest.raises(ZeroDivisionError):
        table_of(path)
    assert closed == [opened[0].decoder]


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(keras_zip, "SPOOL_FREELY", 1 << 16)
    parts = [*PARTS.items(), ("model.weights.h5", bytes(1 << 22))]
    with pytest.raises(BombError):
        table_of(archive(tmp_path / "m.keras", parts, zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize(
    ("left_out", "severity", "tensors"),
    [("metadata.json", Severity.WARNING, 4), ("config.json", Severity.ERROR, 4),
     ("model.weights.h5", Severity.ERROR, 0)],
)  # fmt: skip
def test_a_missing_member_is_a_finding(
    tmp_path: Path, left_out: str, severity: Severity, tensors: int
) -> None:
    parts = [(n, d) for n, d in [*PARTS.items(), ("model.weights.h5", weights())] if n != left_out]
    with table_of(archive(tmp_path / "m.keras", parts)) as table:
        assert [(f.code, f.severity) for f in table.findings] == [("CK003", severity)]
        assert len(table) == tensors


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_weights_the_last_is_read_or_the_first_where_the_last_is_none(
    tmp_path: Path,
) -> None:
    small = io.BytesIO()
    with h5py.File(small, "w") as file:
        file["only/vars/0"] = np.zeros(1, "f4")
    for second, tensors in ((small.getvalue(), 1), (b"cos\nsystem\n(S'x'\ntR.", 4)):
        parts = [*PARTS.items(), ("model.weights.h5", weights()), ("model.weights.h5", second)]
        with table_of(archive(tmp_path / "m.keras", parts)) as table:
            assert len(table) == tensors
            assert "CK005" in {f.code for f in table.findings if f.severity == Severity.ERROR}


def test_npz_weights_are_named_as_hdf5_ones(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    one = np.empty((), object)
    one[()] = {"0": np.ones((2, 3), "f4"), "1": np.zeros(3, "f4")}
    np.savez(buffer, **{"layers/dense_1": one})
    parts = [*PARTS.items(), ("model.weights.npz", buffer.getvalue())]
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with table_of(archive(tmp_path / "m.keras", parts, method)) as table:
            assert {n: i.layer for n, i in table.items()} == {
                "layers/dense_1/vars/0": "second", "layers/dense_1/vars/1": "second",
            }  # fmt: skip
            assert table.read("layers/dense_1/vars/0").sum() == 6


@pytest.mark.parametrize("step", [37])
def test_a_flipped_or_cut_archive_gives_a_table_or_a_named_error(tmp_path: Path, step: int) -> None:
    parts = [*PARTS.items(), ("model.weights.h5", weights(compression="gzip"))]
    data = archive(tmp_path / "m.keras", parts).read_bytes()
    broken = tmp_path / "broken.keras"
    for at in range(0, len(data), len(data) // step):
        for changed in (data[:at], data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]):
            broken.write_bytes(changed)
            try:
                table = table_of(broken)
            except CkptDoctorError:
                continue
            with table:
                for name, info in table.items():
                    if info.encoding != "absent":
                        with contextlib.suppress(CkptDoctorError):
                            table.read(name)


def framework(name: str) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    return pytest.importorskip(name)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "loss-scaled"])
def test_a_compiled_model_and_its_optimizer_are_told_apart(tmp_path: Path, scaled: bool) -> None:
    keras = framework("keras")
    model = keras.Sequential(
        [keras.layers.Input((3,)), keras.layers.Dense(4), keras.layers.BatchNormalization()]
    )
    optimizer = keras.optimizers.Adam(0.125)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, "mse")
    model.fit(np.ones((4, 3), "f4"), np.ones((4, 4), "f4"), verbose=0)
    path = tmp_path / "m.keras"
    model.save(str(path))
    with table_of(path) as table:
        assert sum(i.role == "model" for i in table.values()) == len(model.weights)
        stored = [table.read(n).tobytes() for n, i in table.items() if i.role == "optimizer"]
        assert {np.asarray(v).tobytes() for v in model.optimizer.variables} <= set(stored)
        assert any(
            key.endswith("learning_rate") and value == 0.125 for key, value in table.scalars.items()
        )
