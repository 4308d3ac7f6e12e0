"""What the caller expects: names, or a file that lists or implies them."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FormatError, UsageError
from ..tensors import TensorTable
from .reading import parse, read_limited

if TYPE_CHECKING:
    from . import ExpectKeys

__all__ = [
    "Expectation", "digest_of", "hashed", "is_hugging_face", "read_expected", "weights_of",
]  # fmt: skip

MAX_LIST = 1 << 28
"""256 MiB, as of an index of shards."""

_HINT = "give names, a JSON list or object of them, one name a line, or another checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What is expected of a checkpoint.

    Parameters
    ----------
    source
        How messages call it.
    names
        In the order given; a ``*`` in one stands for anything.
    shapes
        By name, where they are known.
    literal
        Whether a ``*`` is only a star: in names that come from another checkpoint.
    keras, hugging_face
        A configuration instead of names.
    """

    source: str
    names: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    literal: bool = False
    keras: bytes | None = None
    hugging_face: Mapping[str, Any] | None = None


def is_hugging_face(document: object) -> bool:
    """Whether a parsed ``config.json`` is one of Hugging Face Transformers."""
    if not isinstance(document, dict):
        return False
    listed = document.get("architectures")
    named = isinstance(listed, list) and bool(listed) and all(isinstance(a, str) for a in listed)
    return named or isinstance(document.get("model_type"), str)


def read_expected(expect_keys: ExpectKeys) -> Expectation:
    """Names from a list, from a file of any of the kinds, or from another checkpoint.

    Raises
    ------
    UsageError
        If there is no such file, no name in it, or it is a checkpoint that cannot be read.
    CkptDoctorError
        If the machine would not give its bytes.
    """
    if isinstance(expect_keys, str | os.PathLike):
        return _from_path(os.fspath(expect_keys))
    names = tuple(expect_keys or ())
    if not names or not all(map(_is_name, names)):
        raise UsageError("expected names, found none", hint=_HINT)
    return Expectation(source="the list", names=names)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def digest_of(expect_keys: ExpectKeys) -> Iterable[bytes]:
    """Yield what `read_expected` depends on: names, a file's bytes, a checkpoint's names and shapes.

    Raises
    ------
    CkptDoctorError
        As `read_expected`.
    """
    if not isinstance(expect_keys, str | os.PathLike):
        yield b"names"
        yield from (
            name.encode(errors="surrogatepass") for name in read_expected(expect_keys).names
        )
        return
    path = os.fspath(expect_keys)
    text = _text(path)
    yield Path(path).name.encode(errors="surrogateescape")  # messages name it
    if text is not None:
        yield b"text"
        yield text
        return
    yield b"checkpoint"
    for name, shape in _of_checkpoint(path).items():
        yield name.encode(errors="surrogatepass")
        yield repr(shape).encode()


def _from_path(path: str) -> Expectation:
    source = Path(path).name or path
    text = _text(path)
    if text is None:
        shapes = _of_checkpoint(path)
        if not shapes:
            raise UsageError(
                "expected a checkpoint with weights to take names from, found none", where=path
            )
        return Expectation(source=source, names=tuple(shapes), shapes=shapes, literal=True)
    if text.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"["):
        return _from_json(text, path, source)
    lines = (line.strip() for line in text.decode("utf-8-sig").splitlines())
    return _named([line for line in lines if line and line[0] != "#"], path, source)


def _text(path: str) -> bytes | None:
    """Bytes of a file of text; None for anything else that is there.

    Raises
    ------
    UsageError
        If nothing is there, or it cannot be read.
    """
    if os.path.isdir(path):  # noqa: PTH112
        return None
    try:
        size = os.stat(path).st_size  # noqa: PTH116
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no name of a file"
        raise UsageError(
            f"the names to expect cannot be read: {why}", where=path, hint=_HINT
        ) from None
    if size > MAX_LIST:  # of text it would be more names than any checkpoint has
        return None
    head, why = read_limited(path, MAX_LIST)
    if head is None:
        raise UsageError(
            f"the names to expect cannot be read: {why or 'no such file'}", where=path, hint=_HINT
        )
    if b"\0" in head:
        return None
    try:
        head.decode()
    except UnicodeDecodeError:
        return None
    return head


def _from_json(text: bytes, path: str, source: str) -> Expectation:
    try:
        found = parse(text)
    except ValueError as error:
        message = f"the names to expect are no JSON that can be read: {str(error)[:100]}"
        raise UsageError(message, where=path, hint=_HINT) from None
    if isinstance(found, list):
        return _named(found, path, source)
    if isinstance(found.get("weight_map"), dict):
        return _named(list(found["weight_map"]), path, source)
    if isinstance(found.get("class_name"), str) and isinstance(found.get("config"), dict | list):
        return Expectation(source=source, keras=text)
    if is_hugging_face(found):
        return Expectation(source=source, hugging_face=found)
    return _named(list(found), path, source)


def _named(names: Sequence[object], path: str, source: str) -> Expectation:
    known = tuple(name for name in names if isinstance(name, str) and name)
    if not known or len(known) < len(names):
        what = "none" if not known else "something else among them"
        raise UsageError(f"expected names, found {what}", where=path, hint=_HINT)
    return Expectation(source=source, names=known)


def _of_checkpoint(path: str) -> dict[str, tuple[int, ...]]:
    from ..formats import open_path  # noqa: PLC0415  (few expectations are checkpoints)

    try:
        with open_path(path) as table:
            return {info.name: info.shape for info in table.values() if info.role == "model"}
    except FormatError as error:
        message = f"the names to expect cannot be read: {error.message}"
        raise UsageError(message, where=error.where or path, hint=error.hint) from None


def hashed(parts: Iterable[bytes]) -> str:
    """SHA-256 over parts of which none can be taken for two."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def weights_of(table: TensorTable) -> list[str]:
    """Names of the weights that count: the model's, or where there are none, its average's."""
    for role in ("model", "ema"):
        names = [info.name for info in table.values() if info.role == role]
        if names:
            return names
    return []
