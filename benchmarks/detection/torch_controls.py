"""Healthy torch files: every trap that made a tool, or might make ours, call them sick."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .tasks import CLASSES, TABLES, Task, images
from .torch_models import MLP, MODELS, ResNet
from .torch_patient import TorchPatient, build, train

State = dict[str, Any]
Control = Callable[[int, Path], State | nn.Module]


def trained(model: str, seed: int, cache: Path) -> tuple[TorchPatient, State]:
    patient = TorchPatient(model, seed, cache)
    return patient, copy.deepcopy(patient.net.state_dict())


def fit(net: nn.Module, task: Task, seed: int, steps: int = 60, **options: Any) -> nn.Module:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    train(net, task, optimizer, seed, steps, **options)
    return net.eval()


def raw(scale: float) -> Control:
    """Images of 0 to 2 x scale, never standardised."""

    def control(seed: int, _: Path) -> State:
        def batch(rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
            x, label = images(rng, count)
            return ((x / 6 + 0.5).clamp(0, 1) * scale).round(), label

        net, task = build("resnet_v1", seed)
        return fit(net, Task(batch, task.loss), seed).state_dict()

    return control


def input_norm(seed: int, _: Path) -> State:
    """A BatchNorm as first layer, over columns of units from 1e-3 to 1e5."""
    torch.manual_seed(seed)
    units = 10.0 ** torch.linspace(-3, 5, 20)
    net = nn.Sequential(nn.BatchNorm1d(20), MLP(8))
    task = Task(
        lambda rng, n: ((b := TABLES.batch(rng, n))[0] * units + 3 * units, b[1]), TABLES.loss
    )
    return fit(net, task, seed, 200).state_dict()


def eval_mode(seed: int, _: Path) -> State:
    net, task = build("resnet_v1", seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    train(net, task, optimizer, seed, 60, eval_mode=True)
    return net.state_dict()


def counted(number: int) -> Control:
    """Trained statistics, few batches counted: converted from another framework."""

    def control(seed: int, cache: Path) -> State:
        _, state = trained("resnet_v1", seed, cache)
        return {n: t * 0 + number if n.endswith("tracked") else t for n, t in state.items()}

    return control


def untrained(model: str) -> Control:
    return lambda seed, _: build(model, seed)[0].state_dict()


def slimmed(seed: int, _: Path) -> State:
    """Gammas under an L1 penalty, as network slimming trains them."""
    net, task = build("unet", seed)
    gammas = [m.weight for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    return fit(
        net, task, seed, 120, penalty=lambda: 0.02 * sum(g.abs().sum() for g in gammas)
    ).state_dict()


def dead(seed: int, cache: Path) -> State:
    """Channels that a large negative shift has switched off; the variance behind them is gone."""
    patient, _ = trained("mobilenet", seed, cache)
    net = copy.deepcopy(patient.net).train()
    with torch.no_grad():
        for block in net.features:
            block.expand[1].bias[:3] = -30.0
        for _ in range(200):
            net(patient.task.batch(torch.Generator().manual_seed(seed), 8)[0])
        for block in net.features:
            variance = block.depthwise[1].running_var
            variance[variance < 1e-8] = 5.6e-45
    return net.state_dict()


def sentinels(seed: int, cache: Path) -> State:
    _, state = trained("resnet_v1", seed, cache)
    nan = float("nan")
    return state | {
        "memory.last_seen": torch.full((16,), nan), "act.observer.min_val": torch.tensor(float("inf")),
        "act.observer.max_val": torch.tensor(float("-inf")), "fill_value": torch.tensor(nan),
    }  # fmt: skip


def integers(seed: int, cache: Path) -> State:
    """Eight-bit weights kept in float32, their scales beside them."""
    _, state = trained("mlp_bn", seed, cache)
    for name in [n for n, t in state.items() if t.ndim == 2]:
        scale = state[name].abs().amax() / 127
        state[name] = (state[name] / scale).round()
        state[name.replace("weight", "weight_scale")] = scale
    return state


def dynamic(seed: int, cache: Path) -> State:
    patient, _ = trained("lstm", seed, cache)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(patient.net), {nn.Linear})
    return quantised.state_dict()


def cast(model: str, dtype: torch.dtype) -> Control:
    """All weights of another type; eight-bit floats only for matrices, as they are used."""

    def control(seed: int, cache: Path) -> State:
        _, state = trained(model, seed, cache)
        small = dtype.itemsize == 1
        return {n: t.to(dtype) if t.is_floating_point() and (t.ndim > 1 or not small) else t
                for n, t in state.items() if "mask" not in n}  # fmt: skip

    return control


def scaled_fp8(seed: int, cache: Path) -> State:
    """float8 with a scale per kernel that uses the whole range."""
    _, state = trained("transformer", seed, cache)
    for name in [n for n, t in state.items() if t.ndim == 2 and "mask" not in n and "wte" not in n]:
        scale = state[name].abs().amax() / 448
        state[name] = (state[name] / scale).to(torch.float8_e4m3fn)
        state[f"{name}_scale"] = scale
    return state


def complex_weights(seed: int, _: Path) -> State:
    torch.manual_seed(seed)
    return {
        "spectral.weight": torch.randn(8, 8, 4, dtype=torch.complex64) * 0.1,
        "fc.weight": torch.randn(4, 8),
    }


def huge_moments(seed: int, _: Path) -> State:
    """A loss summed over everything: gradients of 1e5, second moments of 1e10 and more."""
    net, task = build("mlp_bn", seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(100):
        x, target = task.batch(rng, 32)
        optimizer.zero_grad()
        (task.loss(net(x), target) * 1e6).backward()
        optimizer.step()
    return {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best_loss": float("inf"),
    }


def ema_pair(seed: int, cache: Path) -> State:
    patient, _ = trained("resnet_v1", seed, cache)
    averaged = torch.optim.swa_utils.AveragedModel(
        patient.net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    net = copy.deepcopy(patient.net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for step in range(10):
        train(net, patient.task, optimizer, seed + step, 1)
        averaged.update_parameters(net)
    return {"model": net.state_dict(), "ema_state_dict": averaged.module.state_dict(), "epoch": 2}


def spectral(old: bool) -> Control:
    def control(seed: int, _: Path) -> State:
        torch.manual_seed(seed)
        norm: Any = nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm
        net = nn.Sequential(
            norm(nn.Conv2d(3, 8, 3, 2, 1)), nn.LeakyReLU(0.2), norm(nn.Conv2d(8, 16, 3, 2, 1)),
            nn.LeakyReLU(0.2), nn.Flatten(), norm(nn.Linear(256, CLASSES)),
        )  # fmt: skip
        return fit(net, MODELS["resnet_v1"][1], seed).state_dict()

    return control


def normed(make: Callable[[int], nn.Module]) -> Control:
    """A plain net with another normalisation."""

    def control(seed: int, _: Path) -> State:
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), make(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), make(16), nn.ReLU(),
            nn.Flatten(), nn.Linear(256, CLASSES),
        )  # fmt: skip
        return fit(net, MODELS["resnet_v1"][1], seed).state_dict()

    return control


def frozen(seed: int, cache: Path) -> State:
    """A backbone in evaluation mode under a new head."""
    patient, _ = trained("resnet_v1", seed, cache)
    net = copy.deepcopy(patient.net)
    net.fc = nn.Linear(net.fc.in_features, CLASSES)
    for parameter in list(net.parameters())[:-2]:
        parameter.requires_grad_(False)
    optimizer = torch.optim.Adam(net.fc.parameters(), lr=3e-3)
    train(net, patient.task, optimizer, seed, 60, eval_mode=True)
    return {"model": net.state_dict(), "optimizer": optimizer.state_dict()}


def outliers(seed: int, cache: Path) -> State:
    """LayerNorm gains of 40 and columns that undo them: the same function, as large models show it."""
    _, state = trained("transformer", seed, cache)
    first = next(n for n in state if n.startswith("h.0.attn.q") and n.endswith("weight"))
    for row in (
        [first] if "qkv" in first else [first, first.replace("q_", "k_"), first.replace("q_", "v_")]
    ):
        state[row][:, :2] /= 40
    state["h.0.ln_1.weight"][:2] *= 40
    state["h.0.ln_1.bias"][:2] *= 40
    state["wte.weight"][3] *= 8
    return state


def pruned(seed: int, cache: Path) -> State:
    """Magnitude pruning to 10 %, the mask beside the weights."""
    from torch.nn.utils import prune

    patient, _ = trained("mlp_bn", seed, cache)
    net = copy.deepcopy(patient.net)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            prune.l1_unstructured(module, "weight", 0.9)
    return net.state_dict()


def lora(seed: int, _: Path) -> State:
    """An adapter before its first step: B is zero."""
    torch.manual_seed(seed)
    pairs: State = {}
    for i in range(3):
        base = f"base_model.model.layers.{i}.q_proj.lora_"
        pairs |= {f"{base}A.weight": torch.randn(4, 64) / 8, f"{base}B.weight": torch.zeros(64, 4)}
    return pairs


def fixed_filters(seed: int, cache: Path) -> State:
    """Blur and bilinear kernels: every channel alike on purpose."""
    _, state = trained("resnet_v1", seed, cache)
    tap = torch.tensor([1.0, 2.0, 1.0])
    blur = (tap[:, None] * tap / 16).expand(8, 1, 3, 3).clone()
    return state | {
        "pool.filt": blur,
        "freqs": torch.ones(8, 8),
        "position_ids": torch.arange(64)[None],
    }


def schedule(kind: int | None = None, **group: Any) -> Control:
    """Numbers of an optimizer (of the seed's kind) that look extreme and are not."""

    def control(seed: int, cache: Path) -> State:
        patient, state = trained("mlp_bn", seed if kind is None else kind, cache)
        optimizer = copy.deepcopy(patient.optimizer)
        optimizer["param_groups"][0] |= group
        return {"model": state, "optimizer": optimizer, "scaler": {}, "best_acc": float("-inf")}

    return control


def reset(seed: int, _: Path) -> State:
    """Statistics switched off, and BatchNorm without gamma and beta."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16, track_running_stats=False), nn.ReLU(),
                        nn.Linear(16, 16), nn.BatchNorm1d(16, affine=False), nn.Linear(16, CLASSES))  # fmt: skip
    return fit(net, TABLES, seed, 100).state_dict()


CONTROLS: Mapping[str, Control] = {
    "raw input 0..255": raw(255.0),
    "raw input 0..65535": raw(65535.0),
    "BatchNorm on columns of many units": input_norm,
    "trained in evaluation mode": eval_mode,
    "trained statistics, 1 batch counted": counted(1),
    "trained statistics, 0 batches counted": counted(0),
    "L1-slimmed gammas": slimmed,
    "dead channels": dead,
    "NaN and Inf sentinels in buffers": sentinels,
    "int8 weights in float32": integers,
    "dynamic quantisation": dynamic,
    "bfloat16 transformer": cast("transformer", torch.bfloat16),
    "float16 transformer": cast("transformer", torch.float16),
    "bfloat16 ResNet": cast("resnet_v1", torch.bfloat16),
    "float16 U-Net": cast("unet", torch.float16),
    "float8_e4m3fn transformer": cast("transformer", torch.float8_e4m3fn),
    "float8_e5m2 transformer": cast("transformer", torch.float8_e5m2),
    "float64 MLP": cast("mlp_bn", torch.float64),
    "float8 with scales": scaled_fp8,
    "complex weights": complex_weights,
    "huge second moments": huge_moments,
    "EMA pair": ema_pair,
    "spectral norm (hooks)": spectral(True),
    "spectral norm (parametrizations)": spectral(False),
    "GroupNorm": normed(lambda c: nn.GroupNorm(4, c)),
    "InstanceNorm with tracking": normed(
        lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True)
    ),
    "BatchNorm with momentum 0.01": normed(lambda c: nn.BatchNorm2d(c, momentum=0.01)),
    "BatchNorm with a cumulative average": normed(lambda c: nn.BatchNorm2d(c, momentum=None)),
    "frozen backbone": frozen,
    "large healthy outliers": outliers,
    "pruned to 10 %": pruned,
    "fresh LoRA": lora,
    "fixed filters": fixed_filters,
    "BatchNorm without statistics or gamma": reset,
    "learning rate 0 (warm-up)": schedule(lr=0.0),
    "learning rate 30 (AWD-LSTM)": schedule(0, lr=30.0),
    "learning rate 1 (schedule-free SGD)": schedule(0, lr=1.0),
    **{f"untrained {model}": untrained(model) for model in MODELS},
    "zero-init residual, untrained": lambda *_: ResNet(8, pre=False, zero_init=True).state_dict(),
}


def controls(seed: int, cache: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Write every control in a format that can hold it; formats alternate."""
    for number, (name, make) in enumerate(CONTROLS.items()):
        torch.manual_seed(seed)
        state = make(seed, cache)
        flat = isinstance(state, dict) and all(
            type(t) is Tensor and not t.is_quantized for t in state.values()
        )
        kind = (number + seed) % 3
        if flat and kind == 0:
            path = folder / "model.safetensors"
            save_file({n: t.detach().clone().contiguous() for n, t in state.items()}, path)
        elif flat and kind == 1:
            path = folder / "model.pt"
            torch.save({"model": state, "epoch": 3}, path)
        else:
            path = folder / "model.pth"
            torch.save(state, path)
        yield name, path
