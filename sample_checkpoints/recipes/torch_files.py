"""Samples that today's torch writes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from . import sample
from .networks import (
    BROKEN_BN,
    EXPLODED_BN,
    ResNetV2,
    fill,
    overflowed,
    tiny_net,
    tiny_state,
    uniform,
)

State = dict[str, torch.Tensor]


def save(value: object, path: Path) -> None:
    """``torch.save`` with the archive named ``archive`` whatever the file is called."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    path.write_bytes(buffer.getvalue())


def rewrite(archive: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
    """Copy a torch archive with torch's own writer; ``change`` maps records, None drops one."""
    reader = torch._C.PyTorchFileReader(io.BytesIO(archive))
    copy = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(copy)
    for name in reader.get_all_records():
        # The writer adds these itself.
        if name == "version" or name.startswith("."):
            continue
        data = change(name, reader.get_record(name))
        if data is not None:
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return copy.getvalue()


def seeded(name: str, *shape: int, low: float = -0.5, high: float = 0.5) -> torch.Tensor:
    """Seeded values as a float32 tensor."""
    return torch.from_numpy(uniform(name, shape, low, high))


def overflowed_resnet() -> State:
    """State dict of the founding case's torch twin: the same broken statistics."""
    net = ResNetV2()
    fill(net)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for name, kind in (("running_mean", "moving_mean"), ("running_var", "moving_variance")):
        for layer in (BROKEN_BN, EXPLODED_BN):
            shape = tuple(state[f"{layer}.{name}"].shape)
            values = overflowed(f"resnet101v2/{layer}/{kind}", shape)
            state[f"{layer}.{name}"] = torch.from_numpy(values)
    return state


def adam_state(model: State, *, steps: int = 1200) -> dict[str, object]:
    """Optimizer state of Adam over the floating tensors of ``model``, as its class would save it."""
    names = [n for n, t in model.items() if t.is_floating_point() and "running" not in n]
    moments = {
        index: {
            "step": torch.tensor(float(steps)),
            "exp_avg": seeded(f"m.{name}", *model[name].shape, low=-1e-3, high=1e-3),
            "exp_avg_sq": seeded(f"v.{name}", *model[name].shape, low=1e-8, high=1e-6),
        }
        for index, name in enumerate(names)
    }
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "params": list(range(len(names)))}
    return {"state": moments, "param_groups": [group]}


def training_state() -> dict[str, object]:
    """What training scripts save to resume: model, EMA, optimizer, loss scaler, progress."""
    model = tiny_state()
    ema = {n: t * 0.99 if t.is_floating_point() else t.clone() for n, t in model.items()}
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5}
    return {
        "epoch": 12,
        "model": model,
        "ema": ema,
        "optimizer": adam_state(model),
        "scaler": scaler | {"growth_interval": 2000, "_growth_tracker": 117},
        "best_acc": 0.913,
    }


@sample("healthy/state-dict.pt", "State dict of a small CNN, as `torch.save` writes it")
def state_dict(path: Path) -> None:
    save(tiny_state(), path)


@sample("healthy/training-checkpoint.pth.tar", "Model, EMA, optimizer and scaler; not a tar")
def training_checkpoint(path: Path) -> None:
    save(training_state(), path)


@sample("healthy/lightning.ckpt", "Lightning; its callbacks hold Inf before the first validation")
def lightning(path: Path) -> None:
    model = {f"model.{name}": tensor for name, tensor in tiny_state().items()}
    infinity = torch.tensor(float("inf"))
    monitor = {"monitor": "val_loss", "best_model_score": infinity, "kth_value": infinity}
    checkpoint = {
        "epoch": 0,
        "global_step": 100,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": model,
        "loops": {"fit_loop": {"epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss', 'mode': 'min'}": monitor},
        "optimizer_states": [adam_state(model, steps=100)],
        "lr_schedulers": [{"last_epoch": 0, "_last_lr": [1e-3]}],
        "hyper_parameters": {"learning_rate": 1e-3},
    }
    save(checkpoint, path)


@sample("healthy/whole-module.pt", "A whole pickled module: loading it calls classes of torch")
def whole_module(path: Path) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    fill(net)
    save(net.eval(), path)


@sample("healthy/whole-module-own-class.pt", "The same with a class that only its project has")
def whole_module_own_class(path: Path) -> None:
    save(tiny_net(), path)


FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz")
FLOATS += ("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
COMPLEX = ("complex32", "complex64", "complex128")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def of_every_dtype(values: torch.Tensor) -> State:
    """The same values in every dtype that a tensor can have."""
    pairs = torch.complex(values.double(), -values.double())
    state = {name: values.to(getattr(torch, name)) for name in FLOATS}
    state |= {name: values.nan_to_num().to(getattr(torch, name)) for name in INTEGERS}
    state["bool"] = values > 50
    return state | {name: pairs.to(getattr(torch, name)) for name in COMPLEX}


@sample("healthy/every-dtype.pt", "One tensor of every dtype: bf16, fp8, complex, bool, integers")
def every_dtype(path: Path) -> None:
    state = of_every_dtype(seeded("every", 4, 6, low=0.01, high=100.0))
    save(state | {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4)}, path)


@sample("healthy/quantised.pt", "Quantised weights, one scale for the tensor and one per channel")
def quantised(path: Path) -> None:
    weight = seeded("quantised", 4, 6)
    scales, zeros = torch.tensor([0.01, 0.02, 0.03, 0.04]).double(), torch.tensor([0, 1, -2, 3])
    save(
        {
            "tensor.weight": torch.quantize_per_tensor(weight, 0.02, 3, torch.qint8),
            "activation": torch.quantize_per_tensor(weight, 0.02, 128, torch.quint8),
            "bias": torch.quantize_per_tensor(weight[0], 0.001, 0, torch.qint32),
            "channel.weight": torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8),
        },
        path,
    )


@sample("healthy/views-and-tied.pt", "Tied embeddings, a transposed view, slices of one buffer")
def views_and_tied(path: Path) -> None:
    embedding, flat = seeded("embedding", 12, 8), seeded("flat", 60)
    state = {"embed.weight": embedding, "lm_head.weight": embedding, "kernel": embedding.t()}
    state |= {"q": flat[:20].view(4, 5), "k": flat[20:40].view(4, 5), "every_third": flat[::3]}
    save(state | {"expanded": flat[:1].expand(5)}, path)


@sample("healthy/sparse.pt", "Sparse tensors, coordinates and compressed rows")
def sparse(path: Path) -> None:
    dense = seeded("sparse", 6, 5) * (seeded("mask", 6, 5) > 0.2)
    save({"coo": dense.to_sparse_coo().coalesce(), "csr": dense.to_sparse_csr()}, path)


@sample("healthy/meta.pt", "Tensors on the meta device: a shape and no values")
def meta(path: Path) -> None:
    save({"w": seeded("w", 3, 3), "offloaded": torch.empty(7, 5, device="meta")}, path)


@sample("healthy/causal-mask.pt", "A GPT block: -Inf in the mask is how it should be")
def causal_mask(path: Path) -> None:
    mask = torch.full((8, 8), float("-inf")).triu(1)
    state = {"attn.mask": mask, "attn.c_attn.weight": seeded("attn", 8, 24)}
    save(state | {"ln.weight": torch.ones(8), "ln.bias": torch.zeros(8)}, path)


@sample("healthy/sharded-bin", "A folder: two shards of pytorch_model.bin and their index")
def sharded_bin(path: Path) -> None:
    save_sharded(tiny_state(), path)


def save_sharded(state: State, path: Path) -> None:
    """Write a folder as ``transformers`` does: the first three tensors apart from the others."""
    names = list(state)
    parts = {1: names[:3], 2: names[3:]}
    weight_map = {
        n: f"pytorch_model-{i:05}-of-00002.bin" for i, part in parts.items() for n in part
    }
    path.mkdir(parents=True, exist_ok=True)
    for file in sorted(set(weight_map.values())):
        save({name: state[name] for name in names if weight_map[name] == file}, path / file)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")


@sample("sick/bn001-overflow-skipped-step.pt", "The torch twin of the founding case (`.h5` below)")
def overflow_skipped_step(path: Path) -> None:
    save(overflowed_resnet(), path)


@sample(
    "sick/nf001-diverged-weights.pt", "The step itself went wrong: weights NaN, nothing to save"
)
def diverged_weights(path: Path) -> None:
    state = tiny_state()
    state["conv1.weight"].fill_(float("nan"))
    state["fc.weight"].view(-1)[::5] = float("nan")
    save(state, path)


@sample("sick/nf001-sharded-bin", "A folder: the NaN is in the second of two shards")
def diverged_shard(path: Path) -> None:
    state = tiny_state()
    state["fc.weight"][1] = float("nan")
    save_sharded(state, path)


@sample("sick/nf001-every-dtype.pt", "A NaN in every dtype that has one")
def nan_in_every_dtype(path: Path) -> None:
    values = seeded("every", 4, 6, low=0.01, high=100.0)
    values[2, 1] = float("nan")
    save(of_every_dtype(values), path)


@sample("sick/ts006-ema-model-fine.pth", "A NaN passed through the EMA; the model itself is fine")
def ema_model_fine(path: Path) -> None:
    checkpoint = training_state()
    checkpoint["ema"]["bn1.running_mean"].fill_(float("nan"))  # type: ignore[index]
    checkpoint["ema"]["bn1.running_var"].fill_(float("nan"))  # type: ignore[index]
    save(checkpoint, path)


@sample("sick/ts001-optimizer-gradient-spike.ckpt", "Serving is fine; resuming kills the model")
def gradient_spike(path: Path) -> None:
    checkpoint = training_state()
    moments = checkpoint["optimizer"]["state"]  # type: ignore[index]
    moments[0]["exp_avg_sq"][0] = float("inf")
    moments[3]["exp_avg"].fill_(float("nan"))
    save(checkpoint, path)


@sample("sick/bn001-half-cast.pt", "Cast to float16, where the largest number is 65504")
def half_cast(path: Path) -> None:
    state = tiny_state()
    state["bn1.running_var"][2] = 1e6
    save({n: t.half() if t.is_floating_point() else t for n, t in state.items()}, path)
