"""A checkpoint against a Hugging Face ``config.json``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..findings import Finding, Severity
from ..tensors import TensorTable
from .expected import weights_of
from .stacks import held_against_itself
from .templates import Asked, OddConfigError, asked_by
from .wording import ignored, listing, shown, told

__all__ = ["held_against_config", "loaded_by_name"]

_LOADED = re.compile(
    r"(model|pytorch_model)(\.[\w-]+)?\.(safetensors|bin)(\.index(\.[\w-]+)?\.json)?"
)
"""Files that ``from_pretrained`` takes by their name, with or without a variant such as fp16."""

_QUANTISED = (
    ".qweight", ".qzeros", ".scales", ".SCB", ".absmax", ".quant_map", ".weight_scale",
    ".weight_packed", "_blocks",
)  # fmt: skip
_ADAPTER = re.compile(r"\.lora_|\.base_layer\.|prompt_encoder\.|\.ia3_|modules_to_save\.")
_WRAPPED = ".base_layer."
"""Where PEFT puts the layer that it wraps, which no model has by itself."""
_OLD_ENDS = (
    ("LayerNorm.gamma", "LayerNorm.weight"),
    ("LayerNorm.beta", "LayerNorm.bias"),
    ("conv.weight_g", "conv.parametrizations.weight.original0"),
    ("conv.weight_v", "conv.parametrizations.weight.original1"),
)
"""Ends of names that loaders still understand, and what they read them as."""
_IN_MEMORY = re.compile(
    r"\.experts\.(gate_up|down)_proj$"
    r"|^(vit\.|deit\.)?layers\.[0-9]+\.attention\.[qkvo]_proj\."
    r"|(^|\.)encoder\.layer\.[0-9]+\.attention\.[qkvo]_proj\."
)
"""
What Transformers 5 calls some weights while the model runs, not in files. It loads them under these
names too, as a plain ``state_dict`` or ``save_original_format=False`` leaves them.
"""

_MOST = 0.5
"""Share of the body's names from which on a file is taken for a checkpoint of that model."""
_PROBES = 16


def loaded_by_name(path: str) -> bool:
    """Whether ``from_pretrained`` would take a file of this name.

    Examples
    --------
    >>> loaded_by_name("m/model.fp16.safetensors"), loaded_by_name("m/best.pt")
    (True, False)
    """
    return _LOADED.fullmatch(Path(path).name) is not None


def held_against_config(
    table: TensorTable,
    config: Mapping[str, Any],
    source: str,
    *,
    strict: bool,
    headless: bool = False,
) -> Iterator[Finding]:
    """CK003 for weights that the configuration's model has and the file lacks, and the reverse.

    Parameters
    ----------
    table
        The checkpoint.
    config
        The parsed configuration.
    source
        How messages call it.
    strict
        Whether the file is known to be the one that this configuration describes.  Any other file
        is judged only where it holds most of the model.
    headless
        Whether only the body is used, whatever class the configuration names.
    """
    if any(each.severity is Severity.ERROR and _breaks(each) for each in table.findings):
        return  # what is missing has been told by the files that are missing
    names = {_now(name): name for name in weights_of(table)}
    if not names and strict:
        text = f"it holds no weights, and {source} describes a model: a loader leaves all of its "
        yield told(Severity.ERROR, f"{text}weights random", table.path)
    if not names:
        return
    if any(_ADAPTER.search(name) for name in names):
        wrapped = [name for name in names if _WRAPPED in name]
        if strict and wrapped:
            count = "1 weight is" if len(wrapped) == 1 else f"{len(wrapped):,} weights are"
            text = f"{count} of layers around which an adapter was saved: {source} describes the model "
            text += (
                "without it, and a loader that goes by it leaves these layers random (merge the "
            )
            text += f"adapter first): {listing(wrapped, names)}"
            yield told(Severity.WARNING, text, table.path, "wrapped", wrapped)
        return
    asked = None
    try:
        if "auto_map" not in config and not _otherwise_named(config, names):
            asked = asked_by(config, _counter(names))
    except OddConfigError as odd:
        if strict:
            text = f"{source} asks for {odd}: the names were not checked against it"
            yield told(Severity.WARNING, text, table.path)
        return
    if asked is not None:
        if headless:
            asked.head.clear()
        yield from _Comparison(table, names, asked, source, strict).findings()
    elif strict:
        yield from held_against_itself(table, list(names), config, source)


def _breaks(finding: Finding) -> bool:
    return finding.code in ("CK003", "CK004", "CK006")


def _now(name: str) -> str:
    for old, new in _OLD_ENDS:
        if name.endswith(old):
            return name[: -len(old)] + new
    return name


def _otherwise_named(config: Mapping[str, Any], names: Mapping[str, str]) -> bool:
    """Whether files of this kind go by other names than the rows: quantised, or as in memory."""
    if "quantization_config" in config or "quantization" in config:
        return True
    return any(name.endswith(_QUANTISED) or _IN_MEMORY.search(name) for name in names)


def _counter(names: Mapping[str, str]) -> Callable[[str], int]:
    """How many numbers follow a beginning of a name, whatever stands before it."""

    def count(before: str) -> int:
        found = set()
        for name in names:
            at = 0 if name.startswith(before) else name.find(f".{before}") + 1
            if at or name.startswith(before):
                digits = name[at + len(before) :].partition(".")[0]
                if digits.isdecimal() and len(digits) < 10:
                    found.add(int(digits))
        highest = max(found, default=0) + 1
        return highest if highest <= 2 * len(found) else max(1, len(found))

    return count


class _Comparison:
    """What the file holds, and what is asked for."""

    def __init__(
        self,
        table: TensorTable,
        names: Mapping[str, str],
        asked: Asked,
        source: str,
        strict: bool,
    ) -> None:
        self.table, self.names, self.asked, self.strict = table, names, asked, strict
        self.source = f"{source} ({asked.architecture})" if asked.architecture else source
        self.root, self.prefix = "", ""

    def findings(self) -> Iterator[Finding]:
        body = self.asked.body
        hits = self._place()
        if hits < _MOST * len(body):
            root = self._wrapper()
            if root:
                self.root = root
                hits = self._place()
        if hits < _MOST * len(body) and not self.strict:
            return
        if not hits:
            yield self._nothing()
            return
        if self.root and self.strict:
            count = sum(name.startswith(self.root) for name in self.names)
            text = f"{'all ' if count == len(self.names) else ''}{count:,} names start with "
            text = text if count > 1 else "the only name starts with "
            text += f"{shown(self.root)}, under which no loader looks for the weights of "
            text += f"{self.source}: it would leave them random"
            yield told(Severity.ERROR, text, self.table.path, "wrapped", list(self.names))
        yield from self._missing()
        yield from self._misshaped()
        if self.strict:
            yield from self._surplus()

    def _nothing(self) -> Finding:
        text = f"none of the {len(self.asked.body):,} weights that {self.source} asks for is here, "
        text += (
            f"a loader leaves them all random: the names are like {shown(next(iter(self.names)))}"
        )
        return told(Severity.ERROR, text, self.table.path, "missing", list(self.asked.body))

    def _place(self) -> int:
        """Find the prefix under which most of the body lies, and how many names that are."""
        best = -1
        for prefix in ("", *self.asked.family.base):
            front = self.root + prefix
            hits = sum(front + name in self.names for name in self.asked.body)
            if hits > best:
                best, self.prefix = hits, prefix
        return best

    def _wrapper(self) -> str:
        """Words in front of most of the weights that no loader expects there."""
        votes: Counter[str] = Counter()
        body = list(self.asked.body)
        for name in body[:: 1 + len(body) // _PROBES]:
            dotted = f".{name}"
            votes.update(n[: -len(name)] for n in self.names if n.endswith(dotted))
        front = max(votes, key=lambda each: votes[each], default="")  # of equals the first
        for base in self.asked.family.base:
            if front.endswith(f".{base}"):
                return front.removesuffix(base)
        return "" if front in self.asked.family.base else front

    def _there(self, name: str, others: Sequence[str], front: str) -> bool:
        if front + name in self.names:
            return True
        return any(
            (self.root + other[1:] if other.startswith("@") else front + other) in self.names
            for other in others
        )

    def _missing(self) -> Iterator[Finding]:
        asked, front = self.asked, self.root + self.prefix
        missing = [
            (name, front + name)
            for name, others in asked.body.items()
            if not self._there(name, others, front)
        ]
        if self.strict:
            missing += [
                (name, self.root + name)
                for name, others in asked.head.items()
                if not self._there(name, others, self.root)
            ]
        total = len(asked.body) + len(asked.head)
        for severity, names in (
            (Severity.ERROR, [full for name, full in missing if name not in asked.soft]),
            (Severity.WARNING, [full for name, full in missing if name in asked.soft]),
        ):
            if names:
                of = f"{len(names):,} of the {total:,} weights that {self.source} asks for"
                text = f"{of} {'is' if len(names) == 1 else 'are'} missing, and a loader leaves "
                text += f"{'it' if len(names) == 1 else 'them'} random: "
                text += listing(names, self.names)
                yield told(severity, text, self.table.path, "missing", names)

    def _misshaped(self) -> Iterator[Finding]:
        odd = []
        for name, wanted in self.asked.shapes.items():
            full = next(
                (
                    front + name
                    for front in (self.root + self.prefix, self.root)
                    if front + name in self.names
                ),
                None,
            )
            if full is None:
                continue
            shape = self.table[self.names[full]].shape
            if len(shape) != len(wanted) or any(
                size not in (None, found) for size, found in zip(wanted, shape, strict=True)
            ):
                odd.append((full, shape, wanted))
        if odd:
            name, shape, wanted = odd[0]
            want = ["?" if size is None else size for size in wanted]
            text = f"{shown(name)} is {list(shape)}, {self.source} asks for "
            text += str(want).replace("'", "")
            text += f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
            yield told(
                Severity.ERROR, text, self.table.path, "misshaped", [full for full, _, _ in odd]
            )

    def _surplus(self) -> Iterator[Finding]:
        asked, front = self.asked, self.root + self.prefix
        known = {front + name for name in asked.known_body}
        known.update(self.root + name for name in asked.known_head)
        passed = {front + name for name in asked.passed_by}
        odd = [name for name in self.names if name not in known and not ignored(name)]
        if odd:
            count = "1 weight" if len(odd) == 1 else f"{len(odd):,} weights"
            text = f"{count} that {self.source} does not have, loaders pass "
            text += f"{'it' if len(odd) == 1 else 'them'} by: {listing(odd, known)}"
            yield told(Severity.WARNING, text, self.table.path, "surplus", odd)
        calm = [n for n in self.names if n in passed or (n not in known and ignored(n))]
        if calm:
            count = "1 buffer" if len(calm) == 1 else f"{len(calm):,} buffers"
            text = f"{count} that loaders ignore on purpose: {listing(calm, self.names)}"
            yield told(Severity.NOTE, text, self.table.path, "surplus", calm)
