"""Files that are no checkpoint this program reads: what they are, and what to do about it."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from ..errors import FormatError, TruncatedError, UnknownFormatError, UnsupportedError
from ..sources import ByteSource

if TYPE_CHECKING:
    from ..containers.zip import Archive

__all__ = ["KINDS", "Kind", "mangled", "refusal", "refused_zip"]

READABLE = "PyTorch (zip, legacy, TorchScript), safetensors, Keras (.h5, .weights.h5, .keras), .npz"
_AGAIN = "download the file again"
_UNPACK = "unpack it and inspect what is inside"
_NAME_IT = f"name the file with the weights: {READABLE}"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of file that is recognised to be refused.

    Parameters
    ----------
    name
        Short, for tests and lists.
    test
        Decide from the first 4096 bytes, and the source where that is not enough.
    what
        What the file is, as a message says it; a function where it depends on the bytes.
    hint
        What to do next.
    error
        The exception that says it best.
    """

    name: str
    test: Callable[[bytes, ByteSource], bool]
    what: str | Callable[[bytes, ByteSource], str]
    hint: str | Callable[[bytes, ByteSource], str]
    error: type[FormatError] = UnknownFormatError


def refusal(head: bytes, source: ByteSource) -> FormatError:
    """Exception for a file that no adapter reads; the caller raises it.

    Examples
    --------
    >>> from ckptdoctor.sources import WindowSource
    >>> page = b"<!DOCTYPE html><title>Sign in</title>"
    >>> str(refusal(page, WindowSource.over(page, "model.pt")))
    'model.pt: an HTML page, not a checkpoint; log in where needed, then download the file again'
    """
    damage = mangled(head, source)
    if damage is not None:
        return damage
    for kind in KINDS:
        if kind.test(head, source):
            what = kind.what if isinstance(kind.what, str) else kind.what(head, source)
            hint = kind.hint if isinstance(kind.hint, str) else kind.hint(head, source)
            return kind.error(what, where=source.name, hint=hint)
    first = head[:8].hex(" ") or "none"
    message = f"no format that this program knows: {source.size:,} bytes, the first are {first}"
    if re.search(r"\.data-\d{5}-of-\d{5}$", source.name):
        message = "seems to be the data file of a TensorFlow checkpoint (its name says so)"
        return UnsupportedError(message, where=source.name, hint=_CONVERT)
    return UnknownFormatError(message, where=source.name, hint=f"it reads {READABLE}")


# Damage of transfers.

_MAGICS = (b"PK\3\4", b"\x89HDF", b"\x80\2", b"\x80\4", b"\x93NUMPY", b"GGUF")


def mangled(head: bytes, source: ByteSource) -> FormatError | None:
    """Exception for a binary file that was handled as text on its way; None if it was not.

    Bytes that are no text became U+FFFD, or every line feed got a carriage return.
    """
    marks = head.count(b"\xef\xbf\xbd")
    if marks >= 4 and _is_utf8(head):
        message = (
            f"a binary file that was saved as text: {marks} of its first {len(head):,} bytes "
            "became the replacement character U+FFFD, what they were is lost"
        )
        hint = "fetch the file again in binary mode"
        return FormatError(message, where=source.name, hint=hint)
    if not head.startswith((*_MAGICS, b"\x89HDF\r\r")) and b"\0" not in head:
        return None
    block = source.pread(0, min(source.size, 1 << 16))
    feeds = block.count(b"\n")
    # One in 256 line feeds of a binary file follows a carriage return.
    if feeds >= 4 and block.count(b"\r\n") == feeds:
        message = (
            f"a binary file that was transferred as text: all of the first {feeds} line feeds "
            "stand behind a carriage return"
        )
        hint = "transfer it in binary mode (git: `*.pt binary` in .gitattributes)"
        return FormatError(message, where=source.name, hint=hint)
    return None


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3  # a character cut in two at the end
    return True


# Zip archives without a checkpoint's members.

_INNER = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".h5", ".hdf5", ".keras", ".npz")


def refused_zip(archive: Archive) -> FormatError:
    """Exception for a zip archive that is no checkpoint itself, naming what is inside."""
    where = archive.source.name
    names = [member.name for member in archive.members if not member.name.endswith("/")]
    if not names:
        return UnknownFormatError("a zip archive without members", where=where, hint=_AGAIN)
    if any(name.endswith("/data.pkl") for name in names):
        message = "a torch archive that was unpacked and zipped again with another folder above"
        hint = "zip the inner folder so that it is the only one at the top"
        return FormatError(message, where=where, hint=hint)
    if any("/.data/" in name for name in names) and any(n.endswith(".pkl") for n in names):
        message = "a torch.package archive: code and pickles, no plain checkpoint"
        hint = "load it where you trust it, and save the state_dict"
        return UnsupportedError(message, where=where, hint=hint)
    inner = [name for name in names if name.lower().endswith(_INNER)]
    if inner:
        message = f"a zip archive that holds {_names(inner)}"
        return UnknownFormatError(message, where=where, hint=_UNPACK)
    message = f"a zip archive, but of no checkpoint: it holds {_names(names)}"
    return UnknownFormatError(message, where=where, hint=f"it reads {READABLE}")


def _names(names: list[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:3])
    return f"{shown} and {len(names) - 3:,} more" if len(names) > 3 else shown


# The table.

_CONVERT = "load it with TensorFlow and save it as .weights.h5 or .keras"
_TABLE_END = bytes.fromhex("57fb808b247547db")  # the magic number of LevelDB's tables


def _starts(*magics: bytes) -> Callable[[bytes, ByteSource], bool]:
    return lambda head, _: head.startswith(magics)


def _text(*starts: bytes) -> Callable[[bytes, ByteSource], bool]:
    """Whether the first word of a text is one of these, in any case."""

    def test(head: bytes, _: ByteSource) -> bool:
        return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:40].lower().startswith(starts)

    return test


def _is_table(_: bytes, source: ByteSource) -> bool:
    return source.size >= 48 and source.pread(source.size - 8, 8) == _TABLE_END


def _is_onnx(head: bytes, _: ByteSource) -> bool:
    # ir_version, then producer_name, domain or graph; version 1 is a SavedModel's schema
    return len(head) > 8 and head[0] == 8 and 2 <= head[1] <= 20 and head[2] in b"\x12\x1a\x22\x3a"


def _is_msgpack(head: bytes, _: ByteSource) -> bool:
    if len(head) < 8 or (not 0x81 <= head[0] <= 0x8F and head[0] not in (0xDE, 0xDF)):
        return False
    at = {0xDE: 3, 0xDF: 5}.get(head[0], 1)
    if not 0xA1 <= head[at] <= 0xBF:
        return False
    key = head[at + 1 : at + 1 + (head[at] & 31)]
    return key.isascii() and key.decode().isprintable()


def _is_text(head: bytes, _: ByteSource) -> bool:
    return len(head) > 1 and _is_utf8(head) and not re.search(rb"[\x00-\x08\x0e-\x1a\x7f]", head)


def _is_json(head: bytes, source: ByteSource) -> bool:
    return _text(b"{", b"[")(head, source) and _is_text(head, source)


def _lfs(head: bytes, _: ByteSource) -> str:
    size = re.search(rb"^size (\d{1,18})\s*$", head, re.MULTILINE)
    true = f"{int(size[1]):,} bytes" if size else "unknown size"
    return f"a Git LFS pointer, not the file itself, which has {true}"


def _lfs_pull(_: bytes, source: ByteSource) -> str:
    name = PurePath(source.name).name.replace('"', '\\"')
    return f'run: git lfs pull --include="{name}"'


MAX_ZEROS = 1 << 30
"""Zeros that are counted: a file of 4 TiB that is one hole would take an hour."""


def _zeros(head: bytes, source: ByteSource) -> str:
    """How far the zeros go; the file is read until they end, or there are `MAX_ZEROS` of them."""
    at, step = len(head), 1 << 20
    while at < source.size:
        if at >= MAX_ZEROS:
            return f"the first {at:,} of {source.size:,} bytes are zero: an interrupted download"
        block = source.pread(at, min(step, source.size - at))
        if block.count(0) != len(block):
            at += len(block) - len(block.lstrip(b"\0"))
            return f"the first {at:,} of {source.size:,} bytes are zero: an interrupted download"
        at += len(block)
    return f"all {source.size:,} bytes are zero: space was set aside, nothing was written"


def _packed(head: bytes, _: ByteSource) -> str:
    """Tell what a gzip file holds, as far as its first bytes tell."""
    try:
        inner = zlib.decompressobj(31).decompress(head, 1024)
    except zlib.error:
        return "a gzip file"
    if inner[257:262] == b"ustar":
        return "a tar archive compressed by gzip"
    if inner[:2] in (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5"):
        return "a pickle compressed by gzip"
    return "a gzip file"


_SOURCE = re.compile(rb"^(import|from|def|class) \w", re.MULTILINE)
_RUN_IT = "name the checkpoint that it saves, not the program"
_SERVER = re.compile(rb'\W*"(error|message|detail|errors|code|status)"')


def _json(head: bytes, _: ByteSource) -> str:
    if b'"modelTopology"' in head:
        return "the model.json of TensorFlow.js: the weights are in other files"
    if b'"class_name"' in head:
        return "the architecture of a Keras model as JSON, without weights"
    if _SERVER.match(head):
        return f"the error message of a server, not a checkpoint: {_line(head)}"
    return f"JSON text, not a checkpoint: {_line(head)}"


def _line(head: bytes) -> str:
    text = " ".join(head[:400].decode("utf-8", "replace").split())
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _words(head: bytes, _: ByteSource) -> str:
    if _SOURCE.search(head):
        return f"Python source code, not a checkpoint: {_line(head)}"
    return f"text, not a checkpoint: {_line(head)}"


def _tiny(head: bytes, _: ByteSource) -> str:
    return f"only {len(head)} byte{'s' * (len(head) > 1)}: {head.hex(' ')}"


KINDS: tuple[Kind, ...] = (
    Kind("empty", lambda _, source: not source.size, "the file is empty", _AGAIN, TruncatedError),
    Kind("zeros", lambda head, _: len(head) > 7 and not any(head), _zeros, _AGAIN, TruncatedError),
    Kind(
        "git-lfs", _starts(b"version https://git-lfs", b"version http://git-media"), _lfs, _lfs_pull
    ),
    Kind(
        "git-annex",
        _starts(b"/annex/objects/"),
        "a git-annex pointer, not the file itself",
        "run: git annex get",
    ),
    Kind(
        "html",
        _text(b"<!doctype html", b"<html", b"<head", b"<body", b"<script"),
        "an HTML page, not a checkpoint",
        "log in where needed, then download the file again",
    ),
    Kind(
        "xml",
        _text(b"<?xml", b"<error", b"<!--"),
        lambda head, _: f"XML text, often the error of a download: {_line(head)}",
        _AGAIN,
    ),
    Kind(
        "json",
        _is_json,
        _json,
        lambda head, _: _AGAIN if _SERVER.match(head) else _NAME_IT,
    ),
    Kind(
        "tf-checkpoint-state",
        _text(b"model_checkpoint_path:"),
        "the file that names a TensorFlow checkpoint, without tensors",
        _CONVERT,
    ),
    Kind(
        "tf-checkpoint",
        _is_table,
        "the index of a TensorFlow checkpoint, a format that is not read here",
        _CONVERT,
        UnsupportedError,
    ),
    Kind(
        "tf-saved-model",
        _starts(b"\x08\x01\x12"),
        "a TensorFlow SavedModel (saved_model.pb), a format that is not read here",
        _CONVERT,
        UnsupportedError,
    ),
    Kind(
        "tf-graph",
        lambda head, _: head[:1] == b"\n" and (b"Placeholder" in head or b"\x12\x05Const" in head),
        "a frozen TensorFlow graph (.pb), a format that is not read here",
        "inspect the checkpoint that it was made from",
        UnsupportedError,
    ),
    Kind(
        "gguf",
        _starts(b"GGUF", b"lmgg", b"tjgg", b"fmgg", b"algg"),
        "a GGUF or GGML file (llama.cpp), a format that is not read here",
        "inspect the safetensors files that it was made from",
        UnsupportedError,
    ),
    Kind(
        "tflite",
        lambda head, _: head[4:8] == b"TFL3",
        "a TensorFlow Lite model, a format that is not read here",
        "inspect the Keras file that it was made from",
        UnsupportedError,
    ),
    Kind(
        "onnx",
        _is_onnx,
        "an ONNX (or Core ML) model, a format that is not read here",
        "inspect the checkpoint that it was exported from",
        UnsupportedError,
    ),
    Kind(
        "npy",
        _starts(b"\x93NUMPY"),
        "a single NumPy array (.npy), not a checkpoint of named arrays",
        "save it by name: np.savez('x.npz', weight=array)",
        UnsupportedError,
    ),
    Kind(
        "msgpack",
        _is_msgpack,
        "a MessagePack file (Flax), a format that is not read here",
        "save it as safetensors: safetensors.flax.save_file",
        UnsupportedError,
    ),
    Kind(
        "mxnet",
        _starts(b"\x12\x01" + bytes(6)),
        "parameters of MXNet, a format that is not read here",
        "load it with MXNet and save the arrays by name: np.savez('x.npz', **arrays)",
        UnsupportedError,
    ),
    Kind("gzip", _starts(b"\x1f\x8b"), _packed, _UNPACK),
    Kind("7z", _starts(b"7z\xbc\xaf\x27\x1c"), "a 7-Zip archive", _UNPACK),
    Kind("rar", _starts(b"Rar!\x1a\7"), "a RAR archive", _UNPACK),
    Kind("xz", _starts(b"\xfd7zXZ\0"), "an xz file", _UNPACK),
    Kind("bzip2", _starts(b"BZh"), "a bzip2 file", _UNPACK),
    Kind("zstd", _starts(b"\x28\xb5\x2f\xfd"), "a Zstandard file", _UNPACK),
    Kind("lz4", _starts(b"\x04\x22\x4d\x18"), "an LZ4 file", _UNPACK),
    Kind("zlib", _starts(b"\x78\x9c", b"\x78\x01", b"\x78\xda"), "zlib data (joblib?)", _UNPACK),
    Kind("png", _starts(b"\x89PNG"), "a PNG image, not a checkpoint", _NAME_IT),
    Kind("jpeg", _starts(b"\xff\xd8\xff"), "a JPEG image, not a checkpoint", _NAME_IT),
    Kind("gif", _starts(b"GIF8"), "a GIF image, not a checkpoint", _NAME_IT),
    Kind("pdf", _starts(b"%PDF"), "a PDF document, not a checkpoint", _NAME_IT),
    Kind("riff", _starts(b"RIFF"), "audio, video or an image (RIFF), not a checkpoint", _NAME_IT),
    Kind(
        "program",
        _starts(b"\x7fELF", b"MZ\x90"),
        "a program or library, not a checkpoint",
        _NAME_IT,
    ),
    Kind("sqlite", _starts(b"SQLite format 3"), "an SQLite database, not a checkpoint", _NAME_IT),
    Kind(
        "parquet",
        _starts(b"PAR1", b"ARROW1"),
        "a table of data (Parquet or Arrow), not a checkpoint",
        _NAME_IT,
    ),
    Kind(
        "matlab",
        _starts(b"MATLAB 5.0"),
        "a MATLAB 5 file, a format that is not read here",
        "load it with scipy.io.loadmat and save the arrays by name: np.savez('x.npz', **arrays)",
        UnsupportedError,
    ),
    Kind(
        "text",
        _is_text,
        _words,
        lambda head, _: _RUN_IT if _SOURCE.search(head) else _NAME_IT,
    ),
    Kind("tiny", lambda head, _: len(head) < 8, _tiny, _AGAIN),
)
"""In the order they are tried: the surest signs first."""
