"""A live PyTorch module as a tensor table: names as in its state dict, values where they lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..dtypes import TORCH
from ..roles import role_of
from ..sources import Extent
from ..tensors import LayerConfig, Quantisation, TensorInfo, TensorTable
from .torch_hooks import class_name_of
from .torch_memory import LiveMemory
from .torch_modules import require_module

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["held_tensors", "module_table", "packed_tensors"]

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
    torch = require_module(module)
    memory = LiveMemory(_PLACE)
    infos: dict[str, TensorInfo] = {}
    for name, tensor in (held_tensors(module) | packed_tensors(module)).items():
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
    """Parameters and buffers by their names in the state dict: the module's own, no copies."""
    found: dict[str, torch.Tensor] = {}
    for dot, each in _parts(module):
        passing = each._non_persistent_buffers_set
        for name, held in (*each._parameters.items(), *each._buffers.items()):
            if held is not None and name not in passing:
                found[dot + name] = held
    return found


def packed_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return what classes that write their state dict themselves add to it: packed weights, scales."""
    import torch  # noqa: PLC0415

    found: dict[str, Any] = {}
    for dot, each in _parts(module):
        own = getattr(type(each), "_save_to_state_dict", None)
        if own is not torch.nn.Module._save_to_state_dict:
            found |= _saved(each, dot)
    known = held_tensors(module) if found else {}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, torch.Tensor) and name not in known
    }


def _parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, each in module.named_modules(remove_duplicate=False):
        yield f"{path}." if path else "", each


def _saved(module: nn.Module, dot: str) -> dict[str, Any]:
    saved: dict[str, Any] = {}
    try:
        module._save_to_state_dict(saved, dot, True)
    except Exception:  # noqa: BLE001  (the class is anybody's; what it holds itself is there)
        return {}
    for name, value in list(saved.items()):
        if isinstance(value, tuple):  # a weight and its bias
            saved |= {f"{name}.{index}": item for index, item in enumerate(value)}
    return saved


def _rows(name: str, tensor: torch.Tensor, memory: LiveMemory) -> Iterator[TensorInfo]:
    """Rows of one tensor; a sparse one is its parts, as in a file."""
    import torch  # noqa: PLC0415
    from torch.nn.parameter import is_lazy  # noqa: PLC0415

    if is_lazy(tensor):
        yield _info(name, str(tensor.dtype), ())._replace(encoding="absent")
        return
    tensor = _local(tensor).detach()
    if tensor.layout is not torch.strided and tensor.layout in _sparse_parts():
        for part in _sparse_parts()[tensor.layout]:
            yield from _rows(f"{name}.{part}", getattr(tensor, part)(), memory)
        return
    info = _info(name, str(tensor.dtype), tuple(tensor.shape))
    if not _has_memory(tensor) or str(tensor.dtype).removeprefix("torch.") not in TORCH:
        yield info._replace(encoding="absent")
        return
    row, storage = info.kind, tensor.untyped_storage()
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


def _info(name: str, dtype: str, shape: tuple[int, ...]) -> TensorInfo:
    return TensorInfo(
        name=name,
        path=tuple(name.split(".")),
        dtype=TORCH.get(dtype.removeprefix("torch."), "uint8"),
        shape=shape,
        role=role_of((name,)),
    )


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

    if tensor.device.type == "meta" or tensor.is_nested:
        return False
    if tensor.layout is not torch.strided or hasattr(tensor, "__tensor_flatten__"):
        return False
    try:
        storage = tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return False
    return storage.device.type != "meta" and (storage.nbytes() > 0 or not tensor.numel())


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
    for name, each in module.named_modules(remove_duplicate=False):
        if not name:
            continue
        settings = {
            key: value
            for key, value in vars(each).items()
            if not key.startswith("_") and _is_plain(value)
        }
        if hasattr(each, "original_name"):  # a scripted module keeps its settings elsewhere
            told = {key: getattr(each, key, None) for key in ("eps", "momentum")}
            settings = {key: value for key, value in told.items() if _is_plain(value)}
        yield (
            name,
            LayerConfig(
                name=name,
                class_name=class_name_of(each),
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
