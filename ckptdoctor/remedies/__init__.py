"""Remedies, one per file, in ladder order: what was asked for by name, then the best first.

A rung for statistics that are estimated from the graph, without data, belongs between `Recalibrate`
and `BnReset`.
"""

from .affine import Affine
from .base import Ailment, Orders, Patient, Remedy
from .bn_reset import BnReset
from .bn_silence import BnSilence
from .checksum import Checksum
from .donor import FromDonor
from .drop_optimizer import DropOptimizer
from .flipped_bits import FlippedBits
from .grad_scaler import GradScaler
from .graft import Graft
from .loop_state import LoopState
from .optimizer_state import OptimizerState
from .recalibrate import Recalibrate
from .reinit import Reinit
from .set_number import SetNumber
from .trailing import TrailingBytes
from .twin import Twin

__all__ = ["LADDER", "Ailment", "Orders", "Patient", "Remedy"]

LADDER: tuple[Remedy, ...] = (
    SetNumber(),
    DropOptimizer(),
    Graft(),
    Reinit(),
    Checksum(),
    TrailingBytes(),
    Twin(),
    FromDonor(),
    Recalibrate(),
    FlippedBits(),
    BnSilence(),
    BnReset(),
    Affine(),
    OptimizerState(),
    GradScaler(),
    LoopState(),
)
"""Every remedy, in the order in which the planner asks them."""
