"""A live PyTorch module as a tensor table: names as in its state dict, values where they lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..dtypes import DTYPES, TORCH
from ..roles import role_of
from ..sources import Extent
from ..tensors import LayerConfig, Quantisation, TensorInfo, TensorTable
from .torch_memory import LiveMemory

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["held_tensors", "module_table"]

_PLACE = "<module>"
_MOST_AXES = 8


def module_table(module: nn.Module) -> TensorTable:
    """Table over the parameters and buffers that a module's state dict holds.

    No value is copied: blocks are read from the module's own memory, on whatever device, when they
    are asked for.  A sharded parameter (DTensor) is the part that this process holds.  The settings
    of every module (epsilon, momentum, stride ...) are in ``layers``.

    Raises
    ------
    UsageError
        If torch is not installed, or this is no module.
    """
    from .torch_subject import require_module  # noqa: PLC0415

    torch = require_module(module)
    memory = LiveMemory(_PLACE)
    infos: dict[str, TensorInfo] = {}
    for name, tensor in held_tensors(module).items():
        for info in _rows(name, tensor, memory):
            infos[info.name] = info
    return TensorTable(
        path=_PLACE,
        format="torch-module",
        infos=infos,
        metadata={"framework": "torch", "framework_version": str(torch.__version__)},
        layers=dict(_layers(module)),
    )


def held_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors of a module by the names of its state dict: those that it holds, no copies."""
    from torch import nn  # noqa: PLC0415

    found: dict[str, torch.Tensor] = {}
    for path, each in module.named_modules(remove_duplicate=False):
        dot = f"{path}." if path else ""
        for name, held in each._parameters.items():
            if held is not None:
                found[dot + name] = held
        for name, held in each._buffers.items():
            if held is not None and name not in each._non_persistent_buffers_set:
                found[dot + name] = held
        own = getattr(type(each), "_save_to_state_dict", None)
        if own is not nn.Module._save_to_state_dict:
            found |= _saved_otherwise(each, dot, found)
    return found


def _saved_otherwise(module: nn.Module, dot: str, known: dict[str, Any]) -> dict[str, Any]:
    """Return what a class that writes its state dict itself adds to it: packed weights, scales."""
    import torch  # noqa: PLC0415

    saved: dict[str, Any] = {}
    try:
        module._save_to_state_dict(saved, dot, True)
    except Exception:  # noqa: BLE001  (the class is anybody's; what it holds itself is there)
        return {}
    found: dict[str, Any] = {}
    for name, value in saved.items():
        items = enumerate(value) if isinstance(value, tuple) else ()
        parts = {name: value, **{f"{name}.{index}": item for index, item in items}}
        found |= {key: v for key, v in parts.items() if isinstance(v, torch.Tensor)}
    return {name: value for name, value in found.items() if name not in known}


def _rows(name: str, tensor: torch.Tensor, memory: LiveMemory) -> Iterator[TensorInfo]:
    """Rows of one tensor; a sparse one is its parts, as in a file."""
    import torch  # noqa: PLC0415

    tensor = _local(tensor.detach())
    dtype = TORCH.get(str(tensor.dtype).removeprefix("torch."), "")
    if tensor.layout is not torch.strided and tensor.layout in _sparse_parts():
        for part in _sparse_parts()[tensor.layout]:
            yield from _rows(f"{name}.{part}", getattr(tensor, part)(), memory)
        return
    info = TensorInfo(
        name=name,
        path=tuple(name.split(".")),
        dtype=dtype or "uint8",
        shape=tuple(tensor.shape),
        role=role_of((name,)),
    )
    if not _has_memory(tensor) or not dtype:
        yield info._replace(encoding="absent")
        return
    row, storage = DTYPES[dtype], tensor.untyped_storage()
    start = memory.place(storage) + tensor.storage_offset() * row.bits // 8
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    length = row.nbytes(last + 1) if info.size else 0
    info = info._replace(
        extent=Extent(memory, start, length),
        strides=None if tensor.is_contiguous() else tuple(tensor.stride()),
        storage=str(memory.place(storage)),
    )
    if tensor.is_quantized:
        yield from _quantised(info, tensor, memory)
    else:
        yield info._replace(encoding="opaque" if row.kind == "opaque" else "plain")


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a sharded tensor."""
    held = getattr(tensor, "_local_tensor", None)
    return tensor if held is None else held


def _sparse_parts() -> Any:
    import torch  # noqa: PLC0415

    rows = ("crow_indices", "col_indices", "values")
    columns = ("ccol_indices", "row_indices", "values")
    return {
        torch.sparse_coo: ("_indices", "_values"),
        torch.sparse_csr: rows,
        torch.sparse_bsr: rows,
        torch.sparse_csc: columns,
        torch.sparse_bsc: columns,
    }


def _has_memory(tensor: torch.Tensor) -> bool:
    """Whether values lie in a buffer that can be read."""
    import torch  # noqa: PLC0415
    from torch.nn.parameter import is_lazy  # noqa: PLC0415

    if is_lazy(tensor) or tensor.device.type == "meta" or tensor.is_nested:
        return False
    if tensor.layout is not torch.strided or hasattr(tensor, "__tensor_flatten__"):
        return False
    try:
        storage = tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return False
    return storage.nbytes() > 0 or not tensor.numel()


def _quantised(info: TensorInfo, tensor: torch.Tensor, memory: LiveMemory) -> Iterator[TensorInfo]:
    import torch  # noqa: PLC0415

    scheme = str(tensor.qscheme()).removeprefix("torch.")
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        told = Quantisation(scheme=scheme, scale=tensor.q_scale(), zero_point=tensor.q_zero_point())
    else:
        yield from _rows(f"{info.name}.scale", tensor.q_per_channel_scales(), memory)
        yield from _rows(f"{info.name}.zero_point", tensor.q_per_channel_zero_points(), memory)
        told = Quantisation(
            scheme=scheme,
            scale=f"{info.name}.scale",
            zero_point=f"{info.name}.zero_point",
            axis=tensor.q_per_channel_axis(),
        )
    encoding: Any = "opaque" if info.kind.kind == "opaque" else "quantised"
    yield info._replace(encoding=encoding, quantisation=told)


def _layers(module: nn.Module) -> Iterator[tuple[str, LayerConfig]]:
    for name, each in module.named_modules():
        if name:
            settings = {
                key: value
                for key, value in vars(each).items()
                if not key.startswith("_") and _is_plain(value)
            }
            yield (
                name,
                LayerConfig(
                    name=name,
                    class_name=type(each).__name__,
                    epsilon=_number(settings.get("eps")),
                    momentum=_number(settings.get("momentum")),
                    settings=settings,
                ),
            )


def _is_plain(value: Any) -> bool:
    """Whether a setting is one that tables keep: a number, a word, one number for each axis."""
    if type(value) is tuple:
        return len(value) <= _MOST_AXES and all(type(item) is int for item in value)
    return type(value) in (int, float, bool, str)


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) else None
