"""TorchScript archives: attributes and constants of a compiled module; its code is never compiled."""

from __future__ import annotations

import re
from dataclasses import replace

from ..containers.zip import Archive
from ..errors import CkptDoctorError
from ..sources import FileSource
from ..tensors import TensorTable
from .base import ReadOptions
from .torch_tree import Tree
from .torch_zip import TorchArchive

__all__ = ["TorchScript"]

MAX_CODE = 1 << 18
"""256 KiB: a class with a BatchNorm's forward takes 1 or 2."""
MAX_CLASSES = 4096


class TorchScript:
    """``torch.jit.save``: a module's attribute tree in ``data.pkl``, constants beside it."""

    name = "torchscript"
    spec = "https://github.com/pytorch/pytorch/blob/main/torch/csrc/jit/docs/serialization.md"
    summary = "TorchScript .pt (torch.jit.save): parameters, buffers and constants"

    def read_archive(
        self,
        archive: Archive,
        source: FileSource,
        options: ReadOptions,  # noqa: ARG002
    ) -> TensorTable:
        """Read a zip whose directory is known already."""
        torch = TorchArchive(archive, source.name, own="__torch__.")
        tree = torch.tree(torch.unpickle("data.pkl"), "data.pkl", role="model")
        _add_code_settings(tree, archive, torch.top)
        if archive.get(torch.top + "constants.pkl") is not None:
            unpickled = torch.unpickle("constants.pkl")
            constants = torch.tree(
                unpickled, "constants.pkl", "constants", prefix=("constants",), role="other"
            )
            tree.infos.update(constants.infos)
            tree.findings += constants.findings
        return torch.table(source, self.name, tree)


def _add_code_settings(tree: Tree, archive: Archive, top: str) -> None:
    """Complete the normalisation layers by epsilon and momentum, which only their code states.

    The code is searched as text.
    """
    known: dict[str, tuple[float | None, float | None]] = {}
    for name, layer in tree.layers.items():
        module = tree.modules.get(name, "")
        if not layer.class_name.endswith(_NORMS) or not module.startswith("__torch__."):
            continue
        if module not in known and len(known) < MAX_CLASSES:
            known[module] = _code_settings(archive, f"{top}code/{module.replace('.', '/')}.py")
        epsilon, momentum = known.get(module, (None, None))
        tree.layers[name] = replace(layer, epsilon=epsilon, momentum=momentum)


_NORMS = ("BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "InstanceNorm1d",
          "InstanceNorm2d", "InstanceNorm3d", "LayerNorm", "GroupNorm")  # fmt: skip
_NUMBER = r"([0-9.]+(?:e[+-]?[0-9]+)?)"


def _code_settings(archive: Archive, name: str) -> tuple[float | None, float | None]:
    member = archive.get(name)
    if member is None or member.broken:
        return None, None
    try:
        code = archive.read(member, MAX_CODE).decode("utf-8", "replace")
    except CkptDoctorError:  # the pass over the archive tells what is wrong with its bytes
        return None, None

    def stated(key: str, call: str) -> float | None:
        found = re.search(rf"\b{key} : Final\[float\] = {_NUMBER}$", code, re.MULTILINE)
        found = found or re.search(call, code)
        try:
            return float(found[1]) if found else None
        except ValueError:
            return None

    # batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn)
    call = r"torch\.batch_norm\([^()]*, (?:True|False), "
    return (
        stated("eps", rf"{call}{_NUMBER[1:-1]}, {_NUMBER}, (?:True|False)\)"),
        stated("momentum", rf"{call}{_NUMBER}, "),
    )
