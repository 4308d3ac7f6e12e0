"""Text for people: names as their framework gives them, what does not count, what was left out."""

from dataclasses import replace

import numpy as np
import pytest

from ckptdoctor.diagnose import diagnose
from ckptdoctor.findings import Finding, Severity, container_finding
from ckptdoctor.measure.scan import Measured, measure
from ckptdoctor.report.text import render
from ckptdoctor.results import ErrorInfo, Report, View, Wishes
from ckptdoctor.tensors import TensorTable

NAN = np.float32([np.nan, 1])
SOUND = np.float32([0.5, 1])


def report_of(arrays, roles=None, findings=(), layers=None, file="m.pt", **wishes):
    table = TensorTable.from_arrays(arrays, roles)
    infos = {n: i._replace(layer_name=(layers or {}).get(n, "")) for n, i in table.items()}
    table = replace(table, path=file, infos=infos)
    measured, wished = measure(table), Wishes(**wishes)
    found = diagnose(table, Measured(measured.stats, tuple(findings)), wished)
    return Report(
        file=file, format="memory", weights=found.weights, verdict=found.verdict,
        summary=found.summary, findings=found.findings, diagnoses=found.diagnoses, relevant=found.relevant, table=table,
        stats=measured.stats, judged=found.judged, wishes=wished,
    )  # fmt: skip


def text_of(report, **view):
    return "".join(render([report], View(**{"width": 80, **view})))


def joined(report, **view):
    """Text with its lines put together again."""
    return " ".join(text_of(report, **view).split())


def listed(report, **view):
    """Findings and what comes after them, without the diagnoses above."""
    return " ".join(text_of(report, **view).partition("\n\n  error  ")[2].split())


def crc(name, found="0x1"):
    message = f"CRC-32 of the data is {found}, the file states 0x2; it holds {name!r}"
    return container_finding("CK001", Severity.ERROR, message, where="m.pt:d/0", tensor=name)


class TestNames:
    NAME = "layers/functional/layers/batch_normalization_6/vars/2"

    def test_layer_is_named_as_its_framework_names_it(self):
        text = text_of(report_of({self.NAME: NAN}, layers={self.NAME: "post_bn"}))
        assert "  error    post_bn  (SOME values bad)\n" in text
        assert "NF001 nan-values: vars/2: 1 of 2 elements are NaN" in text
        assert any(line.startswith("  post_bn  layers/") for line in text.splitlines())

    def test_two_variables_of_a_layer_stay_apart(self):
        other = self.NAME[:-1] + "3"
        report = report_of(
            {self.NAME: NAN, other: NAN}, layers={self.NAME: "post_bn", other: "post_bn"}
        )
        rows = [line for line in text_of(report).splitlines() if line.startswith("  post_bn")]
        assert [row.split()[1][-6:] for row in rows] == ["vars/2", "vars/3"]

    def test_layer_that_the_path_names_is_not_repeated(self):
        text = text_of(report_of({"net/post_bn/mean": NAN}, layers={"net/post_bn/mean": "post_bn"}))
        assert "mean: 1 of 2" in text
        assert "tensor  " in text
        assert "layer  " not in text

    def test_name_in_the_message_is_not_put_before_it(self):
        text = listed(report_of({"w": SOUND}, findings=[crc("conv1.weight")]))
        assert "CK001 checksum-mismatch: CRC-32 of" in text
        assert text.count("conv1.weight") == 1
        quiet = text_of(report_of({"w": SOUND}, findings=[crc("conv1.weight")]), quiet=True)
        assert quiet.count("conv1.weight") == 1


class TestGroups:
    def test_same_damage_in_many_tensors_is_told_once(self):
        many = [crc(f"conv{i}.weight", hex(i)) for i in range(20)]
        text = listed(report_of({"w": SOUND}, findings=many))
        assert text.count("CK001") == 1
        wanted = (
            "'conv0.weight' (at d/0); the same of conv1.weight, conv2.weight, conv3.weight, 16 more"
        )
        assert wanted in " ".join(text.split())

    def test_findings_without_a_name_are_counted(self):
        many = [
            container_finding(
                "CK003", Severity.ERROR, f"the file does not hold '{i}'", where="m.pt"
            )
            for i in range(9)
        ]
        assert "does not hold '0'; the same of 8 more" in joined(
            report_of({"w": SOUND}, findings=many)
        )

    def test_messages_that_differ_in_words_are_all_told(self):
        many = [
            container_finding("CK002", Severity.ERROR, f"calls {name}", unsafe=True)
            for name in ("os.system", "builtins.eval")
        ]
        text = text_of(report_of({"w": SOUND}, findings=many))
        assert "calls os.system" in text
        assert "calls builtins.eval" in text


class TestHonesty:
    def test_tensors_not_judged_are_counted(self):
        text = text_of(report_of({"a.w": SOUND, "b.w": NAN}, tensors=["a.*"]))
        assert "serve   fit      nothing found in what was judged" in text
        assert "\n  judged  1 of 2 tensors\n" in text

    @pytest.mark.parametrize(
        ("wish", "told"),
        [
            ({"ignore": ["NF", "CK001"]}, "judged  without NF, CK001"),
            ({"select": ["CK"]}, "judged  only CK"),
            ({"select": ["NF"], "ignore": ["NF001"]}, "judged  only NF; without NF001"),
        ],
        ids=["ignored", "selected", "both"],
    )
    def test_codes_left_out_are_named(self, wish, told):
        assert f"  {told}\n" in text_of(report_of({"w": NAN}, **wish))

    def test_everything_judged_needs_no_line(self):
        text = text_of(report_of({"w": SOUND}))
        assert "judged  " not in text
        assert "nothing found against it" in text

    def test_unsafe_without_its_finding_says_why_there_is_no_reason(self):
        code = container_finding("CK002", Severity.ERROR, "calls os.system", unsafe=True)
        left_out = joined(report_of({"w": SOUND}, findings=[code], ignore=["CK002"]))
        assert "the finding that says so is left out" in left_out
        assert "left out" not in joined(report_of({"w": SOUND}, findings=[code]))

    def test_error_that_does_not_count_says_so_and_is_not_red(self):
        report = report_of({"m": NAN, "w": NAN}, {"m": "optimizer"}, purpose="serve")
        lines = text_of(report, width=120, color=True).splitlines()
        (other,) = [line for line in lines if "does not count for serve" in line]
        assert other.startswith("  error    m  (SOME values bad, optimizer")
        assert "\x1b" not in other
        (counted,) = [line for line in lines if line.endswith("w  (SOME values bad)")]
        assert "\x1b[31;1merror" in counted


class TestShape:
    @pytest.mark.parametrize("width", [40, 60, 80])
    def test_verdicts_and_refusals_fit(self, width):
        code = container_finding("CK002", Severity.ERROR, "calls os.system", unsafe=True)
        error = ErrorInfo(type="FormatError", message="what it is " * 9, where="m.pt+3", hint="x")
        for report in (
            report_of({"w": SOUND, "v": NAN}, findings=[code], tensors=["w"], ignore=["CK002"]),
            Report(file="m.pt", error=error),
        ):
            lines = text_of(report, width=width, tensors="none").splitlines()
            assert all(len(line) <= width for line in lines if "ckptdoctor inspect" not in line)

    def test_reason_is_in_words_and_a_bug_has_its_class(self):
        refused = Report(file="m", error=ErrorInfo(type="TruncatedError", message="ends early"))
        assert "TruncatedError" not in text_of(refused)
        bug = Report(file="m", error=ErrorInfo(type="KeyError", message="'x'", bug=True))
        assert "KeyError: 'x'" in text_of(bug)

    def test_path_asked_for_what_it_has_not_is_only_counted(self):
        usage = Report(file="m", error=ErrorInfo(type="UsageError", message="no tensor matches"))
        assert text_of(usage) == ""
        both = "".join(render([usage, report_of({"w": SOUND})], View()))
        assert both.endswith("2 paths: 1 clean, 1 not checked\n")

    @pytest.mark.parametrize(
        ("file", "encoding", "command"),
        [
            ("-dash.pt", "utf-8", "inspect ./-dash.pt --tensors all"),
            ("d \xfc.pt", "utf-8", "inspect 'd \xfc.pt' --tensors all"),
            ("d \xfc.pt", "ascii", "inspect $'d \\xc3\\xbc.pt' --tensors all"),
        ],
        ids=["a dash", "a terminal that prints it", "one that does not"],
    )
    def test_next_command_can_be_pasted(self, file, encoding, command):
        assert f"{command}\n" in text_of(report_of({"w": SOUND}, file=file), encoding=encoding)


def test_finding_about_a_tensor_that_is_not_in_the_table_has_no_layer():
    finding = Finding(
        code="CK004", name="truncated", severity=Severity.ERROR, message="cut", tensor="x.w"
    )
    assert "CK004 truncated: x.w: cut" in text_of(report_of({"w": SOUND}, findings=[finding]))
