"""What a guard costs: on top of each step, and on top of each save.

    python -m benchmarks.guards [--rounds 7] [--steps 60]

Both are shares within one run: the time in the guard / the time in the training step beside it, or
in the framework's own saving.  A guarded save also waits for the disk, which the framework's own
does not.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def torch_models() -> Iterator[tuple[str, Any, Any]]:
    import torch
    from torch import nn

    torch.manual_seed(0)
    yield (
        "MLP, 2,800 weights",
        nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)),
        torch.randn(32, 32),
    )
    layers: list[nn.Module] = []
    for i in range(16):
        layers += [nn.Conv2d(64 if i else 3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    yield "CNN, 0.6 million", nn.Sequential(*layers, *head), torch.randn(16, 3, 32, 32)
    block = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
    yield "transformer, 4.7 million", nn.TransformerEncoder(block, 6), torch.randn(8, 64, 256)


def torch_steps(steps: int) -> Iterator[tuple[str, float]]:
    """Steps of plain torch, with the watch that Lightning and the Trainer have around them."""
    import torch

    from ckptdoctor.guards.guard import Guard
    from ckptdoctor.guards.terms import Terms
    from ckptdoctor.guards.torch_gauge import TorchGauge

    for name, model, batch in torch_models():
        optimizer = torch.optim.AdamW(model.parameters())
        guard = Guard(Terms(), 50)
        guard.begin(Path(), 0, partial(TorchGauge, model))
        times = []
        for step in range(steps):
            start = time.perf_counter()
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            trained = time.perf_counter()
            guard.check(step)
            times.append((time.perf_counter() - trained, trained - start))
        yield f"torch, {name}", share(times)


def keras_steps(steps: int) -> Iterator[tuple[str, float]]:
    """``fit`` with the guard's hook timed; it never saves."""
    import keras
    import numpy as np

    from ckptdoctor.guards.keras import CheckpointGuard

    class Timed(CheckpointGuard):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.times: list[tuple[float, float]] = []
            self._last = 0.0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            start = time.perf_counter()
            super().on_train_batch_end(batch, logs)
            end = time.perf_counter()
            self.times.append((end - start, start - self._last))
            self._last = end

    keras.utils.set_random_seed(0)
    tall = keras.applications.ResNet50V2(weights=None, input_shape=(32, 32, 3), classes=10)
    small = keras.Sequential(
        [keras.Input((32,)), keras.layers.Dense(64), keras.layers.BatchNormalization(),
         keras.layers.Dense(10)]
    )  # fmt: skip
    for name, model, shape in (
        ("MLP, 3,000 weights", small, (32,)),
        ("ResNet50V2, 24 million", tall, (32, 32, 3)),
    ):
        model.compile("adam", "mse")
        x = np.ones((16 * steps, *shape), np.float32)
        y = np.zeros((16 * steps, 10), np.float32)
        timed = Timed("never.keras", save_freq=1 << 40)
        model.fit(x, y, batch_size=16, verbose=0, callbacks=[timed])
        yield f"Keras, {name}", share(timed.times)


def share(times: list[tuple[float, float]]) -> float:
    """Median of the one / the other, without the first tenth, which compiles."""
    left = times[len(times) // 10 + 1 :]
    return statistics.median(watching / training for watching, training in left)


def saves(folder: Path, rounds: int) -> Iterator[tuple[str, float, float]]:
    """What comes on top of a save, as shares of it in the same call: examining, and the disk."""
    import keras
    import torch

    from ckptdoctor.guards import guarded_save, saving

    tensors = {f"layer{i}.weight": torch.randn(1024, 1024) / 32 for i in range(48)}
    state = {"model": tensors, "optimizer": {name: t.square() for name, t in tensors.items()}}
    stack = [keras.layers.Dense(2048) for _ in range(10)]
    model = keras.Sequential([keras.Input((2048,)), *stack])
    spent: dict[str, float] = {}
    judge, place = saving.judge, saving.place
    saving.judge = partial(noted, spent, "judge", judge)
    saving.place = partial(noted, spent, "place", place)
    for name, save in (
        ("m.pt", partial(torch.save, state)),
        ("m.keras", model.save),
        ("m.weights.h5", model.save_weights),
    ):
        target = folder / name
        shares = []
        for _ in range(rounds + 1):
            guarded_save(partial(noted, spent, "save", save), target)
            shares.append((spent["judge"] / spent["save"], spent["place"] / spent["save"]))
        examined, flushed = (statistics.median(share) for share in zip(*shares[1:], strict=True))
        yield f"{name}, {target.stat().st_size >> 20} MiB", examined, flushed
    saving.judge, saving.place = judge, place


def noted(spent: dict[str, float], name: str, work: Callable[..., Any], *args: Any) -> Any:
    start = time.perf_counter()
    result = work(*args)
    spent[name] = time.perf_counter() - start
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60)
    asked = parser.parse_args()
    print("| On top of a step, as a share of it | watching |\n|---|---|")
    for measured in (torch_steps(asked.steps), keras_steps(asked.steps)):
        for name, part in measured:
            print(f"| {name} | {part:.1%} |", flush=True)
    print("\n| On top of a save, as a share of it | examining | waiting for the disk |")
    print("|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, examined, flushed in saves(Path(folder), asked.rounds):
            print(f"| {name} | {examined:.0%} | {flushed:.0%} |", flush=True)


if __name__ == "__main__":
    main()
