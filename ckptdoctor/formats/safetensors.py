"""safetensors: u64 header length, JSON header, row-major little-endian bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from ..dtypes import DTYPES, SAFETENSORS
from ..errors import FormatError, TruncatedError, UnsupportedError
from ..findings import Finding, Severity, container_finding
from ..roles import role_of
from ..sources import ByteSource, Extent, FileSource
from ..tensors import Role, TensorInfo, TensorTable
from .base import ReadOptions
from .repeated_keys import keep_last

__all__ = ["Safetensors", "looks_like_safetensors", "read_safetensors"]

MAX_HEADER = 100_000_000
"""The limit of the reference implementation, in bytes."""
MAX_DIMENSIONS = 32
"""As many as every NumPy in use can hold."""
_MAX_BYTES = 1 << 62
_METADATA = "__metadata__"
_BITS = {code: DTYPES[name].bits for code, name in SAFETENSORS.items()}
_FRAMEWORKS = {
    "pt": "torch",
    "tf": "tensorflow",
    "flax": "flax",
    "np": "numpy",
    "mlx": "mlx",
    "paddle": "paddle",
}
_ADVICE = "get the file again from where it came from, or save the model anew"

_Entry = Mapping[str, Any]
_Span = tuple[int, int, str]


class Safetensors:
    """The Hugging Face safetensors format, one file."""

    name = "safetensors"
    spec = "https://github.com/huggingface/safetensors#format"
    summary = "safetensors .safetensors (Hugging Face, PyTorch, JAX, MLX)"

    def sniff(self, head: bytes, source: FileSource) -> bool:
        return looks_like_safetensors(head, source.size)

    def read(self, source: FileSource, options: ReadOptions) -> TensorTable:  # noqa: ARG002
        """Check the whole header, then say where each tensor lies.

        Raises
        ------
        TruncatedError
            If the header, or all data, is cut off.
        FormatError
            If the header is wrong, naming the tensor it is wrong about.
        """
        infos, metadata, findings = read_safetensors(source)
        return TensorTable(
            path=source.name,
            format=self.name,
            infos=infos,
            metadata=metadata,
            findings=tuple(findings),
            files=(source,),
        )


def looks_like_safetensors(head: bytes, size: int) -> bool:
    r"""Tell from the first bytes of a file of ``size`` bytes, broken headers included.

    Examples
    --------
    >>> looks_like_safetensors(b"\x02" + bytes(7) + b"{}", 10)
    True
    >>> looks_like_safetensors(b'{"data":{"a": 1}}', 17)
    False
    """
    start, rest = head[:8], head[8:16]
    if len(start) < 8 or (start.isascii() and start.decode().isprintable()):
        return False
    if int.from_bytes(start, "little") <= min(size - 8, MAX_HEADER):
        return rest.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")
    # A length that cannot be true; but a pickle may have a brace in this place as well.
    return rest[:1] == b"{" and not (start[0] == 0x80 and start[1] <= 5 and any(start[2:]))


def read_safetensors(
    source: ByteSource,
) -> tuple[dict[str, TensorInfo], dict[str, str], list[Finding]]:
    """Tensors, metadata and findings of one file; raises as `Safetensors.read`."""
    try:
        text, start = _header_text(source)
        header, findings = _parse(text, source.name)
    except FormatError:
        _refuse_text_tail(source, 8)
        raise
    metadata = _metadata(header.pop(_METADATA, None), findings, source.name)
    spans = _spans(header, source.name)
    end = _check_tiling(spans, source.name)
    held = source.size - start
    if held != end:
        _refuse_text_tail(source, start + end)
        findings.append(_size_finding(spans, start, held, end, source.name))
    infos = _infos(header, source, start, held)
    return infos, metadata, findings


def _header_text(source: ByteSource) -> tuple[str, int]:
    """Header, decoded, and the offset of the data behind it."""
    where = f"{source.name}+0"
    if source.size < 8:
        message = f"expected a header length of 8 bytes, found {source.size}"
        raise TruncatedError(message, where=where)
    length = int.from_bytes(source.pread(0, 8), "little")
    if length > MAX_HEADER:
        message = f"expected a header of at most {MAX_HEADER:,} bytes, found a length of {length:,}"
        raise FormatError(message, where=where, hint=_ADVICE)
    if 8 + length > source.size:
        message = f"the header has {length:,} bytes, {source.size - 8:,} are here"
        raise TruncatedError(message, where=where, hint="download the file again")
    raw = source.pread(8, length)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        message = f"the header is not UTF-8: {raw[error.start : error.start + 4]!r}"
        raise FormatError(message, where=f"{source.name}+{8 + error.start}", hint=_ADVICE) from None
    if not text.startswith("{"):
        message = f"expected a header that starts with '{{', found {text[:8]!r}"
        raise FormatError(message, where=f"{source.name}+8", hint=_ADVICE)
    return text, 8 + length


def _parse(text: str, path: str) -> tuple[dict[str, Any], list[Finding]]:
    """Header as an object; keys that occur twice are findings, the last one counts."""
    header = _load(text, path, None)
    # Every key has one colon, and every colon in a string is counted; a key given twice has one
    # more than that, and only "\\u" could hide it.  A third of the price of a hook for each object.
    metadata = header.get(_METADATA, {})
    strings = [*header, *map(str, metadata.items() if isinstance(metadata, dict) else ())]
    keys = len(header) + 3 * (len(header) - (_METADATA in header))
    keys += len(metadata) if isinstance(metadata, dict) else 0
    if "\\u" not in text and text.count(":") == keys + "".join(strings).count(":"):
        return header, []
    findings: list[Finding] = []
    repeated: set[str] = set()
    header = _load(text, path, keep_last(repeated))
    if repeated:
        message = f"the header gives {len(repeated)} keys twice, first {_short(min(repeated))}"
        message += ": loaders disagree which one counts, the last is taken here"
        findings.append(container_finding("CK005", Severity.ERROR, message, where=path))
    halves = [key for key in header if not _encodes(key)]
    if halves:
        for key in halves:
            safe = key.encode("utf-8", "backslashreplace").decode()
            entry = header.pop(key)
            header.setdefault(safe, entry)
        message = f"{len(halves)} names hold half a character, first {_short(halves[0])}"
        findings.append(container_finding("CK005", Severity.ERROR, message, where=path))
    return header, findings


def _load(text: str, path: str, hook: Callable[[list[tuple[str, Any]]], Any] | None) -> Any:
    try:
        return json.loads(text, object_pairs_hook=hook, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        # ValueError: bad syntax, NaN, or a number of thousands of digits
        found = getattr(error, "msg", None) or str(error).partition(":")[0] or "nests too deep"
        where = f"{path}+{8 + getattr(error, 'pos', 0)}"
        message = f"the header is not JSON that can be read: {found[:100]}"
        raise FormatError(message, where=where, hint=_ADVICE) from None


def _no_constant(token: str) -> NoReturn:
    message = f"{token} is not JSON"
    raise ValueError(message)


def _encodes(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _metadata(found: Any, findings: list[Finding], path: str) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        message = "__metadata__ holds something other than strings, which safetensors refuses"
        findings.append(container_finding("CK005", Severity.ERROR, message, where=path))
        if not isinstance(found, dict):
            return {}
    metadata = {
        key.encode("utf-8", "backslashreplace").decode(): value.encode(
            "utf-8", "backslashreplace"
        ).decode()
        for key, value in found.items()
        if isinstance(value, str)
    }
    framework = _FRAMEWORKS.get(metadata.get("format", ""))
    if framework:
        metadata.setdefault("framework", framework)
    return metadata


def _spans(header: Mapping[str, Any], path: str) -> list[_Span]:
    """(begin, end, name) of each tensor, every entry checked; the hot loop of 100,000 tensors."""
    spans: list[_Span] = []
    bits_of = _BITS
    for name, entry in header.items():
        try:
            begin, end = entry["data_offsets"]
            bits = bits_of[entry["dtype"]]
            shape = entry["shape"]
            count = 1
            for n in shape:
                if type(n) is not int or not 0 <= n < _MAX_BYTES or count > _MAX_BYTES:
                    count = 0  # not plainly right
                    break
                count *= n
            if (
                not count
                or (end - begin) * 8 != count * bits
                or begin < 0
                or type(begin) is not int
                or type(end) is not int
                or type(shape) is not list
                or len(shape) > MAX_DIMENSIONS
            ):
                error = _entry_error(name, entry, path)
                if error is not None:  # it is no empty tensor either
                    raise error
        except (KeyError, TypeError, ValueError, OverflowError):
            strange = FormatError(f"tensor {_short(name)}: cannot be understood", where=path)
            raise (_entry_error(name, entry, path) or strange) from None
        spans.append((begin, end, name))
    return spans


def _entry_error(name: str, entry: Any, path: str) -> FormatError | None:
    """Say what is wrong with one entry, most telling reason first; None where nothing is."""

    def wrong(message: str, hint: str = _ADVICE) -> FormatError:
        return FormatError(f"tensor {_short(name)}: {message}", where=path, hint=hint)

    if not isinstance(entry, dict):
        return wrong(f"expected an object, found {_short(entry)}")
    for key in ("dtype", "shape", "data_offsets"):
        if key not in entry:
            return wrong(f"the header gives it no {key}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        return wrong(f"expected a dtype such as 'F32', found {_short(dtype)}")
    if dtype not in _BITS:
        hint = "a newer version of this program may know it"
        found = wrong(f"its dtype {_short(dtype)} is not known", hint)
        return UnsupportedError(found.message, where=path, hint=hint)
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        return wrong(f"expected a shape of whole numbers, found {_short(shape)}")
    if len(shape) > MAX_DIMENSIONS:
        return wrong(f"expected at most {MAX_DIMENSIONS} dimensions, found {len(shape):,}")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or any(type(n) is not int for n in offsets)
    ):
        return wrong(f"expected two whole numbers as data_offsets, found {_short(offsets)}")
    begin, end = offsets
    if not 0 <= begin <= end:
        return wrong(f"data_offsets {_short(offsets)} are not 0 <= begin <= end")
    needed = _BITS[dtype]
    for n in sorted(shape, reverse=True):  # zeros last: what is around them may not overflow
        if needed * n > 8 * _MAX_BYTES:
            return wrong(f"shape {_short(shape)} of {dtype} is larger than any file")
        needed *= n
    if needed % 8:
        return wrong(f"shape {_short(shape)} of {dtype} ends within a byte")
    if needed != 8 * (end - begin):
        return wrong(
            f"shape {_short(shape)} of {dtype} needs {needed // 8:,} bytes, "
            f"data_offsets give {_short(end - begin)}"
        )
    return None


def _check_tiling(spans: list[_Span], path: str) -> int:
    """Check that the tensors lie end to end; returns where the last one ends."""
    reached = 0
    before = ""
    for begin, end, name in sorted(spans):
        if begin != reached:
            if begin > reached:
                what = f"{begin - reached:,} bytes of no tensor lie before it"
            else:
                what = f"overlaps tensor {_short(before)} by {reached - begin:,} bytes"
            message = f"tensor {_short(name)}: {what}"
            raise FormatError(message, where=f"{path}+{begin}", hint=_ADVICE)
        reached, before = end, name
    return reached


def _refuse_text_tail(source: ByteSource, end: int) -> None:
    """Refuse a download that was resumed with somebody's error page."""
    take = min(512, source.size)
    tail = source.pread(source.size - take, take).rstrip(b"\0\r\n\t ").lower()
    if tail.endswith((b"</html>", b"</body>", b"</error>")):
        message = "the data ends in a web page: a download was resumed with an error page"
        where = f"{source.name}+{min(end, source.size)}"
        raise FormatError(message, where=where, hint="download the file again")


def _size_finding(spans: list[_Span], start: int, held: int, end: int, path: str) -> Finding:
    """Say how much is missing or surplus; raise where no tensor is left."""
    if held > end:
        message = f"{held - end:,} bytes follow the last tensor, which safetensors refuses"
        return container_finding(
            "CK005",
            Severity.ERROR,
            message,
            where=path,
            surplus_bytes=held - end,
            end=start + end,
        )
    cut = [name for _, stop, name in sorted(spans) if stop > held]
    message = (
        f"{end - held:,} of {end:,} bytes of data are missing: {len(cut):,} of {len(spans):,} "
        f"tensors are cut off"
    )
    if len(cut) == sum(stop > begin for begin, stop, _ in spans):
        raise TruncatedError(message, where=path, hint="download the file again")
    message += f", first {_short(cut[0])}; download the file again"
    return container_finding(
        "CK004", Severity.ERROR, message, where=path, missing_bytes=end - held, cut=len(cut)
    )


def _infos(
    header: Mapping[str, Any], source: ByteSource, start: int, held: int
) -> dict[str, TensorInfo]:
    roles: dict[tuple[str, str], Role] = {}
    infos: dict[str, TensorInfo] = {}
    for name, entry in header.items():
        key, dot, _ = name.partition(".")
        role = roles.get((key, dot))  # all that role_of looks at in a path of one component
        if role is None:
            role = roles[key, dot] = role_of((name,))
        begin, end = entry["data_offsets"]
        infos[name] = TensorInfo(
            name=name,
            path=(name,),
            dtype=SAFETENSORS[entry["dtype"]],
            shape=tuple(entry["shape"]),
            role=role,
            encoding="plain" if end <= held else "absent",
            extent=Extent(source, start + begin, end - begin) if end <= held else None,
        )
    return infos


def _short(value: object) -> str:
    """Show a value as a message can hold it: cut, and without printing numbers of any length."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length():,} bits"
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else f"{value[:40]}...{value[-37:]}")
    if isinstance(value, list):
        cut = ", ".join(_short(item) for item in value[:6])
        return f"[{cut}{', ...' if len(value) > 6 else ''}]"
    if isinstance(value, dict):
        return "an object"
    return repr(value)
