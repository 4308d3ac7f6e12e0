"""TorchScript: attribute paths, constants, and silence about the code it brings."""

import struct

import pytest
import torch_bytes as tb

from ckptdoctor.containers.zip import read_archive
from ckptdoctor.findings import Severity
from ckptdoctor.formats.base import ReadOptions
from ckptdoctor.formats.torchscript import TorchScript
from ckptdoctor.sources import FileSource

SIX = struct.pack("<6f", 1, 2, 3, 4, 5, 6)


def read(path):
    source = FileSource(path)
    return TorchScript().read_archive(read_archive(source), source, ReadOptions())


def script_object(module, cls, state):
    return tb.name(f"__torch__.{module}", cls) + b")\x81" + tb.item(state) + b"b"


def test_attributes_and_constants_are_read_and_own_classes_are_silent(tmp_path):
    weight = tb.tensor(tb.storage("0"), (6,))
    norm = script_object(
        "torch.nn.modules.batchnorm.___torch_mangle_0",
        "BatchNorm2d",
        {"running_mean": weight, "training": False},
    )
    net = script_object("net", "Net", {"bn1": norm, "loss": weight})
    more = {
        "net/constants.pkl": tb.pickled((weight, 5)),
        "net/constants/0": SIX,
        "net/code/__torch__/net.py": "class Net(Module): ...",
    }
    (tmp_path / "m").write_bytes(tb.archive(net, {"0": SIX}, top="net/", more=more))
    table = read(tmp_path / "m")
    assert {n: i.role for n, i in table.items()} == {
        "bn1.running_mean": "model",
        "loss": "model",
        "constants.0": "other",
    }
    assert table.read("constants.0").tolist() == [1, 2, 3, 4, 5, 6]
    assert table.layers["bn1"].class_name == "BatchNorm2d"
    assert table.findings == ()


def test_a_name_outside_the_archive_is_reported(tmp_path):
    net = script_object("net", "Net", {"evil": tb.call("os", "system", "true")})
    (tmp_path / "m").write_bytes(tb.archive(net, {}, top="net/"))
    (finding,) = read(tmp_path / "m").findings
    assert (finding.code, finding.severity) == ("CK002", Severity.ERROR)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_has_torchs_names_and_bytes(tmp_path, how):
    torch = pytest.importorskip("torch")
    norm = torch.nn.BatchNorm2d(4, eps=0.002, momentum=0.03)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), norm).eval()
    made = (
        torch.jit.script(net) if how == "script" else torch.jit.trace(net, torch.ones(1, 3, 4, 4))
    )
    made.save(str(tmp_path / "m"))
    table = read(tmp_path / "m")
    wanted = net.state_dict()
    told = {name for name, info in table.items() if info.role == "model"}
    assert told == set(wanted) or told == set(wanted) - {"1.num_batches_tracked"}
    for key in told:
        assert table.read(key).tobytes() == wanted[key].numpy().tobytes()
    assert [f for f in table.findings if f.severity > Severity.NOTE] == []
    assert (table.layers["1"].epsilon, table.layers["1"].momentum) == (0.002, 0.03)


STATED = "  eps : Final[float] = 0.25\n  momentum : Final[float] = 0.5\n"
CALLED = "    x = torch.batch_norm(x, weight, bias, mean, var, False, 0.5, 2.5e-01, True)\n"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (STATED, (0.25, 0.5)),
        (CALLED, (0.25, 0.5)),
        ("  eps : Final[float] = one\n", (None, None)),
        ("  eps : Final[float] = 1.2.3\n", (None, None)),
        ("torch.batch_norm(" * 10_000, (None, None)),
        ("#" * (1 << 18) + "\n" + STATED, (None, None)),
        (None, (None, None)),
    ],
    ids=["attributes", "a traced call", "a word", "no number", "open calls", "too long", "no code"],
)
def test_epsilon_and_momentum_come_from_the_code_of_the_class(tmp_path, code, told):
    norm = script_object("torch.nn.modules.batchnorm", "BatchNorm2d", {"training": False})
    net = script_object("net", "Net", {"bn1": norm})
    name = "net/code/__torch__/torch/nn/modules/batchnorm.py"
    more = {name: code.encode()} if code is not None else {}
    (tmp_path / "m").write_bytes(tb.archive(net, {}, top="net/", more=more))
    layer = read(tmp_path / "m").layers["bn1"]
    assert (layer.epsilon, layer.momentum) == told
