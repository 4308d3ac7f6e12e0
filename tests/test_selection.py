"""What may be asked of a diagnosis, and what is told of what does not exist."""

import dataclasses
import math

import pytest

from ckptdoctor.errors import UsageError
from ckptdoctor.findings import CONTAINER_CODES, Severity
from ckptdoctor.results import Exemption, Wishes
from ckptdoctor.rules import RULES
from ckptdoctor.rules.base import Rule, rule, threshold
from ckptdoctor.selection import (
    check_wishes,
    known_codes,
    prefixes,
    rule_of,
    rules_with,
    threshold_of,
    wanted,
)

NAMES = [rule.name for rule in RULES]
UNIQUE = [rule for rule in RULES if NAMES.count(rule.name) == 1]


@rule
class Sample(Rule):
    """A rule with a threshold of each kind."""

    code, name, severity = "ZZ001", "sample", Severity.ERROR
    ratio: float = threshold(50.0, unit="times", why="a test", healthy="0 of 1")
    least: int = threshold(3, unit="channels", why="a test", healthy="0 of 1")

    def check(self, ctx):
        yield from ()


@rule
class Namesake(Sample):
    """Another with the same name."""

    code = "ZZ002"


@pytest.fixture
def sample(monkeypatch):
    monkeypatch.setattr("ckptdoctor.selection.RULES", (Sample,))


def test_every_code_is_known_once_in_order():
    assert list(known_codes()) == sorted([*CONTAINER_CODES, *(rule.code for rule in RULES)])


@pytest.mark.parametrize("code", list(known_codes()))
def test_every_code_and_name_can_be_asked_for(code):
    assert prefixes([code, code.lower()]) == (code, code)
    assert code in prefixes([known_codes()[code]])


@pytest.mark.parametrize("word", ["", "XX", "NF999", "NF0011", "-", "values", "n" * 10_000])
def test_unknown_word_is_refused_in_a_short_line(word):
    with pytest.raises(UsageError, match="no code") as caught:
        prefixes([word])
    assert len(str(caught.value)) < 200


def test_mistake_gets_a_suggestion():
    with pytest.raises(UsageError, match=r"no code 'nan-valuse'; did you mean 'nan-values'"):
        prefixes(["nan-valuse"])
    with pytest.raises(UsageError, match="'ckptdoctor rules' lists them"):
        prefixes(["qqqqqqqq"])


@pytest.mark.parametrize(
    ("select", "ignore", "expected"),
    [
        ((), (), True),
        (("BN",), (), False),
        (("NF",), (), True),
        (("NF",), ("NF001",), False),
        (("NF001",), ("NF",), True),
        (("NF",), ("NF",), False),
        ((), ("NF",), False),
        ((), ("N",), False),
        ((), ("BN",), True),
    ],
)
def test_longer_prefix_decides(select, ignore, expected):
    assert wanted("NF001", select, ignore) is expected


@pytest.mark.parametrize("rule", UNIQUE, ids=lambda rule: rule.code)
def test_rule_is_found_by_code_and_name(rule):
    assert {rule_of(word) for word in (rule.code, rule.code.lower(), rule.name)} == {rule}


@pytest.mark.usefixtures("sample")
def test_rule_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match="no rule 'ZZ01'; did you mean 'ZZ001'"):
        rule_of("ZZ01")
    with pytest.raises(UsageError, match="no rule 'CK001'"):
        rule_of("CK001")


def test_name_of_two_rules_is_refused_and_selects_both(monkeypatch):
    monkeypatch.setattr("ckptdoctor.selection.RULES", (Sample, Namesake))
    with pytest.raises(UsageError, match="two rules are named 'sample'; expected ZZ001 or ZZ002"):
        rule_of("sample")
    assert prefixes(["sample"]) == ("ZZ001", "ZZ002")


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ratio", 5.5),
        ("ratio", 7),
        ("ratio", -1.7976931348623157e308),
        ("ratio", 1.7976931348623157e308),
        ("least", 4),
    ],
)
def test_threshold_of_its_kind_is_taken(name, value):
    (made,) = rules_with({"ZZ001": {name: value}})
    assert getattr(made, name) == value
    untouched = {"ratio": 50.0, "least": 3}.keys() - {name}
    assert all(getattr(made, other) == getattr(Sample(), other) for other in untouched)


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ratio", "5", "expected ratio of ZZ001 to be a finite number, found '5'"),
        ("ratio", True, "a finite number, found True"),
        ("ratio", math.nan, "found nan"),
        ("ratio", math.inf, "found inf"),
        ("ratio", -math.inf, "found -inf"),
        pytest.param("ratio", 1 << 20_000, "found a number of 20,001 bits", id="huge"),
        ("ratio", None, "found None"),
        ("least", 2.5, "to be a whole number, found 2.5"),
        ("least", False, "to be a whole number, found False"),
        ("ratoi", 5, "ZZ001 has no threshold 'ratoi'; did you mean 'ratio'"),
        ("zzzzz", 5, "ZZ001 has no threshold 'zzzzz'; it has ratio and least"),
    ],
)
def test_threshold_that_means_nothing_is_refused(name, value, message):
    with pytest.raises(UsageError, match=message):
        threshold_of(Sample, name, value)
    with pytest.raises(UsageError, match=message):
        check_wishes(Wishes(thresholds={"sample": {name: value}}))


def test_rule_without_thresholds_says_so():
    bare = next(rule for rule in RULES if not dataclasses.fields(rule))
    with pytest.raises(UsageError, match="it has none"):
        threshold_of(bare, "x", 1)


@pytest.mark.usefixtures("sample")
def test_thresholds_must_be_given_by_name():
    with pytest.raises(UsageError, match="expected thresholds of 'ZZ001' by name, found 5"):
        rules_with({"ZZ001": 5})


def test_wishes_are_checked_before_any_file():
    with pytest.raises(UsageError, match="no code 'XX'"):
        check_wishes(Wishes(ignore=["XX"]))
    with pytest.raises(UsageError, match="no code 'YY'"):
        check_wishes(Wishes(exempt=[Exemption(tensor="*", reason="r", codes=("YY",))]))
    with pytest.raises(UsageError, match="no rule"):
        check_wishes(Wishes(thresholds={"CK001": {}}))


def test_rule_refuses_thresholds_it_does_not_have():
    with pytest.raises(TypeError, match="ZZ001 has no threshold b, c"):
        Sample(ratio=1.0, c=2.0, b=3.0)
