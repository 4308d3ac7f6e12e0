"""Diagnoses as people and machines read them: what comes first, what is cut, what can be pasted."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import patients
import pytest

import ckptdoctor
from ckptdoctor.findings import Finding, Severity
from ckptdoctor.report import renderer
from ckptdoctor.results import Cause, Diagnosis, View

NAN = np.float32("nan")


@pytest.fixture(scope="module")
def founding_case(tmp_path_factory):
    layers = patients.keras_state()
    layers["bn2"]["moving_variance"][:] = np.linspace(1601, 8958, 16)
    for part in ("moving_mean", "moving_variance"):
        layers["bn3"][part][:] = NAN
    path = tmp_path_factory.mktemp("founding") / "m.h5"
    patients.save_keras(path, layers, policy="mixed_float16", scaled=True)
    return replace(ckptdoctor.inspect(path), file="m.h5")


@pytest.fixture
def healthy(tmp_path):
    return ckptdoctor.inspect(patients.save_torch(tmp_path / "m.pt", patients.state()))


def text_of(report, **view):
    return "".join(renderer("text")([report], View(**{"width": 80, **view})))


def label(text, name):
    """Text beside a label, its lines put together again."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"  {name} "))
    taken = [lines[start][13:]]
    for line in lines[start + 1 :]:
        if not line.startswith(" " * 13):
            break
        taken.append(line.strip())
    return " ".join(taken)


def cause(name="c", confidence="high"):
    return Cause(
        name=name, text=f"text of {name}", confidence=confidence, observation=f"saw {name}"
    )


def diagnosis(**more):
    return Diagnosis(**{"key": "k", "title": "Title", "severity": Severity.ERROR,
                        "findings": (), **more})  # fmt: skip


class TestFoundingCase:
    def test_verdicts_head_the_report_and_the_diagnosis_stands_above_the_findings(
        self, founding_case
    ):
        text = text_of(founding_case)
        order = [text.index(word) for word in ("  serve ", "  diagnosis ", "  error ", "  tensor ")]
        assert order == sorted(order)

    def test_it_answers_which_what_why_how_sure_and_what_to_do(self, founding_case):
        text = text_of(founding_case)
        assert label(text, "suspect") == "bn2, the first of 2 affected layers"
        assert "bn2: variance 1,601 to 8,958, finite but exploded" in label(text, "evidence")
        assert "bn3: mean and variance NaN in all 16 channels" in label(text, "evidence")
        assert label(text, "inference").startswith("NaN for every input")
        assert "statistics of each batch" in label(text, "training")
        assert "overflowed float16" in label(text, "cause")
        assert "confidence high" in label(text, "cause")
        assert "earlier checkpoint" in label(text, "repair")
        assert "Never fill mean and variance with one constant" in label(text, "repair")
        assert "ckptdoctor inspect m.h5 --tensor" in text

    def test_findings_are_by_layer_in_depth_order_with_state_and_limit(self, founding_case):
        listed = text_of(founding_case).partition("\n  load ")[2]
        upstream, downstream = (
            listed.index("bn2  (values FINITE)"),
            listed.index("bn3  (ALL values bad)"),
        )
        assert upstream < downstream
        assert "(limit: over" in " ".join(listed[upstream:downstream].split())

    def test_it_fits_a_screen(self, founding_case):
        text = text_of(founding_case, width=80)
        diagnosed = text.partition("  diagnosis ")[2].partition("  error  ")[0]
        assert len(diagnosed.splitlines()) < 45

    @pytest.mark.parametrize("width", [60, 80, 120, 200])
    def test_only_commands_are_longer_than_the_width(self, founding_case, width):
        long = [
            line for line in text_of(founding_case, width=width).splitlines() if len(line) > width
        ]
        assert all("  ckptdoctor " in line for line in long)

    def test_prose_stays_readable_on_wide_terminals(self, founding_case):
        prose = text_of(founding_case, width=200).partition("  serve ")[0].splitlines()[4:]
        assert all(len(line) <= 110 for line in prose if "ckptdoctor" not in line)

    def test_colour_marks_the_severity(self, founding_case):
        assert "\x1b[31;1mdiagnosis\x1b[0m" in text_of(founding_case, color=True)

    def test_quiet_leaves_it_out(self, founding_case):
        assert "diagnosis" not in text_of(founding_case, quiet=True)

    def test_json_has_the_keys_of_the_contract_and_more(self, founding_case):
        text = "".join(renderer("json")([founding_case], View()))
        (told,) = json.loads(text)["reports"][0]["diagnoses"]
        assert told["title"]
        assert told["cause"] == "overflow-skipped-step"
        assert told["confidence"] == "high"
        assert told["findings"] == list(range(len(founding_case.findings)))
        assert told["next"].startswith("ckptdoctor inspect m.h5") or "/m.h5" in told["next"]
        assert (told["suspect"], told["layers"]) == ("bn2", ["bn2", "bn3"])
        assert set(told) == {
            "key", "title", "severity", "cause", "confidence", "findings", "suspect", "layers",
            "evidence", "inference", "training", "causes", "repair", "snippet", "advice", "next",
            "next_tells",
        }  # fmt: skip


def test_healthy_file_has_no_word_of_it(healthy):
    text = text_of(healthy)
    assert "diagnosis" not in text
    assert len(text.splitlines()) == 10
    assert '"diagnoses": []' in "".join(renderer("json")([healthy], View()))


class TestSeveral:
    def test_first_two_errors_are_told_at_length_the_rest_in_brief(self, healthy):
        several = [
            diagnosis(title=f"Title {i}", training="why", causes=(cause(),)) for i in range(4)
        ]
        text = text_of(replace(healthy, diagnoses=tuple(several)))
        assert [text.count(f"Title {i}") for i in range(4)] == [1] * 4
        assert text.count("  training ") == 2
        assert text.count("  cause ") == 4

    def test_only_the_first_warning_is(self, healthy):
        several = [diagnosis(severity=Severity.WARNING, training="why") for _ in range(3)]
        text = text_of(replace(healthy, diagnoses=tuple(several)))
        assert text.count("  training ") == 1

    def test_too_many_are_counted(self, healthy):
        text = text_of(replace(healthy, diagnoses=(diagnosis(),) * 9))
        assert text.count("  diagnosis ") == 6
        assert "... and 3 more diagnoses: --format json" in text


class TestCauses:
    def told(self, healthy, *confidences):
        causes = tuple(cause(f"c{i}", c) for i, c in enumerate(confidences))
        return text_of(replace(healthy, diagnoses=(diagnosis(causes=causes),)), width=110)

    def test_a_certain_one_leaves_out_the_unlikely(self, healthy):
        text = self.told(healthy, "high", "medium", "low")
        assert "text of c1 (confidence medium: saw c1)" in text
        assert "text of c2" not in text

    def test_unlikely_ones_are_named_without_their_observation(self, healthy):
        text = self.told(healthy, "medium", "low")
        assert "text of c0 (confidence medium: saw c0)" in text
        assert "text of c1 (confidence low)" in text

    def test_a_diagnosis_without_a_cause_says_none(self, healthy):
        text = self.told(healthy)
        assert "  cause " not in text
        document = "".join(renderer("json")([replace(healthy, diagnoses=(diagnosis(),))], View()))
        (told,) = json.loads(document)["reports"][0]["diagnoses"]
        assert told["cause"] is told["confidence"] is None


class TestLines:
    def test_code_is_shown_unbroken_or_not_at_all(self, healthy):
        report = replace(healthy, diagnoses=(diagnosis(snippet=("x = 1", "y" * 60)),))
        assert f"{' ' * 13}x = 1\n{' ' * 13}{'y' * 60}\n" in text_of(report, width=73)
        assert "x = 1" not in text_of(report, width=72)

    def test_command_names_the_file_as_the_terminal_can_print_it(self, healthy):
        report = replace(
            healthy,
            file="d \xfc.pt",
            diagnoses=(diagnosis(next="ckptdoctor inspect 'd \xfc.pt' -q"),),
        )
        assert "inspect 'd \xfc.pt' -q\n" in text_of(report)
        assert "inspect $'d \\xc3\\xbc.pt' -q\n" in text_of(report, encoding="ascii")

    def test_hostile_names_do_not_reach_the_terminal(self, healthy):
        evil = "a\x1b[2J\n" + "x" * 5000
        told = diagnosis(title=evil, suspect=evil, layers=(evil,), evidence=(evil,), next="run")
        text = text_of(replace(healthy, diagnoses=(told,)))
        assert all(c.isprintable() or c == "\n" for c in text)
        assert len(text) < 5000


class TestFindings:
    def found(self, healthy, *told):
        findings = tuple(sorted(told, key=lambda f: -f.severity))
        report = replace(healthy, findings=findings, relevant=(True,) * len(findings))
        return text_of(report).partition("\n  load ")[2].partition("\n  tensor ")[0]

    def finding(self, tensor, layer="", severity=Severity.ERROR, **more):
        layer = layer or tensor.rpartition(".")[0]
        return Finding(code="XX001", name="x", severity=severity, message="says", role="model",
                       tensor=tensor, layer=layer, **more)  # fmt: skip

    def test_layers_that_differ_in_numbers_are_folded(self, healthy):
        text = self.found(healthy, *[self.finding(f"bn{i}.running_var") for i in (1, 2, 3)])
        assert "error    bn{1..3} (3 layers; of the first:)  (values FINITE)\n" in text
        assert text.count("XX001") == 1

    def test_layers_with_other_limits_or_states_are_not(self, healthy):
        text = self.found(
            healthy, self.finding("bn1.running_var"), self.finding("bn2.running_mean")
        )
        assert text.count("XX001") == 2

    def test_limit_is_told(self, healthy):
        text = self.found(healthy, self.finding("bn1.running_var", limit="over 9 apples"))
        assert "says (limit: over 9 apples)" in text

    @pytest.mark.parametrize(("count", "rest"), [(5, 0), (6, 0), (7, 2)])
    def test_many_layers_are_counted(self, healthy, count, rest):
        told = [self.finding(f"{'abcdefgh'[i]}.w") for i in range(count)]
        text = self.found(healthy, *told)
        assert text.count("XX001") == count - rest
        assert (f"{rest} more errors" in text) is bool(rest)

    def test_many_findings_of_a_layer_are_counted(self, healthy):
        told = [self.finding(f"bn1.{part}") for part in "abcdef"]
        assert "and 2 more findings" in self.found(healthy, *told)

    def test_configuration_is_told_by_its_layer(self, healthy):
        assert "error    pool1\n           XX001 x: says\n" in self.found(
            healthy, self.finding("", "pool1")
        )
