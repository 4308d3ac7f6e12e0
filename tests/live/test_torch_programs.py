"""TorchScript files and exported programs as subjects: their layers, though no hook is called."""
# ruff: noqa: ARG001  (fixtures that skip)

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptdoctor.errors import FormatError, UsageError
from ckptdoctor.live.subject import Call, Statistics

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def torch() -> Any:
    found = pytest.importorskip("torch")
    found.manual_seed(0)
    return found


def scripted(path: Path) -> Any:
    from ckptdoctor.live.torch_programs import scripted_subject

    return scripted_subject(path)


def exported(path: Path) -> Any:
    from ckptdoctor.live.torch_programs import exported_subject

    return exported_subject(path)


def batch(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


class Diary:
    """Observer that keeps what it hears."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.calls: dict[str, Call] = {}
        self.given: dict[str, list[np.ndarray]] = {}
        self.made: dict[str, list[np.ndarray]] = {}

    def before(self, call, inputs):
        self.order.append(f">{call.layer}")
        self.calls[f"{call.layer}/{call.index}"] = call
        self.given[call.layer] = [value.copy() for value in inputs]

    def after(self, call, outputs):
        self.order.append(f"<{call.layer}")
        self.made[call.layer] = [value.copy() for value in outputs]


def network(torch: Any) -> Any:
    """A block that is called twice, a branch, a container, and statistics that are not the first."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.bn = nn.BatchNorm2d(4, eps=1e-3)

        def forward(self, x):
            return torch.relu(x + self.bn(self.conv(x)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Block(), Block()
            self.tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

        def forward(self, x):
            x = self.second(self.first(self.first(x)))
            return self.tail(x), x

    net = Net()
    net.train()(torch.tensor(batch(9, 4, 5, 5)) * 3 + 1)
    return net.eval()


def save_scripted(torch: Any, path: Path, net: Any) -> Any:
    torch.jit.script(net).save(path)
    return scripted


def save_traced(torch: Any, path: Path, net: Any) -> Any:
    torch.jit.trace(net, torch.tensor(batch(2, 4, 5, 5)), check_trace=False).save(path)
    return scripted


def save_exported(torch: Any, path: Path, net: Any, **more: Any) -> Any:
    more.setdefault("dynamic_shapes", ({0: torch.export.Dim("n", min=1)},))
    program = torch.export.export(net, (torch.tensor(batch(3, 4, 5, 5)),), **more)
    torch.export.save(program, path)
    return exported


SAVERS = [save_scripted, save_traced, save_exported]


def saved(torch: Any, path: Path, save: Any, net: Any, **more: Any) -> Any:
    """A subject over a net that was saved this way."""
    load = save(torch, path / "m.pt2", net, **more)
    return load(path / "m.pt2")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Subjects over files of `network`, each of which is written once."""
    folder = tmp_path_factory.mktemp("programs")
    loaders: dict[str, Any] = {}

    def taken(torch: Any, save: Any) -> Any:
        path = folder / f"{save.__name__}.pt2"
        if save.__name__ not in loaders:
            torch.manual_seed(0)
            loaders[save.__name__] = save(torch, path, network(torch))
        return loaders[save.__name__](path)

    return taken


BLOCK = [">{0}", ">{0}.conv", "<{0}.conv", ">{0}.bn", "<{0}.bn", "<{0}"]


@pytest.mark.parametrize("save", SAVERS)
def test_layers_are_told_of_as_in_the_module_that_was_saved(torch, shelf, save):
    net = network(torch)
    who = shelf(torch, save)
    diary = Diary()
    x = batch(2, 4, 5, 5)
    found = who.run([x], diary)
    with torch.no_grad():
        told = net(torch.tensor(x))
    for ours, theirs in zip(found, told, strict=True):
        assert np.allclose(ours, theirs.numpy(), atol=1e-6)
    first, second = ([word.format(name) for word in BLOCK] for name in ("first", "second"))
    tail = [f"{way}tail.{i}" for i in range(3) for way in "><"]
    inner = diary.order[1 + 18 : -1]
    assert diary.order[:19] == [">", *first, *first, *second]
    assert inner in ([">tail", *tail, "<tail"], tail)
    assert diary.order[-1] == "<"
    assert diary.calls["first.bn/1"] == Call(
        layer="first.bn", class_name="BatchNorm2d", index=1, depth=2, leaf=True
    )
    assert diary.calls["second/0"].class_name == "Block"
    assert not diary.calls["second/0"].leaf
    assert diary.calls["/0"] == Call(layer="", class_name="Net", index=0, depth=0, leaf=False)
    assert np.array_equal(diary.given["first"][0], diary.given["first.conv"][0])
    assert np.array_equal(diary.made["second"][0], found[1])
    assert len(diary.made[""]) == 2
    assert who.notes == ()


@pytest.mark.parametrize("save", SAVERS)
def test_statistics_set_in_a_call_take_effect_in_it(torch, shelf, save):
    net = network(torch)
    who = shelf(torch, save)
    assert list(who.norms) == ["first.bn", "second.bn"]
    assert {norm.epsilon for norm in who.norms.values()} == {1e-3}
    assert {norm.mean for norm in who.norms.values()} < set(who.table())
    assert np.allclose(who.statistics("second.bn").var, net.second.bn.running_var.numpy())

    class Batchwise(Diary):
        def before(self, call, inputs):
            if call.layer in who.norms:
                (values,) = inputs
                told = Statistics(values.mean((0, 2, 3)), values.var((0, 2, 3)))
                who.set_statistics(call.layer, told)

    x = batch(4, 4, 5, 5)
    found = who.run([x], Batchwise())
    with torch.no_grad():
        told = net.train()(torch.tensor(x))
    assert np.allclose(found[0], told[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("save", SAVERS)
def test_values_are_rounded_between_layers(torch, tmp_path, save):
    net = network(torch)
    net.first.bn.weight.data.fill_(1e5)
    who = saved(torch, tmp_path, save, net)
    diary = Diary()
    who.run([batch(2, 4, 5, 5)], diary, rounding="float16")
    assert np.isinf(diary.made["first.bn"][0]).any()
    for values in (*diary.given.values(), *diary.made.values()):
        for value in values:
            assert np.array_equal(
                value, value.astype(np.float16).astype(np.float32), equal_nan=True
            )
    assert np.isfinite(who.run([batch(2, 4, 5, 5)])[1]).all()


@pytest.mark.parametrize("save", SAVERS)
def test_only_limits_what_is_told(torch, shelf, save):
    who = shelf(torch, save)
    diary = Diary()
    who.run([batch(2, 4, 5, 5)], diary, only=["second.bn"])
    assert diary.order == [">second.bn", "<second.bn"]
    assert diary.calls["second.bn/0"].depth == 0
    with pytest.raises(UsageError, match="no layer 'third'"):
        who.run([batch(2, 4, 5, 5)], diary, only=["third"])


@pytest.mark.parametrize("save", SAVERS)
def test_what_an_observer_raises_comes_out_as_it_is(torch, shelf, save):
    class Stop(Exception):
        pass

    class Early(Diary):
        def after(self, call, outputs):
            if call.layer == "second.conv":
                raise Stop("enough")

    who = shelf(torch, save)
    with pytest.raises(Stop, match=r"^enough$"):
        who.run([batch(2, 4, 5, 5)], Early())
    diary = Diary()
    who.run([batch(2, 4, 5, 5)], diary)  # and the next run is whole
    assert diary.order[-1] == "<"


@pytest.mark.parametrize("save", SAVERS)
def test_inputs_that_do_not_fit_give_one_line(torch, shelf, save):
    who = shelf(torch, save)
    with pytest.raises(UsageError) as told:
        who.run([batch(2, 3, 5, 5)])
    text = str(told.value)
    assert "\n" not in text
    assert "float32 (2, 3, 5, 5): " in text
    if save is not save_exported:  # that one checks its inputs before anything runs
        assert text.startswith(
            "layer 'first.conv' (Conv2d) fails on float32 (2, 3, 5, 5): Given groups"
        )


@pytest.mark.parametrize("save", SAVERS)
def test_the_table_holds_what_the_program_does(torch, shelf, save):
    net = network(torch)
    table = shelf(torch, save).table()
    assert set(table) == set(net.state_dict())
    assert np.array_equal(table.read("tail.2.weight"), net.tail[2].weight.detach().numpy())
    norm = table.layers["second.bn"]
    assert (norm.class_name, norm.epsilon) == ("BatchNorm2d", 1e-3)
    assert table.layers["second"].class_name == "Block"


def test_inputs_may_be_given_by_name(torch, shelf):
    who = shelf(torch, save_scripted)
    x = batch(2, 4, 5, 5)
    assert np.array_equal(who.run({"x": x})[0], who.run([x])[0])


@pytest.mark.parametrize("save", [save_traced, save_exported])
def test_a_program_saved_in_training_mode_is_told_and_changes_nothing(torch, tmp_path, save):
    who = saved(torch, tmp_path, save, network(torch).train())
    assert who.norms == {}
    (note,) = who.notes
    assert note == (
        "the program was saved in training mode: BatchNorms use the statistics of each batch, and"
        " those that are stored are not used"
    )
    before = {name: who.table().read(name) for name in who.table()}
    assert "first.bn.running_mean" in before
    assert not any("@" in name for name in (*before, *who.table().layers))
    diary = Diary()
    who.run([batch(4, 4, 5, 5)], diary)
    assert [word for word in diary.order if "bn" in word] == [
        ">first.bn", "<first.bn", ">first.bn", "<first.bn", ">second.bn", "<second.bn",
    ]  # fmt: skip
    after = {name: who.table().read(name) for name in who.table()}
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_module_scripted_in_training_mode_runs_in_evaluation_mode(torch, tmp_path):
    net = network(torch).train()
    who = saved(torch, tmp_path, save_scripted, net)
    x = batch(4, 4, 5, 5)
    found = who.run([x])
    with torch.no_grad():
        told = net.eval()(torch.tensor(x))
    assert np.allclose(found[0], told[0].numpy(), atol=1e-6)
    assert list(who.norms) == ["first.bn", "second.bn"]
    assert who.module.training


# TorchScript


def test_branches_loops_methods_and_odd_outputs_are_seen(torch, tmp_path):
    source = tmp_path / "net.py"
    source.write_text(
        "import torch\n"
        "from typing import Dict, Optional, Tuple\n"
        "class Pair(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = torch.nn.Linear(3, 3)\n"
        "    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Tuple[torch.Tensor, int]:\n"
        "        return self.fc(x) + y, 3\n"
        "class Named(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = torch.nn.Linear(3, 3)\n"
        "    def forward(self, n: int, x: Optional[torch.Tensor]) -> Dict[str, torch.Tensor]:\n"
        "        assert x is not None\n"
        "        return {'out': self.fc(x) * n}\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.pair = Pair()\n"
        "        self.named = Named()\n"
        "        self.left = torch.nn.Linear(3, 3)\n"
        "        self.right = torch.nn.Linear(3, 3)\n"
        "    def tail(self, x):\n"
        "        return self.left(x)\n"
        "    def forward(self, x):\n"
        "        if x.sum() > 1e9:\n"
        "            x = self.right(x)\n"
        "        else:\n"
        "            for _ in range(2):\n"
        "                x = self.tail(x)\n"
        "        x, n = self.pair(x, x)\n"
        "        return self.named(n, x)\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        from net import Net  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("net", None)
    net = Net().eval()
    who = saved(torch, tmp_path, save_scripted, net)
    diary = Diary()
    x = batch(2, 3)
    (found,) = who.run([x], diary)
    assert diary.order == [
        ">", ">left", "<left", ">left", "<left", ">pair", ">pair.fc", "<pair.fc", "<pair",
        ">named", ">named.fc", "<named.fc", "<named", "<",
    ]  # fmt: skip
    assert [len(diary.given[name]) for name in ("pair", "named", "left")] == [2, 1, 1]
    with torch.no_grad():
        assert np.allclose(found, net(torch.tensor(x))["out"].numpy(), atol=1e-6)


def test_a_frozen_program_shows_its_operators(torch, tmp_path):
    torch.jit.freeze(torch.jit.script(network(torch))).save(tmp_path / "m.pt")
    who = scripted(tmp_path / "m.pt")
    diary = Diary()
    x = batch(2, 4, 5, 5)
    found = who.run([x], diary)
    assert who.notes == (
        "the program was frozen: its layers are gone, and its operators are shown instead",
    )
    assert [word for word in diary.order if "conv" in word][:4] == [
        ">conv2d", "<conv2d", ">conv2d_1", "<conv2d_1",
    ]  # fmt: skip
    assert len(diary.given["conv2d"]) == 1  # what flows; weights are no inputs
    assert diary.calls["conv2d_1/0"] == Call(
        layer="conv2d_1", class_name="conv2d", index=0, depth=1, leaf=True
    )
    assert np.array_equal(diary.made["linear"][0], found[0])
    assert who.norms == {}
    (exact, _), (narrow, _) = found, who.run([x], rounding="bfloat16")
    assert 0 < np.abs(exact - narrow).max() < 0.5


def test_without_marks_a_program_still_runs_and_says_what_is_missing(torch, shelf, monkeypatch):
    from ckptdoctor.live import torch_programs

    def broken(module):
        raise AttributeError("insertConstant")

    monkeypatch.setattr(torch_programs, "mark", broken)
    who = shelf(torch, save_scripted)
    diary = Diary()
    assert who.run([batch(2, 4, 5, 5)], diary)[0].shape == (2, 2)
    assert diary.order == [">", "<"]
    assert who.notes == (
        "this version of torch does not show the layers of such a program: only its outputs are",
    )
    assert list(who.norms) == ["first.bn", "second.bn"]


def test_marks_do_nothing_outside_a_run(torch, tmp_path):
    net = network(torch)
    who = saved(torch, tmp_path, save_scripted, net)
    x = torch.tensor(batch(2, 4, 5, 5))
    with torch.no_grad():
        assert torch.allclose(who.module(x)[0], net(x)[0], atol=1e-6)


# Exported programs


def test_inputs_are_those_that_were_exported(torch, shelf, tmp_path):
    free = shelf(torch, save_exported)
    assert free.inputs() == [((None, 4, 5, 5), "float32")]
    fixed = saved(torch, tmp_path, save_exported, network(torch), dynamic_shapes=None)
    assert fixed.inputs() == [((3, 4, 5, 5), "float32")]


def test_inputs_go_where_they_were_when_it_was_exported(torch, tmp_path):
    class Net(torch.nn.Module):
        def forward(self, pair, *, scale):
            return (pair["a"] - pair["b"]) * scale

    x, y = torch.tensor(batch(2, 3)), torch.ones(2, 3)
    program = torch.export.export(Net(), ({"a": x, "b": y},), {"scale": torch.tensor(3.0)})
    torch.export.save(program, tmp_path / "m.pt2")
    who = exported(tmp_path / "m.pt2")
    assert [shape for shape, _ in who.inputs()] == [(2, 3), (2, 3), ()]
    told = (x - 1).numpy() * 3
    assert np.allclose(who.run([x, y, np.float64(3)])[0], told)


def test_a_decomposed_program_keeps_its_layers(torch, tmp_path):
    program = torch.export.export(network(torch), (torch.tensor(batch(2, 4, 5, 5)),))
    torch.export.save(program.run_decompositions(), tmp_path / "m.pt2")
    who = exported(tmp_path / "m.pt2")
    assert {name: norm.epsilon for name, norm in who.norms.items()} == {
        "first.bn": 1e-3, "second.bn": 1e-3,
    }  # fmt: skip
    assert who.run([batch(2, 4, 5, 5)])[0].shape == (2, 2)
    assert who.notes == ()


def test_a_program_that_does_not_unflatten_is_run_whole(torch, shelf, monkeypatch):
    def broken(program):
        raise AssertionError

    monkeypatch.setattr(torch.export, "unflatten", broken)
    who = shelf(torch, save_exported)
    diary = Diary()
    assert who.run([batch(2, 4, 5, 5)], diary)[0].shape == (2, 2)
    assert {">", "<"} <= set(diary.order)
    assert ">first" not in diary.order
    assert who.notes[0].startswith("this version of torch does not show the layers")


# Files


@pytest.mark.parametrize("load", [scripted, exported])
def test_a_file_that_is_not_there_is_wrong_usage(torch, tmp_path, load):
    with pytest.raises(UsageError, match=r"none\.pt: no such file"):
        load(tmp_path / "none.pt")


@pytest.mark.parametrize(("load", "kind"), [(scripted, "a TorchScript"), (exported, "an exported")])
def test_a_file_that_torch_does_not_load_is_an_error_of_its_format(torch, tmp_path, load, kind):
    (tmp_path / "m.pt2").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(FormatError) as told:
        load(tmp_path / "m.pt2")
    assert f"torch cannot load it as {kind} program: " in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("load", [scripted, exported])
def test_without_torch_the_extra_is_named(tmp_path, monkeypatch, load):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r"pip install 'ckptdoctor\[torch\]'"):
        load(tmp_path / "m.pt2")
