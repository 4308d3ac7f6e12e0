"""What every rule owes, whatever it checks."""

import dataclasses
import inspect
import pkgutil
import re

import numpy as np
import pytest

import ckptdoctor.rules
from ckptdoctor.diagnose import diagnose
from ckptdoctor.findings import CONTAINER_CODES, Severity
from ckptdoctor.measure.scan import measure
from ckptdoctor.results import Wishes
from ckptdoctor.rules import RULES
from ckptdoctor.tensors import TensorTable

SECTIONS = ["What it means", "How it happens", "What the fix does", "When to ignore it"]
HELPERS = {
    "base",
    "batchnorm",
    "intended",
    "kernels",
    "ema_copies",
    "optimizer_slots",
    "training_state",
    "precision",
}

every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)


def every_case(kind):
    cases = [(rule, case) for rule in RULES for case in getattr(rule, kind)]
    ids = [f"{rule.code}-{case.title}" for rule, case in cases]
    return pytest.mark.parametrize(("rule", "case"), cases, ids=ids)


def findings_of(rule, case):
    table = TensorTable.from_arrays(
        case.tensors, case.roles, scalars=case.scalars, layers=case.layers
    )
    wishes = Wishes(cast_to=case.cast_to)
    return diagnose(table, measure(table), wishes, rules=[rule()]).findings


def test_every_module_is_in_the_tuple_and_codes_ascend():
    modules = {module.name for module in pkgutil.iter_modules(ckptdoctor.rules.__path__)}
    assert {rule.__module__.rpartition(".")[2] for rule in RULES} == modules - HELPERS
    codes = [rule.code for rule in RULES]
    assert codes == sorted(set(codes))
    assert not set(codes) & set(CONTAINER_CODES)


@every_rule
def test_module_is_named_after_code_and_name(rule):
    want = f"{rule.code}_{rule.name.replace('-', '_')}".lower()
    assert rule.__module__.rpartition(".")[2] == want
    assert re.fullmatch(r"[A-Z]{2}\d{3}", rule.code)


@every_rule
def test_docstring_has_every_section_in_order(rule):
    titles = re.findall(r"^(.+)\n-+$", inspect.getdoc(rule), re.MULTILINE)
    assert titles == [section for section in SECTIONS if section in titles]
    assert {"What it means", "How it happens", "When to ignore it"} <= set(titles)


@every_rule
def test_thresholds_state_unit_and_reason(rule):
    for field in dataclasses.fields(rule):
        assert field.metadata["unit"]
        assert field.metadata["why"]
        assert field.metadata["healthy"]


@every_rule
def test_rule_is_frozen(rule):
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule().anything = 1


@every_rule
def test_references_and_cases_are_given(rule):
    assert rule.references
    assert rule.healthy
    assert rule.sick
    assert rule.since


@every_case("healthy")
def test_healthy_case_is_silent(rule, case):
    assert findings_of(rule, case) == ()


@every_case("sick")
def test_sick_case_is_found_once_with_its_numbers(rule, case):
    (finding,) = findings_of(rule, case)
    assert (finding.code, finding.name) == (rule.code, rule.name)
    assert finding.severity == (rule.severity if case.severity is None else case.severity)
    layers = {layer.name for layer in case.layers}
    assert finding.tensor in {*case.tensors, *case.scalars} or finding.layer in layers
    if finding.tensor in case.tensors:
        assert finding.role == case.roles.get(finding.tensor, "model")
    assert finding.message
    assert "\n" not in finding.message
    assert finding.measured


@every_rule
def test_rule_says_nothing_about_an_empty_or_sound_table(rule):
    for arrays in ({}, {"w": np.float32([1, 2]), "steps": np.int64(3), "flags": np.array([True])}):
        table = TensorTable.from_arrays(arrays)
        errors = [
            f
            for f in diagnose(table, measure(table), rules=[rule()]).findings
            if f.severity > Severity.NOTE
        ]
        assert errors == []
