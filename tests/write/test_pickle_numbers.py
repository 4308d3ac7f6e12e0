"""Numbers changed in pickles: the one that was asked for, in as many bytes, and nothing else."""

import contextlib
import io
import math
import pickle
import struct

import numpy as np
import patients
import pytest
import torch_bytes as tb
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.containers.pickle import unpickle
from ckptdoctor.errors import CkptDoctorError, FormatError, UnsupportedError, UsageError
from ckptdoctor.formats import open_path
from ckptdoctor.formats.torch_tree import numbers_in
from ckptdoctor.tensors import TensorTable
from ckptdoctor.write.pickle_number_bytes import Holder, alike, rewritten
from ckptdoctor.write.pickle_numbers import number_patch, scalars_reader, tree_pickle


def flat(data):
    """Numbers of a pickle by path, bools included."""
    found = {}

    def walk(value, path):
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, (*path, str(key)))
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                walk(item, (*path, str(i)))
        elif isinstance(value, (int, float)):
            found[".".join(path)] = value

    walk(pickle.loads(data), ())
    return found


def read(data):
    return numbers_in(unpickle(data, "x"))


def patched(data, patch):
    return data[: patch.offset] + patch.data + data[patch.offset + len(patch.data) :]


def set_number(data, name, value, scalars=read):
    """The pickle with another number; the patch must be as long as what it covers."""
    patch = number_patch(data, name, value, scalars)
    made = patched(data, patch)
    assert len(made) == len(data)
    assert made[patch.offset] == data[patch.offset] or data[patch.offset] in b"\x88\x89"
    return scalars(made), patch


# What is found.


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["lr", "groups.0.lr", "groups.1.eps", "groups.2.betas.1"])
def test_one_of_many_equal_numbers_changes_alone(protocol, name):
    group = {"lr": 0.125, "eps": 0.125, "betas": [0.125, 0.125]}
    tree = {"lr": 0.125, "groups": [dict(group, betas=[0.125, 0.125]) for _ in range(3)]}
    data = pickle.dumps(tree, protocol)
    after, patch = set_number(data, name, 0.375)
    assert after == {**read(data), name: 0.375}
    assert patch.changed_names == (name,)
    assert patch.value == 0.375


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.data())
def test_any_number_of_any_tree_changes_alone(protocol, data):
    numbers = st.one_of(st.integers(-5, 300), st.sampled_from([0.0, -0.0, 0.5, math.inf]))
    children = st.dictionaries(st.one_of(st.integers(0, 4), st.sampled_from("abc")), numbers)
    tree = data.draw(st.dictionaries(st.sampled_from("xyz"), children, min_size=1))
    dumped = pickle.dumps(tree, protocol)
    before = read(dumped)
    for name, now in before.items():
        value = data.draw(st.sampled_from([0.25, -0.0, 7])) if isinstance(now, float) else now ^ 1
        after, patch = set_number(dumped, name, value)
        assert patch.changed_names == (name,)
        expected = {**before, name: float(value) if isinstance(now, float) else value}
        assert all(alike(after[n], expected[n]) for n in before)


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize(
    "tree",
    [{"x": {0: 0}, "y": {"a": 0, 1: 0, 0: 0, 2: 0}}, {"x": {"c": 0}, "y": {"b": 99, "c": 0}}],
)
def test_keys_that_equal_the_number_hide_it_not(protocol, tree):
    dumped = pickle.dumps(tree, protocol)
    before = read(dumped)
    for name, now in before.items():
        after, patch = set_number(dumped, name, now ^ 1)
        assert patch.changed_names == (name,)
        assert after == {**before, name: now ^ 1}


@pytest.mark.parametrize("count", [1, 2, 100, 3000])
def test_finding_a_number_takes_few_readings(count):
    data = pickle.dumps({"state": [1200.0] * count, "lr": 0.1})
    readings = []

    def counted(changed):
        readings.append(1)
        return flat(changed)

    set_number(data, f"state.{count // 3}", 1.0, counted)
    assert len(readings) - 1 <= math.ceil(math.log2(count)) + 3  # one is the test's own


def test_a_number_in_a_shared_tuple_changes_under_every_name():
    one, other = (0.9, 0.999), (0.9, 0.5)
    data = pickle.dumps({"groups": [{"betas": one}, {"betas": one}, {"betas": other}]})
    after, patch = set_number(data, "groups.1.betas.0", 0.5)
    assert patch.changed_names == ("groups.0.betas.0", "groups.1.betas.0")
    assert [after[f"groups.{i}.betas.0"] for i in range(3)] == [0.5, 0.5, 0.9]


def test_a_number_that_is_a_key_elsewhere_is_told_from_it():
    tree = {"state": {i: {"step": i} for i in range(40)}, "epoch": 7}
    data = pickle.dumps(tree)
    for name in ("epoch", "state.7.step", "state.39.step", "state.0.step"):
        now = read(data)[name]
        after, patch = set_number(data, name, now + 200)
        assert after == {**read(data), name: now + 200}
        assert patch.changed_names == (name,)


def test_the_present_value_can_be_set_again():
    data = pickle.dumps({"lr": 0.1, "eps": 0.1})
    patch = number_patch(data, "eps", 0.1, read)
    assert patched(data, patch) == data
    assert patch.changed_names == ("eps",)


@pytest.mark.parametrize("now", [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-300])
@pytest.mark.parametrize("value", [0.01, math.inf, math.nan])
def test_numbers_that_compare_oddly_are_found_and_set(now, value):
    data = pickle.dumps({"scale": now, "other": 0.0, "third": -0.0})
    after, patch = set_number(data, "scale", value)
    assert alike(after["scale"], value)
    assert patch.changed_names == ("scale",)


# How numbers are spelled.

FITS = {
    "BININT1": (b"K\x07", 255, b"K\xff"),
    "BININT2": (b"M\x00\x01", 65535, b"M\xff\xff"),
    "BININT": (b"J\xff\xff\xff\xff", -(2**31), b"J\x00\x00\x00\x80"),
    "LONG1": (b"\x8a\x05\x00\x00\x00\x00\x01", -1, b"\x8a\x05\xff\xff\xff\xff\xff"),
    "LONG4": (b"\x8b\x03\x00\x00\x00\x01\x02\x03", 5, b"\x8b\x03\x00\x00\x00\x05\x00\x00"),
    "INT": (b"I1200\n", 1300, b"I1300\n"),
    "LONG": (b"L1200L\n", -130, b"L-130L\n"),
    "LONG without its letter": (b"L1200\n", 1201, b"L1201\n"),
    "BINFLOAT": (b"G?\xb9\x99\x99\x99\x99\x99\x9a", 2, b"G@\x00\x00\x00\x00\x00\x00\x00"),
    "FLOAT": (b"F0.001\n", 0.25, b"F0.250\n"),
    "FLOAT with a power": (b"F0.00001\n", 1e-07, b"F1.0e-07\n"),
    "FLOAT with no room for a point": (b"F0.001\n", 1e-7, b"F1e-07\n"),
    "NEWTRUE": (b"\x88", False, b"\x89"),
    "NEWFALSE": (b"\x89", 1, b"\x88"),
    "INT as truth": (b"I01\n", False, b"I00\n"),
    "INT as falsehood": (b"I00\n", True, b"I01\n"),
}


@pytest.mark.parametrize(("now", "value", "then"), FITS.values(), ids=FITS)
def test_each_opcode_takes_what_fits_it(now, value, then):
    data = b"}(X\1\0\0\0a" + now + b"X\1\0\0\0bNu."
    patch = number_patch(data, "a", value, flat)
    assert patched(data, patch) == data.replace(now, then)
    assert patch.data == then
    assert patch.value == value


REFUSED = {
    "BININT1": (b"K\x07", 256, "stored in 2 bytes, which cannot hold 256; give .* 0 to 255"),
    "BININT1 below zero": (b"K\x07", -1, "0 to 255"),
    "BININT2": (b"M\x00\x01", 65536, "0 to 65535"),
    "BININT": (b"J\xff\xff\xff\xff", 2**31, "-2147483648 to 2147483647"),
    "LONG1": (b"\x8a\x01\x07", 128, "-128 to 127"),
    "LONG1 of 8 bytes": (b"\x8a\x08" + b"\1" * 8, 2**63, f"{-(2**63)} to {2**63 - 1}"),
    "LONG1 of 9 bytes": (b"\x8a\x09" + b"\1" * 9, 2**71, "set the number, and save"),
    "LONG4": (b"\x8b\x01\x00\x00\x00\x07", 128, "-128 to 127"),
    "INT": (b"I12\n", 123, "set the number, and save"),
    "LONG": (b"L12L\n", 1, "set the number, and save"),
    "FLOAT": (b"F0.5\n", 0.125, "set the number, and save"),
    "FLOAT with room for a point alone": (b"F0.0001\n", 1e-07, "set the number, and save"),
    "a point for a whole number": (b"K\x07", 8.0, r"whole number \(7\), found 8.0; .* without a"),
    "truth for a number": (b"K\x07", True, "'a' is 7, which True cannot replace"),
    "truth for a float": (b"G?\xb9\x99\x99\x99\x99\x99\x9a", True, "True cannot replace"),
    "a number for truth": (b"\x88", 2, "'a' is True, which 2 cannot replace"),
    "beyond a float": (b"G?\xb9\x99\x99\x99\x99\x99\x9a", 10**400, "beyond the range"),
    "a number without end": (b"K\x07", 1 << 20_000, "an integer of 20001 bits"),
    "text without end": (b"I12\n", 1 << 20_000, "an integer of 20001 bits"),
    "no room at all": (b"\x8a\x00", 1, "no bytes hold it alone"),
}


@pytest.mark.parametrize(("now", "value", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(now, value, reason):
    with pytest.raises(UnsupportedError, match=reason):
        number_patch(b"}(X\1\0\0\0a" + now + b"u.", "a", value, flat)


def test_a_number_of_a_thousand_digits_is_left_to_others():
    data = b"}(X\1\0\0\0aK\7X\1\0\0\0b\x8a\xff" + b"\1" * 255 + b"u."
    assert set_number(data, "a", 8)[0]["a"] == 8
    now = read(data)["b"]
    assert set_number(data, "b", now - 1)[0]["b"] == now - 1


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "u1", ">f8", ">i4"])
def test_numpy_scalars_change_in_their_own_type(dtype):
    scalar = np.dtype(dtype).type(3) if dtype[0] != ">" else np.array(3, dtype)[()]
    data = pickle.dumps({"a": scalar, "b": 3}, 4)
    kind = np.dtype(dtype).kind
    after, patch = set_number(data, "a", 0.1 if kind == "f" else 77)
    assert after["a"] == (np.array(0.1, dtype).item() if kind == "f" else 77) == patch.value
    assert after["b"] == 3


def test_numpy_scalars_of_protocol_2_change_where_the_text_is_as_long():
    data = pickle.dumps({"a": np.float64(1.5)}, 2)
    assert set_number(data, "a", 1.75)[0]["a"] == 1.75
    with pytest.raises(UnsupportedError, match=r"cannot hold 0\.1"):
        number_patch(data, "a", 0.1, read)


@pytest.mark.parametrize(("dtype", "value"), [("f2", 1e6), ("i2", 1 << 15), ("u1", -1)])
def test_numpy_scalars_refuse_what_they_cannot_hold(dtype, value):
    data = pickle.dumps({"a": np.dtype(dtype).type(3)}, 4)
    with pytest.raises(UnsupportedError, match=r"cannot hold|no bytes hold it alone"):
        number_patch(data, "a", value, read)


def test_a_numpy_scalar_takes_infinity_where_it_is_meant():
    data = pickle.dumps({"a": np.float32(3)}, 4)
    assert set_number(data, "a", math.inf)[0]["a"] == math.inf


def test_a_rewritten_opcode_is_as_long_or_nothing():
    assert rewritten(Holder(0, b"I9\n", 9), 10) is None
    assert rewritten(Holder(0, b"I9\n", 9), 8) == b"I8\n"


# What cannot be found.


def test_an_unknown_name_is_answered_with_likely_ones():
    data = pickle.dumps({"optimizer": {"lr": 0.1}, "epoch": 3})
    with pytest.raises(UsageError, match=r"no number 'lr' .*; it has 'optimizer.lr'"):
        number_patch(data, "lr", 0.2, read)
    with pytest.raises(UsageError, match=r"no number 'beta' in the checkpoint$"):
        number_patch(data, "beta", 0.2, read)


def test_a_number_that_no_opcode_holds_is_refused():
    data = pickle.dumps({"a": 3})
    with pytest.raises(UnsupportedError, match="no bytes hold it alone"):
        number_patch(data, "b", 4, lambda raw: {**read(raw), "b": 3})
    with pytest.raises(UnsupportedError, match="no bytes hold it alone"):
        number_patch(data, "b", 4, lambda raw: {**read(raw), "b": 9})


def test_a_number_that_names_another_is_refused():
    data = pickle.dumps({"a": 3})
    with pytest.raises(UnsupportedError, match="no bytes hold it alone"):
        number_patch(data, "a", 4, lambda raw: {**read(raw), f"b{read(raw)['a']}": 1})


def test_a_value_that_brings_another_number_with_it_is_refused():
    data = pickle.dumps({"a": 3})
    with pytest.raises(UnsupportedError, match="no bytes hold it alone"):
        number_patch(
            data, "a", 9, lambda raw: {**read(raw), "b": 1} if b"\x09" in raw else read(raw)
        )


def test_a_value_that_changes_another_number_is_refused():
    data = pickle.dumps({"a": 3})
    with pytest.raises(UnsupportedError, match="no bytes hold it alone"):
        number_patch(data, "a", 9, lambda raw: {**read(raw), "b": read(raw)["a"] == 9})


def test_a_number_that_another_is_computed_from_is_refused():
    data = pickle.dumps({"a": 3})
    with pytest.raises(UnsupportedError, match="no bytes hold it alone"):
        number_patch(data, "a", 4, lambda raw: {**read(raw), "b": 2 * read(raw)["a"]})


def test_readings_are_bounded():
    data, readings = pickle.dumps([3] * 3000), []

    def strange(raw):
        readings.append(1)
        return {"a": 3} if raw == data else {}

    with pytest.raises(UnsupportedError, match="no bytes hold it alone"):
        number_patch(data, "a", 4, strange)
    assert len(readings) == 201


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_only_named_errors_leave_for_any_bytes(raw):
    with contextlib.suppress(CkptDoctorError):
        number_patch(b"}(X\1\0\0\0a" + raw + b"u.", "a", 4, read)


def test_what_is_no_pickle_is_refused():
    with pytest.raises(FormatError):
        number_patch(b"no pickle", "a", 1, read)


# Where the pickle is.


def training():
    weights = patients.state()
    return {"model": weights, "optimizer": patients.adam(weights), "epoch": 3}


def test_the_pickle_of_an_archive_is_found_in_its_place(tmp_path):
    path = patients.save_torch(tmp_path / "m.pt", training())
    with open_path(path) as table:
        found, scalars = tree_pickle(table), scalars_reader(table)
        assert found.member == "archive/data.pkl"
        assert path.read_bytes()[found.offset :].startswith(found.data)
        assert scalars(found.data) == table.scalars
        patch = number_patch(found.data, "optimizer.param_groups.0.lr", 0.25, scalars)
    raw = bytearray(path.read_bytes())
    at = found.offset + patch.offset
    raw[at : at + len(patch.data)] = patch.data
    path.write_bytes(raw)
    with open_path(path) as changed:
        assert changed.scalars == {**table.scalars, "optimizer.param_groups.0.lr": 0.25}


def test_the_pickle_of_a_legacy_file_is_found_behind_its_header(tmp_path):
    class_and_source = (tb.name("nets", "Net"), "net.py", "class Net: ...")
    made = tb.item(("module", *class_and_source)) + b"Q)R"
    tree = {"net": made, "lr": 0.1, "w": tb.tensor(tb.storage("0"), (6,))}
    path = tmp_path / "m.pt"
    path.write_bytes(tb.legacy(tree, {"0": (6, bytes(24))}))
    with open_path(path) as table:
        found, scalars = tree_pickle(table), scalars_reader(table)
        assert found.member == ""
        assert path.read_bytes()[found.offset :].startswith(found.data)
        assert found.data == tb.pickled(tree)
        assert scalars(found.data) == table.scalars == {"lr": 0.1}


def test_a_deflated_pickle_has_no_place_in_the_file(tmp_path):
    import zipfile

    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", tb.pickled({"lr": 0.1}))
        file.writestr("a/version", "3")
    with open_path(path) as table:
        assert tree_pickle(table) == (tb.pickled({"lr": 0.1}), "a/data.pkl", -1)


def test_other_formats_are_refused_with_what_to_do():
    table = TensorTable.from_arrays({"w": np.zeros(3)})
    with pytest.raises(UnsupportedError, match=r"numbers of a memory file .* save it anew"):
        tree_pickle(table)


# The real thing.


@pytest.mark.oracle
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_torch_reads_the_number(tmp_path, legacy, protocol):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    groups = [{"params": part.parameters()} for part in model]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "growth_interval": 2000}
    tree = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler}
    path = tmp_path / "m.pt"
    torch.save(tree, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    raw = bytearray(path.read_bytes())
    with open_path(path) as table:
        found, scalars = tree_pickle(table), scalars_reader(table)
        assert scalars(found.data) == table.scalars
        for name, value in (
            ("optimizer.param_groups.1.lr", 0.01),
            ("scaler.scale", 1024.0),
            ("scaler.growth_interval", 999),
        ):
            patch = number_patch(found.data, name, value, scalars)
            assert patch.changed_names == (name,)
            at = found.offset + patch.offset
            raw[at : at + len(patch.data)] = patch.data
    got = torch.load(io.BytesIO(raw), weights_only=protocol == 2)
    assert [group["lr"] for group in got["optimizer"]["param_groups"]] == [1e-3, 0.01]
    assert got["scaler"] == {**scaler, "scale": 1024.0, "growth_interval": 999}
    optimizer.load_state_dict(got["optimizer"])
    assert optimizer.param_groups[1]["lr"] == 0.01
    for name, weight in model.state_dict().items():
        assert torch.equal(got["model"][name], weight)


def test_floats_are_big_endian():
    assert set_number(b"}(X\1\0\0\0aG" + struct.pack(">d", 1.0) + b"u.", "a", 3)[1].data == (
        b"G" + struct.pack(">d", 3.0)
    )
