"""The committed samples are what their names and stories say."""

from __future__ import annotations

import math

import pytest
from sample_files import EXPECTED, FOLDER, READABLE, Expected

import ckptdoctor
from ckptdoctor import Severity

READ = [pytest.param(row, id=row.name) for row in READABLE]
REFUSED = [pytest.param(row, id=row.name) for row in EXPECTED if row.refused]


def test_every_sample_is_expected_and_every_expected_sample_is_there():
    present = {
        f"{folder}/{path.name}"
        for folder in ("healthy", "sick")
        for path in (FOLDER / folder).iterdir()
    }
    assert present == {row.name for row in EXPECTED}


def test_samples_stay_small():
    sizes = [path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()]
    assert max(sizes) < 100_000
    assert sum(sizes) < 1_500_000


@pytest.mark.parametrize("row", READ)
def test_a_sample_is_read_as_what_it_is(row: Expected):
    report = ckptdoctor.inspect(row.path)
    assert report.format == row.format
    assert report.summary.tensors == row.tensors


@pytest.mark.parametrize("row", READ)
def test_a_sample_is_judged_as_its_story_says(row: Expected):
    report = ckptdoctor.inspect(row.path)
    errors = {f.code for f in report.findings if f.severity is Severity.ERROR}
    verdict = report.verdict
    assert errors == set(row.errors.split())
    assert (verdict.load, verdict.serve, verdict.resume) == (row.load, row.serve, row.resume)


@pytest.mark.parametrize("row", REFUSED)
def test_a_sample_that_cannot_be_trusted_is_refused_in_one_line(row: Expected):
    with pytest.raises(ckptdoctor.CkptDoctorError) as caught:
        ckptdoctor.inspect(row.path)
    assert type(caught.value).__name__ == row.refused
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("row", READ)
def test_every_tensor_can_be_read_and_has_the_size_it_states(row: Expected):
    with ckptdoctor.open_checkpoint(row.path) as table:
        for name, info in table.items():
            if info.encoding != "absent" and not row.errors:
                assert table.read(name).size == math.prod(info.shape)


@pytest.mark.parametrize("suffix", ["h5", "weights.h5", "keras", "pt", "safetensors"])
def test_the_founding_case_names_cause_and_symptom(suffix: str):
    report = ckptdoctor.inspect(FOLDER / f"sick/bn001-overflow-skipped-step.{suffix}")
    blamed = {f.layer.rpartition("/")[2].rpartition(".")[2]: f.code for f in report.findings}
    assert blamed == {"conv5_block3_2_bn": "BN003", "post_bn": "BN001"}
    (diagnosis,) = report.diagnoses
    assert diagnosis.suspect.endswith("conv5_block3_2_bn")
