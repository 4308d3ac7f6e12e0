"""torch zip archives: names, roles, views, dtypes, damage; and real torch as the oracle."""

import collections
import math
import struct
import zipfile

import numpy as np
import pytest
import torch_bytes as tb

from ckptdoctor.containers.zip import read_archive
from ckptdoctor.errors import CkptDoctorError, FormatError
from ckptdoctor.findings import Severity
from ckptdoctor.formats.base import ReadOptions
from ckptdoctor.formats.torch_zip import TorchZip
from ckptdoctor.measure.scan import measure
from ckptdoctor.sources import FileSource

SIX = struct.pack("<6f", 1, 2, 3, 4, 5, 6)


def read(path):
    source = FileSource(path)
    return TorchZip().read_archive(read_archive(source), source, ReadOptions())


@pytest.fixture
def table_of(tmp_path):
    def make(value, storages=None, **more):
        path = tmp_path / "no-telling-suffix"
        path.write_bytes(tb.archive(value, {"0": SIX} if storages is None else storages, **more))
        return read(path)

    return make


def codes(table, severity=Severity.WARNING):
    return [f.code for f in table.findings if f.severity >= severity]


def test_a_state_dict_is_read_without_a_word(table_of):
    table = table_of({"fc.weight": tb.tensor(tb.storage("0"), (2, 3))})
    info = table["fc.weight"]
    assert (info.dtype, info.shape, info.role, info.layer) == ("float32", (2, 3), "model", "fc")
    assert table.read("fc.weight").tolist() == [[1, 2, 3], [4, 5, 6]]
    assert (table.format, table.findings) == ("torch-zip", ())


def test_a_training_checkpoint_has_roles_and_numbers(table_of):
    weight = tb.tensor(tb.storage("0"), (6,))
    table = table_of(
        {
            "model": {"bn1.running_var": weight},
            "ema_state_dict": {"bn1.running_var": weight},
            "optimizer": {
                "state": {0: {"exp_avg": weight, "step": 7}},
                "param_groups": [{"lr": 0.1, "params": [0]}],
            },
            "scaler": {"scale": 65536.0},
            "epoch": 3,
        }
    )
    assert {n: i.role for n, i in table.items()} == {
        "model.bn1.running_var": "model",
        "ema_state_dict.bn1.running_var": "ema",
        "optimizer.state.0.exp_avg": "optimizer",
    }
    assert table.scalars["optimizer.param_groups.0.lr"] == 0.1
    assert table.scalars["scaler.scale"] == 65536.0
    assert table.scalars["epoch"] == 3


@pytest.mark.parametrize(
    ("keys", "role"),
    [(("state", "param_groups"), "optimizer"), (("state", "groups"), "model")],
    ids=["both of its keys", "one of them"],
)
def test_an_optimizer_saved_alone_is_told_by_its_keys(table_of, keys, role):
    held, groups = keys
    moment = tb.tensor(tb.storage("0"), (6,))
    root = {held: {0: {"exp_avg": moment}}, groups: [{"lr": 0.1, "params": [0]}]}
    assert table_of(root)[f"{held}.0.exp_avg"].role == role


def test_views_and_tied_weights_share_a_storage(table_of):
    table = table_of(
        {
            "a": tb.tensor(tb.storage("0"), (6,)),
            "row": tb.tensor(tb.storage("0"), (3,), offset=3),
            "transposed": tb.tensor(tb.storage("0"), (3, 2), (1, 3)),
        }
    )
    assert len({table[n].storage for n in table}) == 1
    assert table.read("row").tolist() == [4, 5, 6]
    assert table.read("transposed").tolist() == [[1, 4], [2, 5], [3, 6]]
    assert table["row"].extent.offset - table["a"].extent.offset == 12


def test_big_endian_bytes_are_turned(table_of):
    data = {"0": struct.pack(">6f", 1, 2, 3, 4, 5, 6)}
    table = table_of({"w": tb.tensor(tb.storage("0"), (6,))}, data, byteorder="big")
    assert table.read("w").tolist() == [1, 2, 3, 4, 5, 6]


def test_a_pickled_module_is_named_as_its_state_dict(table_of):
    weight = tb.tensor(tb.storage("0"), (6,))
    parameter = tb.call("torch._utils", "_rebuild_parameter", weight, True, None)
    norm = (
        tb.name("torch.nn.modules.batchnorm", "BatchNorm2d")
        + b")\x81"
        + tb.item(
            {
                "eps": 1e-3,
                "momentum": 0.1,
                "_parameters": {"weight": parameter},
                "_buffers": {"running_var": weight},
            }
        )
        + b"b"
    )
    net = (
        tb.name("__main__", "Net")
        + b")\x81"
        + tb.item({"_modules": {"bn1": norm}, "_parameters": {}, "_buffers": {}, "extra": weight})
        + b"b"
    )
    table = table_of(net)
    assert {n: i.role for n, i in table.items()} == {
        "bn1.weight": "model",
        "bn1.running_var": "model",
        "extra": "other",
    }
    assert (table.layers["bn1"].class_name, table.layers["bn1"].epsilon) == ("BatchNorm2d", 1e-3)
    (note,) = table.findings
    assert (note.code, note.severity) == ("CK002", Severity.NOTE)


def test_unknown_objects_keep_their_place(table_of):
    thing = (
        tb.name("my.package", "Thing")
        + b")\x81"
        + tb.item({"inner": [tb.tensor(tb.storage("0"), (6,))]})
        + b"b"
    )
    table = table_of({"thing": thing})
    assert list(table) == ["thing.inner.0"]


def test_two_paths_of_one_name_are_told_apart(table_of):
    weight = tb.tensor(tb.storage("0"), (6,))
    assert list(table_of({"a.b": weight, "a": {"b": weight}})) == ["a.b", "a.b#2"]


def test_keys_of_other_types_are_spelled(table_of):
    weight = tb.tensor(tb.storage("0"), (6,))
    pairs = (
        b"}("
        + tb.item(3)
        + weight
        + tb.name("my", "Cls")
        + weight
        + tb.item((1, "a"))
        + weight
        + b"u"
    )
    assert list(table_of(pairs)) == ["3", "my.Cls", "(1, a)"]


def test_a_missing_storage_loses_only_its_tensor(table_of):
    table = table_of({"a": tb.tensor(tb.storage("0"), (6,)), "b": tb.tensor(tb.storage("9"), (6,))})
    assert list(table) == ["a"]
    assert codes(table) == ["CK003"]


def test_a_short_storage_loses_only_its_tensor(table_of):
    value = {"a": tb.tensor(tb.storage("0"), (2,)), "b": tb.tensor(tb.storage("0"), (6,))}
    table = table_of(value, {"0": SIX[:10]})
    assert list(table) == ["a"]
    assert codes(table) == ["CK005", "CK004"]


def test_a_storage_without_tensor_is_surplus(table_of):
    table = table_of({"a": tb.tensor(tb.storage("0"), (6,))}, {"0": SIX, "7": SIX})
    assert codes(table) == ["CK003"]


def wrapped(times):
    """A parameter around a parameter around ... a tensor."""
    value = tb.tensor(tb.storage("0"), (6,))
    for _ in range(times):
        value = tb.call("torch._utils", "_rebuild_parameter", value, True, None)
    return value


def test_a_parameter_of_a_parameter_is_its_tensor(table_of):
    assert table_of({"w": wrapped(3)}).read("w").tolist() == [1, 2, 3, 4, 5, 6]


IMPOSSIBLE = {
    "wrapped 5,000 times": wrapped(5_000),
    "negative stride": tb.tensor(tb.storage("0"), (2, 3), (-3, 1)),
    "negative size": tb.tensor(tb.storage("0"), (-2, 3), (3, 1)),
    "negative offset": tb.tensor(tb.storage("0"), (2,), (1,), offset=-1),
    "size beyond the storage": tb.tensor(tb.storage("0"), (7,)),
    "offset beyond the storage": tb.tensor(tb.storage("0"), (2,), (1,), offset=5),
    "size of 2^64": tb.tensor(tb.storage("0"), (2**32, 2**32), (0, 0)),
    "size of 200 bits": tb.tensor(tb.storage("0"), (2**200,), (1,)),
    "more sizes than strides": tb.tensor(tb.storage("0"), (2, 3), (1,)),
    "size of text": tb.call(
        "torch._utils", "_rebuild_tensor_v2", tb.storage("0"), 0, "six", (1,), False, None
    ),
    "bool in the size": tb.tensor(tb.storage("0"), (True, 3), (3, 1)),
    "too few arguments": tb.call("torch._utils", "_rebuild_tensor_v2", tb.storage("0")),
    "too few arguments for its version": tb.call(
        "torch._utils", "_rebuild_tensor_v2", tb.storage("0"), 0, (6,), (1,)
    ),
    "persistent id of text": tb.tensor(tb.item("0") + b"Q", (6,)),
    "persistent id too short": tb.tensor(tb.item(("storage", "0")) + b"Q", (6,)),
    "persistent id of a module": tb.tensor(tb.item(("module", 1, 2, 3, 4)) + b"Q", (6,)),
    "storage of unknown type": tb.tensor(tb.storage("0", "FunnyStorage"), (6,)),
    "no storage": tb.tensor(b"N", (6,)),
    "parameter around a number": tb.call("torch._utils", "_rebuild_parameter", 5, True, None),
}


def quantised(*params):
    return tb.call(
        "torch._utils",
        "_rebuild_qtensor",
        tb.storage("0"),
        0,
        (6,),
        (1,),
        tuple(params),
        False,
        None,
    )


def sparse(layout, *parts):
    return tb.call("torch._utils", "_rebuild_sparse_tensor", layout, tuple(parts))


COO = tb.name("torch", "sparse_coo")
INDICES = tb.tensor(tb.storage("0"), (1, 6))
VALUES = tb.tensor(tb.storage("0"), (6,))
IMPOSSIBLE |= {
    "quantiser without parameters": quantised(),
    "quantiser of two parameters": quantised(tb.name("torch", "per_tensor_affine"), 0.5),
    "quantiser of an unnamed scheme": quantised("affine", 0.5, 3),
    "sparse of unknown layout": sparse(tb.item("torch.sparse_odd"), INDICES, VALUES, (6,)),
    "sparse without values": sparse(COO, INDICES),
    "sparse whose parts are no tuple": tb.call("torch._utils", "_rebuild_sparse_tensor", COO, 5),
    "sparse with too few indices": sparse(COO, tb.tensor(tb.storage("0"), (1, 5)), VALUES, (6,)),
    "sparse with flat indices": sparse(COO, VALUES, VALUES, (6,)),
    "meta tensor of no dtype": tb.call(
        "torch._utils",
        "_rebuild_meta_tensor_no_storage",
        tb.name("my", "float32"),
        (6,),
        (1,),
        False,
    ),
    "size of exactly 2^62": tb.tensor(tb.storage("0"), (1 << 31, 1 << 31), (0, 0)),
    "65 dimensions": tb.tensor(tb.storage("0"), (1,) * 65),
}


@pytest.mark.parametrize("broken", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_an_impossible_tensor_is_reported_and_the_rest_read(table_of, broken):
    table = table_of({"good": tb.tensor(tb.storage("0"), (6,)), "bad": broken})
    assert list(table) == ["good"]
    found = [f for f in table.findings if f.severity is Severity.ERROR]
    assert [f.code for f in found] in (["CK005"], ["CK004"])
    assert found[0].tensor == "bad"


def test_64_dimensions_and_almost_2_62_elements_are_allowed(table_of):
    many = tb.tensor(tb.storage("0"), (1,) * 64)
    large = tb.tensor(tb.storage("0"), ((1 << 62) - 1,), (0,))
    assert set(table_of({"many": many, "large": large})) == {"many", "large"}


def test_a_typed_storage_around_an_untyped_one_is_looked_through(table_of):
    typed = tb.call("torch.storage", "TypedStorage", None, tb.storage("0"))
    assert table_of({"w": tb.tensor(typed, (6,))}).read("w").tolist() == [1, 2, 3, 4, 5, 6]


def test_an_expanded_tensor_is_measured_without_unfolding_it(table_of):
    nan = struct.pack("<6f", math.nan, 2, 3, 4, 5, 6)
    table = table_of({"w": tb.tensor(tb.storage("0"), (1 << 40,), (0,))}, {"0": nan})
    assert measure(table).stats["w"].nan == 1 << 40


def test_many_harmless_findings_hide_none_that_matters(table_of):
    cut = {f"w{i}": tb.tensor(tb.storage("0"), (7,)) for i in range(40)}
    bomb = b"}(" + b")" + b"2\x86" * 60 + b"K\x01u"
    table = table_of({**cut, "missing": tb.tensor(tb.storage("9"), (6,)), "x": bomb})
    assert {f.code for f in table.findings} == {"CK003", "CK004", "CK005"}
    assert any(f.unsafe for f in table.findings)
    assert "20 more findings of this kind" in [f.message for f in table.findings]


def test_an_empty_tensor_has_no_bytes(table_of):
    table = table_of(
        {"w": tb.tensor(tb.storage("0"), (0, 3)), "v": tb.tensor(tb.storage("0"), (6,))}
    )
    assert table.read("w").shape == (0, 3)


def test_a_quantised_tensor_keeps_scale_and_zero_point(table_of):
    params = (tb.name("torch", "per_tensor_affine"), 0.5, 3)
    value = tb.call(
        "torch._utils",
        "_rebuild_qtensor",
        tb.storage("0", "QInt8Storage"),
        0,
        (6,),
        (1,),
        params,
        False,
        None,
    )
    info = table_of({"w": value}, {"0": b"\x01\x02\x03\x04\x05\xff"})["w"]
    assert (info.dtype, info.encoding) == ("qint8", "quantised")
    assert (info.quantisation.scale, info.quantisation.zero_point) == (0.5, 3)


def test_per_channel_scales_are_rows_beside(table_of):
    scales = tb.tensor(tb.storage("1", "DoubleStorage", 2), (2,))
    zeros = tb.tensor(tb.storage("2", "LongStorage", 2), (2,))
    params = (tb.name("torch", "per_channel_affine"), scales, zeros, 0)
    value = tb.call(
        "torch._utils",
        "_rebuild_qtensor",
        tb.storage("0", "QInt8Storage"),
        0,
        (2, 3),
        (3, 1),
        params,
        False,
        None,
    )
    table = table_of({"w": value}, {"0": bytes(6), "1": struct.pack("<2d", 1, 2), "2": bytes(16)})
    assert set(table) == {"w", "w.scale", "w.zero_point"}
    assert (table["w"].quantisation.scale, table["w"].quantisation.axis) == ("w.scale", 0)


def sparse_csr(last):
    rows = tb.tensor(tb.storage("1", "LongStorage", 3), (3,))
    columns = tb.tensor(tb.storage("2", "LongStorage", 2), (2,))
    values = tb.tensor(tb.storage("0"), (2,))
    layout = tb.call("torch.serialization", "_get_layout", "torch.sparse_csr")
    value = tb.call(
        "torch._utils", "_rebuild_sparse_tensor", layout, (rows, columns, values, (2, 2))
    )
    return value, {"0": SIX, "1": struct.pack("<3q", 0, 1, last), "2": struct.pack("<2q", 0, 1)}


def test_a_sparse_tensor_is_its_parts(table_of):
    value, storages = sparse_csr(2)
    wanted = {"w.crow_indices", "w.col_indices", "w.values"}
    assert set(table_of({"w": value}, storages)) == wanted


def test_row_pointers_beyond_the_values_are_an_error(table_of):
    value, storages = sparse_csr(1 << 20)
    assert codes(table_of({"w": value}, storages), Severity.ERROR) == ["CK005"]


def test_code_is_reported_and_tensors_are_read_all_the_same(table_of):
    table = table_of(
        {"a": tb.tensor(tb.storage("0"), (6,)), "evil": tb.call("os", "system", "true")}
    )
    assert list(table) == ["a"]
    (finding,) = table.findings
    assert (finding.code, finding.severity, finding.unsafe) == ("CK002", Severity.ERROR, True)


def test_code_in_a_pickle_nobody_loads_is_reported(table_of):
    more = {"archive/extra.pkl": tb.pickled(tb.call("os", "system", "true"))}
    table = table_of({"a": tb.tensor(tb.storage("0"), (6,))}, more=more)
    assert codes(table, Severity.ERROR) == ["CK002"]


def test_code_behind_the_end_of_the_pickle_is_reported(tmp_path):
    raw = tb.archive({"a": tb.tensor(tb.storage("0"), (6,))}, {"0": SIX})
    path = tmp_path / "m"
    path.write_bytes(raw)
    with zipfile.ZipFile(path) as old:
        members = {n: old.read(n) for n in old.namelist()}
    members["archive/data.pkl"] += tb.pickled(tb.call("os", "system", "true"))
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members.items():
            new.writestr(name, data)
    assert codes(read(path)) == ["CK005", "CK002"]


def doubling(levels):
    """A list that holds a list twice, and so on: 2^levels paths in a few bytes."""
    return b"]" + b"".join(b"q%c](h%ch%ce" % (i, i, i) for i in range(levels))


def test_a_structure_that_unfolds_without_end_is_an_error(table_of):
    table = table_of({"a": tb.tensor(tb.storage("0"), (6,)), "x": doubling(60)})
    assert list(table) == ["a"]
    assert codes(table, Severity.ERROR) == ["CK005"]
    assert table.findings[0].unsafe


def test_a_key_that_hashes_without_end_is_an_error(table_of):
    bomb = b"}(" + b")" + b"2\x86" * 60 + b"K\x01u"
    table = table_of({"a": tb.tensor(tb.storage("0"), (6,)), "x": bomb})
    assert codes(table, Severity.ERROR) == ["CK005"]


ENDLESS = b")" + b"2\x86" * 60
HASHING = {
    "key of a discarded dictionary": b"}(" + ENDLESS + b"K\x01u0K\x05",
    "element of a frozenset": b"(" + ENDLESS + b"\x91",
    "pair given to OrderedDict": b"ccollections\nOrderedDict\n(](" + ENDLESS + b"K\x01\x86etR",
}


@pytest.mark.parametrize("bomb", HASHING.values(), ids=HASHING.keys())
def test_hashing_without_end_is_an_error_wherever_it_stands(table_of, bomb):
    table = table_of({"a": tb.tensor(tb.storage("0"), (6,)), "x": bomb})
    assert list(table) == ["a"]
    assert set(codes(table, Severity.ERROR)) == {"CK005"}
    assert table.findings[0].unsafe


def test_an_ordered_dict_of_pairs_is_a_dictionary(table_of):
    pairs = b"](" + b"](" + tb.item("w") + tb.tensor(tb.storage("0"), (6,)) + b"ee"
    value = tb.name("collections", "OrderedDict") + b"(" + pairs + b"tR"
    assert list(table_of(value)) == ["w"]


def test_bytes_as_protocol_2_spells_them_are_no_alarm(table_of):
    encoded = tb.call("_codecs", "encode", "abc", "latin1")
    table = table_of({"b": tb.call("__builtin__", "bytearray", encoded)}, {})
    assert [f.severity for f in table.findings] == [Severity.NOTE]


ALLOCATING = {
    "torch.Tensor": tb.call("torch", "Tensor", 1 << 40),
    "torch.Tensor of two sizes": tb.call("torch", "Tensor", 1 << 20, 1 << 20),
    "an embedding": tb.call("torch.nn.modules.sparse", "Embedding", 1 << 40, 8),
    "numpy.ndarray": tb.call("numpy", "ndarray", (1 << 40,)),
    "an array of 2^40": tb.call("numpy.core.multiarray", "_reconstruct", b"N", (1 << 40,), "b"),
    "bytes": tb.call("copyreg", "_reconstructor", b"N", b"N", 1 << 40),
    "a counter of a range": tb.call(
        "collections", "Counter", tb.call("builtins", "range", 1 << 40)
    ),
    "a bound function": tb.call("functools", "partial", tb.name("joblib", "load"), "x"),
}


@pytest.mark.parametrize("value", ALLOCATING.values(), ids=ALLOCATING.keys())
def test_what_allocates_or_binds_is_an_error(table_of, value):
    table = table_of({"a": tb.tensor(tb.storage("0"), (6,)), "x": value})
    assert codes(table, Severity.ERROR) == ["CK002"]


def test_lists_ten_thousand_deep_are_an_error_not_a_crash(table_of):
    table = table_of({"a": tb.tensor(tb.storage("0"), (6,)), "x": b"]" * 10_000 + b"a" * 9_999})
    assert list(table) == ["a"]
    assert codes(table, Severity.ERROR) == ["CK005"]


OPTIONS = {
    "no version": ({"version": ""}, ["CK003"]),
    "version 999": ({"version": "999"}, ["CK005"]),
    "no folder": ({"top": ""}, ["CK005"]),
    "other folder": ({"top": "resnet/"}, []),
    "no byteorder": ({"byteorder": ""}, []),
}


@pytest.mark.parametrize(("options", "wanted"), OPTIONS.values(), ids=OPTIONS.keys())
def test_variants_of_the_archive(table_of, options, wanted):
    table = table_of({"w": tb.tensor(tb.storage("0"), (6,))}, **options)
    assert table.read("w").tolist() == [1, 2, 3, 4, 5, 6]
    assert codes(table) == wanted


def test_checksums_of_all_storages_are_left_to_the_pass(table_of):
    table = table_of({"w": tb.tensor(tb.storage("0"), (6,))})
    assert "archive/data/0" in {c.where.rpartition(":")[2] for c in table.checksums}
    assert not any(c.where.endswith("data.pkl") for c in table.checksums)


def test_numpy_arrays_and_scalars_are_decoded(table_of):
    dtype = (
        tb.call("numpy", "dtype", "f8", 0, 1)
        + tb.item((3, "<", None, None, None, -1, -1, 0))
        + b"b"
    )
    data = b"C\x10" + struct.pack("<2d", 1.5, 2.5)
    made = tb.call(
        "numpy.core.multiarray", "_reconstruct", tb.name("numpy", "ndarray"), (0,), b"C\x01b"
    )
    array = made + tb.item((1, (2,), dtype, False, data)) + b"b"
    scalar = tb.call("numpy.core.multiarray", "scalar", dtype, b"C\x08" + struct.pack("<d", 0.25))
    table = table_of({"best": scalar, "array": array}, {})
    assert table.read("array").tolist() == [1.5, 2.5]
    assert table["array"].role == "other"
    assert table.scalars["best"] == 0.25


def test_two_folders_are_ambiguous(table_of):
    more = {"other/data.pkl": tb.pickled(tb.call("os", "system", "true"))}
    table = table_of({"w": tb.tensor(tb.storage("0"), (6,))}, more=more)
    assert set(codes(table, Severity.ERROR)) == {"CK005", "CK002"}


@pytest.mark.parametrize("cut", [1, 40, 200, -1, -30])
def test_a_cut_archive_is_refused(tmp_path, cut):
    raw = tb.archive({"w": tb.tensor(tb.storage("0"), (6,))}, {"0": SIX})
    path = tmp_path / "m"
    path.write_bytes(raw[:cut])
    with pytest.raises(CkptDoctorError):
        read(path)


def test_an_archive_without_a_pickle_is_refused(tmp_path):
    path = tmp_path / "m"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("readme.txt", "hello")
    with pytest.raises(FormatError, match=r"expected a data\.pkl"):
        read(path)


# The real torch.

torch_dtypes = [
    *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64", "bool", "complex32", "complex64", "complex128"),
]


def raw_bytes(torch, tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.oracle
@pytest.mark.parametrize("name", torch_dtypes)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_every_dtype_has_torchs_bytes(tmp_path, name):
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, name)
    value = torch.randint(0, 255, (4, 6, 16), dtype=torch.uint8).view(dtype)
    if name == "bool":
        value = torch.rand(4, 6, 16) > 0.5
    torch.save({"w": value, "view": value[1:3, ::2], "t": value.transpose(0, 1)}, tmp_path / "m")
    table = read(tmp_path / "m")
    assert table.findings == ()
    loaded = torch.load(tmp_path / "m", weights_only=True)
    for key, tensor in loaded.items():
        assert (table[key].dtype, table[key].shape) == (name, tuple(tensor.shape))
        assert table.read(key).tobytes() == raw_bytes(torch, tensor)


def everything(torch):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(2, 2)
    )
    adam = torch.optim.AdamW(net.parameters())
    net(torch.randn(2, 3, 4, 4)).sum().backward()
    adam.step()
    averaged = torch.optim.swa_utils.AveragedModel(net)
    return net, {
        "model": net.state_dict(),
        "optimizer": adam.state_dict(),
        "ema": averaged.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "rng_state": torch.get_rng_state(),
        "nested": collections.OrderedDict(a=[torch.ones(2), (torch.zeros(1),)]),
        "parameter": torch.nn.Parameter(torch.arange(3.0)),
        "scalar": torch.tensor(5),
        "best": np.float64(0.5),
        "meta": torch.empty(3, device="meta"),
    }


def flat(torch, value, path=()):
    if isinstance(value, torch.Tensor):
        yield ".".join(path), value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(torch, inner, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from flat(torch, inner, (*path, str(index)))


@pytest.mark.oracle
def test_a_training_checkpoint_has_torchs_names_and_bytes(tmp_path):
    torch = pytest.importorskip("torch")
    _, checkpoint = everything(torch)
    torch.save(checkpoint, tmp_path / "m")
    table = read(tmp_path / "m")
    wanted = dict(flat(torch, checkpoint))
    assert list(table) == list(wanted)
    assert [f for f in table.findings if f.severity > Severity.NOTE] == []
    for key, tensor in wanted.items():
        assert table[key].shape == tuple(tensor.shape)
        if tensor.device.type == "meta":
            assert table[key].encoding == "absent"
        else:
            assert table.read(key).tobytes() == raw_bytes(torch, tensor)
    assert table["optimizer.state.0.exp_avg"].role == "optimizer"
    assert table["rng_state"].role == "training"


@pytest.mark.oracle
def test_a_whole_module_has_the_names_of_its_state_dict(tmp_path):
    torch = pytest.importorskip("torch")
    net, _ = everything(torch)
    torch.save(net, tmp_path / "m")
    table = read(tmp_path / "m")
    assert set(table) == set(net.state_dict())
    assert table.layers["1"].epsilon == 1e-5
    for key, tensor in net.state_dict().items():
        assert table.read(key).tobytes() == raw_bytes(torch, tensor)
    assert [f for f in table.findings if f.severity > Severity.NOTE] == []


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_quantised_and_sparse_tensors_match_torch(tmp_path):
    torch = pytest.importorskip("torch")
    weight = torch.randn(4, 6)
    per_tensor = torch.quantize_per_tensor(weight, 0.1, 3, torch.quint8)
    scales, zeros = torch.rand(4).double() + 0.1, torch.zeros(4, dtype=torch.long)
    per_channel = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    sparse = weight.to_sparse().coalesce()
    csr = weight.to_sparse_csr()
    torch.save({"q": per_tensor, "c": per_channel, "s": sparse, "r": csr}, tmp_path / "m")
    table = read(tmp_path / "m")
    assert table.read("q").tobytes() == per_tensor.int_repr().numpy().tobytes()
    assert table["q"].quantisation.scale == pytest.approx(0.1)
    assert table.read("c").tobytes() == per_channel.int_repr().numpy().tobytes()
    assert table.read("c.scale").tolist() == scales.tolist()
    assert table.read("s.values").tobytes() == sparse.values().numpy().tobytes()
    assert table.read("s.indices").tobytes() == sparse.indices().numpy().tobytes()
    assert table.read("r.crow_indices").tobytes() == csr.crow_indices().numpy().tobytes()
    assert [f for f in table.findings if f.severity > Severity.NOTE] == []
