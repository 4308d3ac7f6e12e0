"""Rows of a family and a configuration -> names."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .families import FAMILIES
from .family import Family

__all__ = ["MAX_NAMES", "MAX_SIZE", "Asked", "OddConfigError", "asked_by", "setting"]

MAX_LAYERS = 2_000
"""The deepest models that are published have some hundreds."""
MAX_NAMES = 1_000_000
"""Layers times experts times weights: the largest published models have 100,000."""
MAX_SIZE = 1 << 40
"""A side of a tensor; a configuration may state numbers of thousands of digits."""

_ALIASES: Mapping[str, tuple[str, ...]] = {
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "hidden_size": ("n_embd", "d_model", "dim", "n_embed"),
    "max_position_embeddings": ("n_positions",),
    "num_decoder_layers": ("num_layers",),
    "num_experts": ("num_local_experts",),
    "word_embed_proj_dim": ("hidden_size",),
    "embedding_size": ("hidden_size",),
}
"""Other names of a setting, tried in this order."""

_LAYERS = "<num_hidden_layers>"
_FALSE = ("false", "0", "none", "")


class _UnknownError(Exception):
    """The rows do not tell what this configuration asks for."""


class OddConfigError(Exception):
    """The configuration asks for something that no model has."""


@dataclass(slots=True)
class Asked:
    """What a configuration asks for, without the prefix of the body.

    Parameters
    ----------
    family, architecture
        Which rows these are; the class may be empty, where the configuration names none.
    body, head
        Names that must be there, with those that would do instead.
    soft
        Names whose absence is only a warning; they are in ``body`` or ``head`` too.
    shapes
        Of a few names, as far as the configuration tells.
    known_body, known_head
        Names that may be there as well, heads of other classes among them.
    passed_by
        Names among those that loaders ignore on purpose.
    """

    family: Family
    architecture: str
    body: dict[str, tuple[str, ...]] = field(default_factory=dict)
    head: dict[str, tuple[str, ...]] = field(default_factory=dict)
    soft: set[str] = field(default_factory=set)
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    known_body: set[str] = field(default_factory=set)
    known_head: set[str] = field(default_factory=set)
    passed_by: set[str] = field(default_factory=set)


def setting(config: Mapping[str, Any], key: str) -> Any:
    """Value of a setting by any of its names, a dot leading into a part; None where it has none."""
    part: Any = config
    *path, last = key.split(".")
    for word in path:
        part = part.get(word) if isinstance(part, dict) else None
    if not isinstance(part, dict) and path:
        return None
    for name in (last, *_ALIASES.get(last, ())):
        if part.get(name) is not None:
            return part[name]
    return None


def asked_by(config: Mapping[str, Any], names: Callable[[str], int]) -> Asked | None:
    """Expand the rows of the configuration's family; None where it, or a part of it, is unknown.

    Parameters
    ----------
    config
        A parsed ``config.json``.
    names
        How many numbers the file has behind a beginning of a name, in any prefix: asked where the
        configuration does not say how many layers there are.

    Raises
    ------
    OddConfigError
        If a count is no count, or absurdly high.
    """
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None or not all(_holds(config, each) for each in family.plain):
        return None
    listed = config.get("architectures")
    architecture = listed[0] if isinstance(listed, list) and listed else ""
    if not isinstance(architecture, str):
        return None
    ending = architecture.removeprefix(family.stem)
    if architecture and (not architecture.startswith(family.stem) or ending not in family.heads):
        return None
    asked = Asked(family, architecture)
    with contextlib.suppress(_UnknownError):
        _expand(asked, config, names, ending)
        return asked
    return None


def _expand(
    asked: Asked, config: Mapping[str, Any], names: Callable[[str], int], ending: str
) -> None:
    family = asked.family
    expand = _Expander(config, names, asked)
    head = family.heads[ending].splitlines() if asked.architecture else []
    only = tuple(head.pop(0).split()[1:]) if head and head[0].startswith("only ") else ("",)
    for row in family.body.splitlines():
        required = row.lstrip("~-").startswith(only)
        expand.row(row if required else f"~{row.lstrip('~-')}", in_body=True)
    for row in head:
        expand.row(row, in_body=False)
    for rows in family.heads.values():
        for row in rows.splitlines():
            if not row.startswith("only "):
                expand.row(f"~{row.lstrip('!~-')}", in_body=False)


def _holds(config: Mapping[str, Any], condition: str) -> bool:
    """Whether a condition of a row is met."""
    for part in condition.split("&"):
        text = part.strip()
        if "!=" in text:
            one, other = (setting(config, key) for key in text.split("!="))
            met = one != other
        elif "==" in text:
            key, _, number = text.partition("==")
            met = str(config.get(key, number)) == number
        else:
            wanted = not text.startswith("!")
            key, _, default = text.lstrip("!").partition("=")
            key, _, begins = key.partition("^")
            value = config.get(key, default)
            if begins:
                met = isinstance(value, str) and value.startswith(begins)
            else:
                met = str(value).lower() not in (*_FALSE, "[]")
            met = met == wanted
        if not met:
            return False
    return True


class _Expander:
    def __init__(
        self, config: Mapping[str, Any], names: Callable[[str], int], asked: Asked
    ) -> None:
        self.config, self.names, self.asked = config, names, asked
        self.left = MAX_NAMES
        stated = config.get("tie_word_embeddings")
        self.tied = stated if isinstance(stated, bool) else asked.family.tied

    def row(self, row: str, *, in_body: bool) -> None:
        text, _, condition = row.partition(" ? ")
        if condition and not _holds(self.config, condition):
            return
        text, _, shape = text.partition(" | ")
        mark = text[0] if text[0] in "~-!" else ""
        text = text.removeprefix(mark)
        text, _, tied_to = text.partition(" = ")
        template, *others = text.split(" / ")
        in_body = in_body or template.startswith("@")
        asked = self.asked
        known = asked.known_body if in_body else asked.known_head
        for name in self.expand(template.removeprefix("@")):
            known.add(name)
            known.update(others)
            if mark == "-":
                asked.passed_by.add(name)
            if mark in ("~", "-") or (tied_to and self.tied):
                continue
            if mark == "!":
                asked.soft.add(name)
            (asked.body if in_body else asked.head)[name] = tuple(others)
        if shape and mark not in ("~", "-"):
            self.shape(template.removeprefix("@"), shape.split())
        target = tied_to.removeprefix("@")
        if self.tied and mark != "~" and target in asked.body:  # the other one will do as well
            asked.body[target] = (*asked.body[target], f"@{template}")

    def shape(self, name: str, keys: Sequence[str]) -> None:
        sizes = [setting(self.config, key) for key in keys]
        known = tuple(
            size if type(size) is int and 0 < size <= MAX_SIZE else None for size in sizes
        )
        self.asked.shapes[name] = known

    def expand(self, template: str) -> Iterator[str]:
        for text in _braces(template):
            pieces = re.split(r"<([\w.]+)>", text.replace("<N>", _LAYERS))
            if len(pieces) == 1:
                yield text
                continue
            counts = [
                self.count(key, pieces[0] if place == 0 else "")
                for place, key in enumerate(pieces[1::2])
            ]
            total = 1
            for count in counts:
                total *= count
            self.left -= total
            if self.left < 0:
                raise OddConfigError(f"more than {MAX_NAMES:,} weights")
            ends = pieces[2::2]
            for numbers in itertools.product(*(range(count) for count in counts)):
                middle = (f"{n}{end}" for n, end in zip(numbers, ends, strict=True))
                yield pieces[0] + "".join(middle)

    def count(self, key: str, before: str) -> int:
        value = setting(self.config, key)
        if value is None and before:
            return min(self.names(before), MAX_LAYERS)
        if value is None:
            raise _UnknownError
        if type(value) is not int or not 0 < value <= MAX_LAYERS:
            message = f"{value!r:.40} for {key}, expected a number from 1 to {MAX_LAYERS:,}"
            raise OddConfigError(message)
        return value


def _braces(template: str) -> Iterator[str]:
    """Expand ``{a,b}``.

    Examples
    --------
    >>> list(_braces("{q,k}.{weight,bias}"))
    ['q.weight', 'q.bias', 'k.weight', 'k.bias']
    """
    pieces = re.split(r"\{([^}]*)\}", template)
    choices = [piece.split(",") if place % 2 else [piece] for place, piece in enumerate(pieces)]
    for parts in itertools.product(*choices):
        yield "".join(parts)
