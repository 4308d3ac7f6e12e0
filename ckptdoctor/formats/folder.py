"""Which file of a folder is the checkpoint."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import CkptDoctorError, UnsupportedError, UsageError
from ..findings import Finding, Severity, container_finding

__all__ = ["PREFERRED", "SHARD", "find_checkpoint"]

PREFERRED = tuple(
    f"{stem}{end}"
    for stem in ("model", "pytorch_model", "diffusion_pytorch_model", "adapter_model")
    for end in (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
)
"""Names of Hugging Face, in the order in which its loaders look for them: the first one counts."""

SHARD = re.compile(r"(.*)-(\d{1,6})-of-(\d{1,6})(\.[a-z0-9]+)")
"""One file of a set: stem, number, how many, ending."""
_ENDINGS = (
    ".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".h5", ".hdf5", ".keras", ".npz",
)  # fmt: skip
_MAX_ENTRIES = 100_000
_CONVERT = "load it with TensorFlow and save it as .weights.h5 or .keras"


def find_checkpoint(folder: str) -> tuple[str, list[Finding]]:
    """Path of the one checkpoint in a folder, and a note where there are others.

    The first name of `PREFERRED` that is there, else the only file whose name ends like a
    checkpoint's.

    Raises
    ------
    UsageError
        If there is none, or more than one.
    UnsupportedError
        If the folder itself is a checkpoint of a kind that is not read.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for _, e in zip(range(_MAX_ENTRIES), entries, strict=False))
    except OSError as error:
        raise UsageError(f"cannot be listed: {error.strerror}", where=folder) from None
    found = [name for name in PREFERRED if name in names]
    if found:
        return str(Path(folder, found[0])), _others(folder, found, names)
    indexes = [name for name in names if name.endswith(".index.json")]
    files = [name for name in names if name.lower().endswith(_ENDINGS)]
    candidates = indexes or [name for name in files if Path(folder, name).is_file()]
    if len(candidates) == 1:
        return str(Path(folder, candidates[0])), []
    if candidates and "zero_to_fp32.py" not in names:
        shown = ", ".join(repr(name[:60]) for name in candidates[:5])
        more = f" and {len(candidates) - 5} more" if len(candidates) > 5 else ""
        message = f"the folder holds {len(candidates)} checkpoints: {shown}{more}"
        raise UsageError(message, where=folder, hint="name one of them")
    raise _refusal(folder, set(names))


def _others(folder: str, found: list[str], names: list[str]) -> list[Finding]:
    """Note other weights beside those that count: some loaders read every ``.safetensors``."""
    loose = [n for n in names if n.endswith(".safetensors") and not SHARD.fullmatch(n)]
    others = list(dict.fromkeys((*found[1:], *(name for name in loose if name != found[0]))))
    if not others:
        return []
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    shown = ", ".join(name[:60] for name in others[:3])
    message = f"the folder also holds {shown}{more}, which was not looked at"
    return [container_finding("CK003", Severity.NOTE, message, where=folder)]


def _refusal(folder: str, names: set[str]) -> CkptDoctorError:
    """Say what a folder without a readable checkpoint is."""
    tables = {name[: -len(".index")] for name in names if name.endswith(".index")}
    kinds = (
        (
            "saved_model.pb" in names or "saved_model.pbtxt" in names,
            "a TensorFlow SavedModel",
            _CONVERT,
        ),
        (
            any(name.startswith(f"{table}.data-") for table in tables for name in names),
            "a TensorFlow checkpoint",
            _CONVERT,
        ),
        (
            "zero_to_fp32.py" in names,
            "a DeepSpeed checkpoint in partitions",
            "run in it: python zero_to_fp32.py . OUTPUT",
        ),
        (
            ".metadata" in names and any(name.endswith(".distcp") for name in names),
            "a torch.distributed checkpoint",
            "run: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER OUT.pt",
        ),
        (
            bool(names & {"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"}),
            "an Orbax checkpoint (JAX)",
            "load it with Orbax and save it as safetensors",
        ),
        (
            "data.pkl" in names,
            "a torch archive that was unpacked",
            "zip it again, without compression and with its folder: zip -0 -r model.pt FOLDER",
        ),
    )
    for is_it, what, hint in kinds:
        if is_it:
            message = f"{what}, a format that is not read here"
            return UnsupportedError(message, where=folder, hint=hint)
    if not names:
        hint = "name the folder or the file of a checkpoint"
        return UsageError("the folder is empty", where=folder, hint=hint)
    message = (
        f"the folder holds no checkpoint: {', '.join(PREFERRED[:4])} and the like were looked "
    )
    message += f"for, then any *.index.json, then names that end in {', '.join(_ENDINGS)}"
    hint = "name the file itself if it is called something else"
    return UsageError(message, where=folder, hint=hint)
