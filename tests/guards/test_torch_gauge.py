"""What is watched of a torch module, and what is no false alarm."""

import pytest

pytestmark = pytest.mark.oracle


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def net(torch):
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2, bias=False)
    )


def look(module, change=None, steps=1):
    from ckptdoctor.guards.torch_gauge import TorchGauge
    from ckptdoctor.guards.watching import Watch

    watch = Watch(TorchGauge(module))
    for step in range(1, steps + 1):
        if change is not None and step == steps:
            change()
        watch.measure(step)
    return watch.look()


def fill(tensor, value):
    return lambda: tensor.data.view(-1)[-1:].fill_(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_weights_and_statistics_of_every_width_are_watched(torch, dtype, value):
    for name in ("0.weight", "1.running_mean", "1.running_var", "2.weight"):
        module = net(torch).to(getattr(torch, dtype))
        bad = look(module, fill(module.state_dict()[name], value), steps=3)
        layer, part = name.split(".")
        assert (bad.step, bad.others) == (3, 0)
        assert bad.value == ("Inf" if abs(value) == float("inf") else "NaN")
        assert repr(layer) in bad.tensor
        assert bad.tensor.endswith(part)
        assert bad.weights_finite == (bad.kind == "statistic") == part.startswith("running")


def test_order_is_that_of_the_model_where_types_are_mixed(torch):
    module = net(torch)
    module[0].half()
    module[2].half()

    def change():
        fill(module[1].running_var, float("inf"))()
        fill(module[2].weight, float("nan"))()

    bad = look(module, change)
    assert bad.tensor == "BatchNorm '1' running_var"
    assert (bad.value, bad.others, bad.weights_finite) == ("Inf", 1, False)


def test_norms_that_overflow_are_no_false_alarm(torch):
    module = net(torch).half()
    module[1].running_var.fill_(60000)
    module[0].weight.data.fill_(60000)
    module[2].float().weight.data.fill_(3e38)
    assert look(module) is None


def test_what_cannot_change_or_may_be_infinite_is_left_out(torch):
    module = net(torch)
    module.register_buffer("mask", torch.full((4, 4), float("-inf")))
    module.register_buffer("counts", torch.zeros(3, dtype=torch.int64))
    module[0].weight.data.fill_(float("nan"))
    module[0].requires_grad_(requires_grad=False)
    module.codes = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    module.lazy = torch.nn.LazyLinear(3)
    module.meta = torch.nn.Linear(2, 2, device="meta")
    assert look(module) is None


def test_model_without_weights_is_fine(torch):
    assert look(torch.nn.ReLU()) is None


def test_compiled_model_has_the_names_of_its_own(torch):
    class Wrapped(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self._orig_mod = module

    module = net(torch)
    bad = look(Wrapped(module), fill(module[1].running_var, float("nan")))
    assert bad.tensor == "BatchNorm '1' running_var"


def test_training_step_between_two_looks_is_told_apart(torch):
    from ckptdoctor.guards.torch_gauge import TorchGauge
    from ckptdoctor.guards.watching import Watch

    module = net(torch)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    watch = Watch(TorchGauge(module))
    for step in range(1, 21):
        batch = torch.full((8, 4), float("nan")) if step == 13 else torch.randn(8, 4)
        loss = module(batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if loss.isfinite():
            optimizer.step()
        watch.measure(step)
    bad = watch.look()
    assert (bad.step, bad.kind, bad.weights_finite) == (13, "statistic", True)
