"""A probe as text and as JSON: what is wrong comes first, 300 layers stay readable."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from live.numpy_subject import (
    BatchNorm,
    Dense,
    Function,
    NumpySubject,
    classifier,
    fit,
    relu,
    samples,
)

from ckptdoctor.findings import Severity
from ckptdoctor.live.subject import Statistics
from ckptdoctor.probing.probe import probe
from ckptdoctor.probing.results import ProbeReport
from ckptdoctor.report.probe import render
from ckptdoctor.report.probe_json import probe_json
from ckptdoctor.report.probe_layers import chosen
from ckptdoctor.results import ErrorInfo, View

VIEW = View(width=80)


def deep(layers: int = 100, wide: int = 6) -> NumpySubject:
    parts = []
    for at in range(layers):
        parts += [Dense(f"block{at}.fc", wide, wide, at), BatchNorm(f"block{at}.bn", wide)]
        parts += [relu(f"block{at}.relu")]
    subject = NumpySubject(*parts, Dense("head", wide, 4))
    fit(subject, samples(256, wide))
    return subject


def sick(subject: NumpySubject, exploded: str, broken: str) -> NumpySubject:
    held = subject.statistics(exploded)
    subject.set_statistics(exploded, Statistics(held.mean, held.var * 1e6))
    held = subject.statistics(broken)
    subject.set_statistics(broken, Statistics(held.mean, held.var * np.nan))
    return subject


@pytest.fixture(scope="module")
def founding() -> ProbeReport:
    return probe(sick(deep(), "block40.bn", "block97.bn"), samples(64), bisect=True)


def test_where_it_begins_comes_before_everything(founding):
    lines = render(founding, VIEW).splitlines()
    assert lines[0] == "NumpySubject"
    assert lines[1] == "  numpy: 302 layers, 100 BatchNorms"
    assert lines[2] == "  data: the given array, 64 samples of 6 float32, -2.641 to 2.86"
    at = lines.index(next(line for line in lines if line.startswith("  first ")))
    assert lines[at].startswith("  first     block97.bn (BatchNorm): NaN in 384 of 384 values")
    assert re.match(r"  inputs    -\d[\d.]+ to \d[\d.]+, all finite", lines[at + 1])
    assert lines[at + 2].startswith("  why       its own running_var is NaN in 6 of 6 values")
    text = "\n".join(lines)
    assert text.index("  model   unfit") < text.index("  first") < text.index("  error")
    assert re.search(r"weights +BN001 nonfinite-running-stats: running_var: all 6 channels", text)


def test_the_exploded_layer_upstream_is_named_with_its_factor(founding):
    text = render(founding, VIEW)
    assert re.search(r"error +block40\.bn: running variance", text)
    assert re.search(r"times larger", text)
    assert re.search(r"^  block40\.bn +\S+\.\.\S+ +\S+ +\S+e\+0[56]", text, re.MULTILINE)
    assert re.search(r"^  block97\.bn +not finite", text, re.MULTILINE)
    assert re.search(r"^  the other 9\d BatchNorms fit the data", text, re.MULTILINE)


def test_300_layers_are_folded_around_what_is_bad(founding):
    text = render(founding, VIEW)
    table = text[text.index("  layer ") :]
    assert re.search(r"\.\.\. \d+ more", table)
    assert "block97.bn" in table
    assert "block40.bn" in table
    assert "block10.bn" not in table
    assert re.search(r"In execution order, (\d+) of 302; all: --layers all", table)
    assert len(text.splitlines()) < 70
    assert "<- first, broken" in table


def test_all_layers_are_shown_when_asked_for(founding):
    text = render(founding, VIEW, "all")
    assert "block10.bn" in text
    assert "more\n" not in text[text.index("  layer ") :]
    order = [text.index(f"  block{at}.relu ") for at in (0, 9, 10, 96)]
    assert order == sorted(order)


def test_no_layers_are_shown_when_not_asked_for(founding):
    assert "  layer " not in render(founding, VIEW, "none")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_wider_than_the_terminal(founding, width):
    for line in render(founding, View(width=width)).splitlines():
        assert len(line) <= width or "ckptdoctor " in line


def test_few_layers_are_all_shown():
    report = probe(sick(classifier(), "bn1", "bn2"), samples(64))
    assert chosen(report) == list(range(8))


def test_rows_around_a_row_that_matters():
    report = probe(sick(deep(20), "block3.bn", "block15.bn"), samples(64))
    names = [report.rows[at].layer for at in chosen(report)]
    assert "block15.fc" in names
    assert names[:3] == ["block3.fc", "block3.bn", "block3.relu"]
    first = names.index("block15.bn")
    assert names[first - 2 : first + 3] == [
        "block14.relu", "block15.fc", "block15.bn", "block15.relu", "block16.fc",
    ]  # fmt: skip


def test_a_clean_model_has_no_table():
    report = probe(classifier(), samples(64))
    text = render(report, VIEW)
    assert "  model   fit      nothing found against what it makes of these samples" in text
    assert chosen(report) == []
    assert re.search(r"8 calls: largest value \S+, in \w+; every layer: --layers all", text)
    assert "2 BatchNorms fit the data: variances within a factor of 1." in text
    assert re.search(r"^  float16 +0 of 32 ", text, re.MULTILINE)
    assert "float16 ends at 65504" in text


def flat(report: ProbeReport) -> str:
    return " ".join(render(report, VIEW).split())


def test_one_batchnorm_that_fits_is_spoken_of_as_one():
    subject = classifier()
    held = subject.statistics("bn1")
    subject.set_statistics("bn1", Statistics(held.mean, held.var * 1e6))
    text = flat(probe(subject, samples(64), precisions=()))
    assert " the other BatchNorm fits the data: variances within a factor of 1." in text
    assert "the farthest" not in text
    subject = NumpySubject(Dense("fc", 6, 4), BatchNorm("bn", 4))
    fit(subject, samples(256))
    text = flat(probe(subject, samples(64), precisions=()))
    assert " 1 BatchNorm fits the data: variances" in text
    assert "(the farthest: bn)" in text


def test_batchnorms_that_are_off_together_only_are_each_near_the_data():
    fitting = probe(classifier(), samples(64), precisions=())
    agreement = fitting.train.agreement
    apart = replace(
        fitting.train, agreement=replace(agreement, same=0, difference=2.0), pooled=agreement
    )
    told = replace(fitting, train=apart)
    assert "2 BatchNorms are each near the data: variances" in flat(told)
    assert "1 BatchNorm is near the data: variances" in flat(replace(told, norms=fitting.norms[:1]))


def untrained(layers: int) -> NumpySubject:
    """BatchNorms as they are made, each behind another scale; the first one fits."""
    large = Function("large", "Large", lambda x: 100 * x)
    parts = [large, BatchNorm("bn", 6)]
    for at in range(layers):
        grown = Function(f"block{at}.grow", "Grow", lambda x: 1e4 * x / np.abs(x).max())
        parts += [grown, BatchNorm(f"block{at}.bn", 6)]
    subject = NumpySubject(*parts)
    seen = 100 * samples(256)
    subject.set_statistics("bn", Statistics(seen.mean(0), seen.var(0)))
    return subject


def test_layers_that_learnt_nothing_are_one_line():
    report = probe(untrained(45), samples(64), precisions=())
    (sign,) = [s for s in report.signs if s.kind == "new-statistics"]
    assert sign.measured["layers"] == [f"block{at}.bn" for at in range(45)]
    assert not [s for s in report.signs if s.kind == "collapsed-statistics"]
    text = flat(report)
    assert (
        "the statistics of 45 BatchNorms are those of a new layer (mean 0, variance 1) and do not "
        "fit the data: block0.bn, block1.bn, block2.bn, block3.bn, block4.bn and 40 more"
    ) in text
    assert " the other BatchNorm fits the data: variances within a factor of 1." in text
    assert "more BatchNorms: --format json" not in text
    norms = json.loads(probe_json(report))["probe"]["norms"]
    assert [norm["new"] for norm in norms] == [False] + [True] * 45


def test_new_layers_that_are_stale_are_told_as_new_ones():
    parts = [relu("far")]
    for at in range(6):
        shift = Function(f"shift{at}", "Shift", lambda x: 4 * x + np.float32(3))
        parts += [shift, BatchNorm(f"bn{at}", 6)]
    report = probe(NumpySubject(*parts, Dense("head", 6, 4)), samples(64), precisions=())
    stale = [d.layer for d in report.norms if d.stale and not d.far]
    assert stale
    (sign,) = [s for s in report.signs if s.kind.endswith("-statistics")]
    assert (sign.kind, sign.severity) == ("new-statistics", Severity.ERROR)
    assert set(stale) <= set(sign.measured["layers"])
    assert "BatchNorm variance" not in flat(report)


def test_a_mean_of_zero_alone_makes_no_new_layer():
    subject = NumpySubject(BatchNorm("bn", 6))
    subject.set_statistics("bn", Statistics(np.zeros(6), np.full(6, 1e4)))
    report = probe(subject, samples(64), precisions=())
    assert [d.new for d in report.norms] == [False]
    assert [s.kind for s in report.signs if s.layer] == ["exploded-statistics"]


def test_new_layers_are_not_counted_among_those_that_are_named():
    subject = untrained(2)
    grown = [child for child in subject.root.children if child.name != "bn"]
    norms = [BatchNorm(f"bn{at}", 6) for at in range(3)]
    chain = NumpySubject(grown[0], *norms, *grown[1:])
    for norm in norms:
        chain.set_statistics(norm.name, Statistics(np.full(6, 0.1), np.full(6, 1e9)))
    report = probe(chain, samples(64), precisions=())
    assert [s.kind for s in report.signs].count("exploded-statistics") == 3
    assert "new-statistics" in [s.kind for s in report.signs]
    text = flat(report)
    assert "of this kind: see below" not in text
    assert all(f"bn{at}: running variance 1e+09" in text for at in range(3))


def test_large_samples_are_in_json():
    x = samples(64)
    x[7] = 60
    held = json.loads(probe_json(probe(classifier(), x, precisions=())))["probe"]["data"]
    assert held["large"] == [{"index": 7, "low": 60.0, "high": 60.0, "nonfinite": 0}]
    assert held["outliers"] == []


def test_a_new_layer_that_fits_is_none():
    subject = NumpySubject(BatchNorm("bn", 6))
    report = probe(subject, np.random.default_rng(0).normal(size=(64, 6)), precisions=())
    assert [d.new for d in report.norms] == [True]
    assert report.signs == ()
    assert "1 BatchNorm fits the data" in flat(report)


def test_new_layers_are_an_error_where_the_output_suffers_and_else_a_warning():
    def severity(report):
        return next(s.severity for s in report.signs if s.kind == "new-statistics")

    report = probe(untrained(2), samples(64), precisions=())
    assert severity(report) is Severity.WARNING  # normalised by another factor, by the same sign
    answers = Function("wrong", "Wrong", lambda x: np.where(np.abs(x).max() > 50, x * np.nan, x))
    subject = untrained(2)
    subject = NumpySubject(*subject.root.children, answers)
    assert severity(probe(subject, samples(64), precisions=())) is Severity.ERROR
    assert severity(probe(subject, "random:64x6", precisions=())) is Severity.WARNING


def test_samples_of_another_scale_are_told_beside_the_samples():
    report = probe(classifier(), 255 * samples(64), precisions=())
    lines = render(report, VIEW).splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("  data: "))
    assert lines[at + 1].startswith("  warning   these samples vary 2")
    text = flat(report)
    assert "times more than 'bn1', the first BatchNorm, knows from training" in text
    assert text.count("these samples vary") == 1
    held = json.loads(probe_json(report))["probe"]
    assert held["scale"]["layer"] == "bn1"
    assert held["scale"]["factor"] == pytest.approx(255, rel=0.1)
    assert held["scale"]["means_too"] is True
    assert [s["kind"] for s in held["signs"]].count("scale") == 1
    assert json.loads(probe_json(probe(classifier(), samples(64))))["probe"]["scale"] is None


def test_random_data_are_said_to_say_little():
    text = render(probe(classifier(), "random:6"), VIEW)
    assert "  statistics cannot be judged by random data" in text
    assert "inference and training mode" not in text


def test_a_constant_output_begins_somewhere():
    subject = classifier()
    held = subject.statistics("bn2")
    subject.set_statistics("bn2", Statistics(held.mean, held.var * np.inf))
    text = render(probe(subject, samples(64)), VIEW)
    assert "  first     bn2 (BatchNorm): gives the same for every sample" in text
    assert re.search(r"  inputs    \S+ to \S+, which differ", text)
    assert re.search(r"  weights +BN001 ", text)
    shrink = Function("shrink", "Shrink", lambda x: 1 + x * np.float32(1e-3))
    subject = NumpySubject(Dense("fc", 6, 4), BatchNorm("bn1", 4), shrink)
    subject.set_statistics("bn1", Statistics(np.zeros(4), np.full(4, 1e8)))
    text = " ".join(render(probe(subject, samples(64)), VIEW).split())
    assert "bn1 (BatchNorm): its running variance leaves next to nothing" in text


def test_a_few_values_that_are_not_finite_are_not_shown_as_none():
    spoilt = Function(
        "f", "F", lambda x: np.where(np.arange(x.size).reshape(x.shape) < 1, 1 / x * np.nan, x)
    )
    text = render(probe(NumpySubject(spoilt), samples(64), batch_size=64), VIEW)
    assert re.search(r"^  f .* <1%  <- first", text, re.MULTILINE)


def test_prose_is_no_wider_on_wide_terminals():
    report = probe(classifier(), samples(64), precisions=())
    prose = [
        line for line in render(report, View(width=300)).splitlines() if "fit the data" in line
    ]
    assert len(prose) == 1
    assert len(prose[0]) <= 110


def test_values_beyond_float16_are_told():
    subject = NumpySubject(Dense("fc", 6, 4), Function("large", "Scale", lambda x: x * 1e6))
    text = render(probe(subject, samples(64)), VIEW)
    assert "beyond the end of float16, 65504" in text
    assert re.search(r"^  float16 +32 of 32 .* large$", text, re.MULTILINE)
    assert re.search(
        r"warning   in float16 the output is not finite for 32 of 32 samples: large", text
    )


def test_types_that_show_the_same_are_one_line(founding):
    assert "  float16 and bfloat16: as in float32\n" in render(founding, VIEW)


def test_colours_are_those_of_the_other_reports(founding):
    text = render(founding, View(width=80, color=True))
    assert "\x1b[31;1munfit\x1b[0m" in text
    assert "\x1b[1mfirst\x1b[0m" in text
    assert "\x1b" not in render(founding, VIEW)


def test_a_quiet_view_is_one_line_with_the_verdict(founding):
    (line,) = render(founding, View(quiet=True)).splitlines()
    assert line.startswith("NumpySubject: unfit: 4 errors and 2 warnings: nonfinite-output: the")
    fit = render(probe(classifier(), samples(8)), View(quiet=True))
    assert fit == "NumpySubject: fit: nothing found against what it makes of these samples\n"


def test_a_failure_is_one_line():
    report = ProbeReport(
        model="net.py:build",
        error=ErrorInfo(type="UsageError", message="no such file", hint="look"),
    )
    assert render(report, VIEW) == "net.py:build: could not be probed: no such file; look\n"
    assert not report.clean


def test_names_cannot_reach_the_terminal():
    evil = "bn\x1b[2J\u202e"
    subject = NumpySubject(Dense("fc", 6, 4), Function(evil, "Lo\x07g", lambda x: x * np.nan))
    report = probe(subject, samples(16))
    for view in (VIEW, View(quiet=True)):
        for layers in ("near", "all"):
            text = render(report, view, layers)
            assert "\x1b" not in text
            assert "\x07" not in text
            assert "\u202e" not in text
    assert evil not in probe_json(report)
    assert json.loads(probe_json(report))["probe"]["first"]["layer"] == evil


def test_many_broken_layers_are_counted():
    subject = deep(30)
    for name in subject.norms:
        held = subject.statistics(name)
        subject.set_statistics(name, Statistics(held.mean, held.var * np.nan))
    text = render(probe(subject, samples(64)), VIEW)
    assert "27 more BatchNorms of this kind: see below" in text
    assert "... and 18 more BatchNorms: --format json" in text
    assert len(text.splitlines()) < 80


def test_json_is_strict_and_complete(founding):
    def refuse(text):
        raise AssertionError(text)

    whole = json.loads(probe_json(founding), parse_constant=refuse)
    assert (whole["schema"], whole["tool"]["name"]) == (1, "ckptdoctor")
    found = whole["probe"]
    assert len(found["layers"]) == 302
    assert found["clean"] is False
    assert found["first"]["layer"] == "block97.bn"
    assert found["first"]["outputs"] == {
        "size": 384, "min": None, "max": None, "mean_abs": None, "zeros": 0, "nan": 384,
        "posinf": 0, "neginf": 0,
    }  # fmt: skip
    assert found["training_mode"]["agreement"]["difference"] == "inf"
    assert found["training_mode"]["treated"][0] == "block40.bn"
    assert found["training_mode"]["treated"][-1] == "block97.bn"
    assert [n["layer"] for n in found["norms"]][40] == "block40.bn"
    assert found["findings"][0]["model_layer"] == "block97.bn"
    assert found["data"]["samples"] == 64
    assert found["searches"][0] == {
        "mode": "inference", "samples": 64, "culprits": [], "groups": [], "everyone": True,
    }  # fmt: skip
    assert {s["kind"] for s in found["signs"]} >= {"nonfinite-output", "exploded-statistics"}
    assert [t["dtype"] for t in found["types"]] == ["float32", "float16", "bfloat16"]
    assert found["error"] is None


def test_json_of_a_failure_has_its_reason():
    error = ErrorInfo(type="ModelError", message="it failed", where="net.py:3", hint="look")
    found = json.loads(probe_json(ProbeReport(model="m", error=error)))["probe"]
    assert found["error"] == {
        "type": "ModelError",
        "message": "it failed; look",
        "where": "net.py:3",
    }
    assert (found["data"], found["training_mode"], found["first"], found["frozen"]) == (None,) * 4
    assert found["layers"] == []
