"""Whole tensors from a donor, for those that somebody names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from ..edits import Change, Class, Edit, Refusal, Remark
from ..tensors import TensorInfo
from .base import Ailment, Orders, Patient, Remedy
from .donor_file import Donor, no_partner

__all__ = ["Graft"]


class Graft(Remedy):
    """``--donor OLD --tensor GLOB``: tensors that are named become those of the donor.

    What it does
    ------------
    Every tensor that a pattern names, weights and biases included, is replaced as a whole by its
    partner in the donor, cast to the type it has here; nothing else is changed.  What has no
    partner there, is not finite there, or would overflow here, is refused.

    What it costs
    -------------
    The training since the donor was saved, in these tensors; and they meet others that were
    trained further.  The report says how far the two lie apart.
    """

    name: ClassVar[str] = "graft"
    kind: ClassVar[Class] = "statistical"
    option: ClassVar[str] = "--tensor with --donor"

    def asked(self, orders: Orders) -> bool:
        return bool(orders.donor and orders.tensors)

    def propose(
        self, patient: Patient, ailments: Sequence[Ailment]
    ) -> Iterator[Change | Refusal | Remark]:
        donor = patient.donor
        if donor is None or not patient.orders.tensors:
            return
        codes: dict[str, tuple[str, ...]] = {}
        for ailment in ailments:
            codes[ailment.info.name] = (*codes.get(ailment.info.name, ()), *ailment.codes)
        for text in donor.warnings:
            yield Remark(remedy=self.name, text=text)
        for info in _named(patient):
            about = tuple(dict.fromkeys(codes.get(info.name, ())))
            part = patient.ctx.layers.part_of(info.name)
            fault = no_partner(donor, info) or donor.whole_fault(info, part)
            if fault:
                yield self.refusal(info.name, f"{fault} ({donor.name!r})", about)
                continue
            yield self._edit(donor, info, about)

    def _edit(self, donor: Donor, info: TensorInfo, codes: tuple[str, ...]) -> Edit:
        partner = donor.table[donor.match.pairs[info.name]]
        cast = f", cast from {partner.dtype}" if partner.dtype != info.dtype else ""
        return Edit(
            tensor=info.name,
            indices=None,
            values=donor.whole(info),
            remedy=self.name,
            kind=self.kind,
            cures=codes,
            title=f"all of it from {partner.name!r:.120} of {donor.name!r}{cast}",
        )


def _named(patient: Patient) -> Iterator[TensorInfo]:
    """Tensors that the orders name, each once, in file order."""
    names = patient.named or {
        info.name for pattern in patient.orders.tensors for info in patient.matching(pattern)
    }
    return (info for info in patient.ctx.table.values() if info.name in names)
