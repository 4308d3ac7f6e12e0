"""A live module as a table: the rows and findings of the file that would be saved of it."""
# ruff: noqa: ARG001, ARG005  (fixtures that skip, illnesses that do nothing)

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import patients
import pytest

from ckptdoctor.api import open_checkpoint
from ckptdoctor.errors import ChangedError, TruncatedError, UsageError
from ckptdoctor.examination import examined
from ckptdoctor.findings import Finding
from ckptdoctor.results import Report, Wishes
from ckptdoctor.tensors import TensorTable

pytestmark = pytest.mark.oracle


@pytest.fixture
def torch() -> Any:
    found = pytest.importorskip("torch")
    found.manual_seed(0)
    return found


def table_of(module: Any) -> TensorTable:
    from ckptdoctor.live.torch_table import module_table

    return module_table(module)


def report(table: TensorTable) -> Report:
    return examined(table.path, table, Wishes())[1]


def network(torch: Any) -> Any:
    """The network of `patients`, with trained weights."""
    nn = torch.nn
    net = nn.Sequential()
    for i in (1, 2, 3):
        net.add_module(f"conv{i}", nn.Conv2d(*patients.WIDTHS[i - 1 : i + 1], 3, bias=False))
        net.add_module(f"bn{i}", nn.BatchNorm2d(patients.WIDTHS[i]))
    net.add_module("fc", nn.Linear(16, 4))
    net.load_state_dict({name: torch.tensor(value) for name, value in patients.state().items()})
    return net


def told(findings: tuple[Finding, ...]) -> list[tuple[object, ...]]:
    """What findings say of the model; those of the container are about the file."""
    return sorted(
        (f.code, f.tensor, f.layer, f.severity, f.role, f.message)
        for f in findings
        if f.role != "container"
    )


ILLNESSES = {
    "nothing": lambda net: None,
    "statistics that are NaN": lambda net: net.bn2.running_var.fill_(np.nan),
    "a negative variance": lambda net: net.bn2.running_var[3:5].fill_(-1),
    "an exploded variance": lambda net: net.bn3.running_var[2:4].fill_(1e30),
    "a collapsed variance": lambda net: net.bn3.running_var.fill_(1e-20),
    "an infinite weight": lambda net: net.conv2.weight.data[0, 0].fill_(np.inf),
    "weights that are zero": lambda net: net.conv3.weight.data.zero_(),
    "an exploded weight": lambda net: net.fc.weight.data[1, 2].fill_(1e20),
    "duplicated units": lambda net: net.conv3.weight.data.copy_(net.conv3.weight.data[:1].clone()),
    "gains that are dead": lambda net: net.bn1.weight.data.zero_(),
    "halves as statistics": lambda net: net.bn1.half(),
}


@pytest.mark.parametrize("illness", ILLNESSES)
def test_findings_are_those_of_the_files_that_are_saved_of_it(torch, tmp_path, illness):
    net = network(torch)
    ILLNESSES[illness](net)
    live = report(table_of(net))
    torch.save(net.state_dict(), tmp_path / "state.pt")
    torch.save(net, tmp_path / "whole.pt")
    with open_checkpoint(tmp_path / "state.pt") as table:
        state = report(table)
    with open_checkpoint(tmp_path / "whole.pt") as table:
        whole = report(table)
        layers = dict(table.layers)
    assert told(live.findings) == told(whole.findings)
    assert [row[:3] for row in told(live.findings)] == [row[:3] for row in told(state.findings)]
    assert (live.verdict.serve, live.verdict.resume) == (state.verdict.serve, state.verdict.resume)
    assert bool(live.findings) == (illness != "nothing")
    assert dict(table_of(net).layers) == layers


def odd(torch: Any) -> Any:
    """Tensors of every kind that a module may hold."""
    net = torch.nn.Module()
    net.inner = torch.nn.Linear(3, 4, bias=False)
    net.tied = net.inner
    net.p = torch.nn.Parameter(torch.randn(6, 4).t())
    values = torch.randn(4, 5)
    for dtype in ("float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2", "complex64"):
        net.register_buffer(f"of_{dtype}", values.to(getattr(torch, dtype)))
    for dtype in ("int8", "uint8", "int16", "int32", "int64", "bool"):
        net.register_buffer(f"of_{dtype}", (values * 9).to(getattr(torch, dtype)))
    net.register_buffer("part", values[1:3, 2:4])
    net.register_buffer("column", values[:, 1])
    net.register_buffer("repeated", torch.randn(1).expand(3, 2))
    net.register_buffer("empty", torch.zeros(0, 3))
    net.register_buffer("scalar", torch.tensor(2.5))
    net.register_buffer("passing", torch.randn(3), persistent=False)
    net.register_buffer("none", None)
    return net


def test_names_order_and_values_are_those_of_the_state_dict(torch):
    net = odd(torch)
    table = table_of(net)
    state = net.state_dict()
    assert list(table) == list(state)
    for name, tensor in state.items():
        info = table[name]
        assert info.shape == tuple(tensor.shape)
        assert (info.dtype, info.role) == (str(tensor.dtype).removeprefix("torch."), "model")
        plain = tensor.contiguous().reshape(-1)
        raw = plain.view(torch.uint8).numpy() if plain.numel() else np.empty(0, np.uint8)
        values = np.ascontiguousarray(table.read(name)).reshape(-1)
        assert np.array_equal(values.view(np.uint8), raw)


def test_rows_say_what_shares_memory_and_what_has_gaps(torch):
    table = table_of(odd(torch))
    assert table["inner.weight"].storage == table["tied.weight"].storage
    assert table["inner.weight"].extent == table["tied.weight"].extent
    assert table["p"].storage != table["inner.weight"].storage
    assert table["part"].storage == table["column"].storage
    assert table["p"].strides == (1, 4)
    assert table["repeated"].strides == (0, 0)
    assert table["repeated"].extent.length == 4
    assert table["inner.weight"].strides is None
    assert table["empty"].extent.length == 0
    shared = report(table).summary
    assert shared.parts[0].nbytes < sum(info.nbytes for info in table.values())


def test_the_table_says_what_it_is_of(torch):
    table = table_of(torch.nn.Linear(2, 2))
    assert (table.path, table.format) == ("<module>", "torch-module")
    assert table.metadata == {"framework": "torch", "framework_version": str(torch.__version__)}


def test_settings_of_layers_are_known(torch):
    nn = torch.nn
    net = nn.Sequential(
        nn.BatchNorm2d(2, eps=1e-12, momentum=0.25), nn.MaxPool2d((2, 2), stride=3),
        nn.BatchNorm1d(2, momentum=None),
    )  # fmt: skip
    net[0].hook, net[0].long, net[0]._own, net[0].axes = print, tuple(range(9)), 3, tuple(range(8))
    net.again = net[0]
    layers = table_of(net).layers
    assert list(layers) == ["0", "1", "2", "again"]
    assert (layers["0"].class_name, layers["0"].epsilon, layers["0"].momentum) == (
        "BatchNorm2d", 1e-12, 0.25,
    )  # fmt: skip
    assert layers["again"].epsilon == 1e-12
    assert layers["2"].momentum is None
    assert layers["1"].settings["kernel_size"] == (2, 2)
    assert layers["1"].settings["stride"] == 3
    assert layers["0"].settings["axes"] == tuple(range(8))
    assert not {"hook", "long", "_own"} & set(layers["0"].settings)


@pytest.mark.filterwarnings("ignore")
def test_quantised_and_sparse_tensors_are_as_in_a_file(torch, tmp_path):
    net = torch.nn.Module()
    net.register_buffer("whole", torch.quantize_per_tensor(torch.randn(3), 0.1, 2, torch.qint8))
    by_channel = torch.quantize_per_channel(
        torch.randn(3, 2), torch.rand(3) + 0.1, torch.zeros(3).long(), 0, torch.quint8
    )
    net.register_buffer("channels", by_channel)
    net.register_buffer("coo", torch.eye(3).to_sparse())
    for layout in ("csr", "csc"):
        net.register_buffer(layout, getattr(torch.eye(3), f"to_sparse_{layout}")())
    table = table_of(net)
    torch.save(net.state_dict(), tmp_path / "state.pt")
    with open_checkpoint(tmp_path / "state.pt") as file:
        for name in ("whole", "channels", "channels.scale", "channels.zero_point"):
            ours, theirs = table[name], file[name]
            assert ours[2:6] == theirs[2:6]
            assert ours.quantisation == theirs.quantisation
            assert np.array_equal(table.read(name), file.read(name))
        for name in ("csr.crow_indices", "csr.values", "csc.ccol_indices", "csc.row_indices"):
            assert np.array_equal(table.read(name), file.read(name))
    assert table.read("coo._values").tolist() == [1, 1, 1]
    assert table.read("coo._indices").shape == (2, 3)


@pytest.mark.filterwarnings("ignore")
def test_packed_weights_are_seen(torch):
    net = torch.ao.quantization.quantize_dynamic(
        torch.nn.Sequential(torch.nn.Linear(4, 3)), {torch.nn.Linear}
    )
    table = table_of(net)
    packed = "0._packed_params._packed_params"
    assert table[f"{packed}.0"].encoding == "quantised"
    assert table.read(f"{packed}.1").shape == (3,)


def test_a_class_that_cannot_say_what_it_saves_is_read_as_it_is(torch):
    class Broken(torch.nn.Linear):
        def _save_to_state_dict(self, *args):
            raise NotImplementedError

    assert list(table_of(Broken(2, 2))) == ["weight", "bias"]


def test_tensors_without_values_are_absent(torch):
    net = torch.nn.Sequential(torch.nn.Linear(2, 3, device="meta"), torch.nn.LazyLinear(3))
    table = table_of(net)
    assert {info.encoding for info in table.values()} == {"absent"}
    assert (table["0.weight"].shape, table["1.weight"].shape) == ((3, 2), ())
    assert not report(table).findings


def test_names_of_wrappers_stay_as_in_a_file(torch):
    net = torch.nn.DataParallel(torch.nn.Linear(2, 2))
    assert list(table_of(net)) == ["module.weight", "module.bias"]


def test_an_average_is_told_by_its_name(torch):
    net = torch.nn.ModuleDict({"net": torch.nn.Linear(2, 2), "ema": torch.nn.Linear(2, 2)})
    table = table_of(net)
    assert (table["net.weight"].role, table["ema.weight"].role) == ("model", "ema")


def test_sharded_tensors_are_what_this_process_holds(torch):
    net = torch.nn.Linear(2, 2)
    net.weight._local_tensor = torch.full((1, 2), 7.0)
    assert table_of(net).read("weight").tolist() == [[7, 7]]


def test_what_is_no_module_is_refused(torch):
    with pytest.raises(UsageError, match=r"expected a torch.nn.Module, found dict"):
        table_of({})


# Memory


def test_blocks_may_span_tensors(torch):
    net = torch.nn.ParameterList(
        [torch.nn.Parameter(torch.full((n,), float(n))) for n in (3, 1, 2)]
    )
    table = table_of(net)
    source = table["0"].extent.source
    assert source.size == 24
    whole = np.frombuffer(source.pread(0, 24), np.float32)
    assert whole.tolist() == [3, 3, 3, 1, 2, 2]
    assert np.frombuffer(source.pread(8, 12), np.float32).tolist() == [3, 1, 2]
    assert source.pread(24, 0) == b""
    assert [table[name].extent.offset for name in "012"] == [0, 12, 16]


@pytest.mark.parametrize("place", [(-1, 1), (20, 5), (25, 0)], ids=["before", "over", "behind"])
def test_reading_beyond_the_model_is_an_error(torch, place):
    source = table_of(torch.nn.Linear(5, 1))["weight"].extent.source
    with pytest.raises(TruncatedError, match="the model has 24"):
        source.pread(*place)


def test_memory_that_went_away_is_an_error(torch):
    net = torch.nn.Linear(5, 1)
    table = table_of(net)
    net.weight.untyped_storage().resize_(0)
    with pytest.raises(ChangedError, match="lost its memory meanwhile; run again"):
        table.read("weight")


def test_values_that_change_meanwhile_do_not_matter(torch):
    net = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(80)])  # over 64 MiB
    table = table_of(net)
    done = threading.Event()

    def train() -> None:
        with torch.no_grad():
            while not done.is_set():
                for each in net.parameters():
                    each.mul_(0.999)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        found = report(table)
    finally:
        done.set()
        thread.join()
    assert found.summary.parameters == 80 * 512 * 513
    assert not [finding for finding in found.findings if finding.code.startswith("NF")]


def test_a_large_module_is_examined_in_little_memory(torch, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent("""
        import resource
        import torch
        from ckptdoctor.examination import examined
        from ckptdoctor.live.torch_table import module_table
        from ckptdoctor.results import Wishes

        def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        examined("small", module_table(torch.nn.Linear(2, 2)), Wishes())
        big = torch.nn.Sequential(*[torch.nn.Linear(3200, 3200) for _ in range(5)])
        before = peak()
        report = examined("big", module_table(big), Wishes())[1]
        print(report.summary.nbytes >> 20, peak() - before)
        """)
    )
    root = str(Path(__file__).parents[2])
    told = subprocess.run(
        [sys.executable, script], capture_output=True, check=True, text=True, cwd=root,
        env={"PYTHONPATH": root, "PATH": ""},
    ).stdout.split()  # fmt: skip
    assert int(told[0]) >= 190
    assert float(told[1]) < 30
