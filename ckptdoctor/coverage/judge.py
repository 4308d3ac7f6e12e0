"""Which expectation a checkpoint is held against."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CkptDoctorError
from ..findings import Finding, Severity
from ..formats.folder import SHARD
from ..tensors import TensorTable
from .expected import digest_of, hashed, is_hugging_face, read_expected
from .reading import CONFIG, embeds, parse, read_config
from .wording import told

if TYPE_CHECKING:
    from . import ExpectKeys

__all__ = ["digest", "judged"]


def judged(table: TensorTable, path: str, expect_keys: ExpectKeys) -> tuple[Finding, ...]:
    """Do what `ckptdoctor.coverage.coverage_of` says."""
    return tuple(_findings(table, path, expect_keys))


def digest(path: str, expect_keys: ExpectKeys) -> str:
    """Do what `ckptdoctor.coverage.expectation_digest` says."""
    if expect_keys is not None:
        return hashed([b"expected", *digest_of(expect_keys)])
    data, why = read_config(path)
    if data is None:
        return hashed([b"unread", why.encode(errors="replace")] if why else [b"nothing"])
    name = _file_of(path).encode(errors="surrogateescape")
    return hashed([b"config", name, b"embeds" if embeds(path) else b"", data])


def _file_of(path: str) -> str:
    """Name of the file that a path leads to."""
    if Path(path).is_dir():
        from ..formats.folder import find_checkpoint  # noqa: PLC0415

        try:
            path = find_checkpoint(path)[0]
        except CkptDoctorError:
            return ""
    return Path(path).name


def _findings(table: TensorTable, path: str, expect_keys: ExpectKeys) -> Iterator[Finding]:
    if expect_keys is not None:
        wanted = read_expected(expect_keys)
        if wanted.keras is not None:
            from .keras_model import held_against_json  # noqa: PLC0415

            yield from held_against_json(table, wanted.keras, wanted.source)
        elif wanted.hugging_face is not None:
            from .huggingface import held_against_config  # noqa: PLC0415

            yield from held_against_config(table, wanted.hugging_face, wanted.source, strict=True)
        else:
            from .exact import held_against  # noqa: PLC0415

            yield from held_against(table, wanted)
    elif table.format.startswith("keras"):
        from .keras_model import held_against_layers  # noqa: PLC0415

        yield from held_against_layers(table)
    elif table.format.startswith(("safetensors", "torch")) and not _is_shard(table):
        yield from _beside(table, path)


def _is_shard(table: TensorTable) -> bool:
    return SHARD.fullmatch(Path(table.path).name) is not None


def _beside(table: TensorTable, path: str) -> Iterator[Finding]:
    from .huggingface import held_against_config, loaded_by_name  # noqa: PLC0415

    strict = loaded_by_name(table.path)
    data, why = read_config(path)
    config: Any = None
    if data is not None:
        try:
            config = parse(data)
        except ValueError as error:
            why = f"no JSON: {str(error)[:100]}"
    if why and strict:
        text = f"the {CONFIG} beside it cannot be read ({why}): which weights belong to the model "
        text += "is not known"
        yield told(Severity.NOTE, text, table.path)
    if is_hugging_face(config):
        headless = embeds(path)
        yield from held_against_config(table, config, CONFIG, strict=strict, headless=headless)
