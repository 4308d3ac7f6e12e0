"""Torch models as patients: trained once, looked into, damaged and written."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .patients import Array, Patient, Spot, Written
from .tasks import Task
from .torch_models import MODELS

STEPS = {"resnet_v1": 120, "resnet_v2": 120, "mobilenet": 120, "efficientnet": 120, "unet": 120}
MANY_STEPS = 400  # of the others, which are quick
BATCH = 32
KERNELS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
NORMS = (nn.LayerNorm, nn.GroupNorm)
BATCHNORMS = nn.modules.batchnorm._BatchNorm

# torch has unsigned names for what NumPy knows through ml_dtypes
BITS = {"bfloat16": (np.int16, torch.bfloat16), "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn),
        "float8_e5m2": (np.uint8, torch.float8_e5m2)}  # fmt: skip


def to_torch(value: Array) -> Tensor:
    """Tensor of the same bits."""
    value = np.array(value, order="C", copy=True)
    if value.dtype.name in BITS:
        word, dtype = BITS[value.dtype.name]
        return torch.from_numpy(value.view(word)).view(dtype)
    return torch.from_numpy(value)


def build(model: str, seed: int) -> tuple[nn.Module, Task]:
    """Build an untrained model; width follows from the seed."""
    torch.manual_seed(seed)
    make, task = MODELS[model]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old weight norm is what we want
        return make(8 + 4 * (seed % 2), seed), task


def optimizer_of(net: nn.Module, seed: int) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW, by the seed."""
    if seed % 3 == 0:
        return torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    if seed % 3 == 1:
        return torch.optim.Adam(net.parameters(), lr=3e-3)
    return torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)


def train(
    net: nn.Module, task: Task, optimizer: torch.optim.Optimizer, seed: int, steps: int,
    *, scale: float = 1.0, eval_mode: bool = False, penalty: Callable[[], Tensor] | None = None,
) -> float:  # fmt: skip
    """Train in place; returns the last loss."""
    rng = torch.Generator().manual_seed(seed + 1000)
    net.train(not eval_mode)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        x, target = task.batch(rng, BATCH)
        x = x * scale if x.is_floating_point() else x
        if hasattr(net, "discriminator"):
            fake, real = net(x)[:, -1], net.discriminator(target).flatten()
            loss = nn.functional.softplus(-real).mean() + (fake**2).mean() - fake.mean()
        else:
            loss = task.loss(net(x), target)
        if penalty is not None:
            loss = loss + penalty()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
    return loss.item()


class TorchPatient(Patient):
    """A torch model with its optimizer.

    Parameters
    ----------
    model
        Name in `MODELS`.
    seed
        Of initialisation, data, width and optimizer.
    cache
        Folder in which trained models are kept.
    """

    framework = "torch"

    def __init__(self, model: str, seed: int, cache: Path) -> None:
        self.model, self.seed = model, seed
        self.net, self.task = build(model, seed)
        self.initial = copy.deepcopy(self.net.state_dict())
        optimizer = optimizer_of(self.net, seed)
        self.steps = STEPS.get(model, MANY_STEPS)
        kept = cache / f"torch-{model}-{seed}.pt"
        if kept.exists():
            stored = torch.load(kept, weights_only=True)
            self.net.load_state_dict(stored["net"])
            optimizer.load_state_dict(stored["optimizer"])
            self.loss = stored["loss"]
        else:
            self.loss = train(self.net, self.task, optimizer, seed, self.steps)
            stored = {
                "net": self.net.state_dict(),
                "optimizer": optimizer.state_dict(),
                "loss": self.loss,
            }
            buffer = io.BytesIO()
            torch.save(stored, buffer)
            kept.write_bytes(buffer.getvalue())
        self.net.eval()
        self.optimizer = optimizer.state_dict()
        self.parameters = [name for name, _ in self.net.named_parameters()]
        named = self.net.state_dict()
        memory: dict[int, str] = {}
        self.tied = {}
        for name, tensor in named.items():
            owner = memory.setdefault(tensor.data_ptr(), name) if tensor.numel() else name
            if owner != name:
                self.tied[name] = owner
        self.weights = {
            n: t.detach().numpy().copy() for n, t in named.items() if n not in self.tied
        }
        self.state = self._state()
        rng = torch.Generator().manual_seed(99)
        self.fixed = self.task.batch(rng, 16)[0]
        self.spots = self._spots()

    @property
    def layouts(self) -> tuple[str, ...]:
        script = () if self.model == "tcn" else ("torchscript",)
        # torch refuses to pickle modules with parametrizations
        module = () if self.model == "tcn" and self.seed % 2 else ("module",)
        return (
            "state_dict",
            "checkpoint",
            "safetensors",
            "parallel",
            "lightning",
            *module,
            *script,
        )

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"epoch": 3, "best_loss": float(self.loss)}
        for index, row in self.optimizer["state"].items():
            for name, value in row.items():
                known = value.numpy() if isinstance(value, Tensor) else value
                if known is not None:
                    state[f"optimizer.state.{index}.{name}"] = known
        for name, value in self.optimizer["param_groups"][0].items():
            if isinstance(value, float):
                state[f"optimizer.param_groups.0.{name}"] = value
        state |= {"scaler.scale": 65536.0, "scaler.growth_factor": 2.0, "scaler.backoff_factor": 0.5,
                  "scaler.growth_interval": 2000, "scaler._growth_tracker": 120}  # fmt: skip
        return state

    def _spots(self) -> tuple[Spot, ...]:
        """Layers in the order in which one forward pass runs them, with what feeds each BatchNorm."""
        made_by: dict[int, str] = {}
        alive: list[Tensor] = []  # identities are only unique among living objects
        found: dict[str, Spot] = {}
        hooks = []

        def hook(name: str) -> Callable[..., None]:
            def ran(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
                if name not in found:
                    for spot in _describe(
                        name, module, made_by.get(id(inputs[0]) if inputs else 0, "")
                    ):
                        found[spot.layer] = spot
                if isinstance(output, Tensor):
                    alive.extend((output, *inputs))
                    if isinstance(module, KERNELS):
                        made_by[id(output)] = f"{name}.weight"

            return ran

        for name, module in self.net.named_modules():
            hooks.append(module.register_forward_hook(hook(name)))
        with torch.no_grad():
            self.net(self.fixed)
        for handle in hooks:
            handle.remove()
        tied = {**self.tied}
        return tuple(s for s in found.values() if not any(n in tied for n in s.parts.values()))

    @cached_property
    def _run(self) -> nn.Module:
        return copy.deepcopy(self.net).eval()

    def _load(self, net: nn.Module, weights: Mapping[str, Array]) -> None:
        tensors = {name: to_torch(value) for name, value in weights.items()}
        tensors |= {alias: tensors[owner] for alias, owner in self.tied.items()}
        net.load_state_dict(tensors, strict=False)

    def predict(self, weights: Mapping[str, Array]) -> Array:
        self._load(self._run, weights)
        with torch.no_grad():
            output: Array = self._run(self.fixed).double().numpy()
        return output

    def inputs(self, count: int) -> Array:
        value: Array = self.task.batch(torch.Generator().manual_seed(5), count)[0].numpy()
        return value

    def live(self, batches: Sequence[Array]) -> dict[str, Array]:
        net = copy.deepcopy(self.net).train()
        check = nn.functional._verify_batch_size
        # what a traced or exported graph does, which has no such check
        nn.functional._verify_batch_size = lambda _: None
        try:
            with torch.no_grad():
                for batch in batches:
                    net(torch.from_numpy(batch))
        finally:
            nn.functional._verify_batch_size = check
        return self.read(net)

    def read(self, net: nn.Module) -> dict[str, Array]:
        """Weights of a net like this patient's."""
        return {
            n: t.detach().numpy().copy() for n, t in net.state_dict().items() if n not in self.tied
        }

    def write(
        self, folder: Path, layout: str, change: Mapping[str, Any],
        config: Callable[[dict[str, Any]], None] | None = None,
    ) -> Written:  # fmt: skip
        assert config is None
        arrays = {**self.weights, **{n: v for n, v in change.items() if n in self.weights}}
        tensors = {name: to_torch(value) for name, value in arrays.items() if value is not None}
        if layout != "safetensors":  # which refuses shared memory
            order = list(self.net.state_dict())
            tied = {a: tensors[o] for a, o in self.tied.items() if o in tensors}
            tensors = {n: ({**tensors, **tied})[n] for n in order if n in tensors or n in tied}
        prefix = {"checkpoint": "model.", "lightning": "state_dict.model.", "parallel": "module."}
        names = {name: prefix.get(layout, "") + name for name in self.weights}
        path = folder / {"safetensors": "model.safetensors", "lightning": "last.ckpt"}.get(
            layout, "model.pt"
        )
        if layout == "safetensors":
            save_file(tensors, path)
        elif layout in ("module", "torchscript"):
            net = copy.deepcopy(self.net)
            net.load_state_dict(tensors)
            if layout == "module":
                torch.save(net, path)
            else:
                _script(net, self.fixed).save(str(path))
        elif layout in ("checkpoint", "lightning"):
            state = {**self.state, **{n: v for n, v in change.items() if n not in self.weights}}
            names |= {n: _stored(n, layout) for n in state}
            torch.save(self._checkpoint(layout, tensors, state), path)
        else:
            torch.save({prefix.get(layout, "") + name: t for name, t in tensors.items()}, path)
        twins = {names[owner]: prefix.get(layout, "") + alias for alias, owner in self.tied.items()}
        return Written(path=path, names=names, twins={} if layout == "safetensors" else twins)

    def _checkpoint(
        self, layout: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The nested object that a training script saves."""
        optimizer = copy.deepcopy(self.optimizer)
        scaler: dict[str, Any] = {}
        rest: dict[str, Any] = {}
        ema: dict[str, Tensor] = {}
        for name, value in state.items():
            kind, _, tail = name.partition(".")
            if kind == "ema":
                ema[tail] = to_torch(value)
            elif kind == "scaler":
                scaler[tail] = value
            elif kind == "hyper_parameters":
                rest.setdefault(kind, {})[tail] = value
            elif kind != "optimizer":
                rest[name] = to_torch(value) if isinstance(value, np.ndarray) else value
            elif tail.startswith("param_groups.0."):
                optimizer["param_groups"][0][tail.removeprefix("param_groups.0.")] = value
            else:
                _, index, slot = tail.split(".")
                rows = optimizer["state"].setdefault(int(index), {})
                if value is None:
                    rows.pop(slot, None)
                else:
                    rows[slot] = to_torch(value) if isinstance(value, np.ndarray) else value
        if layout == "lightning":
            callbacks = {"ModelCheckpoint": {"kth_value": torch.tensor(float("inf"))}}
            return {
                "state_dict": {f"model.{name}": tensor for name, tensor in tensors.items()},
                "optimizer_states": [optimizer], "MixedPrecision": scaler, "callbacks": callbacks,
                "global_step": self.steps, "pytorch-lightning_version": "2.5.0", **rest,
            }  # fmt: skip
        extra = {"ema_state_dict": ema} if ema else {}
        return {"model": dict(tensors), "optimizer": optimizer, "scaler": scaler, **extra, **rest}


def _stored(name: str, layout: str) -> str:
    """What a path of the training state is called in a file."""
    if layout == "checkpoint":
        return f"ema_state_dict.{name[4:]}" if name.startswith("ema.") else name
    if name.startswith("optimizer."):
        return "optimizer_states.0." + name.removeprefix("optimizer.")
    return name.replace("scaler.", "MixedPrecision.") if name.startswith("scaler.") else name


def _script(net: nn.Module, inputs: Tensor) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(net, inputs, check_trace=False)


def _describe(name: str, module: nn.Module, feeder: str) -> list[Spot]:
    """Spots that a module is."""
    own = {
        n: f"{name}.{n}"
        for n, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }
    bias = {"bias": own["bias"]} if "bias" in own else {}
    if isinstance(module, BATCHNORMS):
        words = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var",
                 "num_batches_tracked": "count"}  # fmt: skip
        return [
            Spot(layer=name, kind="bn", parts={words[n]: p for n, p in own.items()}, feeder=feeder)
        ]
    if isinstance(module, NORMS):
        return [Spot(layer=name, kind="norm", parts={"gamma": own["weight"], "beta": own["bias"]})]
    if isinstance(module, nn.LSTM):
        return [
            Spot(layer=f"{name}:{n}", kind="kernel", parts={"kernel": p})
            for n, p in own.items() if n.startswith("weight")
        ]  # fmt: skip
    if isinstance(module, nn.Embedding):
        return [Spot(layer=name, kind="embedding", parts={"kernel": own["weight"]})]
    if not isinstance(module, KERNELS):
        return []
    if "weight_g" in own:
        return [
            Spot(
                layer=name,
                kind="weightnorm",
                parts={"g": own["weight_g"], "v": own["weight_v"], **bias},
            )
        ]
    if hasattr(module, "parametrizations"):
        base = f"{name}.parametrizations.weight.original"
        return [
            Spot(layer=name, kind="weightnorm", parts={"g": base + "0", "v": base + "1", **bias})
        ]
    out = 1 if isinstance(module, nn.ConvTranspose2d) else 0
    return [Spot(layer=name, kind="kernel", parts={"kernel": own["weight"], **bias}, out=out)]
