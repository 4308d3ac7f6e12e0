"""torch before 1.6: the stream, the tar form, bare pickles; and real torch as the oracle."""

import pickle
import struct

import pytest
import torch_bytes as tb

from ckptdoctor.errors import CkptDoctorError, FormatError, UnknownFormatError
from ckptdoctor.findings import Severity
from ckptdoctor.formats.base import ReadOptions
from ckptdoctor.formats.torch_legacy import TorchLegacy, looks_like_pickle
from ckptdoctor.sources import FileSource

SIX = struct.pack("<6f", 1, 2, 3, 4, 5, 6)


def read(path):
    return TorchLegacy().read(FileSource(path), ReadOptions())


@pytest.fixture
def read_bytes(tmp_path):
    def make(raw):
        path = tmp_path / "no-telling-suffix"
        path.write_bytes(raw)
        return read(path)

    return make


def storage(key="0", numel=6, view=None, kind="FloatStorage"):
    return tb.storage(key, kind, numel, view)


GOOD = {"w": tb.tensor(storage(), (2, 3))}


def codes(found, severity=Severity.WARNING):
    return [f.code for f in found.findings if f.severity >= severity]


def test_the_stream_is_read_without_a_word(read_bytes):
    table = read_bytes(tb.legacy(GOOD, {"0": (6, SIX)}))
    assert table.read("w").tolist() == [[1, 2, 3], [4, 5, 6]]
    assert (table.format, table.findings) == ("torch-legacy", ())


def test_a_view_of_a_storage_is_followed(read_bytes):
    value = {"a": tb.tensor(storage(), (6,)), "b": tb.tensor(storage(view=("0v", 2, 3)), (3,))}
    table = read_bytes(tb.legacy(value, {"0": (6, SIX)}))
    assert table.read("b").tolist() == [3, 4, 5]
    assert table["a"].storage == table["b"].storage


def test_a_view_outside_its_storage_loses_its_tensor(read_bytes):
    value = {"a": tb.tensor(storage(), (6,)), "b": tb.tensor(storage(view=("0v", 5, 3)), (3,))}
    table = read_bytes(tb.legacy(value, {"0": (6, SIX)}))
    assert list(table) == ["a"]
    assert codes(table) == ["CK004"]


def test_a_class_that_carries_its_source_is_still_the_class(read_bytes):
    cls = tb.item(("module", tb.name("__main__", "Net"), "net.py", "class Net: ...")) + b"Q"
    net = cls + b")\x81" + tb.item({"_parameters": {"weight": tb.tensor(storage(), (6,))}}) + b"b"
    table = read_bytes(tb.legacy(net, {"0": (6, SIX)}))
    assert list(table) == ["weight"]
    assert codes(table) == []


def test_a_long_pickle_grows_the_window(read_bytes):
    value = {**GOOD, "text": "x" * 200_000}
    assert list(read_bytes(tb.legacy(value, {"0": (6, SIX)}))) == ["w"]


def test_a_cut_storage_is_truncation_and_loses_only_its_tensors(read_bytes):
    value = {"a": tb.tensor(storage("0"), (6,)), "b": tb.tensor(storage("1"), (6,))}
    raw = tb.legacy(value, {"0": (6, SIX), "1": (6, SIX)})
    table = read_bytes(raw[:-4])
    assert list(table) == ["a"]
    assert set(codes(table)) == {"CK004"}


def test_a_declared_size_that_torch_would_allocate_is_an_error(read_bytes):
    value = {"w": tb.tensor(storage(numel=2**31), (6,))}
    table = read_bytes(tb.legacy(value, {"0": (6, SIX)}))
    assert codes(table, Severity.ERROR) == ["CK005"]
    assert table.findings[0].unsafe


def test_bytes_behind_the_last_storage_are_reported(read_bytes):
    table = read_bytes(tb.legacy(GOOD, {"0": (6, SIX)}) + b"more")
    assert codes(table) == ["CK005"]


def test_code_in_the_object_is_reported(read_bytes):
    value = {**GOOD, "evil": tb.call("os", "system", "true")}
    table = read_bytes(tb.legacy(value, {"0": (6, SIX)}))
    assert list(table) == ["w"]
    assert codes(table) == ["CK002"]


@pytest.mark.parametrize("length", [0, 1, 5, 14, 30, 60])
def test_a_stream_cut_in_its_pickles_is_refused(read_bytes, length):
    with pytest.raises(CkptDoctorError):
        read_bytes(tb.legacy(GOOD, {"0": (6, SIX)})[:length])


def test_a_big_endian_writer_is_a_warning(read_bytes):
    raw = tb.legacy(GOOD, {"0": (6, SIX)})
    little, big = tb.pickled({"little_endian": True}), tb.pickled({"little_endian": False})
    assert codes(read_bytes(raw.replace(little, big))) == ["CK005"]


def test_another_protocol_version_is_refused(read_bytes):
    with pytest.raises(FormatError, match="expected protocol version 1001"):
        read_bytes(tb.legacy(GOOD, {"0": (6, SIX)}, protocol=7))


def test_a_bare_pickle_is_refused_with_its_names(read_bytes):
    evil = tb.pickled(tb.call("os", "system", "true"))
    with pytest.raises(UnknownFormatError, match=r"bare pickle.*os\.system") as raised:
        read_bytes(evil)
    assert [f.code for f in raised.value.findings] == ["CK002"]


def test_a_second_pickle_is_looked_into_as_well(read_bytes):
    with pytest.raises(UnknownFormatError, match=r"os\.system"):
        read_bytes(tb.pickled(1) + tb.pickled(tb.call("os", "system", "true")))


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_are_recognised(protocol):
    assert looks_like_pickle(pickle.dumps({"a": [1, 2]}, protocol))
    assert looks_like_pickle(pickle.dumps(pytest.raises, protocol))


@pytest.mark.parametrize("head", [b"class Net:\n    pass\n", b"(x)\n", b"c = 1\n", b"<html>", b""])
def test_other_text_is_no_pickle(head):
    assert not looks_like_pickle(head)


def tar_form(kind="FloatStorage", numel=6, data=SIX):
    tensor_type = tb.name("torch", "FloatTensor")
    return {
        "sys_info": tb.pickled({"little_endian": True}),
        "storages": tb.pickled(1)
        + tb.pickled((11, "cpu", tb.name("torch", kind)))
        + struct.pack("<q", numel)
        + data
        + tb.pickled([]),
        "tensors": tb.pickled(1)
        + tb.pickled((22, 11, tensor_type))
        + struct.pack("<i4x5q", 2, 2, 3, 3, 1, 0),
        "pickle": tb.pickled({"w": tb.item(22) + b"Q", "evil": tb.call("os", "system", "true")}),
    }


def test_the_tar_form_is_read(read_bytes):
    table = read_bytes(tb.tar(tar_form()))
    assert table.format == "torch-legacy-tar"
    assert table.read("w").tolist() == [[1, 2, 3], [4, 5, 6]]
    assert codes(table) == ["CK002"]


TAR_DAMAGE = {
    "storage longer than its member": {"storages": tar_form(numel=700)["storages"]},
    "storage of negative length": {"storages": tar_form(numel=-7)["storages"]},
    "storage of no known type": {"storages": tar_form("FunnyStorage")["storages"]},
    "count that is none": {"tensors": tb.pickled("many")},
    "tensors cut": {"tensors": tar_form()["tensors"][:-3]},
    "empty pickle": {"pickle": b""},
}


@pytest.mark.parametrize("damage", TAR_DAMAGE.values(), ids=TAR_DAMAGE.keys())
def test_a_damaged_tar_is_refused(read_bytes, damage):
    with pytest.raises(FormatError):
        read_bytes(tb.tar(tar_form() | damage))


def test_a_tar_with_a_member_twice_is_refused(read_bytes):
    import io
    import tarfile

    buffer = io.BytesIO(tb.tar(tar_form()))
    with tarfile.open(fileobj=buffer, mode="a") as out:
        info = tarfile.TarInfo("pickle")
        info.size = 2
        out.addfile(info, io.BytesIO(b"N."))
    with pytest.raises(FormatError, match="twice"):
        read_bytes(buffer.getvalue())


def test_code_in_sys_info_and_behind_the_pickle_is_reported(read_bytes):
    evil = tb.pickled(tb.call("os", "system", "true"))
    good = tb.pickled({"w": tb.item(22) + b"Q"})
    for changed in ({"sys_info": evil, "pickle": good}, {"pickle": good + evil}):
        assert codes(read_bytes(tb.tar(tar_form() | changed))) == ["CK002"]


def test_a_tar_without_its_members_is_refused(read_bytes):
    with pytest.raises(FormatError, match="no member 'storages'"):
        read_bytes(tb.tar({"pickle": b"."}))


@pytest.mark.oracle
def test_a_legacy_checkpoint_has_torchs_names_and_bytes(tmp_path):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    adam = torch.optim.Adam(net.parameters())
    net(torch.randn(5, 3)).sum().backward()
    adam.step()
    base = torch.arange(12.0)
    value = {
        "model": net.state_dict(),
        "optimizer": adam.state_dict(),
        "half": torch.randn(3).half(),
        "bf16": torch.randn(3).bfloat16(),
        "views": [base[2:5], base.view(3, 4).t()],
    }
    torch.save(value, tmp_path / "m", _use_new_zipfile_serialization=False)
    table = read(tmp_path / "m")
    assert codes(table, Severity.NOTE) == []
    assert table.read("views.1").tolist() == base.view(3, 4).t().tolist()
    for key, tensor in net.state_dict().items():
        assert table.read(f"model.{key}").tobytes() == tensor.numpy().tobytes()
    for name in ("half", "bf16"):
        assert table.read(name).tobytes() == value[name].view(torch.int16).numpy().tobytes()
    assert table["optimizer.state.0.exp_avg"].role == "optimizer"
