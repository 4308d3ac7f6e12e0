"""What may be asked of a diagnosis: codes, thresholds, exemptions; whatever exists nowhere is refused."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from .errors import UsageError
from .findings import CONTAINER_CODES, Finding, Severity
from .hints import shown, suggestion
from .results import Exemption, Wishes
from .rules import RULES, Rule

__all__ = [
    "accepted",
    "check_wishes",
    "exactly",
    "known_codes",
    "matcher",
    "prefixes",
    "rule_of",
    "rules_with",
    "threshold_of",
    "wanted",
]

_LARGEST = 1.7976931348623157e308


def known_codes() -> dict[str, str]:
    """Every code that a finding can have, with its name, in code order.

    Examples
    --------
    >>> known_codes()["NF001"]
    'nan-values'
    """
    return dict(sorted({**CONTAINER_CODES, **{rule.code: rule.name for rule in RULES}}.items()))


def exactly(name: str) -> str:
    """Pattern that matches one name and no other.

    Examples
    --------
    >>> exactly("glob*[z]"), matcher([exactly("glob*[z]")])("glob*[z]")
    ('glob[*][[]z]', True)
    """
    return re.sub(r"([*?[])", r"[\1]", name)


def prefixes(words: Iterable[str]) -> tuple[str, ...]:
    """Codes, or their first letters, for words that may also be names.

    Raises
    ------
    UsageError
        For a word that no code starts with and no finding is named.

    Examples
    --------
    >>> prefixes(["nf", "CK002", "nan-values"])
    ('NF', 'CK002', 'NF001')
    """
    known = known_codes()
    found: list[str] = []
    for word in words:
        named = [code for code, name in known.items() if name == word.lower()]
        prefix = word.upper()
        if not named and not (prefix and any(code.startswith(prefix) for code in known)):
            hint = suggestion(word, [*known, *known.values()]) or "'ckptdoctor rules' lists them"
            raise UsageError(f"no code {shown(word)}", hint=hint)
        found += named or [prefix]
    return tuple(found)


def wanted(code: str, select: Sequence[str], ignore: Sequence[str]) -> bool:
    """Whether a code is selected; of two prefixes that fit, the longer decides.

    Examples
    --------
    >>> wanted("NF001", ["NF001"], ["NF"]), wanted("NF002", (), ["NF"]), wanted("NF002", (), ())
    (True, False, True)
    """
    chosen = max((len(s) for s in select if code.startswith(s)), default=0 if select else 1)
    return chosen > max((len(s) for s in ignore if code.startswith(s)), default=0)


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Return a test whether a name fits one of the patterns (`fnmatch`, case counts).

    Examples
    --------
    >>> fits = matcher(["bn*.running_?ar", "head.*"])
    >>> fits("bn1.running_var"), fits("BN1.running_var")
    (True, False)
    """
    tests = [re.compile(fnmatch.translate(pattern)).match for pattern in patterns]
    return lambda name: any(test(name) for test in tests)


def rule_of(word: str) -> type[Rule]:
    """Return the rule of a code or name.

    Raises
    ------
    UsageError
        If there is none, or two.
    """
    found = [rule for rule in RULES if word.upper() == rule.code or word.lower() == rule.name]
    if len(found) > 1:  # the optimizer's epsilon and a layer's have one name
        codes = " or ".join(rule.code for rule in found)
        raise UsageError(f"two rules are named {shown(word)}", hint=f"expected {codes}")
    if not found:
        words = [word for rule in RULES for word in (rule.code, rule.name)]
        hint = suggestion(word, words) or "'ckptdoctor rules' lists them"
        raise UsageError(f"no rule {shown(word)}", hint=hint)
    return found[0]


def threshold_of(rule: type[Rule], name: str, value: object) -> float:
    """Return a threshold that was asked for, if the rule has it and it is a number of its kind.

    Raises
    ------
    UsageError
        If not.
    """
    known = {field.name: field.default for field in fields(rule)}
    if name not in known:
        listed = " and ".join(known) or "none"
        hint = suggestion(name, known) or f"it has {listed}"
        raise UsageError(f"{rule.code} has no threshold {shown(name)}", hint=hint)
    whole = isinstance(known[name], int)
    kind = "a whole number" if whole else "a finite number"
    number = not isinstance(value, bool) and isinstance(value, int if whole else int | float)
    # compared as it is: an integer may be too large to become a float, and NaN compares as False
    if not number or not -_LARGEST <= value <= _LARGEST:  # type: ignore[operator]
        raise UsageError(f"expected {name} of {rule.code} to be {kind}, found {shown(value)}")
    return value  # type: ignore[return-value]


def rules_with(thresholds: Mapping[str, Mapping[str, float]]) -> list[Rule]:
    """Every rule, with these thresholds instead of its defaults.

    Parameters
    ----------
    thresholds
        By code or name of the rule, and name of the threshold.

    Raises
    ------
    UsageError
        If there is no such rule or threshold, or it is no number.
    """
    given: dict[type[Rule], dict[str, float]] = {}
    for word, values in thresholds.items():
        if not isinstance(values, Mapping):
            raise UsageError(f"expected thresholds of {shown(word)} by name, found {shown(values)}")
        rule = rule_of(word)
        checked = {name: threshold_of(rule, name, value) for name, value in values.items()}
        given.setdefault(rule, {}).update(checked)
    return [rule(**given.get(rule, {})) for rule in RULES]


def check_wishes(wishes: Wishes) -> None:
    """Raise `UsageError` for codes, rules or thresholds that do not exist, before a file is opened.

    Examples
    --------
    >>> check_wishes(Wishes(select=["NF", "nan-values"]))
    """
    prefixes([*wishes.select, *wishes.ignore])
    rules_with(wishes.thresholds)
    accepted((), wishes.exempt)


def accepted(findings: Iterable[Finding], exemptions: Sequence[Exemption]) -> list[Finding]:
    """Make notes of the findings that someone accepts, with the reason; none is lost.

    What makes loading unsafe stays what it is: that has no exemption.

    Raises
    ------
    UsageError
        If an exemption names a code that does not exist.
    """
    tests = [
        (matcher([e.tensor]), prefixes(e.codes), " ".join(e.reason.split())) for e in exemptions
    ]
    return [_weighed(finding, tests) for finding in findings]


def _weighed(finding: Finding, tests: Iterable[tuple[Any, tuple[str, ...], str]]) -> Finding:
    if not finding.tensor or finding.unsafe or finding.severity is Severity.NOTE:
        return finding
    for fits, codes, reason in tests:
        if fits(finding.tensor) and wanted(finding.code, codes, ()):
            return replace(
                finding,
                severity=Severity.NOTE,
                message=f"{finding.message} (accepted: {reason})",
                measured={**finding.measured, "accepted": reason},
            )
    return finding
