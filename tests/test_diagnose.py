"""Which findings count for what: verdicts, weights, selection, crashes."""

import numpy as np
import pytest

from ckptdoctor.diagnose import USES, diagnose, judged_weights, summarise
from ckptdoctor.errors import InternalError, ReadError, UsageError
from ckptdoctor.findings import Finding, Severity, container_finding
from ckptdoctor.measure.scan import Measured, measure
from ckptdoctor.results import Exemption, Report, Wishes
from ckptdoctor.rules import RULES
from ckptdoctor.rules.base import Rule, rule, threshold
from ckptdoctor.sources import Extent, WindowSource
from ckptdoctor.tensors import TensorInfo, TensorTable

NAN = np.float32([np.nan, 1])
SOUND = np.float32([0.5, 1])


def judge(arrays, roles=None, findings=(), rules=None, **wishes):
    table = TensorTable.from_arrays(arrays, roles)
    measured = measure(table)
    return diagnose(table, Measured(measured.stats, tuple(findings)), Wishes(**wishes), rules=rules)


def verdicts(*args, **wishes):
    verdict = judge(*args, **wishes).verdict
    return verdict.serve, verdict.resume


class Complaining(Rule):
    """A rule that finds an error wherever there is NaN."""

    code, name, severity = "ZZ000", "complaining", Severity.ERROR

    def check(self, ctx):
        for info, _ in ctx.where(ctx.stats.nan):
            yield self.finding(info, "is sick")


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("model", ("unfit", "unfit")),
        ("ema", ("fit", "unfit")),
        ("optimizer", ("fit", "unfit")),
        ("scaler", ("fit", "unfit")),
        ("training", ("fit", "unfit")),
        ("other", ("suspect", "suspect")),
    ],
)
def test_verdicts_hear_what_their_purpose_uses(role, expected):
    arrays, roles = {"sick": NAN, "w": SOUND}, {"sick": role}
    assert verdicts(arrays, roles, rules=[Complaining()]) == expected


def test_table_of_uses_has_every_role_and_a_reason():
    assert set(USES) == {"model", "ema", "optimizer", "scaler", "training", "other", "container"}
    assert all(use.why for use in USES.values())


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("ema.conv.weight", "ema"),
        ("state_dict_ema.conv.weight", "ema"),
        ("model_ema.conv.weight", "ema"),
        ("ema_state_dict.conv.weight", "model"),
        ("nested.ema.weight", "model"),
    ],
)
def test_auto_serves_the_ema_where_its_framework_does(name, weights):
    table = TensorTable.from_arrays({name: NAN, "w": SOUND}, {name: "ema"})
    assert judged_weights(table) == weights
    assert verdicts({name: NAN, "w": SOUND}, {name: "ema"})[0] == (
        "unfit" if weights == "ema" else "fit"
    )


def test_weights_can_be_chosen_and_must_exist():
    arrays, roles = {"ema.w": NAN, "w": SOUND}, {"ema.w": "ema"}
    assert verdicts(arrays, roles, weights="model") == ("fit", "unfit")
    assert verdicts(arrays, roles, weights="ema") == ("unfit", "unfit")
    with pytest.raises(UsageError, match="expected ema weights"):
        judge({"w": SOUND}, weights="ema")
    with pytest.raises(UsageError, match="expected model weights"):
        judge({"ema.w": SOUND}, {"ema.w": "ema"}, weights="model")


def test_file_with_nothing_but_ema_is_judged_by_it():
    assert verdicts({"x.w": NAN}, {"x.w": "ema"}) == ("unfit", "unfit")


def test_container_findings_count_for_both_and_unsafe_ones_for_loading():
    error = container_finding("CK002", Severity.ERROR, "code", unsafe=True)
    found = judge({"w": SOUND}, findings=[error])
    assert (found.verdict.load, found.verdict.serve, found.verdict.resume) == (
        "unsafe", "unfit", "unfit",
    )  # fmt: skip
    warning = container_finding("CK006", Severity.WARNING, "link")
    assert verdicts({"w": SOUND}, findings=[warning]) == ("suspect", "suspect")
    note = container_finding("CK002", Severity.NOTE, "class")
    assert verdicts({"w": SOUND}, findings=[note]) == ("fit", "fit")


def test_purpose_decides_which_findings_are_relevant():
    roles = {"optimizer.m": "optimizer"}
    for purpose, relevant in (("any", True), ("serve", False), ("resume", True)):
        found = judge({"optimizer.m": NAN, "w": SOUND}, roles, purpose=purpose)
        assert found.relevant == (relevant,)
        assert found.verdict.serve == "fit"


def test_findings_are_sorted_errors_first():
    arrays = {"mask": np.float32([[0, -np.inf], [0, 0]]), "w": NAN}
    note = container_finding("CK002", Severity.NOTE, "class")
    assert [f.code for f in judge(arrays, findings=[note]).findings] == ["NF001", "CK002", "NF003"]


def test_codes_select_and_ignore_by_prefix_the_longer_wins():
    arrays = {"a": NAN, "b": np.float32([np.inf])}
    code = container_finding("CK002", Severity.ERROR, "code", unsafe=True)

    def kept(**wishes):
        return [f.code for f in judge(arrays, findings=[code], **wishes).findings]

    assert kept(select=["NF"]) == ["NF001", "NF002"]
    assert kept(ignore=["NF002", "ck"]) == ["NF001"]
    assert kept(select=["NF001"], ignore=["NF"]) == ["NF001"]
    assert kept(select=["NF"], ignore=["NF001"]) == ["NF002"]
    assert kept(ignore=["NF"], select=["NF"]) == []


def test_load_verdict_cannot_be_filtered_away():
    code = container_finding("CK002", Severity.ERROR, "code", unsafe=True)
    found = judge({"w": SOUND}, findings=[code], ignore=["CK"])
    assert found.findings == ()
    assert found.verdict.load == "unsafe"


def test_codes_can_be_given_by_name():
    arrays = {"a": NAN, "b": np.float32([np.inf])}
    assert [f.code for f in judge(arrays, select=["nan-values"]).findings] == ["NF001"]
    assert [f.code for f in judge(arrays, ignore=["NAN-values"]).findings] == ["NF002"]


def test_unknown_code_is_refused():
    with pytest.raises(UsageError, match="no code 'XX'"):
        judge({"w": SOUND}, select=["XX"])


@rule
class Above(Rule):
    """A rule with a threshold."""

    code, name, severity = "ZZ003", "above", Severity.WARNING
    limit: float = threshold(10.0, unit="units", why="a test", healthy="0 of 1")

    def check(self, ctx):
        for info, stats in ctx.where(ctx.stats.maximum > self.limit):
            yield self.finding(info, "above", limit=f"over {self.limit}", maximum=stats.maximum)


@pytest.mark.parametrize(("limit", "found"), [({}, 0), ({"limit": 4}, 1), ({"limit": 5}, 0)])
@pytest.mark.parametrize("word", ["ZZ003", "zz003", "above"])
def test_thresholds_reach_the_rule(monkeypatch, word, limit, found):
    monkeypatch.setattr("ckptdoctor.selection.RULES", (Above,))
    assert len(judge({"w": np.float32([5])}, thresholds={word: limit}).findings) == found


def accept(pattern, *codes, reason="known since May"):
    return Exemption(tensor=pattern, reason=reason, codes=codes)


def test_accepted_finding_becomes_a_note_that_tells_why():
    arrays = {"a.w": NAN, "b.w": NAN}
    found = judge(arrays, exempt=[accept("a.*", "NF001")])
    assert [(f.tensor, f.severity) for f in found.findings] == [
        ("b.w", Severity.ERROR),
        ("a.w", Severity.NOTE),
    ]
    note = found.findings[1]
    assert note.message.endswith("(accepted: known since May)")
    assert note.measured["accepted"] == "known since May"
    assert note.measured["nan"] == 1
    assert judge(arrays, exempt=[accept("*.w")]).verdict.serve == "fit"


@pytest.mark.parametrize(
    "exemption",
    [
        accept("b.*"),
        accept("A.*"),
        accept("a.w", "NF002"),
        accept("w"),
        accept("a.w", "inf-values"),
    ],
    ids=["another tensor", "another case", "another code", "part of a name", "another name"],
)
def test_other_findings_stay(exemption):
    (finding,) = judge({"a.w": NAN, "v": SOUND}, exempt=[exemption]).findings
    assert finding.severity is Severity.ERROR
    assert "accepted" not in finding.message


def test_first_exemption_that_fits_gives_the_reason_in_one_line():
    exempt = [accept("x"), accept("w", "nan-values", reason="one\n two"), accept("*", reason="b")]
    assert judge({"w": NAN}, exempt=exempt).findings[0].message.endswith("(accepted: one two)")


def test_what_makes_loading_unsafe_and_the_file_itself_have_no_exemption():
    unsafe = container_finding("CK002", Severity.ERROR, "code", tensor="w", unsafe=True)
    torn = container_finding("CK004", Severity.ERROR, "cut")
    found = judge({"w": SOUND}, findings=[unsafe, torn], exempt=[accept("*"), accept("")])
    assert [f.severity for f in found.findings] == [Severity.ERROR, Severity.ERROR]
    assert found.verdict.load == "unsafe"
    cut = container_finding("CK004", Severity.ERROR, "cut", tensor="w")
    assert judge({"w": SOUND}, findings=[cut], exempt=[accept("w")]).verdict.serve == "fit"


def test_diagnoses_refer_to_findings_in_the_order_of_the_report(monkeypatch):
    seen = []

    def conclude(context, findings, *, file):
        seen.append((context.cast_to, findings, file))
        return ("told",)

    monkeypatch.setattr("ckptdoctor.diagnose.conclude", conclude)
    note = container_finding("CK002", Severity.NOTE, "class")
    found = judge({"w": NAN}, findings=[note], cast_to="float16")
    assert seen == [("float16", found.findings, "<memory>")]
    assert [f.code for f in found.findings] == ["NF001", "CK002"]
    assert found.diagnoses == ("told",)


@pytest.mark.parametrize(
    ("error", "raised"),
    [(ZeroDivisionError(), InternalError), (ReadError("bad sector"), ReadError)],
)
def test_crash_of_the_diagnosis_is_raised_with_the_findings(monkeypatch, error, raised):
    def crash(*_arguments, **_options):
        raise error

    monkeypatch.setattr("ckptdoctor.diagnose.conclude", crash)
    with pytest.raises(raised) as caught:
        judge({"w": NAN})
    assert [f.code for f in caught.value.findings] == ["NF001"]


def test_tensor_patterns_limit_what_is_judged():
    arrays = {"head.w": SOUND, "body.w": NAN}
    assert verdicts(arrays, tensors=["head.*"]) == ("fit", "fit")
    assert judge(arrays, tensors=["head.*", "b*"]).judged == {"head.w", "body.w"}
    with pytest.raises(UsageError, match="no tensor matches 'tail"):
        judge(arrays, tensors=["tail.*"])


class Crashing(Rule):
    """A rule with a bug."""

    code, name, severity = "ZZ001", "crashing", Severity.ERROR

    def check(self, ctx):
        yield from ()
        raise ZeroDivisionError


class Unreadable(Crashing):
    """A rule that meets a bad sector."""

    def check(self, ctx):
        yield from ()
        raise ReadError("read failed")


def test_crash_of_a_rule_is_raised_with_the_findings_of_the_others():
    with pytest.raises(InternalError, match="ZZ001 crashed: ZeroDivisionError") as caught:
        judge({"w": NAN}, rules=[Crashing(), *(cls() for cls in RULES)])
    assert [f.code for f in caught.value.findings] == ["NF001"]
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_read_error_in_a_rule_stays_what_it_is():
    with pytest.raises(ReadError) as caught:
        judge({"w": NAN}, rules=[*(cls() for cls in RULES), Unreadable()])
    assert [f.code for f in caught.value.findings] == ["NF001"]


def test_more_telling_rule_takes_the_place_of_the_general_one():
    class Telling(Rule):
        code, name, severity, replaces = "ZZ002", "telling", Severity.ERROR, ("NF001",)

        def check(self, ctx):
            yield self.finding(ctx.table["a"], "worse than NaN")

    found = judge({"a": NAN, "b": NAN}, rules=[*(cls() for cls in RULES), Telling()])
    assert {(f.code, f.tensor) for f in found.findings} == {("ZZ002", "a"), ("NF001", "b")}


@pytest.mark.parametrize(
    ("worst", "limit", "failed"),
    [
        (None, Severity.WARNING, False),
        (Severity.WARNING, Severity.ERROR, False),
        (Severity.WARNING, Severity.WARNING, True),
        (Severity.ERROR, Severity.WARNING, True),
        (Severity.ERROR, None, False),
    ],
)
def test_limit_is_the_lowest_severity_that_fails(worst, limit, failed):
    finding = Finding(code="ZZ001", name="z", severity=worst or Severity.NOTE, message="m")
    findings = (finding,) if worst else ()
    report = Report(file="f", findings=findings, relevant=(True,) * len(findings))
    assert report.fails(limit) is failed


def test_summary_counts_shared_memory_once_and_parameters_of_the_judged_weights():
    source = WindowSource.over(bytes(64), "m")

    def info(name, role="model", offset=0, storage=""):
        return TensorInfo(
            name=name, path=(name,), dtype="float32", shape=(4,), role=role,
            extent=Extent(source, offset, 16), storage=storage,
        )  # fmt: skip

    infos = [
        info("a", storage="s"),
        info("tied", storage="s"),
        info("view", offset=16, storage="s"),
        info("m", "optimizer", 32),
    ]
    table = TensorTable(path="m", format="f", infos={i.name: i for i in infos})
    summary = summarise(table, (), "model")
    assert (summary.tensors, summary.parameters, summary.nbytes) == (4, 8, 48)
    assert [(p.role, p.tensors, p.elements) for p in summary.parts] == [
        ("model", 3, 8),
        ("optimizer", 1, 4),
    ]


def test_arithmetic_of_rules_on_damaged_values_does_not_warn():
    class Careless(RULES[0]):
        def check(self, ctx):
            signalling = np.array([0x7F800001], np.uint32).view(np.float32)
            assert np.isnan(signalling.astype(np.float16)[0])
            assert np.float32(3e38) * np.float32(3e38) == np.inf
            yield from ()

    table = TensorTable.from_arrays({"w": [1.0]})
    assert diagnose(table, measure(table), rules=[Careless()]).findings == ()
