"""What a zip archive holds, told from the names of its members alone: it costs no import."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..containers.zip import Archive

__all__ = ["find_top", "is_keras_zip", "is_npz", "is_torch_zip", "is_torchscript"]

_RESOURCES = "__MACOSX"
"""Folder that the Finder of macOS adds to what it zips; no loader means it."""


def find_top(archive: Archive) -> str | None:
    """Folder, with its slash, of the ``data.pkl`` that torch.load would read; None without one."""
    for member in archive.members:
        if member.name.endswith("data.pkl"):
            folder, slash, name = member.name.rpartition("/")
            if name == "data.pkl" and "/" not in folder and folder != _RESOURCES:
                return folder + slash
    return None


def is_torchscript(archive: Archive) -> bool:
    """Whether torch.jit.save wrote it: only that adds constants."""
    top = find_top(archive)
    return top is not None and archive.get(f"{top}constants.pkl") is not None


def is_torch_zip(archive: Archive) -> bool:
    """Whether torch.save wrote it."""
    return find_top(archive) is not None and not is_torchscript(archive)


def is_keras_zip(archive: Archive) -> bool:
    """Whether it has the weights of a ``.keras`` archive, or the two members that describe them."""
    weights = archive.get("model.weights.h5") or archive.get("model.weights.npz")
    config = archive.get("config.json")
    return bool(weights or (config and archive.get("metadata.json")))


def is_npz(archive: Archive) -> bool:
    """Whether every member is an array."""
    names = [m.name for m in archive.members if not m.name.startswith(f"{_RESOURCES}/")]
    return bool(names) and all(name.endswith((".npy", "/")) for name in names)
