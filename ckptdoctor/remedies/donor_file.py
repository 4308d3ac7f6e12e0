"""An older or sibling checkpoint of the same model, and which of its tensors is whose."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from ..errors import UsageError
from ..findings import Finding, Severity
from ..layers import read_layers
from ..matching import Match, match
from ..rules.base import Context
from ..sources import Identity
from ..tensors import Array, TensorInfo, TensorTable
from .kinship import (
    HINT,
    check_architecture,
    facts_of,
    likeness_of,
    listed,
    warnings_of,
)
from .likeness import Likeness
from .transfer import compatible, pick, whole, whole_fault

__all__ = ["Donor", "no_partner"]

_SUGGESTED = 1000
"""Names that are compared letter by letter to suggest one."""

_ABSURD = ("BN003", "BN004", "BN006")
"""Findings about finite statistics of the donor that make them no better than the patient's."""


class Donor:
    """An open checkpoint whose tensors have partners in the patient.

    Parameters
    ----------
    path
        As the caller wrote it.
    table
        The donor's; closed with it.
    ctx
        Of the patient.

    Attributes
    ----------
    match
        Who is whose partner.
    likeness
        How far the matched weights lie apart; None where nothing can be compared.
    facts
        How alike both are, in words, for the report.
    warnings
        What speaks against this donor, one sentence each.
    """

    def __init__(self, path: str, table: TensorTable, ctx: Context) -> None:
        self.path, self.table = path, table
        self._layers = read_layers(table)
        self.match: Match = match(ctx.table, table, ctx.layers, self._layers)
        self.likeness: Likeness | None = likeness_of(ctx, table, self.match)
        self.facts: tuple[str, ...] = tuple(facts_of(self.match, self.likeness))
        self.warnings: tuple[str, ...] = tuple(warnings_of(self.likeness))

    @classmethod
    def open(cls, path: str | os.PathLike[str], ctx: Context, *, trust_hdf5: bool = False) -> Self:
        """Open a donor for a patient, in any format that can be read.

        Raises
        ------
        UsageError
            If there is no such file, it is the patient itself, or another architecture: fewer
            than `FEWEST` of the patient's weights have a partner.
        CkptDoctorError
            If it cannot be read.
        """
        from ..formats import open_path  # noqa: PLC0415  (only with a donor)
        from ..formats.base import ReadOptions  # noqa: PLC0415

        table = open_path(path, ReadOptions(trust_hdf5=trust_hdf5))
        try:
            _check_other_file(table, ctx.table)
            donor = cls(os.fspath(path), table, ctx)
            check_architecture(donor.match, table.path)
        except BaseException:
            table.close()
            raise
        return donor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its files; values can no longer be read."""
        self.table.close()

    @property
    def name(self) -> str:
        """Last part of its path, for titles."""
        return Path(self.path).name[:80] or "the donor"

    def partner(self, name: str) -> TensorInfo | None:
        """Return the donor's tensor for one of the patient's."""
        other = self.match.pairs.get(name)
        return None if other is None else self.table[other]

    def nearest(self, name: str) -> list[str]:
        """Return the names of the donor that are most like one that has no partner.

        Those of the same last word come first; a wrong shape is no hindrance.
        """
        from difflib import get_close_matches  # noqa: PLC0415  (only for refusals)

        leaf = name.replace("/", ".").rpartition(".")[2]
        alike = [known for known in self.table if known.endswith(leaf)][:_SUGGESTED]
        shelf = alike or list(self.table)[:_SUGGESTED]
        return get_close_matches(name[:200], shelf, n=3, cutoff=0.4)

    def take(self, info: TensorInfo, indices: Array) -> Array:
        """Values of the partner's elements, in the donor's type.

        Raises
        ------
        ChangedError
            If the donor is written to while it is open.
        """
        taken = pick(self.table, self.table[self.match.pairs[info.name]], indices)
        self.table.check_unchanged()
        return taken

    def whole(self, info: TensorInfo) -> Callable[[], Array]:
        """Make what reads all of the partner, cast to the patient's type, when it is written."""
        return whole(self.table, self.table[self.match.pairs[info.name]], info)

    def whole_fault(self, info: TensorInfo, part: str) -> str:
        """Reason why not all of the partner's values can be used; empty where they can."""
        return whole_fault(self.table, self.table[self.match.pairs[info.name]], info, part)

    def absurd(self, name: str) -> Finding | None:
        """Return the worst finding about finite statistics in the layer of one of its tensors."""
        layer = self._layers.of(name)
        if layer is None:
            return None
        found = [self._sick[i.name] for i in layer.parts.values() if i.name in self._sick]
        return max(found, key=lambda finding: finding.severity, default=None)

    @cached_property
    def _sick(self) -> Mapping[str, Finding]:
        """Judge the donor's BatchNorms; its model is measured, what trained it is not."""
        from dataclasses import replace  # noqa: PLC0415

        from ..measure.scan import measure  # noqa: PLC0415
        from ..rules import RULES  # noqa: PLC0415

        infos = {i.name: i for i in self.table.values() if i.role in ("model", "ema")}
        table = replace(self.table, infos=infos, checksums=(), findings=())
        ctx = Context(table, measure(table).stats)
        found: dict[str, Finding] = {}
        for rule in RULES:
            if rule.code in _ABSURD:
                with np.errstate(all="ignore"):
                    for finding in rule().check(ctx):
                        if finding.severity >= Severity.WARNING:
                            found.setdefault(finding.tensor, finding)
        return found


def _check_other_file(donor: TensorTable, patient: TensorTable) -> None:
    if _files(donor) & _files(patient):
        message = "the donor is the file to be repaired"
        raise UsageError(message, where=donor.path, hint=HINT)


def _files(table: TensorTable) -> set[tuple[int, int]]:
    known: list[Identity] = [file.identity for file in table.files]
    return {(each.device, each.inode) for each in known}


def no_partner(donor: Donor, info: TensorInfo) -> str:
    """Reason why a donor has nothing for a tensor; empty where it does."""
    partner = donor.partner(info.name)
    if partner is None:
        return f"{donor.name!r} has no such tensor{_near(donor, info.name)}"
    return compatible(info, partner)


def _near(donor: Donor, name: str) -> str:
    shaped = next((other for ours, other in donor.match.misshaped if ours == name), None)
    if shaped is not None:
        return f" of this shape: {shaped!r:.120} is {'x'.join(map(str, donor.table[shaped].shape))}"
    near = donor.nearest(name)
    return f"; nearest: {listed(near)}" if near else ""
