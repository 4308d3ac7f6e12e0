"""TorchScript archives: attributes and constants of a compiled module; its code is never compiled."""

from __future__ import annotations

from ..containers.zip import Archive
from ..sources import FileSource
from ..tensors import TensorTable
from .base import ReadOptions
from .torch_zip import TorchArchive

__all__ = ["TorchScript"]


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
        if archive.get(torch.top + "constants.pkl") is not None:
            unpickled = torch.unpickle("constants.pkl")
            constants = torch.tree(
                unpickled, "constants.pkl", "constants", prefix=("constants",), role="other"
            )
            tree.infos.update(constants.infos)
            tree.findings += constants.findings
        return torch.table(source, self.name, tree)
