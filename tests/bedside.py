"""Patients in memory for tests of remedies: tensors, what the rules say of them, what is broken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ckptdoctor.diagnose import diagnose
from ckptdoctor.edits import Edit, Refusal
from ckptdoctor.measure.scan import measure
from ckptdoctor.remedies.base import Ailment, Orders, Patient
from ckptdoctor.roles import role_of
from ckptdoctor.rules.base import Context
from ckptdoctor.tensors import TensorTable


def role(name: str) -> Any:
    path = name.replace("/", ".").split(".")
    return "optimizer" if path[0] == "optimizer_weights" else role_of(path)


def patient(
    tensors: Mapping[str, Any] | TensorTable,
    /,
    *,
    scalars: Mapping[str, float | int] | None = None,
    layers: Sequence[Any] = (),
    **orders: Any,
) -> Patient:
    """Patient as the planner sees it, with the findings of every rule."""
    if isinstance(tensors, TensorTable):
        table = tensors
    else:
        held = {
            n: np.asarray(v) if isinstance(v, np.generic) else v for n, v in dict(tensors).items()
        }
        roles = {name: role(name) for name in held}
        table = TensorTable.from_arrays(held, roles, scalars=scalars, layers=layers)
    measured = measure(table)
    with np.errstate(all="ignore"):
        findings = diagnose(table, measured).findings
    ctx = Context(table, measured.stats)
    return Patient(ctx=ctx, findings=tuple(findings), orders=Orders(**orders))


def ailing(
    patient: Patient, name: str, bad: Any = None, *codes: str, suspected: str = ""
) -> Ailment:
    """Ailment of the elements that are not finite, or of those given."""
    values = patient.ctx.table.read(name).reshape(-1).astype(np.float64)
    at = np.flatnonzero(~np.isfinite(values)) if bad is None else np.asarray(bad, np.int64)
    return Ailment(
        info=patient.ctx.table[name],
        layer=patient.ctx.layers.of(name),
        part=patient.ctx.layers.part_of(name),
        bad=at,
        codes=codes or tuple(f.code for f in patient.findings if f.tensor == name),
        suspected=suspected,
    )


def after(patient: Patient, edit: Edit) -> Any:
    """Values of a tensor once an edit is made."""
    values = patient.ctx.table.read(edit.tensor)
    flat = values.reshape(-1).copy()
    flat[slice(None) if edit.indices is None else edit.indices] = edit.after()
    return flat.reshape(values.shape)


def refusals(changes: Sequence[Any]) -> dict[str, str]:
    """Reasons by target."""
    return {each.target: each.reason for each in changes if isinstance(each, Refusal)}


def edits(changes: Sequence[Any]) -> dict[str, Edit]:
    """Edits by tensor."""
    return {each.tensor: each for each in changes if isinstance(each, Edit)}
