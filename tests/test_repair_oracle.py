"""The founding case in every layout: what is repaired, real Keras and torch run again."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptdoctor
from ckptdoctor.cli import run

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

Values = dict[str, np.ndarray]
"""Weights by Keras' names: ``bn2/moving_variance``."""
SICK = {"post_bn/moving_mean", "post_bn/moving_variance", "bn2/moving_variance"}
CHANCE = 0.25


@dataclass(frozen=True)
class Case:
    """A trained network, what it was trained for, and what it says."""

    weights: Values
    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray

    def accuracy(self, logits: np.ndarray) -> float:
        return float(np.mean(logits.argmax(1) == self.labels))


def poisoned(weights: Values) -> Values:
    """One overflow in the last BatchNorm, and what exploded on the way to it."""
    made = {name: value.copy() for name, value in weights.items()}
    made["post_bn/moving_mean"][:] = np.nan
    made["post_bn/moving_variance"][:] = np.nan
    made["bn2/moving_variance"] *= 1e5
    return made


# --- Keras ----------------------------------------------------------------------------------------


def keras_net(keras: Any) -> Any:
    layers = keras.layers
    made: list[Any] = [keras.Input((8, 8, 3))]
    for name, layer in {
        "bn1": layers.Conv2D(8, 3, use_bias=False, name="conv1"),
        "bn2": layers.Conv2D(16, 3, use_bias=False, name="conv2"),
        "post_bn": layers.Dense(16, use_bias=False, name="dense"),
    }.items():
        made += [layers.Flatten()] if name == "post_bn" else []
        made += [layer, layers.BatchNormalization(momentum=0.8, name=name), layers.ReLU()]
    return keras.Sequential([*made, layers.Dense(4, name="head")])


def compiled(keras: Any, model: Any) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    return model


def keras_values(model: Any) -> Values:
    return {
        f"{layer.name}/{weight.name.rpartition('/')[2].partition(':')[0]}": np.asarray(weight)
        for layer in model.layers
        for weight in layer.weights
    }


def put_keras(model: Any, values: Values) -> Any:
    model.set_weights([values[name] for name in keras_values(model)])
    return model


@pytest.fixture(scope="module")
def case() -> Case:
    pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    patterns = random.normal(size=(4, 8, 8, 3))
    labels = random.integers(0, 4, 768)
    images = (0.7 * patterns[labels] + random.normal(size=(768, 8, 8, 3))).astype("f4")
    model = compiled(keras, keras_net(keras))
    model.fit(images[:512], labels[:512], batch_size=64, epochs=3, verbose=0)
    logits = np.asarray(model(images[512:], training=False))
    made = Case(keras_values(model), images[512:], labels[512:], logits)
    assert made.accuracy(logits) > 0.95
    return made


class Keras:
    """A layout that Keras writes; ``package`` is keras or tf_keras."""

    def __init__(self, suffix: str, package: str = "keras", *, trained: bool = True) -> None:
        self.suffix, self.package, self.trained = suffix, package, trained

    def save(self, path: Path, values: Values, case: Case) -> None:
        keras = pytest.importorskip(self.package)
        model = put_keras(keras_net(keras), values)
        if self.trained:
            compiled(keras, model).optimizer.build(model.trainable_variables)
        if self.suffix == ".weights.h5":
            model.save_weights(path)
        else:
            model.save(path)

    def load(self, path: Path, *, optimizer: bool = True) -> Any:
        keras = pytest.importorskip(self.package)
        keras.backend.clear_session()
        if self.suffix == ".weights.h5":
            model = keras_net(keras)
            model.load_weights(path)
            return model
        return keras.models.load_model(path, compile=optimizer)

    def read(self, path: Path, images: np.ndarray) -> tuple[np.ndarray, Values]:
        """What the model says, and its weights."""
        model = self.load(path, optimizer=False)
        return np.asarray(model(images, training=False)), keras_values(model)


# --- torch ----------------------------------------------------------------------------------------


def torch_net() -> Any:
    import torch

    class Net(torch.nn.Module):
        """The twin: as Keras flattens, height and width before channels."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 8, 3, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(8, 1e-3)
            self.conv2 = torch.nn.Conv2d(8, 16, 3, bias=False)
            self.bn2 = torch.nn.BatchNorm2d(16, 1e-3)
            self.dense = torch.nn.Linear(256, 16, bias=False)
            self.post_bn = torch.nn.BatchNorm1d(16, 1e-3)
            self.head = torch.nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.bn1(self.conv1(x)))
            x = torch.relu(self.bn2(self.conv2(x)))
            x = x.permute(0, 2, 3, 1).flatten(1)
            return self.head(torch.relu(self.post_bn(self.dense(x))))

    return Net().eval()


LEAVES = {
    "gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
    "moving_variance": "running_var", "kernel": "weight", "bias": "bias",
}  # fmt: skip


def state_of(values: Values) -> dict[str, Any]:
    """State dict of the twin."""
    import torch

    made = {}
    for name, value in values.items():
        layer, _, leaf = name.partition("/")
        axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(value.ndim, (0,))
        array = np.ascontiguousarray(value.transpose(axes))
        made[f"{layer}.{LEAVES[leaf]}"] = torch.from_numpy(array)
        if leaf == "moving_variance":
            made[f"{layer}.num_batches_tracked"] = torch.tensor(24)
    return made


def values_of(state: Mapping[str, Any]) -> Values:
    """Weights of a state dict by Keras' names, still as torch lays them out."""
    made = {}
    for name, tensor in state.items():
        layer, _, leaf = name.partition(".")
        keras = {v: k for k, v in LEAVES.items()}.get(leaf, leaf)
        if "bn" in layer and leaf in ("weight", "bias"):
            keras = "gamma" if leaf == "weight" else "beta"
        elif leaf == "weight":
            keras = "kernel"
        made[f"{layer}/{keras}"] = tensor.detach().numpy().copy()
    return made


def filled(values: Values) -> Any:
    net = torch_net()
    net.load_state_dict(state_of(values))
    return net


def step(net: Any, optimizer: Any, case: Case) -> float:
    """One step of training; gives the loss."""
    import torch

    images = torch.from_numpy(case.images[:64].transpose(0, 3, 1, 2).copy())
    net.train()
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(net(images), torch.from_numpy(case.labels[:64]))
    loss.backward()
    optimizer.step()
    net.eval()
    return float(loss.detach())


def checkpoint(values: Values, case: Case) -> dict[str, Any]:
    """What a training loop saves: with the state of an optimizer that has stepped."""
    import torch

    net = filled(values)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    step(net, optimizer, case)
    net.load_state_dict(state_of(values))
    return {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}


class Torch:
    """A layout that torch or safetensors write."""

    def __init__(self, kind: str, suffix: str = ".pt") -> None:
        self.kind, self.suffix = kind, suffix

    def save(self, path: Path, values: Values, case: Case) -> None:
        torch = pytest.importorskip("torch")
        if self.kind == "safetensors":
            pytest.importorskip("safetensors.torch").save_file(state_of(values), path)
        elif self.kind == "script":
            torch.jit.script(filled(values)).save(path)
        elif self.kind == "trace":
            torch.jit.trace(filled(values), torch.zeros(2, 3, 8, 8)).save(path)
        elif self.kind == "checkpoint":
            torch.save(checkpoint(values, case), path)
        elif self.kind == "legacy":
            torch.save(state_of(values), path, _use_new_zipfile_serialization=False)
        else:
            torch.save(state_of(values), path)
        if self.kind == "deflated":
            deflate(path)

    def state(self, path: Path) -> Mapping[str, Any]:
        import torch

        if self.kind == "safetensors":
            loaded: Mapping[str, Any] = pytest.importorskip("safetensors.torch").load_file(path)
            return loaded
        if self.kind in ("script", "trace"):
            held: Mapping[str, Any] = torch.jit.load(path).state_dict()
            return held
        tree = torch.load(path, weights_only=True)
        return tree["model"] if self.kind == "checkpoint" else tree

    def read(self, path: Path, images: np.ndarray) -> tuple[np.ndarray, Values]:
        """What the model says, and its weights."""
        torch = pytest.importorskip("torch")
        state = self.state(path)
        if self.kind in ("script", "trace"):
            net = torch.jit.load(path).eval()
        else:
            net = torch_net()
            net.load_state_dict(state)
        return logits_of(net, images), values_of(state)


def logits_of(net: Any, images: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return np.asarray(net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())))


def deflate(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members.items():
            out.writestr(name, data)


LAYOUTS: dict[str, Keras | Torch] = {
    "Keras 3 h5": Keras(".h5"),
    "Keras 3 h5 without optimizer": Keras(".h5", trained=False),
    "Keras 3 weights": Keras(".weights.h5"),
    "Keras 3 archive": Keras(".keras"),
    "Keras 2 h5": Keras(".h5", "tf_keras"),
    "Keras 2 weights": Keras(".weights.h5", "tf_keras", trained=False),
    "state dict": Torch("state"),
    "deflated state dict": Torch("deflated"),
    "checkpoint": Torch("checkpoint", ".pth.tar"),
    "legacy": Torch("legacy", ".pth"),
    "safetensors": Torch("safetensors", ".safetensors"),
    "scripted": Torch("script"),
    "traced": Torch("trace"),
}


@pytest.fixture(scope="module")
def files(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Makes the healthy and the sick file of a layout, once."""
    folder = tmp_path_factory.mktemp("patients")

    def file(layout: str, state: str) -> Path:
        path = folder / f"{layout} {state}{LAYOUTS[layout].suffix}"
        if not path.exists():
            values = poisoned(case.weights) if state == "sick" else case.weights
            LAYOUTS[layout].save(path, values, case)
        return path

    return file


def assert_untouched(before: Values, after: Values, but: set[str]) -> None:
    assert list(before) == list(after)
    for name, value in before.items():
        if name not in but:
            assert after[name].tobytes() == value.tobytes(), name
            assert (after[name].dtype, after[name].shape) == (value.dtype, value.shape)


def assert_sound(path: Path) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_command_makes_it_predict_again(
    files: Any, case: Case, tmp_path: Path, layout: str
) -> None:
    how, sick = LAYOUTS[layout], files(layout, "sick")
    logits, before = how.read(sick, case.images)
    assert np.isnan(logits).all()
    output = tmp_path / f"repaired{how.suffix}"
    assert run(["repair", str(sick), "-o", str(output), "--bn-reset"]) == 0
    logits, after = how.read(output, case.images)
    assert np.isfinite(logits).all()
    assert case.accuracy(logits) > CHANCE + 0.5
    assert_untouched(before, after, SICK | {"bn2/moving_mean"})
    assert not after["post_bn/moving_mean"].any()
    assert (after["post_bn/moving_variance"] == 1).all()
    assert (after["bn2/moving_variance"] == 1).all()
    assert_sound(output)
    if layout != "deflated state dict":
        assert output.stat().st_size == sick.stat().st_size


DONORS = {
    "Keras 3 h5": "Keras 3 weights",
    "Keras 3 weights": "Keras 3 archive",
    "Keras 3 archive": "Keras 2 h5",
    "Keras 2 h5": "Keras 3 h5",
    "Keras 2 weights": "Keras 3 h5",
    "state dict": "safetensors",
    "deflated state dict": "checkpoint",
    "checkpoint": "state dict",
    "legacy": "traced",
    "safetensors": "checkpoint",
    "scripted": "legacy",
}


@pytest.mark.parametrize("layout", DONORS)
def test_a_donor_in_another_format_gives_back_what_was_there(
    files: Any, case: Case, tmp_path: Path, layout: str
) -> None:
    how, sick, donor = LAYOUTS[layout], files(layout, "sick"), files(DONORS[layout], "healthy")
    output = tmp_path / f"repaired{how.suffix}"
    assert run(["repair", str(sick), "-o", str(output), "--donor", str(donor)]) == 0
    logits, after = how.read(output, case.images)
    assert np.abs(logits - case.logits).max() < (1e-5 if isinstance(how, Keras) else 1e-4)
    healthy, before = how.read(files(layout, "healthy"), case.images)
    assert np.abs(logits - healthy).max() <= 1e-5
    assert_untouched(before, after, set())
    assert_sound(output)


# --- training state -------------------------------------------------------------------------------


def test_training_goes_on_after_moments_are_mended(case: Case, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tree = checkpoint(case.weights, case)
    moments = tree["optimizer"]["state"]
    moments[0]["exp_avg"][0, 0] = torch.nan
    moments[4]["exp_avg_sq"][3] = -1e-9
    torch.save(tree, tmp_path / "sick.pt")

    def resumed(path: Path) -> tuple[float, dict[str, Any]]:
        held = torch.load(path, weights_only=True)
        net = torch_net()
        net.load_state_dict(held["model"])
        optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
        optimizer.load_state_dict(held["optimizer"])
        step(net, optimizer, case)
        return step(net, optimizer, case), net.state_dict()

    assert np.isnan(resumed(tmp_path / "sick.pt")[0])
    assert run(["repair", str(tmp_path / "sick.pt"), "-o", str(tmp_path / "well.pt")]) == 0
    loss, state = resumed(tmp_path / "well.pt")
    assert loss < 0.2
    assert all(bool(torch.isfinite(value).all()) for value in state.values())
    assert any(not torch.equal(state[name], tree["model"][name]) for name in state)
    after = torch.load(tmp_path / "well.pt", weights_only=True)
    assert after["epoch"] == 3
    assert after["optimizer"]["param_groups"] == tree["optimizer"]["param_groups"]
    for name, value in tree["model"].items():
        assert torch.equal(after["model"][name], value)
    gone = {0: moments[0]["exp_avg"].isnan(), 4: moments[4]["exp_avg_sq"] < 0}
    for number, parts in moments.items():
        held = after["optimizer"]["state"][number]
        assert torch.equal(held["step"], parts["step"])
        for name in ("exp_avg", "exp_avg_sq"):
            # both moments start again where one of them was broken
            wanted = parts[name].clone()
            wanted[gone.get(number, torch.zeros(wanted.shape, dtype=torch.bool))] = 0
            assert torch.equal(held[name], wanted), (number, name)


@pytest.mark.parametrize("layout", ["Keras 3 archive", "Keras 2 h5"])
def test_keras_trains_on_after_moments_are_mended(case: Case, tmp_path: Path, layout: str) -> None:
    """Keras 3 itself cannot train on what it loads from an `.h5` file."""
    how = LAYOUTS[layout]
    assert isinstance(how, Keras)
    keras = pytest.importorskip(how.package)
    keras.backend.clear_session()
    model = compiled(keras, put_keras(keras_net(keras), case.weights))
    model.optimizer.build(model.trainable_variables)
    spoiled = next(v for v in model.optimizer.variables if tuple(v.shape) == (3, 3, 3, 8))
    spoiled.assign(np.full(spoiled.shape, np.nan))
    sick, well = tmp_path / f"sick{how.suffix}", tmp_path / f"well{how.suffix}"
    model.save(sick)
    assert run(["repair", str(sick), "-o", str(well)]) == 0
    again = how.load(well)
    assert_untouched(case.weights, keras_values(again), set())
    for one, other in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        wanted = np.nan_to_num(np.asarray(one))
        assert np.asarray(other).tobytes() == wanted.tobytes()
    assert np.isfinite(again.train_on_batch(case.images[:64], case.labels[:64]))
    values = keras_values(again)
    assert all(np.isfinite(value).all() for value in values.values())
    assert values["conv1/kernel"].tobytes() != case.weights["conv1/kernel"].tobytes()


def test_an_average_that_nan_reached_is_the_model_again(case: Case, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = state_of(case.weights)
    ema = {
        name: torch.full_like(value, torch.nan) if value.is_floating_point() else value.clone()
        for name, value in model.items()
    }
    torch.save({"model": model, "ema": ema, "epoch": 3}, tmp_path / "sick.pt")
    assert run(["repair", str(tmp_path / "sick.pt"), "-o", str(tmp_path / "well.pt")]) == 0
    after = torch.load(tmp_path / "well.pt", weights_only=True)
    for part in ("model", "ema"):
        assert list(after[part]) == list(model)
        assert all(torch.equal(after[part][name], value) for name, value in model.items())
    net = torch_net()
    net.load_state_dict(after["ema"])
    assert case.accuracy(logits_of(net, case.images)) == case.accuracy(case.logits)


def test_torch_loads_what_an_optimizer_was_left_out_of(
    files: Any, case: Case, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    source, output = files("checkpoint", "healthy"), tmp_path / "model.pt"
    assert run(["repair", str(source), "-o", str(output), "--drop-optimizer"]) == 0
    tree = torch.load(output, weights_only=True)
    assert list(tree) == ["model", "epoch"]
    net = torch_net()
    net.load_state_dict(tree["model"])
    assert np.abs(logits_of(net, case.images) - case.logits).max() < 1e-4
    assert output.stat().st_size < 0.6 * source.stat().st_size
    assert_sound(output)


@pytest.mark.parametrize(
    "layout", ["Keras 3 h5", "Keras 3 weights", "Keras 3 archive", "Keras 2 h5"]
)
def test_keras_loads_what_an_optimizer_was_left_out_of(
    files: Any, case: Case, tmp_path: Path, layout: str
) -> None:
    how, source = LAYOUTS[layout], files(layout, "healthy")
    output = tmp_path / f"model{how.suffix}"
    assert run(["repair", str(source), "-o", str(output), "--drop-optimizer"]) == 0
    logits, after = how.read(output, case.images)
    assert np.abs(logits - case.logits).max() <= 1e-5
    assert_untouched(how.read(source, case.images)[1], after, set())
    assert_sound(output)


def test_torch_resumes_with_the_number_that_was_set(files: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    source, output = files("checkpoint", "healthy"), tmp_path / "model.pt"
    numbers = {"optimizer.param_groups.0.lr": 0.0123, "epoch": 4}
    assert ckptdoctor.repair(source, output, numbers=numbers).done
    before, after = (torch.load(path, weights_only=True) for path in (source, output))
    (group,) = after["optimizer"]["param_groups"]
    assert group == {**before["optimizer"]["param_groups"][0], "lr": 0.0123}
    assert after["epoch"] == 4
    assert_sound(output)


RATE = "compile_config/optimizer/config/learning_rate"


@pytest.mark.parametrize(
    "orders",
    [
        {"numbers": {RATE: 0.5}},
        {"numbers": {RATE: 0.5}, "drop_optimizer": True},
        {"numbers": {"optimizer/vars/1": 0.5}},
    ],
    ids=["configuration", "configuration alone", "variable"],
)
def test_keras_resumes_with_the_rate_that_was_set(
    files: Any, tmp_path: Path, orders: dict[str, Any]
) -> None:
    """Where the optimizer is stored, its variable counts; else the configuration does."""
    how = LAYOUTS["Keras 3 archive"]
    assert isinstance(how, Keras)
    output = tmp_path / "model.keras"
    assert ckptdoctor.repair(files("Keras 3 archive", "healthy"), output, **orders).done
    assert float(np.asarray(how.load(output).optimizer.learning_rate)) == 0.5
    assert_sound(output)


def test_torch_jit_runs_a_compressed_module_after_a_repair(
    files: Any, case: Case, tmp_path: Path
) -> None:
    """Deflated by another tool, which torch reads as well."""
    torch = pytest.importorskip("torch")
    source, output = tmp_path / "sick.pt", tmp_path / "well.pt"
    source.write_bytes(files("scripted", "sick").read_bytes())
    deflate(source)
    torch.jit.load(source)
    donor = files("safetensors", "healthy")
    assert run(["repair", str(source), "-o", str(output), "--donor", str(donor)]) == 0
    logits, _ = LAYOUTS["scripted"].read(output, case.images)
    assert np.abs(logits - case.logits).max() < 1e-4
    assert_sound(output)
