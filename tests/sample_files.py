"""What each committed sample must turn out to be: one row a sample, written by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["EXPECTED", "FOLDER", "READABLE", "Expected", "by_format"]

FOLDER = Path(__file__).resolve().parents[1] / "sample_checkpoints"


@dataclass(frozen=True, slots=True)
class Expected:
    """Format, rows of the table, codes of severity error, verdicts; or the error's class."""

    name: str
    format: str = ""
    tensors: int = 0
    errors: str = ""
    serve: str = "fit"
    resume: str = "fit"
    load: str = "safe"
    refused: str = ""

    @property
    def path(self) -> Path:
        return FOLDER / self.name


def _sick(name: str, kind: str, tensors: int, errors: str, **verdicts: str) -> Expected:
    verdicts = {"serve": "unfit", "resume": "unfit"} | verdicts
    return Expected(f"sick/{name}", kind, tensors, errors, **verdicts)


def _refused(name: str, error: str) -> Expected:
    return Expected(f"sick/{name}", refused=error)


# TinyNet has 8 tensors, 5 of them trained; Adam keeps 3 for each of those.  The Keras MLP has 7
# weights (kernel; gamma, beta, mean, variance; kernel, bias), 5 of them trained; Keras' Adam keeps
# 2 for each of those, its iteration and its learning rate (tf_keras: not the rate).
EXPECTED = (
    Expected("healthy/state-dict.pt", "torch-zip", 8),
    Expected("healthy/training-checkpoint.pth.tar", "torch-zip", 8 + 8 + 15),
    Expected("healthy/lightning.ckpt", "torch-zip", 8 + 2 + 15),
    Expected("healthy/whole-module.pt", "torch-zip", 9),
    Expected("healthy/whole-module-own-class.pt", "torch-zip", 8),
    Expected("healthy/every-dtype.pt", "torch-zip", 9 + 8 + 1 + 3 + 2),
    Expected("healthy/quantised.pt", "torch-zip", 4 + 2),
    Expected("healthy/views-and-tied.pt", "torch-zip", 7),
    Expected("healthy/sparse.pt", "torch-zip", 2 + 3),
    Expected("healthy/meta.pt", "torch-zip", 2),
    Expected("healthy/causal-mask.pt", "torch-zip", 4),
    Expected("healthy/big-endian.pt", "torch-zip", 2),
    Expected("healthy/sharded-bin", "torch-sharded", 8),
    Expected("healthy/legacy-stream.pth", "torch-legacy", 8 + 8 + 15),
    Expected("healthy/legacy-tar.pth", "torch-legacy-tar", 8),
    Expected("healthy/torchscript-scripted.pt", "torchscript", 8),
    Expected("healthy/torchscript-traced.pt", "torchscript", 8 + 1),
    Expected("healthy/transformer.safetensors", "safetensors", 9),
    Expected("healthy/sharded-safetensors", "safetensors-sharded", 9),
    Expected("healthy/arrays.npz", "npz", 8),
    Expected("healthy/arrays-compressed.npz", "npz", 8),
    Expected("healthy/resnet-v2.h5", "keras-h5", 42 + 6),
    Expected("healthy/mlp-adam.keras", "keras-zip", 7 + 12),
    Expected("healthy/mlp-adam.weights.h5", "keras-weights-h5", 7 + 12),
    Expected("healthy/keras2.h5", "keras-h5", 7 + 11),
    Expected("healthy/keras2-weights.h5", "keras-h5", 7),
    Expected("healthy/keras2.keras", "keras-zip", 7 + 11),
    Expected("healthy/chunked-compressed.h5", "keras-h5", 8),
    _sick("bn001-overflow-skipped-step.pt", "torch-zip", 49, "BN001 BN003"),
    _sick("bn001-overflow-skipped-step.safetensors", "safetensors", 49, "BN001 BN003"),
    _sick("bn001-overflow-skipped-step.h5", "keras-h5", 42 + 6, "BN001 BN003"),
    _sick("bn001-overflow-skipped-step.weights.h5", "keras-weights-h5", 42 + 8, "BN001 BN003"),
    _sick("bn001-overflow-skipped-step.keras", "keras-zip", 42 + 8, "BN001 BN003"),
    _sick("nf001-diverged-weights.pt", "torch-zip", 8, "NF001"),
    _sick("nf001-sharded-bin", "torch-sharded", 8, "NF001"),
    _sick("bn001-torchscript-scripted.pt", "torchscript", 8, "BN001"),
    _sick("nf002-legacy-tar.pth", "torch-legacy-tar", 8, "NF002"),
    _sick("nf001-every-dtype.pt", "torch-zip", 9 + 8 + 1 + 3, "NF001"),
    _sick("ts006-ema-model-fine.pth", "torch-zip", 31, "TS006"),
    _sick("ts001-optimizer-gradient-spike.ckpt", "torch-zip", 31, "TS001", serve="fit"),
    _sick("bn001-half-cast.pt", "torch-zip", 8, "BN001"),
    _sick("nf001-bf16.safetensors", "safetensors", 9, "NF001"),
    _sick("bn001-one-huge-sample.safetensors", "safetensors", 8, "BN001"),
    _sick("nf001-diverged.npz", "npz", 8, "NF001"),
    _sick("bn001-legacy-overflow.pth", "torch-legacy", 49, "BN001 BN003"),
    _sick("bn001-one-huge-sample-keras2.h5", "keras-h5", 7 + 11, "BN001"),
    _sick("ck001-flipped-bit.pt", "torch-zip", 8, "CK001"),
    _sick("ck001-flipped-bit.npz", "npz", 8, "CK001"),
    _sick("ck002-os-system.pt", "torch-zip", 8, "CK002", load="unsafe"),
    _sick("ck002-os-system-legacy.pth", "torch-legacy", 31, "CK002", load="unsafe"),
    _sick("ck002-lambda-layer.keras", "keras-zip", 0, "", serve="suspect", resume="suspect"),
    _sick("ck002-pickled-arrays.keras", "keras-zip", 7 + 12, "", serve="suspect", resume="suspect"),
    _sick("ck003-missing-shard", "safetensors-sharded", 4, "CK003"),
    _sick("ck003-missing-layer.h5", "keras-h5", 3, "CK003"),
    _sick("ck004-never-written.h5", "keras-h5", 8, "CK004"),
    _sick("ck005-two-pickles.pt", "torch-zip", 8, "CK002 CK005", load="unsafe"),
    _sick("ck006-external-links.h5", "keras-h5", 7, "CK006"),
    _sick("interrupted-download.pth", "torch-legacy", 8 + 8 + 2, "CK004"),
    _sick("interrupted-download.safetensors", "safetensors", 9, "CK004"),
    _refused("interrupted-download.pt", "TruncatedError"),
    _refused("interrupted-download.h5", "TruncatedError"),
    _refused("git-lfs-pointer.safetensors", "UnknownFormatError"),
    _refused("html-error-page.pt", "UnknownFormatError"),
    _refused("all-zero.pt", "TruncatedError"),
    _refused("empty.pt", "TruncatedError"),
    _refused("gguf-model.bin", "UnsupportedError"),
)

READABLE = tuple(row for row in EXPECTED if row.format)


def by_format() -> dict[str, list[Path]]:
    """Files of readable samples by format; a sharded set counts by its files."""
    found: dict[str, list[Path]] = {}
    for row in READABLE:
        found.setdefault(row.format, []).append(row.path)
    return found
