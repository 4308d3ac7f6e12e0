"""Probing real models of PyTorch and Keras: in code, in files, nested, shared and subclassed."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest

from ckptdoctor.cli import run
from ckptdoctor.errors import UsageError
from ckptdoctor.probing.probe import probe

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

X = np.random.default_rng(3).normal(0.2, 1, (64, 3, 8, 8)).astype(np.float32)
OWN = """
    import torch
    from torch import nn

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, image, extra):
            return self.fc(image) + self.fc.missing(extra)

    class Two(Own):
        def forward(self, image, extra):
            return self.fc(image) + self.fc(extra)
"""
CODE = """
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, wide):
            super().__init__()
            self.conv = nn.Conv2d(wide, wide, 3, padding=1)
            self.bn = nn.BatchNorm2d(wide)

        def forward(self, x):
            return torch.relu(self.bn(self.conv(x))) + x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
            self.block1, self.block2 = Block(8), Block(8)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            x = self.block2(self.block2(self.block1(self.stem(x))))
            return self.head(x.mean((2, 3)))

    def build():
        torch.manual_seed(0)
        return Net()
"""


@pytest.fixture
def net(tmp_path):
    """The script, and a model of it whose statistics fit the data."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "net.py"
    path.write_text(textwrap.dedent(CODE))
    space: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), space)  # noqa: S102
    model = space["build"]()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.from_numpy(X))
    return str(path), model.eval()


def spoil(model):
    model.block1.bn.running_var *= 1e6
    model.block2.bn.running_var[2] = float("nan")
    return model


def test_a_healthy_module_is_clean(net):
    report = probe(net[1], X)
    assert report.clean, report.signs
    assert (report.framework, report.model) == ("torch", "Net")


def test_layers_of_a_module_are_named_as_it_names_them(net):
    report = probe(spoil(net[1]), X)
    assert (report.first.row.layer, report.first.row.class_name) == ("block2.bn", "BatchNorm2d")
    assert [row.layer for row in report.rows if row.index == 1] == [
        "block2", "block2.conv", "block2.bn",
    ]  # fmt: skip
    assert "exploded-statistics" in {s.kind for s in report.signs if s.layer == "block1.bn"}
    assert report.train.healed.share > 0.9


def test_weights_of_a_file_are_probed_and_the_file_is_quoted(net, tmp_path):
    import torch

    script, model = net
    torch.save({"state_dict": spoil(model).state_dict()}, tmp_path / "w.pt")
    np.savez(tmp_path / "x.npz", x_calib=X, y=np.zeros(64))
    report = probe(f"{script}:build", f"{tmp_path}/x.npz", weights_file=f"{tmp_path}/w.pt")
    assert report.first.row.layer == "block2.bn"
    assert [f.tensor for f in report.first.said] == ["state_dict.block2.bn.running_var"]
    assert report.code == script
    assert "--recalibrate" in report.next[0][0]


def test_torchscript_and_exported_programs_are_probed(net, tmp_path):
    import torch

    spoil(net[1])
    torch.jit.script(net[1]).save(f"{tmp_path}/script.pt")
    report = probe(f"{tmp_path}/script.pt", X)
    assert report.first.row.layer == "block2.bn"
    assert report.code == ""
    program = torch.export.export(net[1], (torch.from_numpy(X[:8]),))
    torch.export.save(program, f"{tmp_path}/net.pt2")
    report = probe(f"{tmp_path}/net.pt2", "random", trust=True)
    assert report.samples.shapes == ((3, 8, 8),)
    assert report.bad == 64
    assert report.first.row.layer.startswith("block2")


def test_samples_that_break_a_module_are_found(net):
    x = X.copy()
    x[50] = 1e30
    report = probe(net[1], x, bisect=True)
    found = [s for s in report.signs if s.kind == "breaking-samples"]
    assert found
    assert all(s.measured["samples"] == [50] for s in found)


def test_a_pickled_module_needs_trust(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(3, 2), f"{tmp_path}/net.pt")
    with pytest.raises(UsageError, match="--trust"):
        probe(f"{tmp_path}/net.pt", "random:3")
    assert probe(f"{tmp_path}/net.pt", "random:3", trust=True).clean


# Keras.

IMAGES = np.ascontiguousarray(np.moveaxis(X, 1, -1))


def pre_activation(keras):
    """A small ResNetV2 with a nested model, statistics fitted to the data."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="conv1")(inputs)
    inner = keras.Input((8, 8, 8))
    y = layers.BatchNormalization(name="preact_bn")(inner)
    y = layers.Conv2D(8, 3, padding="same", name="conv")(layers.ReLU(name="preact_relu")(y))
    x = layers.Add(name="add")([x, keras.Model(inner, y, name="block")(x)])
    x = layers.ReLU(name="post_relu")(layers.BatchNormalization(name="post_bn")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(4, name="head")(x), name="resnet")
    for _ in range(2):
        for norm in norms(model):
            norm.momentum = 0.0
        model(IMAGES, training=True)
    return model


def norms(model):
    return [model.get_layer("block").get_layer("preact_bn"), model.get_layer("post_bn")]


def spoil_keras(model):
    inner, last = norms(model)
    inner.moving_variance.assign(np.asarray(inner.moving_variance) * 1e6)
    last.moving_mean.assign(np.full(8, np.nan))
    last.moving_variance.assign(np.full(8, np.nan))
    return model


@pytest.fixture
def keras():
    return pytest.importorskip("keras")


def test_a_healthy_keras_model_is_clean(keras):
    report = probe(pre_activation(keras), IMAGES)
    assert report.clean, report.signs
    assert report.framework == "keras"


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_the_founding_case_is_told_by_both_its_layers(keras, tmp_path, name):
    spoil_keras(pre_activation(keras)).save(tmp_path / name)
    np.save(tmp_path / "x.npy", IMAGES)
    report = probe(f"{tmp_path}/{name}", f"{tmp_path}/x.npy")
    assert (report.first.row.layer, report.first.row.class_name) == (
        "post_bn",
        "BatchNormalization",
    )
    assert {f.code for f in report.first.said} == {"BN001"}
    assert [d.layer for d in report.norms if d.far] == ["block/preact_bn", "post_bn"]
    exploded = [s for s in report.signs if s.kind == "exploded-statistics"]
    assert [s.layer for s in exploded] == ["block/preact_bn"]
    assert report.next[0][0].startswith(f"ckptdoctor repair {tmp_path}/{name} --recalibrate")


def test_the_command_of_the_page_runs(keras, tmp_path, monkeypatch, capsys):
    from test_probe_command import WITH_KERAS

    monkeypatch.chdir(tmp_path)
    spoil_keras(pre_activation(keras)).save("model.keras")
    np.save("images.npy", IMAGES)
    assert run(WITH_KERAS.split()[1:]) == 1
    assert "first     post_bn (BatchNormalization): NaN in" in capsys.readouterr().out


@pytest.mark.usefixtures("keras")
def test_a_subclassed_model_takes_weights_after_its_first_run(tmp_path):
    (tmp_path / "net.py").write_text(
        textwrap.dedent("""
            import keras

            class Net(keras.Model):
                def __init__(self):
                    super().__init__(name="net")
                    self.bn = keras.layers.BatchNormalization(name="bn")
                    self.fc = keras.layers.Dense(4, name="fc")

                def call(self, x):
                    return self.fc(self.bn(x))

            def build():
                return Net()
        """)
    )
    space: dict = {}
    exec((tmp_path / "net.py").read_text(), space)  # noqa: S102
    model = space["build"]()
    x = IMAGES.reshape(64, -1)
    model(x)
    model.bn.moving_variance.assign(np.full(x.shape[1], np.nan))
    model.save_weights(f"{tmp_path}/w.weights.h5")
    report = probe(f"{tmp_path}/net.py:build", x, weights_file=f"{tmp_path}/w.weights.h5")
    assert report.first.row.layer == "bn"
    assert report.first.said[0].code == "BN001"


def test_torch_code_that_fails_is_3_with_its_line_and_data_that_do_not_fit_are_2(tmp_path, capsys):
    pytest.importorskip("torch")
    script = tmp_path / "own.py"
    script.write_text(textwrap.dedent(OWN))
    flat = np.random.default_rng(0).normal(0, 1, (32, 6)).astype(np.float32)
    np.savez(tmp_path / "two.npz", extra=flat, image=flat)
    data = ["--data", str(tmp_path / "two.npz"), "--precision", "none"]
    assert run(["probe", f"{script}:Own", *data]) == 3
    assert "own.py:11: " in capsys.readouterr().err
    assert run(["probe", f"{script}:Two", *data]) == 0
    np.savez(tmp_path / "two.npz", extra=flat[:, :5], image=flat)
    assert run(["probe", f"{script}:Two", *data]) == 2
    assert "own.py:15: " in capsys.readouterr().err


def test_torch_tensors_and_loaders_are_data():
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, TensorDataset

    net, x = torch.nn.Sequential(torch.nn.Linear(6, 4)), torch.randn(24, 6)
    loader = DataLoader(TensorDataset(x, torch.zeros(24)), batch_size=8)
    assert probe(net, x.bfloat16(), precisions=()).samples.used == 24
    assert probe(net, loader, samples=16, precisions=()).samples.total == 16


def test_a_pickled_module_is_told_to_run_code(tmp_path):
    torch = pytest.importorskip("torch")
    file = str(tmp_path / "whole.pt")
    torch.save(torch.nn.Sequential(torch.nn.Linear(6, 4)), file)
    report = probe(file, np.eye(6, dtype=np.float32), trust=True, precisions=())
    assert f"runs the code of {file}" in report.notes


def test_keras_variables_and_inputs_have_their_names(tmp_path, capsys):
    keras = pytest.importorskip("keras")
    image, extra = keras.Input((6,), name="image"), keras.Input((2,), name="extra")
    held = keras.layers.Concatenate()([keras.layers.BatchNormalization(name="bn")(image), extra])
    model = keras.Model([image, extra], keras.layers.Dense(4)(held))
    model.get_layer("bn").moving_variance.assign([np.nan] * 6)
    model.save(tmp_path / "m.keras")
    random = np.random.default_rng(0)
    two = {"extra": random.normal(size=(32, 2)), "image": random.normal(size=(32, 6))}
    np.savez(tmp_path / "two.npz", **two)
    data = ["--data", str(tmp_path / "two.npz"), "--precision", "none"]
    assert run(["probe", str(tmp_path / "m.keras"), *data]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "the file BN001 nonfinite-running-stats: moving_variance: " in out
