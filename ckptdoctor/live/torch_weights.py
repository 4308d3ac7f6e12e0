"""Weights of a checkpoint into a live module, by our own readers: nothing is unpickled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import UsageError
from ..matching import Match, match
from ..tensors import TensorInfo, TensorTable
from .loaded import Loaded
from .torch_modules import require_module, unwrapped
from .torch_table import held_tensors, module_table, packed_tensors

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["load_weights"]

_SHOWN = 5
"""Names in a message."""

_WORDS = {
    "bfloat16": "int16",
    **{f"float8_{name}": "uint8" for name in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")},
}
"""Types that torch takes from no array -> those of the same width that it does."""


def load_weights(
    module: nn.Module, table: TensorTable, *, which: Literal["model", "ema"] = "model"
) -> Loaded:
    """Fill a module from a checkpoint of any format that is read here.

    Values are cast to the module's types, as `load_state_dict` does.  Names match as they do for a
    donor: wrappers in front of them do not matter.

    Parameters
    ----------
    module
        The model to fill.
    table
        The open checkpoint.
    which
        The weights, or their moving average.

    Returns
    -------
    Loaded
        Partners; buffers that the file does not hold, and that may stay as they are, are in its
        notes.

    Raises
    ------
    UsageError
        If a parameter or a running statistic is missing, of another shape, or stored in a way that
        is not understood; the module is then as it was.
    """
    require_module(module)
    module = unwrapped(module)
    packed = next(iter(packed_tensors(module)), None)
    if packed is not None:
        hint = "have its factory load them"
        raise UsageError(f"the model keeps {packed!r:.200} packed: no weights fit", hint=hint)
    targets = held_tensors(module)
    patient = module_table(module)
    offered = _offered(patient, table, which)
    found = match(patient, offered)
    pairs = {name: other for name, other in found.pairs.items() if name in targets}
    pairs |= {  # one number may be a scalar or a vector of one
        name: other
        for name, other in found.misshaped
        if name in targets and targets[name].numel() == offered[other].size == 1
    }
    missing = _check_complete(targets, pairs, found, offered)
    for name, other in pairs.items():
        _check_readable(offered[other], name, table.path)
    notes = []
    if missing:
        notes.append(f"{table.path} does not hold {_listed(missing)}: the model's own stay")
    if found.surplus:
        notes.append(f"{_listed(found.surplus)} of {table.path} have no place in the model")
    for name, other in pairs.items():
        _fill(targets[name], offered, other)
    return Loaded(pairs=pairs, surplus=found.surplus, notes=tuple(notes))


def _offered(patient: TensorTable, table: TensorTable, which: str) -> TensorTable:
    roles = {which} | {info.role for info in patient.values() if info.role != "model"}
    infos = {name: info for name, info in table.infos.items() if info.role in roles}
    if not infos:
        what = "moving average" if which == "ema" else "weights"
        average = which == "model" and any(info.role == "ema" for info in table.values())
        hint = "it holds a moving average of them" if average else ""
        raise UsageError(f"holds no {what} of a model", where=table.path, hint=hint)
    return replace(table, infos=infos)


def _check_complete(
    targets: Mapping[str, Any], pairs: Mapping[str, str], found: Match, offered: TensorTable
) -> tuple[str, ...]:
    """Names that are missing and may be."""
    for ours, theirs in found.misshaped:
        if ours in targets and ours not in pairs:
            shapes = f"{tuple(targets[ours].shape)} in the model, {offered[theirs].shape} in it"
            message = f"{theirs!r:.200} does not fit the model: {ours!r:.200} is {shapes}"
            raise UsageError(message, where=offered.path)
    missing = tuple(name for name in targets if name not in pairs)
    needed = [name for name in missing if _needed(name, targets[name])]
    if needed:
        message = f"does not hold {len(needed)} of {len(targets)} tensors of the model: "
        hint = "is it of another model?"
        raise UsageError(message + _listed(needed), where=offered.path, hint=hint)
    return missing


def _needed(name: str, held: torch.Tensor) -> bool:
    """Whether what a model says without it would be about values that nobody trained."""
    from torch import nn  # noqa: PLC0415

    leaf = name.rpartition(".")[2]
    return isinstance(held, nn.Parameter) or leaf in ("running_mean", "running_var")


def _check_readable(info: TensorInfo, name: str, path: str) -> None:
    if info.encoding != "plain" or info.kind.kind == "opaque" or info.dtype == "complex32":
        stored = (
            "without values" if info.encoding == "absent" else f"as {info.encoding} {info.dtype}"
        )
        message = f"{info.name!r:.200} is stored {stored}, and cannot be put into {name!r:.200}"
        raise UsageError(message, where=path)


def _fill(target: torch.Tensor, table: TensorTable, name: str) -> None:
    """Copy values block by block, cast on the way."""
    import torch  # noqa: PLC0415

    info = table[name]
    with torch.inference_mode(mode=target.is_inference()), torch.no_grad():
        if not target.is_contiguous():
            blocks = list(_blocks(table, info))
            if blocks:
                target.copy_(torch.cat(blocks).reshape(target.shape))
            return
        flat, at = target.detach().view(-1), 0
        for block in _blocks(table, info):
            flat[at : at + block.numel()].copy_(block)
            at += block.numel()


def _blocks(table: TensorTable, info: TensorInfo) -> Iterator[torch.Tensor]:
    import torch  # noqa: PLC0415

    for block in table.blocks(info, 1 << 22):
        word = _WORDS.get(info.dtype)
        if word is not None:
            yield torch.from_numpy(np.array(block.view(word))).view(getattr(torch, info.dtype))
        elif block.dtype.kind == "u" and block.dtype.itemsize > 1:  # torch 2.1 has no such types
            yield torch.from_numpy(block.astype(np.int64))
        else:
            yield torch.from_numpy(np.array(block))


def _listed(names: Any) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name)[:120] for name in names[:_SHOWN]) + more
