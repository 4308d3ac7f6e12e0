"""What reports promise about repairs is what the ladder has."""

from __future__ import annotations

import pytest

from ckptdoctor.findings import Finding, Severity
from ckptdoctor.fixes import FIXES, fix_for
from ckptdoctor.remedies import LADDER
from ckptdoctor.selection import known_codes

REMEDIES = {remedy.name: remedy for remedy in LADDER}


def found(code: str, severity: Severity = Severity.ERROR, tensor: str = "a b") -> Finding:
    return Finding(code=code, name="", severity=severity, message="", tensor=tensor)


@pytest.mark.parametrize("code", sorted(FIXES))
def test_remedy_exists_and_its_class_is_no_better_than_told(code):
    fix = FIXES[code]
    assert code in known_codes()
    if fix.remedy != "set":  # statistical where it cures a finding
        assert fix.kind == REMEDIES[fix.remedy].kind


@pytest.mark.parametrize("code", sorted(FIXES))
def test_what_is_destructive_has_to_be_asked_for(code):
    assert FIXES[code].options or FIXES[code].kind != "destructive"


def test_note_has_no_fix():
    assert fix_for(found("BN001", Severity.NOTE)) is None
    assert fix_for(found("BN001", Severity.WARNING)) == FIXES["BN001"]
    assert fix_for(found("CK002")) is None


def test_options_name_the_tensor_as_the_shell_needs_it():
    assert fix_for(found("NF001")).options == "--donor OLD --tensor 'a b'"
    assert fix_for(found("TS003")).options == "--set 'a b'=NUMBER"
    assert fix_for(found("BN002")).options == "--bn-reset"
