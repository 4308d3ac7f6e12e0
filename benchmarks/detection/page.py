"""docs/detection.md."""

from __future__ import annotations

from collections.abc import Sequence

from .score import Control, Row
from .table import alarms, by_rule, control_line, misses, siblings


def page(rows: Sequence[Row], controls: Sequence[Control], half: str, runs: int) -> str:
    return "\n".join([by_rule(rows, controls), control_line(controls), misses(rows), siblings(), *alarms(controls, rows)])
