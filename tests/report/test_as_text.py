"""Results in a console or a notebook: one line each, and the whole text on demand."""

from __future__ import annotations

import checkups
import numpy as np
import pytest

import ckptdoctor
from ckptdoctor import cli
from ckptdoctor.errors import UsageError
from ckptdoctor.findings import Severity
from ckptdoctor.live.subject import Statistics
from ckptdoctor.probing.results import ProbeReport, Sign
from ckptdoctor.results import ErrorInfo, Report, Summary, Verdict


@pytest.fixture
def unfit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkups.unfit(tmp_path / "m.safetensors")
    return ckptdoctor.inspect("m.safetensors")


class TestText:
    def test_of_a_report_is_that_of_the_command_line(self, unfit, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "100")
        cli.run(["inspect", "m.safetensors"])
        assert ckptdoctor.as_text(unfit, width=100) + "\n" == capsys.readouterr().out
        assert ckptdoctor.as_text(unfit) == ckptdoctor.as_text(unfit, width=100)
        assert ckptdoctor.as_text(unfit) != ckptdoctor.as_text(unfit, width=60)

    def test_of_a_repair_is_that_of_the_command_line(self, unfit, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "100")
        cli.run(["repair", "m.safetensors", "--bn-reset", "-n"])
        outcome = ckptdoctor.repair("m.safetensors", bn_reset=True, dry_run=True)
        assert ckptdoctor.as_text(outcome) + "\n" == capsys.readouterr().out

    def test_of_a_probe(self):
        error = ErrorInfo(type="ModelError", message="it raised")
        told = ckptdoctor.as_text(ProbeReport(model="m.py:build", error=error))
        assert told == "m.py:build: could not be probed: it raised"

    def test_of_something_else_is_refused(self):
        with pytest.raises(UsageError, match=r"expected a Report, a ProbeReport .* found str"):
            ckptdoctor.as_text("m.pt")


class TestRepr:
    def test_report_has_file_verdict_counts_and_first_diagnosis(self, unfit):
        assert str(unfit) == (
            "<Report m.safetensors: serve unfit, resume unfit, load safe; 1 error; BatchNorm variance "
            "is NaN beside a finite mean in 1 layer>"
        )

    def test_clean_report(self):
        report = Report(
            file="m.pt",
            verdict=Verdict(load="safe", serve="fit", resume="fit"),
            summary=Summary(tensors=1, parameters=1, nbytes=4, errors=0, warnings=0, notes=0),
        )
        told = "<Report m.pt: serve fit, resume fit, load safe; nothing found>"
        assert repr(report) == told

    def test_refusal(self):
        error = ErrorInfo(type="FormatError", message="an\nHTML page")
        told = r"<Report a\n.pt: could not be checked: an\nHTML page>"
        assert repr(Report(file="a\n.pt", error=error)) == told

    def test_names_of_any_length_stay_short(self):
        assert len(repr(Report(file="a" * 10_000))) == len("<Report : >") + 200

    def test_probe_has_counts_and_the_first_sign(self):
        signs = [
            Sign(kind=f"k{n}", severity=severity, message=f"sign {n}")
            for n, severity in enumerate([Severity.ERROR, Severity.ERROR, Severity.NOTE])
        ]
        told = "<ProbeReport m.py:build: 2 errors, 1 note; sign 0>"
        assert repr(ProbeReport(model="m.py:build", signs=tuple(signs))) == told
        assert repr(ProbeReport(model="m")) == "<ProbeReport m: nothing found>"
        error = ErrorInfo(type="ModelError", message="it raised")
        assert repr(ProbeReport(model="m", error=error)) == (
            "<ProbeReport m: could not be probed: it raised>"
        )

    def test_save(self):
        report = Report(file="x")
        kept = ckptdoctor.Saved(path="m.pt", answer="fit", why="", aside="", reports=(report,))
        assert repr(kept) == "<Saved m.pt: kept>"
        lost = ckptdoctor.Saved(
            path="m.pt", answer="unfit", why="NaN", aside="unfit-m.pt", reports=(report,)
        )
        assert repr(lost) == "<Saved m.pt: unfit, not kept: NaN>"

    def test_recalibration(self):
        statistics = Statistics(np.zeros(64), np.ones(64))
        made = {
            "reach": "broken", "statistics": {"a": statistics, "b": statistics}, "candidates": (),
            "samples": 256, "held_back": 64, "warnings": (),
        }  # fmt: skip
        told = "<Recalibration broken: 2 BatchNorms from 256 samples>"
        assert repr(ckptdoctor.Recalibration(**made)) == told
        made.update(reach="none", statistics={}, warnings=("few", "odd"))
        told = "<Recalibration none: 0 BatchNorms from 256 samples; 2 warnings: few>"
        assert repr(ckptdoctor.Recalibration(**made)) == told


@pytest.mark.oracle
def test_text_of_a_live_model_names_no_command():
    torch = pytest.importorskip("torch")
    text = ckptdoctor.as_text(ckptdoctor.diagnose_module(torch.nn.BatchNorm1d(3)))
    assert "torch-module" in text
    assert "ckptdoctor inspect" not in text
