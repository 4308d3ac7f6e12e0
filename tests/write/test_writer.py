"""Every kind of checkpoint, any edits: what is not edited stays, what is edited is read back."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import write_helpers as wh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptdoctor.edits import NumberEdit, Removal, Restamp, Trim
from ckptdoctor.errors import InternalError, UnsupportedError, UsageError, WriteError
from ckptdoctor.formats import open_path
from ckptdoctor.write import verify
from ckptdoctor.write.draft import Draft

SAID = {"remedy": "test", "kind": "destructive", "cures": (), "title": "test"}
seeds = st.integers(0, 2**32 - 1)
few = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """One file of each kind."""
    folder = tmp_path_factory.mktemp("made")
    paths = {}
    for number, (kind, make) in enumerate(wh.KINDS.items()):
        paths[kind] = folder / f"{number}.bin"
        make(paths[kind])
        paths[kind].chmod(0o640)
    return paths


def is_zip(data):
    return data[:4] == b"PK\3\4"


@pytest.mark.parametrize("kind", wh.KINDS)
@few
@given(seed=seeds)
def test_nothing_but_the_edited_elements_and_their_checksums_changes(made, tmp_path, kind, seed):
    source, output = made[kind], tmp_path / "out"
    before = source.read_bytes()
    with open_path(source, wh.TRUST) as table:
        edits = wh.random_edits(np.random.default_rng(seed), table)
        allowed = {int(at) for e in edits for at in wh.byte_places(table[e.tensor], e.indices)}
        mtime = source.stat().st_mtime_ns
        written = wh.write(source, edits, output, force=True)
    after = output.read_bytes()
    differ = np.flatnonzero(np.frombuffer(before, "u1") != np.frombuffer(after, "u1"))
    fields = {p + i for p in wh.crc_places(before) for i in range(4)} if is_zip(before) else set()
    assert set(differ.tolist()) <= allowed | fields
    assert written.changed == differ.size
    assert written.identical == (not differ.size)
    assert (written.size, written.moved, written.kept) == (len(before), "", False)
    assert (written.compared, written.backup, written.path) == (0, "", str(output))
    assert output.stat().st_mode & 0o7777 == 0o640
    assert (source.read_bytes(), source.stat().st_mtime_ns) == (before, mtime)
    assert wh.names(tmp_path) == ["out"]
    with open_path(output, wh.TRUST) as table:
        for e in edits:
            flat = table.read(e.tensor).reshape(-1)
            picked = flat if e.indices is None else flat[e.indices]
            assert picked.tobytes() == e.after().tobytes()
    if is_zip(before):
        assert wh.apart(after) == wh.apart(before)
        sound = zipfile.ZipFile(io.BytesIO(before)).testzip() is None
        assert (zipfile.ZipFile(io.BytesIO(after)).testzip() is None) == sound


def test_most_kinds_have_sound_checksums_to_keep(made):
    """Or the property above would hold of nothing."""
    sound = {
        kind
        for kind, path in made.items()
        if is_zip(path.read_bytes()) and zipfile.ZipFile(path).testzip() is None
    }
    zips = {kind for kind, path in made.items() if is_zip(path.read_bytes())}
    assert zips - sound == {"torch zip with a wrong CRC", "torch zip without CRCs"}
    assert len(sound) >= 10
    assert any(crc for _, crc, _ in wh.apart(made["torch zip with a wrong CRC"].read_bytes()))


@pytest.mark.parametrize("kind", ["torch zip", "torch zip with data descriptors", "TorchScript"])
def test_every_field_of_a_checksum_follows(made, tmp_path, kind):
    name = "bn1.running_mean" if kind == "TorchScript" else "whole"
    data = made[kind].read_bytes()
    wh.write(made[kind], [wh.edit(name, np.full(1, 9, "f4"), [3])], tmp_path / "out")
    after = (tmp_path / "out").read_bytes()
    changed = [at for at in wh.crc_places(data) if data[at : at + 4] != after[at : at + 4]]
    assert len(changed) == 2


def test_elements_that_are_megabytes_apart_are_written_in_windows_of_their_own(tmp_path):
    values = wh.normal(3 << 20).astype("f4")
    wh.safetensors(tmp_path / "in", {"w": values})
    at = np.array([0, 5, 1 << 19, (1 << 20) - 1, 1 << 20, (3 << 20) - 1])
    for indices in (at, None, np.arange(3 << 20), np.arange(0, 3 << 20, 700)):
        count = values.size if indices is None else indices.size
        fresh = np.arange(count, dtype="f4") + 0.5
        wh.write(tmp_path / "in", [wh.edit("w", fresh, indices)], tmp_path / "out", force=True)
        with open_path(tmp_path / "out") as table:
            wanted = values.copy()
            wanted[slice(None) if indices is None else indices] = fresh
            assert table.read("w").tobytes() == wanted.tobytes()


class TestSharedMemory:
    def test_two_edits_of_one_tensor_keep_each_other(self, made, tmp_path):
        first = wh.edit("whole", np.array([1, 3], "f4"), [0, 599])
        second = wh.edit("whole", np.array([2], "f4"), [300])
        for edits in ([first, second], [second, first]):
            wh.write(made["torch zip"], edits, tmp_path / "out", force=True)
            with open_path(tmp_path / "out") as table:
                assert table.read("whole")[[0, 300, 599]].tolist() == [1, 2, 3]
            assert zipfile.ZipFile(tmp_path / "out").testzip() is None

    def test_the_same_values_through_two_names_are_one_change(self, made, tmp_path):
        fresh = np.arange(600, dtype="f4")
        edits = [wh.edit("whole", fresh), wh.edit("tied", fresh)]
        wh.write(made["torch zip"], edits, tmp_path / "out")
        with open_path(tmp_path / "out") as table:
            assert table.read("tied").reshape(-1).tobytes() == fresh.tobytes()
        assert zipfile.ZipFile(tmp_path / "out").testzip() is None

    def test_other_values_through_two_names_are_declined(self, made, tmp_path):
        edits = [
            wh.edit("whole", np.full(600, 1, "f4")),
            wh.edit("tied", np.full(600, 2, "f4")),
        ]
        with pytest.raises(UsageError, match="memory that is shared, of 'whole', 'tied'"):
            wh.write(made["torch zip"], edits, tmp_path / "out")
        assert wh.names(tmp_path) == []

    def test_other_values_in_other_bytes_of_one_element_are_declined(self, tmp_path):
        wh.safetensors(tmp_path / "in", {"w": np.zeros(2, "f4")})
        one, two = np.array([1], "i4").view("f4"), np.array([256], "i4").view("f4")
        with pytest.raises(WriteError, match="'w' are not read back"):
            wh.write(tmp_path / "in", [wh.edit("w", one, [1]), wh.edit("w", two, [1])], None)
        assert wh.names(tmp_path) == ["in"]

    def test_of_an_element_that_a_view_repeats_the_last_value_counts(self, made, tmp_path):
        fresh = np.arange(20, dtype="f4")
        wh.write(made["torch zip"], [wh.edit("expanded", fresh)], tmp_path / "out")
        with open_path(tmp_path / "out") as table:
            assert table.read("expanded").tolist() == [[15, 16, 17, 18, 19]] * 4
        assert zipfile.ZipFile(tmp_path / "out").testzip() is None


class TestWhatCannotBeWritten:
    """Nothing is left out silently: what a plan says and no code does is an error."""

    @pytest.mark.parametrize(
        "change",
        [
            NumberEdit(name="x", before=1, value=2, **SAID),
            Removal(names=("x",), **SAID),
            Trim(size=1 << 40, **SAID),
            Restamp(where="m:nothing", **SAID),
        ],
        ids=["number", "removal", "trim that grows", "checksum of no member"],
    )
    def test_a_change_that_is_not_done_is_an_error(self, tmp_path, change):
        wh.safetensors(tmp_path / "in")
        with pytest.raises((UnsupportedError, UsageError)):
            wh.write(tmp_path / "in", [change], tmp_path / "out")
        assert wh.names(tmp_path) == ["in"]

    def test_bytes_behind_the_end_go(self, tmp_path):
        wh.safetensors(tmp_path / "in")
        data = (tmp_path / "in").read_bytes()
        for more, where in ((b"", None), (b"behind", None)):
            (tmp_path / "in").write_bytes(data + more)
            trim = Trim(size=len(data), **SAID)
            written = wh.write(tmp_path / "in", [trim], where, force=True)
            assert written.identical == (not more)
            assert written.size == len(data)
            assert Path(written.path).read_bytes() == data

    def test_values_that_do_not_fit_the_elements_are_an_error(self, tmp_path):
        wh.safetensors(tmp_path / "in")
        for wrong in (
            wh.edit("a.half", np.zeros(3, "f2"), [1, 2]),
            wh.edit("a.half", np.zeros(2999, "f2")),
            wh.edit("a.half", np.zeros(1, "f2"), [3000]),
            wh.edit("a.half", np.zeros(1, "f2"), [-1]),
        ):
            with pytest.raises(InternalError):
                wh.write(tmp_path / "in", [wrong], tmp_path / "out")
        assert wh.names(tmp_path) == ["in"]


class TestVerification:
    @pytest.mark.parametrize("kind", ["torch zip", "safetensors", "Keras 2 h5", "keras"])
    @pytest.mark.parametrize("where", ["edited", "elsewhere"])
    def test_a_bit_that_flips_on_the_way_to_the_disk_is_noticed(
        self, made, tmp_path, monkeypatch, kind, where
    ):
        with open_path(made[kind], wh.TRUST) as table:
            name = max(table, key=lambda name: table[name].nbytes)
            places = wh.byte_places(table[name], np.array([2]))
        at = int(places[1]) if where == "edited" else int(places[-1]) + 5
        flush = Draft.flush

        once = []

        def flipped(self, mode, **how):
            if once:  # behind the edits
                byte = os.pread(self.fd, 1, at)[0]
                os.pwrite(self.fd, bytes([byte ^ 16]), at)
            once.append(mode)
            flush(self, mode, **how)

        monkeypatch.setattr(Draft, "flush", flipped)
        with pytest.raises(WriteError, match=rf"near byte {at // 10}?.*; nothing was changed|near"):
            wh.write(made[kind], [wh.edit(name, np.ones(1, "f4"), [2])], tmp_path / "out")
        assert wh.names(tmp_path) == []

    def test_a_window_that_is_not_written_is_noticed(self, made, tmp_path, monkeypatch):
        monkeypatch.setattr(Draft, "write", lambda *_: None)
        with pytest.raises(WriteError, match="not what is read back"):
            wh.write(made["npz"], [wh.edit("plain", np.ones(1), [2])], tmp_path / "out")
        assert wh.names(tmp_path) == []

    def test_an_element_that_does_not_hold_its_value_is_noticed(self, made, tmp_path, monkeypatch):
        monkeypatch.setattr(verify, "_holds", lambda *_: iter([True, False]))
        with pytest.raises(WriteError, match="'plain' are not read back"):
            wh.write(made["npz"], [wh.edit("plain", np.ones(1), [2])], tmp_path / "out")
        assert wh.names(tmp_path) == []


@pytest.mark.oracle
class TestOracles:
    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("seed", range(3))
    def test_torch_reads_what_was_written(self, tmp_path, seed):
        torch = pytest.importorskip("torch")
        torch.manual_seed(seed)
        base = torch.randn(600)
        value = {
            "whole": base,
            "tied": base.view(20, 30),
            "transposed": base.view(20, 30).t(),
            "slice": base[100:400:3],
            "half": torch.randn(70).half(),
            "brain": torch.randn(70).bfloat16(),
            "complex": torch.randn(6, dtype=torch.complex64),
            "mask": torch.rand(50) > 0.5,
            "steps": torch.arange(9),
            "eighth": torch.randn(16).to(torch.float8_e4m3fn),
        }
        torch.save(value, tmp_path / "zip")
        del value["eighth"]  # torch itself does not read it back from the old form
        torch.save(value, tmp_path / "legacy", _use_new_zipfile_serialization=False)
        script = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(7, 8)))
        script.save(str(tmp_path / "script"))
        for kind in ("zip", "legacy", "script"):
            with open_path(tmp_path / kind) as table:
                edits = wh.random_edits(np.random.default_rng(seed), table)
                wh.write(tmp_path / kind, edits, tmp_path / "out", force=True)
            if kind == "script":
                found = torch.jit.load(str(tmp_path / "out")).state_dict()
            else:
                found = torch.load(tmp_path / "out")
            assert len(edits) > 0
            for e in edits:
                width = e.after().dtype.itemsize
                kept = found[e.tensor].contiguous().reshape(-1)
                raw = kept.view(torch.uint8).numpy().reshape(-1, width)
                picked = raw if e.indices is None else raw[e.indices]
                assert picked.tobytes() == e.after().tobytes()

    def test_safetensors_and_numpy_read_what_was_written(self, made, tmp_path):
        load_file = pytest.importorskip("safetensors.numpy").load_file
        for kind, load in (("safetensors", load_file), ("npz", np.load)):
            for seed in range(4):
                with open_path(made[kind]) as table:
                    edits = wh.random_edits(np.random.default_rng(seed), table)
                wh.write(made[kind], edits, tmp_path / "out", force=True)
                shutil.copy(tmp_path / "out", tmp_path / "out.npz")
                found = load(tmp_path / ("out.npz" if kind == "npz" else "out"))
                for e in edits:
                    flat = np.asarray(found[e.tensor]).reshape(-1)
                    native = flat.astype(flat.dtype.newbyteorder("="))
                    picked = native if e.indices is None else native[e.indices]
                    assert picked.tobytes() == e.after().tobytes()

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.weights.h5"])
    def test_keras_reads_what_was_written(self, tmp_path, name):
        keras = pytest.importorskip("keras")
        layers = [keras.layers.Dense(6), keras.layers.BatchNormalization()]
        model = keras.Sequential([keras.Input((5,)), *layers])
        path = tmp_path / name
        model.save_weights(path) if "weights" in name else model.save(path)
        wanted = np.array([0.5, 0.25], "f4")
        with open_path(path) as table:
            norm = [
                n for n in table if n.endswith(("moving_variance", "batch_normalization/vars/3"))
            ]
        wh.write(path, [wh.edit(norm[0], wanted, [1, 4])], tmp_path / f"out-{name}")
        if "weights" in name:
            model.load_weights(tmp_path / f"out-{name}")
        else:
            model = keras.models.load_model(tmp_path / f"out-{name}")
        assert np.asarray(model.layers[1].moving_variance)[[1, 4]].tolist() == wanted.tolist()
        assert np.asarray(model.layers[1].moving_variance)[[0, 2, 3, 5]].tolist() == [1] * 4
