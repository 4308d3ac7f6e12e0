"""What every rule says about each of its sick cases, word for word: ``findings.txt``.

Regenerate with ``UPDATE_SNAPSHOTS=1 pytest tests/rules/test_messages.py`` and read the difference.
"""

import os
from pathlib import Path

from ckptdoctor.diagnose import diagnose
from ckptdoctor.measure.scan import measure
from ckptdoctor.results import Wishes
from ckptdoctor.rules import RULES
from ckptdoctor.tensors import TensorTable

SNAPSHOT = Path(__file__).with_name("findings.txt")


def described(rule, case):
    table = TensorTable.from_arrays(
        case.tensors, case.roles, scalars=case.scalars, layers=case.layers
    )
    wishes = Wishes(cast_to=case.cast_to)
    for finding in diagnose(table, measure(table), wishes, rules=[rule()]).findings:
        yield f"{rule.code} {case.title}"
        yield f"  {finding.severity.name.lower()} {finding.tensor or finding.layer}"
        yield f"  {finding.message}"
        if finding.limit:
            yield f"  limit: {finding.limit}"
        yield f"  measured: {dict(finding.measured)}"


def test_findings_read_as_they_did():
    lines = [line for rule in RULES for case in rule.sick for line in described(rule, case)]
    told = "\n".join(lines) + "\n"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(told, encoding="utf-8")
    assert told == SNAPSHOT.read_text(encoding="utf-8")
