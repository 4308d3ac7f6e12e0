"""``docs/guards.md``: its examples run, and what it says is so."""

import re
from pathlib import Path

import numpy as np
import pytest

from ckptdoctor.guards import LOSSES
from ckptdoctor.guards.terms import Terms

TEXT = (Path(__file__).parents[2] / "docs" / "guards.md").read_text(encoding="utf-8")
SECTIONS = {part.split("\n", 1)[0]: part for part in re.split(r"^## ", TEXT, flags=re.MULTILINE)}


def run(title, monkeypatch, folder, **names):
    (code,) = re.findall(r"^```python\n(.*?)^```", SECTIONS[title], re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(folder)
    exec(compile(code, "docs/guards.md", "exec"), names)  # noqa: S102


def network(torch):
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)
    )


@pytest.mark.oracle
def test_example_of_a_function_that_saves(tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    model = network(torch)
    optimizer = torch.optim.Adam(model.parameters())
    title = "Any function that saves"
    run(title, monkeypatch, tmp_path, model=model, optimizer=optimizer)
    assert capsys.readouterr().out == "True \n"
    assert (tmp_path / "runs" / "last.pt").is_file()


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_example_for_keras(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse", metrics=["mae"])
    x = np.ones((8, 4))
    run("Keras 3", monkeypatch, tmp_path, model=model, x=x, y=np.zeros((8, 2)))
    assert (tmp_path / "runs" / "model.keras").is_file()


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_example_for_lightning(tmp_path, monkeypatch):
    torch, lightning = pytest.importorskip("torch"), pytest.importorskip("lightning")

    class Module(lightning.pytorch.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network(torch)

        def training_step(self, batch):
            loss = self.net(batch[0]).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(16, 4)), 8)
    for _ in range(2):  # from the start, then from the last good one
        run("Lightning", monkeypatch, tmp_path, module=Module(), data=data, lightning=lightning)
    assert (tmp_path / "runs" / "last_good.json").is_file()


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_example_for_the_trainer(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network(torch)

        def forward(self, x):
            return {"loss": self.net(x).square().mean()}

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "runs"),
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        max_steps=1,
    )
    data = [{"x": row} for row in torch.randn(8, 4)]
    names = {"model": Model(), "arguments": arguments, "data": data}
    run("Hugging Face Trainer", monkeypatch, tmp_path, transformers=transformers, **names)
    assert (tmp_path / "runs" / "last_good" / "model.safetensors").is_file()


def test_codes_are_those_of_the_guards():
    listed = TEXT[TEXT.index("<!-- losses -->") :].split("\n\n", 1)[0]
    assert tuple(re.findall(r"`(\w+)`", listed)) == LOSSES


def test_defaults_are_those_of_the_guards():
    rows = dict(re.findall(r'^\| `(\w+)` \| `"?(\w+)"?` \|', TEXT, re.MULTILINE))
    terms = Terms()
    assert rows == {
        "on_unfit": terms.on_unfit,
        "keep_unfit": terms.keep_unfit,
        "watch_every": "50",
    }


@pytest.mark.parametrize("guard", ["keras.KerasGuard", "lightning_guard.LightningGuard",
                                   "transformers.TransformersGuard"])  # fmt: skip
def test_guards_have_one_set_of_defaults(guard):
    import importlib
    import inspect

    home, _, name = guard.rpartition(".")
    cls = getattr(importlib.import_module(f"ckptdoctor.guards.{home}"), name)
    given = {
        name: parameter.default
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert given == {
        "on_unfit": "warn",
        "keep_unfit": "both",
        "fail_on": "error",
        "select": LOSSES,
        "ignore": (),
        "watch_every": 50,
    }
