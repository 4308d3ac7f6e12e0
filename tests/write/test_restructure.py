"""Changes that move bytes: what was asked for is there, and every other thing is what it was."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import patients
import pytest
import torch_bytes as tb
import write_helpers as wh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ckptdoctor
from ckptdoctor.edits import Edit, NumberEdit, Removal
from ckptdoctor.errors import FormatError, UnsupportedError, UsageError, WriteError
from ckptdoctor.formats import open_path
from ckptdoctor.outcome import Outcome
from ckptdoctor.tensors import TensorTable
from ckptdoctor.write import restructure

RATE = "training_config/optimizer_config/config/inner_optimizer/config/learning_rate"
SAID = {"remedy": "test", "kind": "destructive", "cures": (), "title": "test"}
few = settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NAN = float("nan")

# --- what files there are -------------------------------------------------------------------------


def deflated(path: Path, *but: str) -> None:
    """Compress the members of an archive, those aside whose names end so."""
    with zipfile.ZipFile(path) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as out:
        for info, data in members:
            made = zipfile.ZipInfo(info.filename, (2024, 5, 6, 7, 8, 10))
            made.external_attr, made.comment = 0o640 << 16, b"as it is"
            made.compress_type = zipfile.ZIP_STORED if info.filename.endswith(but or ("*",)) else 8
            out.writestr(made, data)


def state() -> dict[str, np.ndarray]:
    made = patients.state()
    made["bn2.running_mean"][:] = NAN
    made["bn2.running_var"][[1, 5]] = NAN
    return made


def keras_state() -> dict[str, dict[str, np.ndarray]]:
    made = patients.keras_state()
    made["bn2"]["moving_mean"][:] = NAN
    made["bn2"]["moving_variance"][[1, 5]] = NAN
    return made


def torch_zip(path: Path) -> None:
    deflated(patients.save_torch(path, state()))


def torch_zip_in_part(path: Path) -> None:
    """Every other storage is deflated, the pickle is not."""
    deflated(patients.save_torch(path, state()), "pkl", *(f"/{n}" for n in range(1, 30, 2)))


def torch_zip_streamed(path: Path) -> None:
    """Deflated members with data descriptors, as a pipe leaves them."""
    plain = patients.save_torch(path, state())
    into: Any = wh.Unseekable()
    with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(into, "w", 8) as out:
        for info in archive.infolist():
            out.writestr(info.filename, archive.read(info))
    path.write_bytes(bytes(into.held))


def torchscript(path: Path) -> None:
    """A scripted module: parts by name, code, constants."""
    storages: dict[str, bytes] = {}

    def tensor(value: np.ndarray) -> bytes:
        key = str(len(storages))
        storages[key] = value.tobytes()
        return tb.tensor(tb.storage(key, patients.KINDS[value.dtype.name], value.size), value.shape)

    modules: dict[str, dict[str, Any]] = {}
    for name, value in state().items():
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {"training": False})[leaf] = tensor(value)
    parts = {
        name: tb.name(f"__torch__.{name[:-1]}", "Part") + b")\x81" + tb.item(held) + b"b"
        for name, held in modules.items()
    }
    net = tb.name("__torch__.net", "Net") + b")\x81" + tb.item(parts) + b"b"
    members = {"net/data.pkl": tb.pickled(net), "net/code/__torch__/net.py": b"class Net(Module): "}
    members |= {f"net/data/{key}": data for key, data in storages.items()}
    members |= {
        "net/constants.pkl": tb.pickled((tb.tensor(tb.storage("0", "FloatStorage", 9), (9,)),)),
        "net/constants/0": wh.STORAGES["0"][:36],
        "net/version": b"3\n",
    }
    path.write_bytes(wh.zipped(members))
    deflated(path)


CONFIG = {
    "class_name": "Sequential",
    "config": {"name": "net", "layers": []},
    "compile_config": {
        "optimizer": {
            "class_name": "Adam",
            "config": {"learning_rate": 0.001, "epsilon": 1e-07, "clipnorm": None, "steps": 3},
        },
        "loss": "naïve ☃",
    },
}
METADATA = json.dumps({"keras_version": "3.5.0"}).encode()
CHUNKED: dict[str, dict[str, Any]] = {
    "gzip": {"chunks": True, "compression": "gzip", "shuffle": True},
    "fletcher32": {"chunks": True, "fletcher32": True},
    "gzip and fletcher32": {"chunks": True, "compression": 1, "fletcher32": True},
}


def put(group: h5py.Group, name: str, value: np.ndarray, how: str) -> None:
    """Store a dataset; only arrays can be chunked, and one of a kind stays contiguous."""
    if how == "compact":
        parent = group.require_group(name.rpartition("/")[0]) if "/" in name else group
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple(value.shape)
        kind = h5py.h5t.py_create(value.dtype)
        leaf = name.rpartition("/")[2].encode()
        made = h5py.h5d.create(parent.id, leaf, kind, space, plist)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(value))
    else:
        group.create_dataset(name, data=value, **CHUNKED.get(how, {}))


def weights(into: Any, how: str, *, optimizer: bool = False) -> None:
    """The weights of a Keras 3 model; kernels contiguous, the rest as asked."""
    with h5py.File(into, "w") as file:
        for layer, held in keras_state().items():
            group = file.create_group(f"layers/{layer}/vars")
            group.attrs["name"] = layer
            for i, (part, value) in enumerate(held.items()):
                put(group, str(i), value, "" if part == "kernel" else how)
        if optimizer:
            group = file.create_group("optimizer/vars")
            group.attrs["name"] = "adam"
            for i, value in enumerate((np.array(7), patients.values("m", (5, 4)))):
                put(group, str(i), value, "" if not value.ndim else how)


def h5_of(how: str) -> Callable[[Path], None]:
    """A whole model as Keras 2 writes it, layers other than the kernels encoded otherwise."""

    def make(path: Path) -> None:
        plain = patients.save_keras(path.with_suffix(".plain"), keras_state(), scaled=True)
        with h5py.File(plain) as old, h5py.File(path, "w") as new:

            def copied(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset):
                    how_this = "" if "kernel" in name or not item.ndim else how
                    put(new, name, np.asarray(item), how_this)
                else:
                    new.require_group(name)
                for key, value in item.attrs.items():
                    new[name].attrs[key] = value

            old.visititems(copied)
            for key, value in old.attrs.items():
                new.attrs[key] = value
        plain.unlink()

    return make


def keras_of(how: str, *, deflate: bool, optimizer: bool = False) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        weights(buffer := io.BytesIO(), how, optimizer=optimizer)
        members = {
            "metadata.json": METADATA,
            "config.json": json.dumps(CONFIG, ensure_ascii=False).encode(),
            "model.weights.h5": buffer.getvalue(),
            "assets/vocabulary.txt": b"a\nb\n" * 40,
        }
        path.write_bytes(wh.zipped(members))
        if deflate:
            deflated(path)

    return make


def savez_compressed(path: Path) -> None:
    arrays: dict[str, Any] = state()
    arrays["fc.weight"] = np.asfortranarray(arrays["fc.weight"])
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays, other=np.arange(9, dtype=">i8"))


KINDS: dict[str, Callable[[Path], None]] = {
    "torch zip": torch_zip,
    "torch zip in part": torch_zip_in_part,
    "torch zip streamed": torch_zip_streamed,
    "TorchScript": torchscript,
    "deflated .keras": keras_of("", deflate=True),
    ".keras of chunks": keras_of("gzip", deflate=False),
    "deflated .keras of chunks": keras_of("gzip", deflate=True),
    ".keras of compact data": keras_of("compact", deflate=False),
    "gzip .h5": h5_of("gzip"),
    "checksummed .h5": h5_of("fletcher32"),
    "gzip and checksummed .h5": h5_of("gzip and fletcher32"),
    "compact .h5": h5_of("compact"),
    "savez_compressed": savez_compressed,
}
KERAS = ["deflated .keras", ".keras of chunks"]
ARCHIVES = [kind for kind in KINDS if ".h5" not in kind]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each kind."""
    folder = tmp_path_factory.mktemp("moving")
    paths = {}
    for number, (kind, make) in enumerate(KINDS.items()):
        paths[kind] = folder / f"{number}.bin"
        make(paths[kind])
        paths[kind].chmod(0o640)
    return paths


def repaired(source: Path, output: Path, *, guarded: bool = False, **orders: Any) -> Outcome:
    """Repair as the command does; ``guarded`` with HDF5 in its children, which takes longer."""
    return ckptdoctor.repair(source, output, trust_hdf5=not guarded, **orders)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- everything that a file holds, read without this package --------------------------------------


def contents(data: bytes, above: str = "") -> dict[str, Any]:
    """Members, objects, attributes, properties and values, by name."""
    if data[:4] == b"PK\3\4":
        return archived(data, above)
    if data[:8] == b"\x89HDF\r\n\x1a\n":
        return stored(data, above)
    return {above: data}


def archived(data: bytes, above: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        found[f"{above}order"] = [info.filename for info in archive.infolist()]
        found[f"{above}comment"] = archive.comment
        for info in archive.infolist():
            name = f"{above}{info.filename}"
            kept = (info.compress_type, info.date_time, info.external_attr, info.comment)
            found[f"{name} entry"] = kept
            found |= contents(archive.read(info), name)
    return found


def stored(data: bytes, above: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        place = f"{above}/{name}"
        for key, value in item.attrs.items():
            found[f"{place}@{key}"] = np.asarray(value).tolist()
        if isinstance(item, h5py.Dataset):
            layout = item.id.get_create_plist().get_layout()
            found[f"{place} entry"] = (
                item.dtype, item.shape, item.chunks, item.compression, item.compression_opts,
                item.shuffle, item.fletcher32, item.maxshape, layout,
            )  # fmt: skip
            found[place] = np.asarray(item).tobytes()
        else:
            found[place] = list(item)

    with h5py.File(io.BytesIO(data)) as file:
        visit("", file)
        file.visititems(visit)
    return found


def changed(before: Path, after: Path) -> set[str]:
    """Names of what differs between two files."""
    one, other = (contents(path.read_bytes()) for path in (before, after))
    return {name for name in one | other if one.get(name, ...) != other.get(name, ...)}


def read(path: Path) -> dict[str, np.ndarray]:
    with open_path(path, wh.TRUST) as table:
        return {name: table.read(name).copy() for name in table}


def places(path: Path, tensors: set[str]) -> set[str]:
    """What holds these tensors of one of the `KINDS`, as `contents` names it."""
    with open_path(path, wh.TRUST) as table:
        kind, names = table.format, list(table)
        paths = {name: "/".join(table[name].path) for name in tensors}
    if kind in ("torch-zip", "torchscript"):  # storages have the order of the names
        top = "archive" if kind == "torch-zip" else "net"
        keys = {name: f"{top}/data/{number}" for number, name in enumerate(names)}
        keys["constants.0"] = "net/constants/0"
        return {keys[name] for name in tensors}
    if kind == "npz":
        return {f"{name}.npy" for name in tensors}
    above = "model.weights.h5" if kind == "keras-zip" else ""
    return {f"{above}/{held}" for held in paths.values()}


def some_edits(random: np.random.Generator, table: TensorTable) -> list[Edit]:
    """Edits of a few tensors; at times two of one, each between the other's elements."""
    made = []
    for name in random.permutation(list(table)).tolist()[: int(random.integers(1, 5))]:
        info = table[name]
        at = wh.some_indices(random, info.size)
        values = wh.bits(random, info, info.size if at is None else at.size)
        if at is not None and at.size > 2 and random.integers(0, 2):
            made += [wh.edit(name, values[::2], at[::2]), wh.edit(name, values[1::2], at[1::2])]
        else:
            made.append(wh.edit(name, values, at))
    return made


# --- element edits --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_repair_moves_bytes_and_nothing_else(
    made: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    source, output = made[kind], tmp_path / "out"
    data = source.read_bytes()
    outcome = repaired(source, output, guarded="gzip" in kind or "deflated" in kind, bn_reset=True)
    assert outcome.done
    assert {finding.code for finding in outcome.cured} == {"BN001"}
    assert outcome.written is not None
    assert outcome.written.moved == "data that is compressed, chunked or compact was encoded anew"
    before, after = read(source), read(output)
    assert (outcome.written.changed, outcome.written.compared) == (-1, len(before))
    assert outcome.written.size == output.stat().st_size
    sick = {name for name, value in before.items() if np.isnan(value).any()}
    assert len(sick) == 2
    for name, value in before.items():
        fill = np.float32(name.endswith(("_var", "_variance:0", "/3")))
        wanted = np.where(np.isnan(value), fill, value) if name in sick else value
        assert after[name].tobytes() == wanted.tobytes(), name
    assert changed(source, output) == places(source, sick)
    assert source.read_bytes() == data
    assert names(tmp_path) == ["out"]
    assert output.stat().st_mode & 0o7777 == 0o640


@pytest.mark.parametrize("kind", KINDS)
@few
@given(seed=st.integers(0, 2**32 - 1))
def test_any_edits_that_move_and_that_do_not_go_together(
    made: dict[str, Path], tmp_path: Path, kind: str, seed: int
) -> None:
    source, output = made[kind], tmp_path / "out"
    with open_path(source, wh.TRUST) as table:
        edits = some_edits(np.random.default_rng(seed), table)
        moving = bool(restructure.moving(table, wh.plan_of(*edits)))
    written = wh.write(source, edits, output, force=True)
    wanted = read(source)
    for edit in edits:
        flat = np.ascontiguousarray(wanted[edit.tensor]).reshape(-1)
        flat[slice(None) if edit.indices is None else edit.indices] = edit.after()
        wanted[edit.tensor] = flat.reshape(wanted[edit.tensor].shape)
    after = read(output)
    assert list(after) == list(wanted)
    assert all(after[name].tobytes() == value.tobytes() for name, value in wanted.items())
    touched = places(source, {edit.tensor for edit in edits})
    assert changed(source, output) <= touched
    assert (bool(written.moved), written.changed == -1) == (moving, moving)
    assert names(tmp_path) == ["out"]


def test_kinds_hold_data_that_moves_and_data_that_does_not(made: dict[str, Path]) -> None:
    """Or the property above would be about one of them alone."""
    mixed = set()
    for kind, path in made.items():
        with open_path(path, wh.TRUST) as table:
            plans = (wh.plan_of(wh.edit(name, None)) for name in table)
            moving = {bool(restructure.moving(table, plan)) for plan in plans}
        assert True in moving, kind
        mixed |= {kind} if False in moving else set()
    assert {"torch zip in part", ".keras of chunks", "gzip .h5", "compact .h5"} <= mixed


def test_an_edit_in_place_moves_nothing_beside_compressed_data(
    made: dict[str, Path], tmp_path: Path
) -> None:
    source = made["torch zip in part"]
    edit = wh.edit("bn1.weight", np.ones(1, "f4"), [3])
    with open_path(source) as table:
        assert table["bn1.weight"].extent is not None
    written = wh.write(source, [edit], tmp_path / "out")
    assert (written.moved, written.size) == ("", source.stat().st_size)
    assert 0 < written.changed <= 4 + 8


def test_values_that_are_made_when_they_are_written_can_move(
    made: dict[str, Path], tmp_path: Path
) -> None:
    for kind in ("torch zip", "gzip .h5", "deflated .keras"):
        with open_path(made[kind], wh.TRUST) as table:
            name = next(n for n in table if n.endswith(("bn1.bias", "bn1/beta:0", "bn1/vars/1")))
        out = tmp_path / kind
        wh.write(made[kind], [wh.edit(name, lambda: np.arange(8, dtype="f4"))], out)
        assert read(out)[name].tolist() == list(range(8))


@pytest.mark.parametrize("kind", ["torch zip", "gzip .h5", "deflated .keras of chunks"])
@pytest.mark.parametrize("order", [1, -1])
def test_an_edit_of_all_elements_and_one_of_some_go_together(
    made: dict[str, Path], tmp_path: Path, kind: str, order: int
) -> None:
    with open_path(made[kind], wh.TRUST) as table:
        name = next(n for n in table if n.endswith(("bn1.bias", "bn1/beta:0", "bn1/vars/1")))
    edits = [wh.edit(name, np.arange(8, dtype="f4")), wh.edit(name, np.float32([5, 7]), [5, 7])]
    wh.write(made[kind], edits[::order], tmp_path / "out")
    assert read(tmp_path / "out")[name].tolist() == list(range(8))


@pytest.mark.parametrize("guarded", [True, False])
def test_hdf5_runs_in_this_process_only_for_who_trusts_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    trusted: dict[str, bool] = {}

    def watched(name: str) -> Any:
        real = getattr(restructure, name)

        def call(*arguments: Any, trust: bool, **how: Any) -> Any:
            trusted[name] = trust
            return real(*arguments, trust=trust, **how)

        return call

    for name in ("overwrite", "remove", "set_number", "same"):
        monkeypatch.setattr(restructure, name, watched(name))
    h5_of("gzip")(tmp_path / "in")
    orders = {"bn_reset": True, "numbers": {RATE: 0.25}, "drop_optimizer": True}
    assert repaired(tmp_path / "in", tmp_path / "out", guarded=guarded, **orders).done
    assert trusted == dict.fromkeys(("overwrite", "remove", "set_number", "same"), not guarded)


# --- verification ---------------------------------------------------------------------------------


def spoiled(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("kind", ["torch zip", "torch zip streamed", "savez_compressed", *KERAS])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.93])
def test_a_bit_that_is_written_wrong_is_noticed(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, share: float
) -> None:
    real = restructure.rewrite

    def wrong(archive: Any, out: Any, **how: Any) -> int:
        buffer = io.BytesIO()
        size = real(archive, buffer, **how)
        with zipfile.ZipFile(io.BytesIO(buffer.getvalue())) as made_anew:
            big = max(made_anew.infolist(), key=lambda info: info.compress_size)
            data = buffer.getvalue()
            start = big.header_offset + 30
            start += sum(struct.unpack_from("<2H", data, big.header_offset + 26))
        out.write(spoiled(data, start + int(share * big.compress_size)))
        return size

    monkeypatch.setattr(restructure, "rewrite", wrong)
    with pytest.raises(WriteError) as caught:
        repaired(made[kind], tmp_path / "out", bn_reset=True)
    assert "is not the same" in caught.value.message
    assert "nothing was changed" in caught.value.message
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["torch zip", "TorchScript", "savez_compressed"])
def test_an_element_beside_an_edited_one_is_compared(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The member's checksum is right, and every edited element; another one is not."""
    real = restructure.rewrite

    def wrong(archive: Any, out: Any, *, replace: Any, **how: Any) -> int:
        def other(content: Any) -> bytes:
            data = b"".join(content())
            return spoiled(data, len(data) - 16 + 2)  # bn2.running_var[12]

        return real(archive, out, replace={n: other(c) for n, c in replace.items()}, **how)

    monkeypatch.setattr(restructure, "rewrite", wrong)
    with open_path(made[kind]) as table:
        name = next(n for n in table if n.endswith("bn2.running_var"))
    with pytest.raises(WriteError, match="is not the same: member"):
        wh.write(made[kind], [wh.edit(name, np.ones(1, "f4"), [5])], tmp_path / "out")
    assert names(tmp_path) == []


@pytest.mark.parametrize("how", ["shorter", "longer"])
def test_a_member_of_another_length_is_noticed(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    real = restructure.rewrite

    def wrong(archive: Any, out: Any, *, replace: Any, **more: Any) -> int:
        datas = {n: b"".join(c()) for n, c in replace.items()}
        other = {n: d + b"\0" * 4 if how == "longer" else d[:-4] for n, d in datas.items()}
        return real(archive, out, replace=other, **more)

    monkeypatch.setattr(restructure, "rewrite", wrong)
    with pytest.raises(WriteError, match="is not the same"):
        wh.write(
            made["torch zip"],
            [wh.edit("bn2.running_var", np.ones(1, "f4"), [0])],
            tmp_path / "out",
        )
    assert names(tmp_path) == []


@pytest.mark.parametrize("fault", ["a member is gone", "another order", "another method", "others"])
def test_other_members_are_compared(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    real = restructure.rewrite

    def wrong(archive: Any, out: Any, **how: Any) -> int:
        real(archive, buffer := io.BytesIO(), **how)
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(out, "w") as new:
            members = [(info, old.read(info)) for info in old.infolist()]
            kept = {
                "a member is gone": members[:-1],
                "another order": [members[1], members[0], *members[2:]],
                "others": [*members[:-1], (members[-1][0], b"4\n")],
            }.get(fault, members)
            for info, data in kept:
                method = 0 if fault == "another method" and info is members[-1][0] else 8
                new.writestr(info.filename, data, method)
        return 0

    monkeypatch.setattr(restructure, "rewrite", wrong)
    with pytest.raises(WriteError, match="is not the same: member"):
        repaired(made["torch zip"], tmp_path / "out", bn_reset=True)
    assert names(tmp_path) == []


@pytest.mark.parametrize("fault", ["another name", "another checksum"])
def test_what_headers_say_of_other_members_is_compared(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    real = restructure.rewrite

    def wrong(archive: Any, out: Any, **how: Any) -> int:
        real(archive, buffer := io.BytesIO(), **how)
        data = buffer.getvalue()
        with zipfile.ZipFile(buffer) as again:
            crc = struct.pack("<I", again.getinfo("archive/version").CRC)
        old, new = (crc, b"\1\2\3\4") if "checksum" in fault else (b"version", b"versioN")
        assert data.count(old) == 2
        return int(out.write(data.replace(old, new)))

    monkeypatch.setattr(restructure, "rewrite", wrong)
    with pytest.raises(WriteError, match="is not the same: member"):
        repaired(made["torch zip"], tmp_path / "out", bn_reset=True)
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["gzip .h5", "compact .h5", ".keras of chunks"])
@pytest.mark.parametrize("what", ["element", "dataset", "attribute"])
def test_what_hdf5_changes_beside_the_edit_is_noticed(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, what: str
) -> None:
    real = restructure.overwrite

    def wrong(draft: Path, edits: Any, **how: Any) -> None:
        real(draft, edits, **how)
        (path,) = edits
        with h5py.File(draft, "r+", locking=False) as file:
            dataset = file["/".join(path)]
            if what == "element":
                dataset[9] += 1
            elif what == "attribute":
                dataset.parent.attrs["more"] = 1
            else:
                dataset.parent.parent["more"] = [1.0]

    monkeypatch.setattr(restructure, "overwrite", wrong)
    with open_path(made[kind], wh.TRUST) as table:
        name = next(n for n in table if n.endswith(("bn2/moving_variance:0", "bn2/vars/3")))
    with pytest.raises(WriteError, match="is not the same"):
        wh.write(made[kind], [wh.edit(name, np.ones(1, "f4"), [5])], tmp_path / "out")
    assert names(tmp_path) == []


# --- no room, no time -----------------------------------------------------------------------------


class Full:
    """A disk that takes so many bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self.file.write(data))


@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("room", [0, 700])
def test_a_full_disk_leaves_nothing_of_an_archive(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, room: int
) -> None:
    real = restructure.rewrite
    monkeypatch.setattr(
        restructure, "rewrite", lambda archive, out, **how: real(archive, Full(out, room), **how)
    )
    with pytest.raises(WriteError, match="No space left on device; nothing was changed") as caught:
        repaired(made[kind], tmp_path / "out", bn_reset=True)
    assert caught.value.where == str(tmp_path / "out")
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", range(2))
def test_a_full_disk_leaves_nothing_of_the_weights_in_an_archive(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Where they are taken out, and where they are copied."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if number:
        monkeypatch.setattr(restructure, "_copy_out", full)
    else:
        real = restructure.Draft.write
        monkeypatch.setattr(
            restructure.Draft,
            "write",
            lambda draft, at, data: (
                real(draft, at, data) if data[:8] != b"\x89HDF\r\n\x1a\n" else full()
            ),
        )
    with pytest.raises(WriteError, match="No space left on device; nothing was changed"):
        repaired(made["deflated .keras"], tmp_path / "out", bn_reset=True)
    assert names(tmp_path) == []


STEPS = {
    "torch zip": ("rewrite", "_check_members"),
    "deflated .keras": ("overwrite", "same", "_check_members"),
    "gzip .h5": ("overwrite", "same"),
}


@pytest.mark.parametrize(("kind", "step"), [(k, s) for k, steps in STEPS.items() for s in steps])
def test_what_a_killed_process_leaves_goes_with_the_next_run(
    made: dict[str, Path], tmp_path: Path, kind: str, step: str
) -> None:
    text = f"""
    import os, signal, sys
    import ckptdoctor
    from ckptdoctor.write import restructure
    real = restructure.{step}
    def last(*args, **how):
        real(*args, **how)
        os.kill(os.getpid(), signal.SIGKILL)
    restructure.{step} = last
    ckptdoctor.repair(sys.argv[1], sys.argv[2], bn_reset=True, trust_hdf5=True)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(text), made[kind], tmp_path / "out"]
    ended = subprocess.run(arguments, check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    left = names(tmp_path)
    assert left
    assert all(name.startswith(".out.") and name.endswith(".ckptdoctor") for name in left)
    assert repaired(made[kind], tmp_path / "out", bn_reset=True).done
    assert names(tmp_path) == ["out"]


# --- what goes ------------------------------------------------------------------------------------


def checkpoint(**more: Any) -> dict[str, Any]:
    return {"model": patients.state(), "optimizer": patients.adam(patients.state()), **more}


def lightning() -> dict[str, Any]:
    return {
        "epoch": 3,
        "global_step": 1200,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": patients.state(),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"EarlyStopping": {"best_score": float("inf"), "wait_count": 2}},
        "optimizer_states": [patients.adam(patients.state())],
        "lr_schedulers": [{"last_epoch": 3, "_last_lr": [0.001]}],
    }


def save_legacy(path: Path, tree: dict[str, Any]) -> Path:
    storages: dict[str, tuple[int, bytes]] = {}

    def converted(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: converted(item) for key, item in value.items()}
        if isinstance(value, list):
            return [converted(item) for item in value]
        if not isinstance(value, np.ndarray):
            return value
        key = str(94800000 + len(storages))
        storages[key] = (value.size, value.tobytes())
        where = tb.storage(key, patients.KINDS[value.dtype.name], value.size, None)
        return tb.tensor(where, value.shape)

    path.write_bytes(tb.legacy(converted(tree), storages))
    return path


def keras_3(path: Path) -> None:
    wh.keras_3(path)
    with h5py.File(path, "r+") as file:
        config = {"class_name": "Adam", "config": {"learning_rate": 0.001}}
        file.attrs["training_config"] = json.dumps({"optimizer_config": config})
        file["optimizer_weights/adam/iteration"] = np.int64(461)
        file["optimizer_weights/adam/conv1_kernel_momentum"] = patients.values("m", (3, 3, 3, 8))


def weights_h5(path: Path) -> None:
    weights(path, "", optimizer=True)


WITH_OPTIMIZER: dict[str, tuple[Callable[[Path], Any], str]] = {
    "torch zip": (lambda path: patients.save_torch(path, checkpoint(epoch=3)), "optimizer"),
    "deflated torch zip": (
        lambda path: deflated(patients.save_torch(path, checkpoint(epoch=3))), "optimizer"
    ),
    "torch legacy": (lambda path: save_legacy(path, checkpoint(epoch=3)), "optimizer"),
    "Lightning": (lambda path: patients.save_torch(path, lightning()), "optimizer_states"),
    "Keras 2 .h5": (
        lambda path: patients.save_keras(path, patients.keras_state(), scaled=True),
        "optimizer_weights",
    ),
    "Keras 3 .h5": (keras_3, "optimizer_weights"),
    "compressed .h5": (h5_of("gzip"), "optimizer_weights"),
    ".weights.h5": (weights_h5, "optimizer"),
    ".keras": (keras_of("", deflate=False, optimizer=True), "optimizer"),
    "deflated .keras": (keras_of("gzip", deflate=True, optimizer=True), "optimizer"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WITH_OPTIMIZER)
def test_an_optimizer_goes_and_nothing_else(tmp_path: Path, kind: str) -> None:
    make, key = WITH_OPTIMIZER[kind]
    source, output = tmp_path / "in", tmp_path / "out"
    make(source)
    outcome = repaired(source, output, drop_optimizer=True)
    assert outcome.done
    assert outcome.written is not None
    assert outcome.written.moved == f"{key} was left out"
    assert outcome.written.changed == -1
    with open_path(source) as table, open_path(output) as left:
        going = {name for name, info in table.infos.items() if info.role == "optimizer"}
        assert going
        assert list(left) == [name for name in table if name not in going]
        assert outcome.written.compared == len(left)
        assert all(left.read(name).tobytes() == table.read(name).tobytes() for name in left)
        numbers = dict(table.scalars)
        if table.format.startswith("torch"):
            numbers = {n: v for n, v in numbers.items() if not n.startswith(f"{key}.")}
        assert dict(left.scalars) == numbers
        assert left.layers == table.layers
    differ = changed(source, output)
    if kind.startswith(("torch", "deflated torch", "Lightning")):
        if "legacy" not in kind:
            gone = {n for n in differ if "/data/" in n}
            assert differ - gone == {"order", "archive/data.pkl"}
            assert len(gone) == 2 * len(going)
    else:
        inside = "model.weights.h5/" if "keras" in kind else "/"
        kept = {n for n in differ if not n.removeprefix(inside).startswith(key)}
        assert kept <= {inside}  # the list of what it holds
    assert names(tmp_path) == ["in", "out"]


@pytest.mark.parametrize("how", ["zip", "legacy"])
def test_a_storage_that_weights_share_with_the_optimizer_stays(tmp_path: Path, how: str) -> None:
    device = [None] if how == "legacy" else []
    where = tb.storage("0", "FloatStorage", 600, *device)
    own = tb.storage("1", "FloatStorage", 4, *device)
    tree = {
        "optimizer": {
            "state": {0: {"exp_avg": tb.tensor(where, (600,)), "exp_avg_sq": tb.tensor(own, (4,))}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        "model": {"weight": tb.tensor(where, (20, 30))},
    }
    held = {"0": wh.STORAGES["0"], "1": wh.normal(4).astype("f4").tobytes()}
    if how == "zip":
        (tmp_path / "in").write_bytes(tb.archive(tree, held))
    else:
        sized = {key: (len(data) // 4, data) for key, data in held.items()}
        (tmp_path / "in").write_bytes(tb.legacy(tree, sized))
    assert repaired(tmp_path / "in", tmp_path / "out", drop_optimizer=True).done
    after = read(tmp_path / "out")
    assert {name: value.tobytes() for name, value in after.items()} == {"model.weight": held["0"]}


def test_an_optimizer_goes_while_weights_are_mended(tmp_path: Path) -> None:
    """Edits in place, edits that move, a number and a key, all in one plan."""
    source = patients.save_torch(tmp_path / "in", checkpoint(epoch=3))
    deflated(source, "pkl", "/0", "/1")
    changes = [
        wh.edit("model.conv1.weight", np.full(1, 8, "f4"), [3]),  # stored
        wh.edit("model.bn3.running_var", np.full(2, 9, "f4"), [0, 15]),  # deflated
        NumberEdit(name="epoch", before=3, value=4, **SAID),
        Removal(names=("optimizer",), **SAID),
    ]
    written = wh.write(source, changes, tmp_path / "out")
    assert "encoded anew; optimizer was left out" in written.moved
    before, after = read(source), read(tmp_path / "out")
    before["model.conv1.weight"].reshape(-1)[3] = 8
    before["model.bn3.running_var"][[0, 15]] = 9
    assert {n: v.tobytes() for n, v in after.items()} == {
        n: v.tobytes() for n, v in before.items() if n.startswith("model.")
    }
    with open_path(tmp_path / "out") as table:
        assert dict(table.scalars) == {"epoch": 4}


def test_a_tensor_that_goes_too_many_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = patients.save_torch(tmp_path / "in", checkpoint(other={"x": np.ones(3, "f4")}))
    real = restructure.without_keys
    monkeypatch.setattr(
        restructure, "without_keys", lambda data, keys, where: real(data, [*keys, "other"], where)
    )
    with pytest.raises(WriteError, match="reads otherwise than the input"):
        repaired(source, tmp_path / "out", drop_optimizer=True)
    assert names(tmp_path) == ["in"]


def test_an_optimizer_whose_data_is_lost_can_go(tmp_path: Path) -> None:
    source = patients.save_torch(tmp_path / "in", checkpoint(epoch=3))
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    del members["archive/data/21"]
    source.write_bytes(wh.zipped(members))
    outcome = repaired(source, tmp_path / "out", drop_optimizer=True)
    assert outcome.done
    assert outcome.before is not None
    assert outcome.after is not None
    assert "CK003" in {finding.code for finding in outcome.before.findings}
    assert not outcome.after.findings
    with zipfile.ZipFile(tmp_path / "out") as archive:
        assert len(archive.namelist()) == len(patients.state()) + 3


def test_a_legacy_file_cannot_lose_a_key_and_change_what_its_pickle_carries(tmp_path: Path) -> None:
    tree = {"b": {"n": 1}, "array": pickled_array()}
    tree["w"] = tb.tensor(tb.storage("7", "FloatStorage", 4, None), (4,))
    (tmp_path / "in").write_bytes(tb.legacy(tree, {"7": (4, wh.STORAGES["0"][:16])}))
    changes = [wh.edit("array", np.ones(1), [1]), Removal(names=("b",), **SAID)]
    with pytest.raises(UnsupportedError, match="cannot be written to torch-legacy files"):
        wh.write(tmp_path / "in", changes, tmp_path / "out")
    assert names(tmp_path) == ["in"]


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [h5_of(""), h5_of("gzip"), keras_3], ids=["2", "gzip", "3"])
def test_a_number_of_a_stored_configuration_is_set(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "in")
    with open_path(tmp_path / "in") as table:
        (rate,) = (name for name in table.scalars if name.endswith("learning_rate"))
        now = table.scalars[rate]
    outcome = repaired(tmp_path / "in", tmp_path / "out", numbers={rate: 0.25})
    assert outcome.done
    assert outcome.written is not None
    assert outcome.written.moved == "the stored configuration was written anew"
    assert changed(tmp_path / "in", tmp_path / "out") == {"/@training_config"}
    texts = []
    for name in ("in", "out"):
        with h5py.File(tmp_path / name) as file:
            texts.append(file.attrs["training_config"])
    spelled = f'"learning_rate": {now}'
    assert texts[0].count(spelled) == 1
    assert texts[1] == texts[0].replace(spelled, '"learning_rate": 0.25')
    with open_path(tmp_path / "out") as table:
        assert table.scalars[rate] == 0.25


ADAM = "compile_config/optimizer/config"


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_a_number_in_a_keras_archive_is_set(tmp_path: Path, deflate: bool, encoding: str) -> None:
    """In whatever encoding: a JSON reader takes them all."""
    text = json.dumps(CONFIG, ensure_ascii=False).replace("naïve", "\ud800")
    weights(buffer := io.BytesIO(), "")
    members = {
        "metadata.json": METADATA,
        "config.json": text.encode(encoding, "surrogatepass"),
        "model.weights.h5": buffer.getvalue(),
    }
    (tmp_path / "in").write_bytes(wh.zipped(members))
    if deflate:
        deflated(tmp_path / "in")
    numbers = {f"{ADAM}/learning_rate": 0.25, f"{ADAM}/steps": 7}
    outcome = repaired(tmp_path / "in", tmp_path / "out", numbers=numbers)
    assert outcome.done
    assert outcome.written is not None
    assert outcome.written.moved == "the stored configuration was written anew"
    assert changed(tmp_path / "in", tmp_path / "out") == {"config.json"}
    wanted = text.replace('"learning_rate": 0.001', '"learning_rate": 0.25')
    wanted = wanted.replace('"steps": 3', '"steps": 7')
    with zipfile.ZipFile(tmp_path / "out") as archive:
        assert archive.read("config.json") == wanted.encode(encoding, "surrogatepass")
        assert archive.testzip() is None


def test_a_number_and_the_weights_of_a_keras_archive_change_together(tmp_path: Path) -> None:
    keras_of("gzip", deflate=True, optimizer=True)(tmp_path / "in")
    changes = [
        wh.edit("layers/bn2/vars/3", np.ones(2, "f4"), [1, 5]),
        NumberEdit(name=f"{ADAM}/epsilon", before=1e-07, value=1e-3, **SAID),
        Removal(names=("optimizer",), **SAID),
    ]
    written = wh.write(tmp_path / "in", changes, tmp_path / "out")
    assert written.moved.count(";") == 2
    before, after = read(tmp_path / "in"), read(tmp_path / "out")
    before["layers/bn2/vars/3"][[1, 5]] = 1
    assert {n: v.tobytes() for n, v in after.items()} == {
        n: v.tobytes() for n, v in before.items() if not n.startswith("optimizer")
    }
    with open_path(tmp_path / "out") as table:
        assert table.scalars[f"{ADAM}/epsilon"] == 1e-3


@pytest.mark.parametrize("how", ["zip", "zip with data descriptors", "legacy"])
def test_a_number_in_a_pickle_changes_in_its_place(tmp_path: Path, how: str) -> None:
    source = tmp_path / "in"
    if how == "legacy":
        save_legacy(source, checkpoint(epoch=3))
    else:
        patients.save_torch(source, checkpoint(epoch=3))
    if "descriptors" in how:
        with zipfile.ZipFile(source) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        source.write_bytes(wh.zipped(members, stream=True))
    lr = "optimizer.param_groups.0.lr"
    outcome = repaired(source, tmp_path / "out", numbers={lr: 0.025})
    assert outcome.done
    assert outcome.written is not None
    assert outcome.written.moved == ""
    before, after = (np.frombuffer((tmp_path / n).read_bytes(), "u1") for n in ("in", "out"))
    differ = set(np.flatnonzero(before != after).tolist())
    at = before.tobytes().index(b"lrG") + 3
    assert after[at : at + 8].tobytes() == struct.pack(">d", 0.025)
    fields = set() if how == "legacy" else set(wh.crc_places(before.tobytes()))
    allowed = set(range(at, at + 8)) | {place + i for place in fields for i in range(4)}
    assert differ <= allowed
    assert len(differ - set(range(at, at + 8))) <= 8
    assert outcome.written.changed == len(differ)


def test_numbers_of_a_compressed_pickle_are_refused(tmp_path: Path) -> None:
    deflated(patients.save_torch(tmp_path / "in", checkpoint(epoch=3)))
    with pytest.raises(UsageError, match="numbers of this file are compressed"):
        repaired(tmp_path / "in", tmp_path / "out", numbers={"epoch": 4})
    assert names(tmp_path) == ["in"]


# --- what is not done -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        NumberEdit(name="epoch", before=3, value=4, **SAID),
        Removal(names=("a",), **SAID),
    ],
    ids=["number", "removal"],
)
def test_sharded_sets_are_not_restructured(tmp_path: Path, change: Any) -> None:
    index = wh.sharded(tmp_path / "set", torch=True)
    before = wh.listing(tmp_path)
    with pytest.raises(UnsupportedError, match="cannot be written to a sharded set") as caught:
        wh.write(index, [change], tmp_path / "out")
    assert "shard by itself" in caught.value.hint
    assert wh.listing(tmp_path) == before


def test_compressed_data_of_a_shard_is_refused(tmp_path: Path) -> None:
    index = wh.sharded(tmp_path / "set", torch=True)
    for path in (tmp_path / "set").glob("*.bin"):
        deflated(path)
    before = wh.listing(tmp_path)
    edit = wh.edit("a.bias", np.ones(1, "f4"), [0])
    with pytest.raises(UnsupportedError, match="cannot be written to a sharded set"):
        wh.write(index, [edit], tmp_path / "out")
    assert wh.listing(tmp_path) == before


@pytest.mark.parametrize("make", [wh.safetensors, wh.torch_tar], ids=["safetensors", "tar"])
def test_keys_of_other_formats_are_not_removed(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "in")
    with pytest.raises(UnsupportedError, match="cannot be written to") as caught:
        wh.write(tmp_path / "in", [Removal(names=("w",), **SAID)], tmp_path / "out")
    assert caught.value.hint
    assert names(tmp_path) == ["in"]


def test_compressed_arrays_in_a_keras_archive_are_refused(tmp_path: Path) -> None:
    wh.keras_zip_of_npz(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "in") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    np.savez_compressed(inner := io.BytesIO(), **{"layers/dense/vars/0": wh.normal(8, 9)})
    members["model.weights.npz"] = inner.getvalue()
    (tmp_path / "in").write_bytes(wh.zipped(members))
    with open_path(tmp_path / "in") as table:
        (name,) = table
    with pytest.raises(UnsupportedError, match="npz weights are compressed"):
        wh.write(tmp_path / "in", [wh.edit(name, np.ones(1), [0])], tmp_path / "out")
    assert names(tmp_path) == ["in"]


def pickled_array() -> bytes:
    """A NumPy array, which has no storage of its own."""
    kind = tb.call("numpy", "dtype", "f8", False, True)
    kind += tb.item((3, "<", None, None, None, -1, -1, 0)) + b"b"
    made = tb.call(
        "numpy.core.multiarray", "_reconstruct", tb.name("numpy", "ndarray"), (0,), b"C\x01b"
    )
    return made + tb.item((1, (2,), kind, False, b"C\x10" + struct.pack("<2d", 1.5, 2.5))) + b"b"


def test_values_that_a_pickle_carries_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(tb.archive({"array": pickled_array()}, {}))
    with pytest.raises(UnsupportedError, match="'array' have no bytes of their own"):
        wh.write(tmp_path / "in", [wh.edit("array", np.ones(1), [1])], tmp_path / "out")
    assert names(tmp_path) == ["in"]


def test_a_damaged_member_that_is_read_is_named(tmp_path: Path) -> None:
    torch_zip(tmp_path / "in")
    data = bytearray((tmp_path / "in").read_bytes())
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        info = archive.getinfo("archive/data/10")  # bn3.weight or so
        start = info.header_offset + 30 + len(info.filename)
    data[start + info.compress_size // 2] ^= 0x10
    (tmp_path / "in").write_bytes(data)
    with pytest.raises(FormatError, match="CRC-32 of the data is"):
        wh.write(
            tmp_path / "in",
            [wh.edit("bn2.running_var", np.ones(1, "f4"), [1])],
            tmp_path / "out",
        )
    assert names(tmp_path) == ["in"]
