"""The tensor table: what every adapter yields, and all that statistics and rules see of a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from .dtypes import DTYPES, DType
from .errors import BombError, UsageError
from .findings import Finding
from .sources import Extent, FileSource

__all__ = [
    "BLOCK_BYTES",
    "Array",
    "ArrayDecoder",
    "Checksum",
    "Decoder",
    "LayerConfig",
    "Quantisation",
    "Role",
    "TensorInfo",
    "TensorTable",
]

Array = npt.NDArray[Any]
Role = Literal["model", "ema", "optimizer", "scaler", "training", "other"]
Encoding = Literal["plain", "quantised", "opaque", "absent"]

BLOCK_BYTES = 1 << 18
"""256 KiB: what a rule or a test reads at a time; the statistics pass has its own block size."""

MAX_EXPANSION = 1024
"""How many times its stored bytes a view may take when it is read whole (strides of 0 repeat)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """How stored integers map to real values: ``(q - zero_point) * scale``.

    ``scale`` and ``zero_point`` are numbers for a whole tensor, or names of table rows that hold
    one value per index of dimension ``axis``.
    """

    scheme: str
    scale: float | str
    zero_point: int | str
    axis: int | None = None


class TensorInfo(NamedTuple):
    """Everything a checkpoint states about one tensor, short of its values.

    A named tuple, and so are `Extent` and `Checksum`: there is one of each per tensor, and making
    a frozen dataclass of twelve fields takes 1.3 us where this takes 0.4.

    Parameters
    ----------
    name
        Path in the loaded object joined with ``.`` (torch, safetensors, npz) or ``/`` (HDF5).
    path
        The components of ``name``: keys may themselves hold dots.
    dtype
        A name of `ckptdoctor.dtypes.DTYPES`.
    shape
        Extents in elements, outermost first; ``()`` is a scalar.
    role
        What the checkpoint uses it for, from the structure around it (`ckptdoctor.roles`).
    encoding
        ``plain``; ``quantised`` (see ``quantisation``); ``opaque`` (the bytes are there, their
        meaning is not known); ``absent`` (a meta tensor, or nothing was stored).
    extent
        Where the bytes lie, first to last element; None where only the adapter can decode them.
    strides
        In elements, as torch gives them; None for row-major without gaps.
    big_endian
        Byte order of the stored elements.
    storage
        Identity of the buffer underneath, empty where the format has no such thing.  Equal names
        mean shared memory: an edit to one tensor may be an edit to another (tied weights, views).
    quantisation
        Present where ``encoding`` is ``quantised``.
    layer_name
        The framework's own layer name where the path hides it (``post_bn`` for
        ``layers/batch_normalization_99``), else empty.

    Examples
    --------
    >>> info = TensorInfo(name="fc.weight", path=("fc.weight",), dtype="float32", shape=(10, 4))
    >>> info.size, info.nbytes, info.layer
    (40, 160, 'fc')
    """

    name: str
    path: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    role: Role = "model"
    encoding: Encoding = "plain"
    extent: Extent | None = None
    strides: tuple[int, ...] | None = None
    big_endian: bool = False
    storage: str = ""
    quantisation: Quantisation | None = None
    layer_name: str = ""

    @property
    def size(self) -> int:
        """Number of elements; 1 for a scalar, 0 when any extent is 0."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes when stored without gaps."""
        return DTYPES[self.dtype].nbytes(self.size)

    @property
    def kind(self) -> DType:
        """The dtype table's row."""
        return DTYPES[self.dtype]

    @property
    def layer(self) -> str:
        """The framework's layer name, else ``name`` without its last component."""
        if self.layer_name:
            return self.layer_name
        cut = max(self.name.rfind("."), self.name.rfind("/"))
        if "/" in self.name:
            cut = self.name.rfind("/")
        return self.name[:cut] if cut > 0 else ""


class Checksum(NamedTuple):
    """CRC-32 that the container states for a run of bytes; checked in the pass that reads them.

    ``header`` and ``entry`` are the offsets of the member's local header and of its entry in the
    directory of a zip archive, which repeat it; -1 elsewhere.
    """

    extent: Extent
    crc32: int
    where: str
    header: int = -1
    entry: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerConfig:
    """What the file says about a layer apart from its tensors; None where it says nothing.

    ``inputs`` names the layers that feed it.  ``settings`` holds the stored configuration's plain
    numbers, strings and flags (``units``, ``axis``, ``pool_size`` ...).
    """

    name: str
    class_name: str
    epsilon: float | None = None
    momentum: float | None = None
    activation: str | None = None
    dtype_policy: str | None = None
    inputs: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


class Decoder(Protocol):
    """Gives values that no extent can: compressed, chunked or compact data."""

    def blocks(self, info: TensorInfo) -> Iterator[Array]:
        """Flat blocks in row-major order, native byte order, about `BLOCK_BYTES` each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorTable(Mapping[str, TensorInfo]):
    """Tensors of one checkpoint in file order, with values read on demand.

    Parameters
    ----------
    path
        The checkpoint as the caller named it.
    format
        Name of the adapter's format: ``torch-zip``, ``keras-h5``, ...
    infos
        Name to `TensorInfo`, in file order.
    metadata
        What the file states about itself: ``framework``, ``framework_version``, ...
    scalars
        Python numbers of the training state by name (learning rates, loss scale, epoch).
    layers
        Stored configuration by layer name, in data-flow order where the file knows it.
    findings
        What the adapter noticed while reading: CK001 to CK006.
    checksums
        Runs of bytes whose CRC-32 the container states and nobody has checked yet.
    enclosing
        Checksums of archives around those: they cover the same bytes again, and are not checked.
    decoder
        Source of values for tensors without an extent.
    files
        Open files below all extents; closed with the table.

    Examples
    --------
    >>> table = TensorTable.from_arrays({"b": [0.5, -1.0]})
    >>> table["b"].shape, table.read("b").tolist()
    ((2,), [0.5, -1.0])
    """

    path: str
    format: str
    infos: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    scalars: Mapping[str, float | int] = field(default_factory=dict)
    layers: Mapping[str, LayerConfig] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    checksums: tuple[Checksum, ...] = ()
    enclosing: tuple[Checksum, ...] = ()
    decoder: Decoder | None = None
    files: tuple[FileSource, ...] = ()

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, npt.ArrayLike],
        roles: Mapping[str, Role] | None = None,
        *,
        scalars: Mapping[str, float | int] | None = None,
        layers: Iterable[LayerConfig] = (),
    ) -> TensorTable:
        """Table over values in memory; what is no array becomes float32."""
        held = {
            name: value if isinstance(value, np.ndarray) else np.asarray(value, np.float32)
            for name, value in arrays.items()
        }
        infos = {
            name: TensorInfo(
                name=name,
                path=tuple(name.replace("/", ".").split(".")),
                dtype=value.dtype.name,
                shape=value.shape,
                role=(roles or {}).get(name, "model"),
            )
            for name, value in held.items()
        }
        return cls(
            path="<memory>",
            format="memory",
            infos=infos,
            scalars=scalars or {},
            layers={layer.name: layer for layer in layers},
            decoder=ArrayDecoder(held),
        )

    def __getitem__(self, name: str) -> TensorInfo:
        return self.infos[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files below; values can no longer be read."""
        for file in self.files:
            file.close()
        close = getattr(self.decoder, "close", None)
        if close is not None:
            close()

    def check_unchanged(self) -> None:
        """Raise `ChangedError` if a file below was written to since it was opened."""
        for file in self.files:
            file.check_unchanged()

    def read(self, name: str) -> Array:
        """All values of one tensor in its own shape, native byte order.

        Raises
        ------
        UsageError
            If there is no such tensor, or it has no values to read.
        FormatError
            If the bytes cannot be decoded, or a view repeats a few of them without measure.
        """
        info = self.infos.get(name)
        if info is None:
            raise UsageError(f"no tensor {name!r}", where=self.path)
        stored = info.extent.length if info.strides and info.extent else info.nbytes
        if info.nbytes > MAX_EXPANSION * stored + 2**24:
            message = f"{name!r:.200} repeats {stored:,} stored bytes to make {info.nbytes:,}"
            raise BombError(message, where=self.path)
        blocks = list(self.blocks(info))
        if not blocks:
            return np.empty(info.shape, info.kind.numpy)
        flat = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return flat.reshape(info.shape if flat.size == info.size else (-1,))

    def blocks(self, info: TensorInfo, max_bytes: int = BLOCK_BYTES) -> Iterator[Array]:
        """Values as flat blocks in row-major order, native byte order; each block is fresh memory.

        Types that share bytes come as their stored bytes.
        """
        if info.encoding == "absent":
            raise UsageError(f"{info.name!r} has no stored values", where=self.path)
        if info.extent is None:
            if self.decoder is None:
                raise UsageError(f"{info.name!r} has no stored values", where=self.path)
            yield from self.decoder.blocks(info)
        elif info.strides is None:
            yield from _contiguous(info, info.extent, max_bytes)
        else:
            yield from _strided(info, info.extent, info.strides, max_bytes)


def _native(block: Array, info: TensorInfo) -> Array:
    return block.byteswap() if info.big_endian else block


def _contiguous(info: TensorInfo, extent: Extent, max_bytes: int) -> Iterator[Array]:
    dtype = info.kind.numpy
    step = max(1, max_bytes // dtype.itemsize) * dtype.itemsize
    for start in range(0, extent.length, step):
        raw = extent.source.pread(extent.offset + start, min(step, extent.length - start))
        yield _native(np.frombuffer(raw, dtype), info)


def _strided(
    info: TensorInfo, extent: Extent, strides: tuple[int, ...], max_bytes: int
) -> Iterator[Array]:
    """Gather a view; the span between its first and last element is read whole.

    Adapters only give strides to tensors whose span the file holds, so memory is bounded by the
    file, and in practice by one storage.
    """
    dtype = info.kind.numpy
    # as unsigned words: NumPy cannot stride over the types of ml_dtypes
    word = np.dtype(f"u{dtype.itemsize}") if dtype.itemsize <= 8 else dtype
    span = np.frombuffer(extent.read(), word)
    steps = tuple(s * dtype.itemsize for s in strides)
    view = np.lib.stride_tricks.as_strided(span, info.shape, steps, writeable=False)
    if not info.shape or not info.size:
        yield _native(view.reshape(-1).view(dtype), info)
        return
    rows = max(1, max_bytes * info.shape[0] // max(1, info.size * dtype.itemsize))
    for start in range(0, info.shape[0], rows):
        part = np.ascontiguousarray(view[start : start + rows]).reshape(-1)
        yield _native(part.view(dtype), info)


@dataclass(frozen=True, slots=True)
class ArrayDecoder:
    """Decoder over arrays in memory, by tensor name."""

    arrays: Mapping[str, Array]

    def blocks(self, info: TensorInfo) -> Iterator[Array]:
        flat = self.arrays[info.name].reshape(-1)
        step = max(1, BLOCK_BYTES // flat.dtype.itemsize)
        for start in range(0, flat.size, step):
            yield flat[start : start + step]
