"""Samples of safetensors and NumPy archives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from . import sample
from .networks import tiny_state, uniform
from .torch_files import overflowed_resnet, seeded

METADATA = {"format": "pt"}


def transformer() -> dict[str, torch.Tensor]:
    """One block of a transformer in bfloat16, with an fp8 weight and its scale."""
    shapes = {"q_proj": (16, 16), "k_proj": (16, 16), "v_proj": (16, 16), "o_proj": (16, 16)}
    state = {
        f"model.layers.0.self_attn.{name}.weight": seeded(name, *shape).bfloat16()
        for name, shape in shapes.items()
    }
    state["model.embed_tokens.weight"] = seeded("embed", 32, 16).bfloat16()
    state["model.layers.0.mlp.up_proj.weight"] = seeded("up", 32, 16).to(torch.float8_e4m3fn)
    state["model.layers.0.mlp.up_proj.weight_scale"] = torch.tensor([0.25])
    state["model.layers.0.mlp.down_proj.weight"] = seeded("down", 16, 32).to(torch.float8_e5m2)
    return state | {"model.norm.weight": torch.ones(16, dtype=torch.bfloat16)}


@sample("healthy/transformer.safetensors", "A transformer block in bf16, with fp8 weights")
def transformer_file(path: Path) -> None:
    save_file(transformer(), path, METADATA)


@sample("healthy/sharded-safetensors", "A folder: two shards of model.safetensors and their index")
def sharded(path: Path) -> None:
    write_sharded(path, shards=(1, 2))


def write_sharded(path: Path, shards: tuple[int, ...]) -> None:
    """Write the index of two shards, and those of ``shards``."""
    state = transformer()
    names = sorted(state)
    shard_of = {name: 1 + (index >= len(names) // 2) for index, name in enumerate(names)}
    path.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        part = {name: state[name] for name in names if shard_of[name] == shard}
        save_file(part, path / f"model-{shard:05}-of-00002.safetensors", METADATA)
    total = sum(tensor.nbytes for tensor in state.values())
    weight_map = {
        name: f"model-{shard:05}-of-00002.safetensors" for name, shard in shard_of.items()
    }
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def named_arrays() -> dict[str, np.ndarray]:
    """Arrays of several types, orders and ranks."""
    return {
        "dense.kernel": uniform("npz kernel", (6, 4), -0.5, 0.5),
        "dense.bias": uniform("npz bias", (4,), -0.1, 0.1),
        "fortran": np.asfortranarray(uniform("npz fortran", (3, 5), -1, 1)),
        "big_endian": uniform("npz big", (7,), -1, 1).astype(">f8"),
        "half": uniform("npz half", (2, 3), -1, 1).astype(np.float16),
        "step": np.array(1200),
        "mask": np.array([True, False, True]),
        "spectrum": uniform("npz complex", (5,), -1, 1).astype(np.complex64),
    }


@sample("healthy/arrays.npz", "Named NumPy arrays: Fortran order, big-endian, complex, a scalar")
def arrays(path: Path) -> None:
    np.savez(path, **named_arrays())


@sample("healthy/arrays-compressed.npz", "The same arrays, compressed")
def arrays_compressed(path: Path) -> None:
    np.savez_compressed(path, **named_arrays())


@sample("sick/bn001-overflow-skipped-step.safetensors", "The founding case as safetensors")
def overflow_skipped_step(path: Path) -> None:
    save_file(overflowed_resnet(), path, METADATA)


@sample("sick/nf001-bf16.safetensors", "NaN in a bfloat16 projection and in an fp8 weight")
def nan_in_short_floats(path: Path) -> None:
    state = transformer()
    state["model.layers.0.self_attn.v_proj.weight"][3, 5] = float("nan")
    state["model.layers.0.mlp.up_proj.weight"].view(torch.uint8)[0, 0] = 0x7F
    save_file(state, path, METADATA)


@sample(
    "sick/bn001-one-huge-sample.safetensors", "One input of 1e20: variance Inf, outputs constant"
)
def one_huge_sample(path: Path) -> None:
    state = tiny_state()
    state["bn1.running_var"].fill_(float("inf"))
    save_file(state, path, METADATA)


@sample("sick/nf001-diverged.npz", "NaN in one of several arrays")
def diverged(path: Path) -> None:
    values = named_arrays()
    values["dense.kernel"][1] = np.nan
    np.savez(path, **values)


@sample("sick/ck003-missing-shard", "A folder whose second shard was never downloaded")
def missing_shard(path: Path) -> None:
    write_sharded(path, shards=(1,))
