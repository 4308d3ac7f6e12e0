"""A PyTorch module as a subject: what observers hear, what takes effect, what is left behind."""

# ruff: noqa: ARG001, ARG005  (forward functions have the arguments that torch gives them)
from __future__ import annotations

import dataclasses
import sys
from collections import OrderedDict
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from ckptdoctor.errors import UsageError
from ckptdoctor.live.subject import Call, NormLayer, Statistics

pytestmark = pytest.mark.oracle


@pytest.fixture
def torch() -> Any:
    found = pytest.importorskip("torch")
    found.manual_seed(0)
    return found


def subject(module: Any) -> Any:
    from ckptdoctor.live.torch_subject import TorchSubject

    return TorchSubject(module)


def learning(torch: Any, learn: Any, **buffers: Any) -> Any:
    """A model with a BatchNorm and a module that learns in inference mode too."""

    class Observer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, values in buffers.items():
                self.register_buffer(name, values)

        def forward(self, x):
            learn(self, x)
            return x

    return torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.BatchNorm1d(6), Observer())


def counted(self, x):
    self.seen += len(x)


def resized(self, x):
    self.low.resize_(x.shape[1]).copy_(x.min(0).values)


def replaced(self, x):
    self.low = x.min(0).values


def unseen(self, x):
    """As the fused operations of quantisation: no version counts it."""
    self.low.data[0] += 1
    self.seen.data += 1


def failed(self, x):
    self.low += 1
    raise RuntimeError("no more")


@pytest.mark.parametrize("learn", [counted, resized, replaced, unseen, failed])
def test_buffers_that_a_run_writes_to_are_put_back(torch, learn):
    low, seen = torch.tensor([3.0, float("nan")]), torch.tensor(0)
    module = learning(torch, learn, low=low, seen=seen)
    held = subject(module)
    if learn is failed:
        with pytest.raises(UsageError, match="no more"):
            held.run([batch(4, 6)])
    else:
        held.run([batch(4, 6)])
    assert module[2].low is low
    np.testing.assert_array_equal(low, [3.0, np.nan])
    assert (module[2].seen, int(seen)) == (seen, 0)


def test_statistics_that_an_observer_sets_stay_though_buffers_are_put_back(torch):
    module = learning(torch, counted, seen=torch.tensor(0))
    module[2].alias = module[1]
    module[2].register_buffer("mean", module[1].running_mean)
    held = subject(module)

    class Set:
        def before(self, call, inputs):
            if call.layer == "1":
                held.set_statistics("1", Statistics(np.full(6, 5.0), np.full(6, 7.0)))

        def after(self, call, outputs): ...

    held.run([batch(4, 6)], Set())
    assert module[1].running_mean.tolist() == [5.0] * 6
    assert module[1].running_var.tolist() == [7.0] * 6


def test_buffers_that_no_run_writes_to_are_not_written_to(torch):
    module = learning(torch, lambda self, x: None, low=torch.ones(2), far=torch.ones(1).expand(3))
    module[2].register_buffer("sparse", torch.eye(3).to_sparse())
    module[2].register_buffer("short", torch.ones(3).to(torch.float8_e4m3fn))
    with torch.inference_mode():
        module[2].register_buffer("made", torch.ones(2))
    module[2].register_buffer("unknown", torch.full((2,), torch.nan))
    buffers = [module[2].low, module[2].unknown, module[1].num_batches_tracked]
    before = [buffer._version for buffer in buffers]
    subject(module).run([batch(4, 6)])
    assert [buffer._version for buffer in buffers] == before
    assert torch.equal(module[2].sparse.to_dense(), torch.eye(3))


def test_buffers_without_values_are_left_alone(torch):
    """Offloaded ones have their values during their module's call only."""
    module = learning(torch, lambda self, x: None, far=torch.ones(2, device="meta"))
    module[2]._hf_hook = object()
    subject(module).run([batch(4, 6)])
    assert module[2].far.device.type == "meta"


def test_buffers_of_inference_mode_are_put_back_too(torch):
    def learn(self, x):
        with torch.inference_mode():
            self.low += 1

    with torch.inference_mode():
        module = learning(torch, learn, low=torch.ones(2))
    subject(module).run([batch(4, 6)])
    assert module[2].low.tolist() == [1.0, 1.0]


def test_buffers_the_size_of_weights_are_not_copied(torch, monkeypatch):
    from ckptdoctor.live import torch_buffers

    monkeypatch.setattr(torch_buffers, "_LARGEST", 1)
    module = learning(torch, resized, low=torch.zeros(2), seen=torch.tensor(0))
    subject(module).run([batch(4, 6)])
    assert module[2].low.numel() == 6


class Diary:
    """Observer that keeps copies of all it hears."""

    def __init__(self) -> None:
        self.began: list[tuple[Call, list[np.ndarray]]] = []
        self.ended: list[tuple[Call, list[np.ndarray]]] = []
        self.order: list[str] = []

    def before(self, call, inputs):
        self.order.append(f">{call.layer}")
        self.began.append((call, [value.copy() for value in inputs]))

    def after(self, call, outputs):
        self.order.append(f"<{call.layer}")
        self.ended.append((call, [value.copy() for value in outputs]))

    def outputs(self, layer: str) -> list[np.ndarray]:
        return next(values for call, values in self.ended if call.layer == layer)


def batch(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def convolutional(torch: Any) -> Any:
    """Two BatchNorms, a residual block, and a ReLU that works in place on what it is given."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.bn = nn.BatchNorm2d(4, eps=1e-3)

        def forward(self, x):
            return x + self.bn(self.conv(x))

    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
            block=Block(),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(4, 2),
        )
    )


def function(torch: Any, forward: Any, **children: Any) -> Any:
    """Module with some children and this forward."""

    class Made(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in children.items():
                setattr(self, name, child)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return forward(self, *args, **kwargs)

    return Made()


# What a run returns and tells


def test_outputs_are_those_of_evaluation_mode(torch):
    net = convolutional(torch)
    x = batch(5, 3, 6, 6)
    net.train()(torch.tensor(x))  # statistics that are not those of a new layer
    (found,) = subject(net).run([x])
    with torch.no_grad():
        told = net.eval()(torch.tensor(x))
    assert np.array_equal(found, told.numpy())


def test_calls_are_told_in_order_with_their_place_in_the_model(torch):
    diary = Diary()
    subject(convolutional(torch)).run([batch(2, 3, 4, 4)], diary)
    assert diary.order == [
        ">", ">stem", ">stem.0", "<stem.0", ">stem.1", "<stem.1", ">stem.2", "<stem.2", "<stem",
        ">block", ">block.conv", "<block.conv", ">block.bn", "<block.bn", "<block",
        ">pool", "<pool", ">flat", "<flat", ">fc", "<fc", "<",
    ]  # fmt: skip
    calls = {call.layer: call for call, _ in diary.began}
    assert calls[""] == Call(layer="", class_name="Sequential", index=0, depth=0, leaf=False)
    assert calls["block"] == Call(layer="block", class_name="Block", index=0, depth=1, leaf=False)
    assert calls["block.bn"] == Call(
        layer="block.bn", class_name="BatchNorm2d", index=0, depth=2, leaf=True
    )
    assert [call for call, _ in diary.ended if call.layer == "fc"] == [calls["fc"]]


def test_a_layer_called_twice_counts_its_calls_in_each_run(torch):
    shared = torch.nn.Linear(3, 3)
    net = function(torch, lambda self, x: self.a(self.b(x)), a=shared, b=shared)
    who = subject(net)
    for _ in range(2):
        diary = Diary()
        who.run([batch(2, 3)], diary)
        told = [(call.layer, call.index) for call, _ in diary.began]
        assert told == [("", 0), ("a", 0), ("a", 1)]


def test_only_limits_what_is_told_and_what_counts_as_around(torch):
    diary = Diary()
    who = subject(convolutional(torch))
    who.run([batch(2, 3, 4, 4)], diary, only=["block", "block.bn", "fc"])
    told = [(call.layer, call.depth) for call, _ in diary.began]
    assert told == [("block", 0), ("block.bn", 1), ("fc", 0)]
    diary = Diary()
    who.run([batch(2, 3, 4, 4)], diary, only=[])
    assert diary.order == []


def test_a_layer_that_is_not_there_cannot_be_watched(torch):
    with pytest.raises(UsageError, match="no layer 'head' that can be watched"):
        subject(convolutional(torch)).run([batch(2, 3, 4, 4)], Diary(), only=["head"])


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Answer:
    logits: Any
    hidden: Any = None
    note: str = "x"


def nested(self: Any, x: Any) -> Any:
    return [Pair(x, {"ids": x.long(), "z": x + 1}), None, Answer(x + 2, (x + 3,)), "word"]


def test_floats_are_found_wherever_they_are_nested_and_in_order(torch):
    found = subject(function(torch, nested)).run([batch(2, 3)])
    x = batch(2, 3)
    assert len(found) == 4
    for extra, values in enumerate(found):
        assert np.allclose(values, x + extra)
        assert values.dtype == np.float32


def test_nested_outputs_are_rounded_and_keep_their_kinds(torch):
    inner = function(torch, nested)
    seen: list[Any] = []
    net = function(torch, lambda self, x: seen.append(self.inner(x)) or x, inner=inner)
    subject(net).run([batch(2, 3) + 1e-6], rounding="float16")
    pair, none, answer, word = seen[0]
    assert (type(pair), none, type(answer), word) == (Pair, None, Answer, "word")
    assert answer.note == "x"
    for value in (pair.left, pair.right["z"], answer.logits, answer.hidden[0]):
        assert torch.equal(value, value.half().float())
    assert pair.right["ids"].dtype == torch.int64


def test_mappings_of_a_class_of_their_own_keep_it_when_rounded(torch):
    inner = function(torch, lambda self, x: OrderedDict(a=x, b=x * 3))
    kinds: list[Any] = []

    def forward(self, x):
        made = self.inner(x)
        kinds.append((type(made), list(made)))
        return made["b"]

    (found,) = subject(function(torch, forward, inner=inner)).run(
        [batch(4, 3)], rounding="bfloat16"
    )
    assert kinds == [(OrderedDict, ["a", "b"])]
    assert np.array_equal(found, found.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.filterwarnings("ignore")
def test_complex_and_quantised_and_sparse_outputs_are_told_as_floats(torch):
    def forward(self, x):
        whole = torch.quantize_per_tensor(x, 0.5, 0, torch.qint8)
        return torch.complex(x, -x), whole, x.to_sparse()

    parts, whole, sparse = subject(function(torch, forward)).run([batch(2, 3)])
    x = batch(2, 3)
    assert np.array_equal(parts, np.stack([x, -x], -1))
    assert np.allclose(whole, np.round(x / 0.5) * 0.5)
    assert np.array_equal(sparse, x)


def test_containers_are_followed_twelve_deep_and_circles_end(torch):
    def forward(self, x):
        ring = [x]
        ring.append(ring)
        return ring

    assert len(subject(function(torch, forward)).run([batch(1, 2)])) == 12
    assert len(subject(function(torch, forward)).run([batch(1, 2)], rounding="float16")) == 12


# Inputs


def test_floats_take_the_type_of_the_weights_and_whole_numbers_stay(torch):
    seen: list[Any] = []

    def forward(self, *args):
        seen.extend(each.dtype for each in args)
        return self.fc(args[0])

    net = function(torch, forward, fc=torch.nn.Linear(3, 2).to(torch.bfloat16))
    values = [
        np.ones((2, 3)), np.ones((2, 3), np.float32), np.ones((2, 3), ">f4"), np.ones(2, ">i4"),
        np.ones(2, np.uint8), np.ones(2, bool), np.ones((2, 3), ml_dtypes.bfloat16),
        np.ones(2, np.longdouble),
    ]  # fmt: skip
    (found,) = subject(net).run(values)
    narrow = torch.bfloat16
    assert seen == [narrow, narrow, narrow, torch.int32, torch.uint8, torch.bool, narrow, narrow]
    assert found.dtype == np.float32


def test_a_model_in_double_precision_is_told_in_it(torch):
    (found,) = subject(torch.nn.Linear(3, 2).double()).run([batch(2, 3)])
    assert found.dtype == np.float64


def test_inputs_without_weights_are_single_precision(torch):
    (found,) = subject(torch.nn.Identity()).run([np.ones((2, 3))])
    assert found.dtype == np.float32


def test_inputs_may_be_given_by_name(torch):
    net = function(torch, lambda self, x, scale: x * scale)
    (found,) = subject(net).run({"scale": np.full(1, 3.0), "x": np.ones((2, 2))})
    assert found.tolist() == [[3, 3], [3, 3]]


def test_inputs_by_keyword_between_layers_are_told(torch):
    net = function(torch, lambda self, x: self.fc(input=x), fc=torch.nn.Linear(3, 2))
    diary = Diary()
    subject(net).run([batch(2, 3)], diary)
    assert [len(values) for _, values in diary.began] == [1, 1]


def test_lists_of_arrays_and_plain_numbers_are_inputs_too(torch):
    net = function(torch, lambda self, images, n: torch.stack(images) * n)
    (found,) = subject(net).run([[np.ones(2), torch.ones(2)], [[2.0, 3.0]]])
    assert found.tolist() == [[2, 3], [2, 3]]


def test_the_callers_array_stays_as_it_was(torch):
    x = batch(2, 3, 4, 4)
    kept = x.copy()
    subject(convolutional(torch)).run([x])  # begins with a ReLU in place
    assert np.array_equal(x, kept)


def stated(torch: Any, **attributes: Any) -> Any:
    net = torch.nn.Identity()
    for name, value in attributes.items():
        setattr(net, name, value)
    return net


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda t: stated(t, example_input_array=t.ones(8, 3)), [((None, 3), "float32")]),
        (
            lambda t: stated(t, example_input_array=(t.ones(8, 3), t.tensor(5))),
            [((None, 3), "float32"), ((), "int64")],
        ),
        (lambda t: stated(t, pretrained_cfg={"input_size": (3, 8, 9)}), [((None, 3, 8, 9), "float32")]),
        (lambda t: stated(t, default_cfg={"input_size": (3, 8, 9)}), [((None, 3, 8, 9), "float32")]),
        (
            lambda t: stated(t, dummy_inputs={"ids": t.ones(3, 5).int()}, main_input_name="ids"),
            [((None, 5), "int32")],
        ),
        (
            lambda t: stated(t, dummy_inputs={"ids": t.ones(3), "n": t.ones(3)}, main_input_name="ids"),
            [],
        ),
        (lambda t: t.nn.Sequential(t.nn.ReLU(), t.nn.Linear(7, 2)), [((None, 7), "float32")]),
        (lambda t: t.nn.Sequential(t.nn.Embedding(7, 2)), [((None, None), "int64")]),
        (lambda t: t.nn.Conv1d(5, 2, 3), [((None, 5, None), "float32")]),
        (lambda t: t.nn.Conv2d(5, 2, 3), [((None, 5, None, None), "float32")]),
        (lambda t: t.nn.Conv3d(5, 2, 3), [((None, 5, None, None, None), "float32")]),
        (lambda t: t.nn.Sequential(t.nn.BatchNorm2d(3), t.nn.Conv2d(3, 2, 3)), []),
        (lambda t: t.nn.Identity(), []),
    ],
    ids=[
        "Lightning's example", "Lightning's examples", "timm's settings", "timm's older settings",
        "transformers' example", "transformers' example of two", "first dense", "first embedding",
        "first 1-d", "first 2-d", "first 3-d", "another first", "nothing",
    ],
)  # fmt: skip
def test_inputs_are_those_that_the_module_states(torch, make, told):
    assert list(subject(make(torch)).inputs()) == told


# Statistics


def test_norms_are_batchnorms_with_running_statistics(torch):
    nn = torch.nn

    class FrozenBatchNorm2d(nn.Module):  # as torchvision and detectron have it: buffers only
        def __init__(self) -> None:
            super().__init__()
            self.eps = 0.5
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.register_buffer(name, torch.ones(6))

    net = nn.ModuleDict(
        {
            "plain": nn.BatchNorm1d(3, eps=1e-3),
            "sync": nn.SyncBatchNorm(4),
            "frozen": FrozenBatchNorm2d(),
            "instance": nn.InstanceNorm2d(5, affine=True, track_running_stats=True),
            "stateless": nn.BatchNorm2d(5, track_running_stats=False),
            "layer": nn.LayerNorm(5),
        }
    )
    who = subject(net)
    assert list(who.norms) == ["plain", "sync", "frozen"]
    assert who.norms["plain"] == NormLayer(
        name="plain", channels=3, axis=1, epsilon=1e-3, unbiased=True,
        mean="plain.running_mean", var="plain.running_var",
    )  # fmt: skip
    assert (who.norms["frozen"].epsilon, who.norms["frozen"].channels) == (0.5, 6)
    table = who.table()
    assert all({norm.mean, norm.var} <= set(table) for norm in who.norms.values())


def test_epsilon_of_a_class_that_does_not_say_is_torchs(torch):
    net = torch.nn.Module()
    net.register_buffer("running_mean", torch.zeros(2))
    net.register_buffer("running_var", torch.ones(2))
    norm = subject(net).norms[""]
    assert (norm.epsilon, norm.mean, norm.var) == (1e-5, "running_mean", "running_var")


def test_statistics_set_in_a_call_take_effect_in_it(torch):
    net = convolutional(torch)
    x = batch(6, 3, 5, 5)
    who = subject(net)

    class Batchwise:
        def before(self, call, inputs):
            if call.layer in who.norms:
                (values,) = inputs
                told = Statistics(values.mean((0, 2, 3)), values.var((0, 2, 3)))
                who.set_statistics(call.layer, told)

        def after(self, call, outputs):
            pass

    (found,) = who.run([x], Batchwise())
    (again,) = who.run([x])
    with torch.no_grad():
        training = net.train()(torch.tensor(x)).numpy()
    assert np.allclose(found, training, atol=1e-5)
    assert np.array_equal(again, found)  # they stay until they are set anew


def test_statistics_are_a_copy_in_double_precision(torch):
    net = torch.nn.BatchNorm1d(3)
    who = subject(net)
    held = who.statistics("")
    assert [part.dtype for part in held] == [np.float64, np.float64]
    held.var[:] = 9
    assert net.running_var.tolist() == [1, 1, 1]


def test_set_statistics_are_cast_to_what_the_layer_holds(torch):
    net = torch.nn.BatchNorm1d(2).half()
    who = subject(net)
    who.set_statistics("", Statistics(np.array([1 / 3, 2]), np.array([4, 1e6])))
    assert net.running_mean.dtype == torch.float16
    assert who.statistics("").mean.tolist() == [float(np.float16(1 / 3)), 2]
    assert who.statistics("").var.tolist() == [4, np.inf]


def test_statistics_of_a_model_made_in_inference_mode_can_be_set(torch):
    with torch.inference_mode():
        net = torch.nn.BatchNorm1d(2)
    who = subject(net)
    who.set_statistics("", Statistics(np.array([1, 2]), np.array([3, 4])))
    assert who.statistics("").var.tolist() == [3, 4]
    assert who.run([batch(3, 2)])[0].shape == (3, 2)


def test_statistics_of_another_length_are_refused(torch):
    who = subject(torch.nn.BatchNorm1d(3))
    with pytest.raises(UsageError, match="expected 3 channels for '', found 2"):
        who.set_statistics("", Statistics(np.zeros(2), np.ones(2)))
    assert who.statistics("").mean.tolist() == [0, 0, 0]


def test_statistics_of_other_layers_are_refused(torch):
    who = subject(convolutional(torch))
    with pytest.raises(UsageError, match="no BatchNorm with running statistics is called 'fc'"):
        who.statistics("fc")


# Rounding


def test_observers_see_what_was_rounded(torch):
    diary = Diary()
    net = convolutional(torch)
    subject(net).run([batch(2, 3, 4, 4)], diary, rounding="float16")
    for _, values in (*diary.began, *diary.ended):
        for value in values:
            assert np.array_equal(value, value.astype(np.float16).astype(np.float32))


def test_the_last_outputs_are_rounded_too_and_nothing_is_without_being_asked(torch):
    net = torch.nn.Linear(3, 4)
    exact, narrow, brain = (
        subject(net).run([batch(2, 3)], rounding=way)[0] for way in ("", "float16", "bfloat16")
    )
    assert np.array_equal(narrow, narrow.astype(np.float16).astype(np.float32))
    assert np.array_equal(brain, brain.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert not np.array_equal(exact, narrow)
    assert not np.array_equal(narrow, brain)
    assert 0 < np.abs(exact - narrow).max() < np.abs(exact - brain).max() < 0.1


def test_a_sum_of_a_residual_block_overflows_where_half_precision_does(torch):
    block = function(torch, lambda self, x: x + self.same(x), same=torch.nn.Identity())
    net = torch.nn.Sequential(block, torch.nn.Hardtanh(-1, 1))
    diary = Diary()
    x = np.full((1, 2), 40000.0)
    subject(net).run([x], diary, rounding="float16")
    assert np.isinf(diary.outputs("0")[0]).all()
    assert np.isfinite(diary.outputs("0.same")[0]).all()
    assert np.isfinite(subject(net[0]).run([x], rounding="bfloat16")[0]).all()


def test_rounding_goes_on_in_layers_that_nobody_watches(torch):
    diary = Diary()
    net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    subject(net).run([np.full((1, 2), 1e6)], diary, only=["1"], rounding="float16")
    assert np.isinf(diary.began[0][1][0]).all()


def test_a_model_in_half_precision_is_not_rounded_to_as_many_bits(torch):
    who = subject(torch.nn.Linear(3, 4).half())
    exact, same = (who.run([batch(2, 3)], rounding=way)[0] for way in ("", "bfloat16"))
    assert np.array_equal(exact, same)


def test_rounding_to_another_type_is_refused(torch):
    with pytest.raises(UsageError, match="expected rounding to be float16 or bfloat16, found 'f8'"):
        subject(torch.nn.Identity()).run([batch(1, 2)], rounding="f8")


# What is left behind


def hooks(module: Any) -> int:
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in module.modules())


class Stop(RuntimeError):
    """What an observer raises to end a run."""


class Stopping(Diary):
    def after(self, call, outputs):
        super().after(call, outputs)
        if call.layer == "block.bn":
            raise Stop


@pytest.mark.parametrize("ends", ["well", "by the observer", "by the model"])
def test_a_run_leaves_nothing_behind(torch, ends):
    net = convolutional(torch)
    net.train()
    net.block.bn.eval()  # frozen, as in fine-tuning
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [each.training for each in net.modules()]
    random = torch.random.get_rng_state()
    who = subject(net)
    if ends == "well":
        who.run([batch(2, 3, 4, 4)], Diary(), rounding="float16")
    elif ends == "by the observer":
        with pytest.raises(Stop):
            who.run([batch(2, 3, 4, 4)], Stopping())
    else:
        with pytest.raises(UsageError):
            who.run([batch(2, 5, 4, 4)], Diary())
    assert [each.training for each in net.modules()] == modes
    assert hooks(net) == 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert all(each.grad is None for each in net.parameters())


def test_random_numbers_of_a_model_do_not_advance_those_of_the_program(torch):
    net = function(torch, lambda self, x: x + torch.rand_like(x))
    random = torch.random.get_rng_state()
    (one,) = subject(net).run([batch(2, 3)])
    (two,) = subject(net).run([batch(2, 3)])
    assert torch.equal(torch.random.get_rng_state(), random)
    assert np.array_equal(one, two)


def test_modules_that_override_train_and_eval_are_not_asked(torch):
    net = torch.nn.Linear(2, 2)
    net.train = net.eval = None  # some merge weights in them, which loses digits
    net.training = True
    assert subject(net).run([batch(1, 2)])[0].shape == (1, 2)
    assert net.training


def test_outputs_carry_no_gradient_and_no_inference_tensor_is_kept(torch):
    cache: list[Any] = []
    net = function(
        torch, lambda self, x: cache.append(self.fc(x)) or cache[-1], fc=torch.nn.Linear(2, 2)
    )
    subject(net).run([batch(1, 2)])
    assert not cache[0].requires_grad
    assert not cache[0].is_inference()


def test_mixed_precision_around_a_run_is_off_in_it(torch):
    net = torch.nn.Linear(3, 4)
    (told,) = subject(net).run([batch(2, 3)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = subject(net).run([batch(2, 3)])
    assert np.array_equal(found, told)


def test_fused_transformer_layers_are_seen_inside_and_fused_again_afterwards(torch):
    layer = torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    diary = Diary()
    assert torch.backends.mha.get_fastpath_enabled()
    subject(layer).run([batch(2, 3, 4)], diary)
    assert torch.backends.mha.get_fastpath_enabled()
    assert {"linear1", "linear2", "norm2"} <= {call.layer for call, _ in diary.began}


# Modules of all kinds


def test_a_child_whose_weights_are_used_without_calling_it_is_not_told_of(torch):
    functional = torch.nn.functional
    net = function(
        torch, lambda self, x: functional.linear(x, self.fc.weight), fc=torch.nn.Linear(3, 2)
    )
    diary = Diary()
    subject(net).run([batch(2, 3)], diary)
    assert diary.order == [">", "<"]


def test_modules_that_make_weights_are_no_layers(torch):
    net = torch.nn.Sequential(torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2)))
    diary = Diary()
    subject(net).run([batch(2, 3)], diary)
    assert diary.order == [">", ">0", "<0", "<"]
    assert diary.began[1][0].leaf


def test_wrappers_around_a_model_are_taken_off(torch):
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    who = subject(torch.nn.DataParallel(net))
    assert list(who.norms) == ["1"]
    assert "1.running_var" in who.table()
    assert who.run([batch(2, 3)])[0].shape == (2, 2)


@pytest.mark.filterwarnings("ignore")
def test_compiled_models_are_seen_inside(torch):
    inner = torch.nn.Linear(3, 3)
    inner.compile(backend="eager")
    net = torch.compile(
        torch.nn.Sequential(
            torch.compile(torch.nn.Sequential(torch.nn.ReLU()), backend="eager"), inner
        ),
        backend="eager",
    )
    net(torch.ones(2, 3))  # compiled before anybody watches
    diary = Diary()
    subject(net).run([batch(2, 3)], diary)
    assert diary.order == [
        ">", ">0", ">0._orig_mod", ">0._orig_mod.0", "<0._orig_mod.0", "<0._orig_mod", "<0",
        ">1", "<1", "<",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_module_inside_is_told_of_as_one(torch):
    script = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU()))
    diary = Diary()
    who = subject(torch.nn.Sequential(script, torch.nn.Linear(3, 2)))
    who.run([batch(2, 3)], diary)
    assert diary.order == [">", ">0", "<0", ">1", "<1", "<"]
    assert who.notes == ("layers inside TorchScript modules are not seen: '0'",)
    assert diary.began[1][0].class_name == "Sequential"


def test_the_users_own_hooks_come_first(torch):
    net = torch.nn.Sequential(torch.nn.Identity())
    net[0].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    net[0].register_forward_hook(lambda module, args, output: output * 10)
    diary = Diary()
    subject(net).run([np.zeros((1, 1))], diary)
    assert diary.began[1][1][0].tolist() == [[1]]
    assert diary.ended[0][1][0].tolist() == [[10]]
    assert hooks(net) == 2


# Errors


def test_what_a_layer_does_not_take_names_the_layer_and_the_shapes(torch):
    with pytest.raises(UsageError) as told:
        subject(convolutional(torch)).run([batch(2, 5, 4, 4)])
    text = str(told.value)
    assert text.startswith("layer 'stem.1' (Conv2d) fails on float32 (2, 5, 4, 4): ")
    assert "to have 3 channels, but got 5 channels" in text
    assert text.endswith("; the run was given float32 (2, 5, 4, 4)")
    assert "\n" not in text


def test_what_the_model_itself_does_not_take_is_told_of_it(torch):
    with pytest.raises(UsageError) as told:
        subject(torch.nn.Linear(3, 2)).run([batch(2, 3), batch(2, 3)])
    assert str(told.value).startswith(
        "the model fails on float32 (2, 3), float32 (2, 3): TypeError"
    )


def test_many_inputs_are_told_of_in_short(torch):
    with pytest.raises(UsageError, match=r"float32 \(1,\) and 2 more: TypeError"):
        subject(torch.nn.Linear(3, 2)).run([np.zeros(1)] * 6)


def test_long_reasons_are_cut(torch):
    def forward(self, x):
        raise ValueError("\n\n  " + "x" * 999 + "\nmore")

    with pytest.raises(UsageError, match=r"\(2, 3\): x{300}$"):
        subject(function(torch, forward)).run([batch(2, 3)])


def test_an_error_without_words_is_told_by_its_name(torch):
    def forward(self, x):
        raise KeyError

    with pytest.raises(UsageError, match=r"fails on nothing: KeyError$"):
        subject(function(torch, forward)).run(["word"])


def test_what_an_observer_raises_comes_out_as_it_is_even_if_the_model_catches_it(torch):
    class Careless(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(3, 2)

        def forward(self, x):
            try:
                return self.fc(x)
            except RuntimeError:
                return x

    class Early(Diary):
        def before(self, call, inputs):
            if call.layer == "fc":
                raise Stop

    with pytest.raises(Stop):
        subject(Careless()).run([batch(2, 3)], Early())


def test_an_error_that_the_model_gets_over_ends_only_that_call(torch):
    def forward(self, x):
        try:
            x = self.bad(x)
        except RuntimeError:
            x = self.good(x)
        return x

    inner = torch.nn.Sequential(torch.nn.Linear(9, 9))
    net = function(torch, forward, bad=inner, good=torch.nn.Linear(3, 2))
    diary = Diary()
    assert subject(net).run([batch(2, 3)], diary)[0].shape == (2, 2)
    assert diary.order == [">", ">bad", ">bad.0", ">good", "<good", "<"]
    assert [call.depth for call, _ in diary.began] == [0, 1, 2, 1]


def test_a_run_after_an_error_of_the_callers_is_like_any_other(torch):
    silent = function(torch, lambda self, x: None)
    net = function(torch, lambda self, x: self.silent(x) or x, silent=silent)
    diary = Diary()
    try:
        {}["no such key"]
    except KeyError:
        subject(net).run([batch(2, 3)], diary)
    assert diary.order == [">", ">silent", "<silent", "<"]


def test_an_error_of_a_hook_before_ours_is_told_too(torch):
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())

    def refuse(module, args):
        raise RuntimeError("not today")

    net[1].register_forward_pre_hook(refuse)
    with pytest.raises(UsageError, match="not today"):
        subject(net).run([batch(2, 3)], Diary())


def test_layers_without_shape_or_values_are_refused(torch):
    with pytest.raises(
        UsageError, match=r"'0.weight' of the model has no shape yet; run the model"
    ):
        subject(torch.nn.Sequential(torch.nn.LazyLinear(3)))
    with pytest.raises(UsageError, match="'weight' of the model is on the meta device: no values"):
        subject(torch.nn.Linear(3, 2, device="meta"))


def test_layers_that_are_mapped_over_samples_have_no_values_to_see(torch):
    class Mapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense, self.norm = torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(torch.vmap(self.dense)(x))

    seen = {}

    class Observer:
        def before(self, call, inputs):
            seen[call.layer] = [len(inputs)]

        def after(self, call, outputs):
            seen[call.layer].append(len(outputs))

    module = Mapped().eval()
    x = torch.ones(5, 3)
    (outputs,) = subject(module).run([x.numpy()], Observer())
    np.testing.assert_allclose(outputs, module(x).detach())
    assert seen == {"": [1, 1], "dense": [0, 0], "norm": [1, 1]}


def test_inputs_go_by_name_where_they_were_named(torch):
    class Named(torch.nn.Module):
        def forward(self, first, second=None, *, third):
            assert second is None
            return first - third

    live = subject(Named())
    live.by_name = ("third", "first")
    (outputs,) = live.run([np.ones((2, 3)), np.full((2, 3), 5.0)])
    assert outputs.tolist() == [[4.0] * 3] * 2


def test_what_is_no_module_is_refused(torch):
    with pytest.raises(UsageError, match=r"expected a torch.nn.Module, found OrderedDict"):
        subject(OrderedDict())


def test_without_torch_the_extra_is_named(monkeypatch):
    from ckptdoctor.live.torch_subject import TorchSubject

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError) as told:
        TorchSubject(None)
    assert str(told.value) == (
        "needs torch, which is not installed; pip install 'ckptdoctor[torch]'"
    )
