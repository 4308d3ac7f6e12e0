"""The Python API: lazily imported names, tables, reports, errors that are raised."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ckptdoctor
from ckptdoctor.results import Report


@pytest.fixture
def file(tmp_path):
    values = np.float32([np.nan, 1])
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
    return path


def test_every_public_name_resolves():
    for name in ckptdoctor.__all__:
        assert getattr(ckptdoctor, name) is not None
    assert set(ckptdoctor.__all__) <= set(dir(ckptdoctor))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ckptdoctor.nothing  # noqa: B018


def test_errors_are_all_public():
    from ckptdoctor import errors

    assert set(errors.__all__) <= set(ckptdoctor.__all__)


def test_version_is_that_of_the_package_metadata():
    import tomllib

    file = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(file.read_text())["project"]
    assert project.get("version", ckptdoctor.__version__) == ckptdoctor.__version__


def test_import_brings_no_numpy_and_help_neither():
    code = "import sys, ckptdoctor, ckptdoctor.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    heavy = {b"numpy", b"h5py", b"torch", b"tabulate", b"ml_dtypes", b"importlib.metadata"}
    assert not heavy & set(loaded.split())


def test_inspection_of_a_plain_file_imports_neither_h5py_nor_frameworks(file):
    code = (
        "import sys\nfrom ckptdoctor.cli import run\n"
        f"run(['inspect', {str(file)!r}, '--format', 'json'])\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    heavy = {b"h5py", b"torch", b"tensorflow", b"keras", b"tabulate", b"safetensors"}
    assert not heavy & set(done.stderr.split())


def test_open_checkpoint_gives_the_table(file):
    with ckptdoctor.open_checkpoint(file) as table:
        assert table["w"].shape == (2,)
        assert np.isnan(table.read("w")[0])


@pytest.mark.parametrize("kind", [str, Path], ids=["text", "path"])
def test_inspect_gives_a_report(file, kind):
    report = ckptdoctor.inspect(kind(file))
    assert isinstance(report, Report)
    assert report.verdict.serve == "unfit"
    assert report.summary.errors == 1
    assert report.worst is ckptdoctor.Severity.ERROR
    assert report.findings[0].tensor == "w"
    assert report.stats["w"].nan == 1
    assert report.error is None
    assert list(report.table) == ["w"]


def test_wishes_are_heard(file):
    assert ckptdoctor.inspect(file, ignore=["NF001"]).findings == ()
    assert ckptdoctor.inspect(file, select=["CK"]).worst is None
    assert ckptdoctor.inspect(file, tensors=["w"]).judged == {"w"}
    assert ckptdoctor.inspect(file, cast_to="float16").wishes.cast_to == "float16"
    accepted = ckptdoctor.Exemption(tensor="w", reason="made so")
    assert ckptdoctor.inspect(file, exempt=[accepted]).summary.notes == 1
    with pytest.raises(ckptdoctor.UsageError, match="no code 'ZZ'"):
        ckptdoctor.inspect(file, select=["ZZ"])
    with pytest.raises(ckptdoctor.UsageError, match="expected ema"):
        ckptdoctor.inspect(file, weights="ema")


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"purpose": "Resume"}, "purpose to be any, serve or resume, found 'Resume'"),
        ({"weights": "Model"}, "weights to be auto, model or ema, found 'Model'"),
        ({"select": "NF"}, "select to be a list, found 'NF'"),
        ({"ignore": "NF"}, "ignore to be a list"),
        ({"tensors": "w"}, "tensors to be a list"),
        ({"cast_to": "float32"}, "cast_to to be float16, bfloat16, .* found 'float32'"),
        ({"thresholds": {"NF001": {"x": 1}}}, "NF001 has no threshold 'x'"),
        ({"thresholds": {"XX001": {}}}, "no rule 'XX001'"),
        ({"exempt": [ckptdoctor.Exemption(tensor="*", reason="r", codes=("XX",))]}, "no code 'XX'"),
        ({"config": "gone.toml"}, "gone.toml: cannot be read"),
    ],
    ids=lambda part: next(iter(part)) if isinstance(part, dict) else "",
)
def test_words_that_mean_nothing_are_refused(file, wish, message):
    with pytest.raises(ckptdoctor.UsageError, match=message):
        ckptdoctor.inspect(file, **wish)


def test_empty_path_is_not_the_working_folder(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    with pytest.raises(ckptdoctor.UsageError, match="found an empty one"):
        ckptdoctor.inspect("")


def test_progress_reaches_the_end(file):
    calls = []
    ckptdoctor.inspect(file, progress=lambda done, total: calls.append((done, total)))
    assert all(0 <= done <= total for done, total in calls)
    assert not calls or calls[-1][0] == calls[-1][1]


def test_what_cannot_be_checked_is_raised(file, tmp_path):
    with pytest.raises(ckptdoctor.UsageError, match="no such file"):
        ckptdoctor.inspect(tmp_path / "gone")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ckptdoctor.FormatError):
        ckptdoctor.inspect(file)


def test_file_that_changes_meanwhile_is_not_judged(file, monkeypatch):
    import ckptdoctor.examination

    real = ckptdoctor.examination.measure

    def measure(table, **options):
        measured = real(table, **options)
        with file.open("ab") as stream:
            stream.write(b"x")
        return measured

    monkeypatch.setattr(ckptdoctor.examination, "measure", measure)
    with pytest.raises(ckptdoctor.ChangedError):
        ckptdoctor.inspect(file)
