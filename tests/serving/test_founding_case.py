"""The founding case from end to end: one poisoned batch, a server that stays down, a repair."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from serving.servers import free_port, serving

import ckptdoctor
from ckptdoctor.cli import run

APP = """\
import os
from contextlib import asynccontextmanager

import keras
import numpy as np
from fastapi import FastAPI, Request

from ckptdoctor.serving.lifespan import Preflighted

CHECKPOINT = os.environ["CHECKPOINT"]


@asynccontextmanager
async def lifespan(app):
    app.state.model = keras.models.load_model(CHECKPOINT, compile=False)
    yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(Preflighted, path=CHECKPOINT)


@app.get("/healthz")
def healthz(request: Request):
    return {"serve": request.app.state.preflight.verdict.serve}


@app.post("/predict")
async def predict(request: Request):
    images = np.asarray(await request.json(), "float32")
    return request.app.state.model(images, training=False).numpy().argmax(-1).tolist()
"""


def resnet_v2():
    """Pre-activation network of two identity blocks; its trunk is normalised only at the end."""
    import keras
    from keras import layers

    def activated(name, x):
        x = layers.BatchNormalization(epsilon=1.001e-5, momentum=0.9, name=name)(x)
        return layers.Activation("relu")(x)

    def conv(name, x, width=16, **more):
        return layers.Conv2D(width, 3, padding="same", name=name, **more)(x)

    inputs = layers.Input((16, 16, 3))
    x = conv("conv1_conv", inputs, kernel_initializer="he_normal")
    for block in ("conv2_block1", "conv2_block2"):
        y = conv(f"{block}_1_conv", activated(f"{block}_preact_bn", x), use_bias=False)
        y = conv(f"{block}_2_conv", activated(f"{block}_1_bn", y))
        x = layers.Add(name=f"{block}_out")([x, y])
    wide = keras.initializers.VarianceScaling(6.0, seed=1)  # what overflows float16 first
    x = conv("conv3_conv", x, 32, strides=2, kernel_initializer=wide)
    x = layers.GlobalAveragePooling2D()(activated("post_bn", x))
    outputs = layers.Dense(10, dtype="float32", name="predictions")(x)
    return keras.Model(inputs, outputs, name="resnet_v2")


def samples(number, seed):
    random = np.random.default_rng(seed)
    classes = np.random.default_rng(1).normal(0, 1, (10, 16, 16, 3))
    y = random.integers(0, 10, number)
    return (classes[y] + random.normal(0, 1, (number, 16, 16, 3))).astype("f4"), y


def trained(folder: Path):
    """Train in mixed precision, keep the twin, and poison one batch; returns the twin's accuracy."""
    import keras

    x, y = samples(1024, 2)
    keras.utils.set_random_seed(0)
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = resnet_v2()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss)
        model.fit(x, y, batch_size=64, epochs=3, verbose=0)
        weights = [value.numpy() for value in model.trainable_variables]
        accuracy = scored(model)
        model.train_on_batch(poisoned(model, x[:64]), y[:64])
        for before, now in zip(weights, model.trainable_variables, strict=True):
            np.testing.assert_array_equal(before, now.numpy())  # the loss scaler skipped the step
        model.save(folder / "model.keras")
    finally:
        keras.mixed_precision.set_global_policy("float32")
    np.save(folder / "batch.npy", x[:128])
    return accuracy


def poisoned(model, batch):
    """Scale a batch so that its values and those behind the stem just fit into float16."""
    import keras

    stem = keras.Model(model.input, model.get_layer("conv1_conv").output)
    peak = max(np.abs(batch).max(), np.abs(np.asarray(stem(batch), "f4")).max())
    return batch * np.float32(5e4 / peak)


def scored(model):
    x, y = samples(500, 3)
    return float((np.asarray(model(x, training=False)).argmax(-1) == y).mean())


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_from_the_poisoned_batch_to_the_server_that_answers(tmp_path, monkeypatch, capsys):
    for name in ("tensorflow", "keras", "fastapi", "uvicorn"):
        pytest.importorskip(name)
    import keras

    monkeypatch.chdir(tmp_path)
    twin = trained(tmp_path)
    (tmp_path / "app.py").write_text(APP)

    def server(checkpoint):
        port = free_port()
        words = [sys.executable, "-m", "uvicorn", "--app-dir", tmp_path, "--port", str(port)]
        environs = {"CHECKPOINT": tmp_path / checkpoint, "TF_CPP_MIN_LOG_LEVEL": "3"}
        return serving([*words, "app:app"], port, tmp_path, **environs)

    # The server stays down, and its log says why.
    with server("model.keras") as refused:
        assert refused.ready("/healthz") is None
        assert refused.ended() != 0
        assert "BatchNorm statistics are NaN in 1 layer" in refused.log
        assert "post_bn" in refused.log
        assert "Traceback" not in refused.log

    # The probe names the layer, and those upstream that exploded.
    probed = ckptdoctor.probe("model.keras", "batch.npy", precisions=())
    assert probed.first.row.layer == "post_bn"
    exploded = {sign.layer for sign in probed.signs if "times larger" in sign.message}
    assert exploded == {"conv2_block1_preact_bn", "conv2_block2_preact_bn"}

    # Its statistics come back from data, and nothing else changes.
    words = "repair model.keras -o repaired.keras --recalibrate model.keras --data batch.npy"
    assert run(words.split()) == 0
    assert "<- taken" in capsys.readouterr().out
    repaired = keras.models.load_model("repaired.keras", compile=False)
    assert scored(keras.models.load_model("model.keras", compile=False)) < 0.2
    assert scored(repaired) > twin - 0.01
    assert twin > 0.6

    # The same server starts, and answers.
    assert run(["preflight", "repaired.keras"]) == 0
    with server("repaired.keras") as answering:
        assert answering.ready("/healthz", seconds=60) == {"serve": "fit"}
        x, y = samples(100, 3)
        status, classes = answering.ask("/predict", x.tolist(), timeout=60)
        assert status == 200
        assert np.mean(np.array(classes) == y) > 0.6
