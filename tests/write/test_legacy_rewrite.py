"""Legacy files written anew: another tree, fewer storages, every other byte as it was."""

import io
import struct

import pytest
import torch_bytes as tb

from ckptdoctor.errors import FormatError, UnsupportedError
from ckptdoctor.sources import WindowSource
from ckptdoctor.write import legacy_rewrite
from ckptdoctor.write.legacy_rewrite import rewrite_legacy
from ckptdoctor.write.pickle_removal import without_keys

KINDS = {"0": ("FloatStorage", 6, 24), "1": ("HalfStorage", 4, 8), "2": ("LongStorage", 3, 24)}
STORAGES = {key: (n, bytes([int(key) + 1]) * size) for key, (_, n, size) in KINDS.items()}


def tensor(key):
    return tb.tensor(tb.storage(key, *KINDS[key][:2]), (KINDS[key][1],))


TREE = {"model": tensor("0"), "optimizer": [tensor("1")], "other": tensor("2")}
WHOLE = tb.legacy(TREE, STORAGES)


def written(data, **more):
    out = io.BytesIO()
    assert rewrite_legacy(WindowSource.over(data, "m.pt"), out, **more) == len(out.getvalue())
    return out.getvalue()


def test_with_the_same_tree_the_bytes_are_the_same():
    assert written(WHOLE, tree=tb.pickled(TREE)) == WHOLE
    assert written(WHOLE + b"tail", tree=tb.pickled(TREE)) == WHOLE + b"tail"
    assert written(WHOLE + b"tail", tree=tb.pickled(TREE), trim=True) == WHOLE


def test_without_a_key_its_storages_go_from_list_and_data():
    cut = without_keys(tb.pickled(TREE), ["optimizer"])
    assert cut.released == ("1",)
    less = {key: TREE[key] for key in ("model", "other")}
    expected = tb.legacy(less, {key: STORAGES[key] for key in ("0", "2")})
    assert written(WHOLE, tree=cut.data, drop=cut.released) == expected


def test_numbers_as_keys_stay_numbers():
    where = tb.item(("storage", tb.name("torch", "FloatStorage"), 7, "cpu", 1)) + b"Q"
    tree = {"a": tb.tensor(where, (1,)), "b": tensor("1")}
    data = tb.legacy(tree, {7: (1, b"abcd"), "1": STORAGES["1"]})
    made = written(data, tree=b"\x80\x02N.", drop=["1"])
    assert made.endswith(b"\x80\x02N.\x80\x02](L7L\ne." + struct.pack("<q", 1) + b"abcd")


def test_what_is_written_at_once_is_bounded(monkeypatch):
    monkeypatch.setattr(legacy_rewrite, "BLOCK", 10)
    sizes = []
    source = WindowSource.over(WHOLE, "m.pt")
    rewrite_legacy(source, lambda data: sizes.append(len(data)), tree=b"\x80\x02N.")
    assert max(sizes) == 10


DAMAGED = {
    "a storage that runs past the end": (WHOLE[:-1], "needs 24 bytes, 23 are left"),
    "a count below zero": (
        tb.legacy(TREE, {**STORAGES, "2": (-1, b"")}),
        "'2' needs -1 bytes",
    ),
    "a storage that nothing refers to": (
        tb.legacy(TREE, {**STORAGES, "9": (1, b"abcd")}),
        "'9' has no known type",
    ),
    "a cut list": (WHOLE[: WHOLE.index(tb.pickled(list(STORAGES))) + 5], "the pickle"),
}


@pytest.mark.parametrize(("data", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_storages_that_cannot_be_told_apart_are_refused(data, reason):
    with pytest.raises(FormatError, match=reason):
        written(data, tree=b"N.")


@pytest.mark.parametrize("keys", [{"a": 1}, [1.5]], ids=["no list", "no keys"])
def test_a_list_that_torch_does_not_write_is_refused(keys):
    data = WHOLE[: WHOLE.index(tb.pickled(list(STORAGES)))] + tb.pickled(keys)
    with pytest.raises(UnsupportedError, match="list of storages is not torch's"):
        written(data, tree=b"N.")


def test_references_that_are_no_storages_are_passed_over():
    tree = {**TREE, "odd": tb.item(("storage",)) + b"Q", "class": tb.item(("module", 1)) + b"Q"}
    data = tb.legacy(tree, STORAGES)
    assert written(data, tree=tb.pickled(tree)) == data


def test_a_storage_of_no_known_type_is_refused():
    where = tb.storage("0", "StrangeStorage")
    data = tb.legacy({"a": tb.tensor(where, (6,))}, {"0": STORAGES["0"]})
    with pytest.raises(UnsupportedError, match="cannot be told apart: its storage has an unknown"):
        written(data, tree=b"N.")


@pytest.mark.oracle
def test_torch_loads_what_is_left(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    tree = {"optimizer": optimizer.state_dict(), "model": model.state_dict(), "lr": 0.5}
    path = tmp_path / "m.pt"
    torch.save(tree, path, _use_new_zipfile_serialization=False)
    from ckptdoctor.formats import open_path
    from ckptdoctor.write.pickle_numbers import tree_pickle

    with open_path(path) as table:
        cut = without_keys(tree_pickle(table).data, ["optimizer"])
        assert len(cut.released) == 6
        with (tmp_path / "out.pt").open("wb") as out:
            rewrite_legacy(table.files[0], out, tree=cut.data, drop=cut.released)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(found) == ["model", "lr"]
    for name, weight in model.state_dict().items():
        assert torch.equal(found["model"][name], weight)
