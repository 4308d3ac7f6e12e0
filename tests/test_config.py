"""Settings: which file holds, what it may say, what is told when it says something else."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import ckptdoctor
from ckptdoctor.cli import run
from ckptdoctor.config import Settings, find_settings, load_settings
from ckptdoctor.errors import UsageError
from ckptdoctor.findings import Severity
from ckptdoctor.results import Exemption
from ckptdoctor.rules.base import Rule, rule, threshold


@rule
class Above(Rule):
    """A rule with thresholds of both kinds."""

    code, name, severity = "ZZ001", "above", Severity.WARNING
    ratio: float = threshold(50.0, unit="times", why="a test", healthy="0 of 1")
    least: int = threshold(1, unit="elements", why="a test", healthy="0 of 1")

    def check(self, ctx):
        for info, stats in ctx.where(ctx.stats.maximum > self.ratio):
            yield self.finding(info, "above", maximum=stats.maximum)


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """A working folder below which there is only what the test writes, and one rule more."""
    from ckptdoctor import selection

    rules = (*selection.RULES, Above)
    monkeypatch.setattr(selection, "RULES", rules)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def write(path, text):
    path.write_text(textwrap.dedent(text))
    return path


def settings(tmp_path, text):
    return load_settings(write(tmp_path / "ckptdoctor.toml", text))


class TestWhichFile:
    def test_without_any_file_nothing_is_set(self):
        assert find_settings() == Settings()

    @pytest.mark.parametrize("place", [".", "..", "../.."])
    def test_nearest_pyproject_upwards_holds(self, tmp_path, place, monkeypatch):
        (tmp_path / "work" / "deep").mkdir()
        monkeypatch.chdir(tmp_path / "work" / "deep")
        write(tmp_path / "work" / "deep" / place / "pyproject.toml",
              "[tool.ckptdoctor]\nignore = ['NF']")  # fmt: skip
        found = find_settings()
        assert found.ignore == ("NF",)
        assert Path(found.file).samefile(tmp_path / "work" / "deep" / place / "pyproject.toml")

    def test_nearer_file_wins_whole(self, tmp_path):
        write(tmp_path / "pyproject.toml", "[tool.ckptdoctor]\nignore = ['NF']\npurpose = 'serve'")
        write(tmp_path / "work" / "ckptdoctor.toml", "ignore = ['CK']")
        found = find_settings()
        assert (found.file, found.ignore, found.purpose) == ("ckptdoctor.toml", ("CK",), None)

    def test_own_file_wins_over_the_project_beside_it(self, tmp_path):
        write(tmp_path / "pyproject.toml", "[tool.ckptdoctor]\nignore = ['NF']")
        write(tmp_path / "ckptdoctor.toml", "")
        assert find_settings() == Settings(file=str(tmp_path / "ckptdoctor.toml"))

    @pytest.mark.parametrize(
        "text",
        ["", "[project]\nname = 'x'", "[project]\nname = 'ckptdoctor'", "tool = 1 # ckptdoctor"],
    )
    def test_project_without_settings_is_passed_by(self, tmp_path, text):
        write(tmp_path / "pyproject.toml", "[tool.ckptdoctor]\nignore = ['NF']")
        write(tmp_path / "work" / "pyproject.toml", text)
        assert find_settings().ignore == ("NF",)

    def test_empty_table_ends_the_search(self, tmp_path):
        write(tmp_path / "pyproject.toml", "[tool.ckptdoctor]\nignore = ['NF']")
        write(tmp_path / "work" / "pyproject.toml", "[tool.ckptdoctor]")
        assert find_settings() == Settings(file="pyproject.toml")

    def test_broken_project_of_someone_else_is_no_concern(self, tmp_path):
        (tmp_path / "work" / "pyproject.toml").write_text("[[[")
        assert find_settings() == Settings()

    def test_folder_of_that_name_is_passed_by(self, tmp_path):
        (tmp_path / "work" / "ckptdoctor.toml").mkdir()
        os.mkfifo(tmp_path / "work" / "pyproject.toml")  # opening it would wait for ever
        assert find_settings() == Settings()

    def test_deleted_working_folder_has_no_settings(self, tmp_path, monkeypatch):
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        assert find_settings() == Settings()

    def test_named_file_is_read_as_what_it_is_called(self, tmp_path):
        project = write(tmp_path / "pyproject.toml", "[tool.ckptdoctor]\npurpose = 'serve'")
        own = write(tmp_path / "ci.toml", "purpose = 'resume'")
        assert (load_settings(project).purpose, load_settings(own).purpose) == ("serve", "resume")
        assert load_settings(os.devnull) == Settings(file=os.devnull)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("gone.toml", None, "gone.toml: cannot be read: No such file"),
            ("a\0b", None, "cannot be read: embedded null"),
            ("", None, "'': cannot be read"),
            ("pyproject.toml", b"[project]", "it has no table .tool.ckptdoctor."),
            (
                "pyproject.toml",
                b"tool.ckptdoctor = 5",
                "tool.ckptdoctor: expected a table, found 5",
            ),
            ("ckptdoctor.toml", b"[tool.ckptdoctor]", "tool: expected the settings themselves"),
            ("ckptdoctor.toml", b"x = ", "ckptdoctor.toml: expected TOML: "),
            ("ckptdoctor.toml", b"a" * (1 << 20) + b"a", "found more than 1,048,576 bytes"),
            ("ckptdoctor.toml", b"\xff", "expected UTF-8, found byte 0"),
            ("ckptdoctor.toml", b"a = " + b"[" * 100_000, "expected TOML: nested too deeply"),
            ("ckptdoctor.toml", b"a = " + b"9" * 5000, "expected TOML: "),
        ],
        ids=lambda part: "" if isinstance(part, bytes | None) else part[:30].replace("\0", "NUL"),
    )
    def test_file_that_cannot_be_read_is_wrong_usage(self, tmp_path, name, content, message):
        path = str(tmp_path / name) if content is not None or name == "gone.toml" else name
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=message) as caught:
            load_settings(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400

    def test_largest_file_is_read(self, tmp_path):
        (tmp_path / "ckptdoctor.toml").write_bytes(b"#" * (1 << 20))
        assert load_settings(tmp_path / "ckptdoctor.toml").purpose is None

    def test_unreadable_file_stops_the_search(self, tmp_path, monkeypatch):
        write(tmp_path / "work" / "ckptdoctor.toml", "")

        def refuse(*_arguments):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)
        with pytest.raises(
            UsageError, match=r"ckptdoctor.toml: cannot be read: Permission denied; "
        ):
            find_settings()


FULL = """
    select = ["NF", "above"]
    ignore = ["nf003"]
    fail-on = "warning"
    purpose = "serve"
    weights = "ema"

    [thresholds.ZZ001]
    ratio = 500

    [thresholds.above]
    least = 2

    [[ignores]]
    tensor = "head.*"
    codes = ["nan-values", "WT"]
    reason = "random on purpose"

    [[ignores]]
    tensor = "*.mask"
    reason = "a mask"
"""


class TestContent:
    def test_every_setting_is_read(self, tmp_path):
        assert settings(tmp_path, FULL) == Settings(
            file=str(tmp_path / "ckptdoctor.toml"),
            select=("NF", "above"),
            ignore=("nf003",),
            fail_on="warning",
            purpose="serve",
            weights="ema",
            thresholds={"ZZ001": {"ratio": 500, "least": 2}},
            exempt=(
                Exemption(tensor="head.*", codes=("nan-values", "WT"), reason="random on purpose"),
                Exemption(tensor="*.mask", reason="a mask"),
            ),
        )

    def test_places_are_told_as_the_file_has_them(self, tmp_path):
        path = write(tmp_path / "pyproject.toml", "[tool.ckptdoctor]\nfail_on = 'error'")
        with pytest.raises(UsageError) as caught:
            load_settings(path)
        want = f"{path}: tool.ckptdoctor.'fail_on': no such setting; did you mean 'fail-on'?"
        assert str(caught.value) == want

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("fail_on = 'error'", "'fail_on': no such setting; did you mean 'fail-on'"),
            ("qqqqqqqq = 1", "no such setting; there are select, ignore, fail-on"),
            ('"a\\nb" = 1', r"'a\\nb': no such setting"),
            ("fail-on = 'notes'", "fail-on: expected error, warning or never, found 'notes'"),
            ("fail-on = 3", "fail-on: expected error, warning or never, found 3"),
            ("purpose = 'server'", "purpose: expected any, .*; did you mean 'serve'"),
            ("weights = ['ema']", "weights: expected auto, model or ema, found .'ema'."),
            ("purpose = 0x" + "f" * 5000, "found a number of 20,000 bits"),
            ("select = 'NF'", "select: expected a list of codes or names, found 'NF'"),
            ("ignore = [1]", "ignore: expected a list of codes or names, found .1."),
            ("ignore = ['NF01']", "ignore: no code 'NF01'; did you mean 'NF001'"),
            ("select = ['']", "select: no code ''"),
            ("thresholds = 5", "thresholds: expected a table for each rule, found 5"),
            ("thresholds.ZZ001 = 5", "thresholds.ZZ001: expected thresholds by name, found 5"),
            ("thresholds.ZZ01.ratio = 5", "thresholds.ZZ01: no rule 'ZZ01'; did you mean 'ZZ001'"),
            ("thresholds.CK001.x = 5", "thresholds.CK001: no rule 'CK001'"),
            (
                "thresholds.above.ratoi = 5",
                "thresholds.above.ratoi: ZZ001 has no threshold 'ratoi'; did",
            ),
            (
                "thresholds.ZZ001.ratio = '5'",
                "expected ratio of ZZ001 to be a finite number, found '5'",
            ),
            ("thresholds.ZZ001.ratio = nan", "a finite number, found nan"),
            ("thresholds.ZZ001.least = 1.5", "a whole number, found 1.5"),
            ("thresholds = {ZZ001.ratio = 1, above.ratio = 2}", "above.ratio: it is set twice"),
            (
                "ignores = 'x'",
                r"ignores: expected a list of tables, found 'x'; each begins with \[\[",
            ),
            ("ignores = ['x']", "ignores: expected a list of tables"),
            ("[ignores]\ntensor = 'x'", "ignores: expected a list of tables"),
            (
                "[[ignores]]\ntensor = 'x'",
                r"ignores\[0\].reason: expected a sentence: why is .* found none",
            ),
            ("[[ignores]]\ntensor = 'x'\nreason = ' '", "reason: expected a sentence"),
            ("[[ignores]]\ntensor = 'x'\nreason = 5", "reason: expected a sentence: .*, found 5"),
            ("[[ignores]]\nreason = 'x'", "tensor: expected a pattern of tensor names, found none"),
            ("[[ignores]]\ntensor = ''\nreason = 'x'", "tensor: expected a pattern .* found ''"),
            (
                "[[ignores]]\ntensor='x'\nreason='x'\ncodes=['XX']",
                r"ignores\[0\].codes: no code 'XX'",
            ),
            ("[[ignores]]\ntensor='x'\nreason='x'\ncodes='NF'", r"codes: expected a list"),
            (
                "[[ignores]]\ntensors='x'\nreason='x'",
                r"ignores\[0\].'tensors': no .* mean 'tensor'",
            ),
        ],
        ids=lambda text: text[:40].replace("\n", " "),
    )
    def test_what_means_nothing_is_refused_in_one_line(self, tmp_path, text, message):
        with pytest.raises(UsageError, match=message) as caught:
            settings(tmp_path, text)
        assert str(caught.value).startswith(f"{tmp_path / 'ckptdoctor.toml'}: ")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


class TestPrecedence:
    SET = Settings(
        file="f",
        purpose="serve",
        weights="model",
        select=("NF", "CK"),
        ignore=("NF003",),
        thresholds={"ZZ001": {"ratio": 5, "least": 1}},
        exempt=(Exemption(tensor="a", reason="r"),),
    )

    def test_settings_hold_where_nothing_is_given(self):
        wishes = self.SET.wishes(tensors=("w",), cast_to="float16", trust_hdf5=True)
        assert (wishes.purpose, wishes.weights) == ("serve", "model")
        assert (wishes.select, wishes.ignore) == (("NF", "CK"), ("NF003",))
        assert (wishes.thresholds, wishes.exempt) == (self.SET.thresholds, self.SET.exempt)
        assert (wishes.tensors, wishes.cast_to, wishes.trust_hdf5) == (("w",), "float16", True)
        assert wishes.settings == "f"

    def test_defaults_hold_where_nothing_is_set_either(self):
        wishes = Settings().wishes()
        assert (wishes.purpose, wishes.weights, wishes.settings) == ("any", "auto", "")
        assert (wishes.select, wishes.ignore, wishes.exempt) == ((), (), ())

    def test_what_is_given_wins(self):
        wishes = self.SET.wishes(purpose="any", weights="auto", ignore=["CK"])
        assert (wishes.purpose, wishes.weights) == ("any", "auto")
        assert (wishes.select, wishes.ignore) == (("NF", "CK"), ["CK"])

    def test_codes_asked_for_are_found_though_the_settings_ignore_them(self):
        assert self.SET.wishes(select=["NF003"]).ignore == ()
        assert self.SET.wishes(select=["NF"], ignore=["NF002"]).ignore == ["NF002"]

    def test_thresholds_win_one_by_one(self):
        wishes = self.SET.wishes(thresholds={"above": {"ratio": 7}, "NF001": {}})
        assert wishes.thresholds == {"ZZ001": {"ratio": 7, "least": 1}, "NF001": {}}
        assert self.SET.thresholds["ZZ001"]["ratio"] == 5
        assert Settings().wishes(thresholds={"above": {}}).thresholds == {"above": {}}

    def test_exemptions_add_up(self):
        more = Exemption(tensor="b", reason="s")
        assert self.SET.wishes(exempt=[more]).exempt == (*self.SET.exempt, more)


def checkpoint(folder, **arrays):
    header, data = {}, b""
    for name, values in arrays.items():
        raw = np.float32(values).tobytes()
        spans = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": spans}
        data += raw
    text = json.dumps(header).encode()
    path = folder / "m.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return str(path)


class TestInspection:
    """Settings through the command line and the API."""

    @pytest.fixture
    def sick(self, tmp_path):
        (tmp_path / "models").mkdir()
        return checkpoint(tmp_path / "models", w=[np.nan, 1], v=[100.0, 1.0])

    def codes(self, capsys):
        (report,) = json.loads(capsys.readouterr().out)["reports"]
        return {(f["code"], f["severity"]) for f in report["findings"]}

    def test_settings_of_the_working_folder_hold(self, sick, tmp_path, capsys):
        write(tmp_path / "work" / "ckptdoctor.toml", "select = ['above']\nfail-on = 'warning'")
        assert run(["inspect", sick, "--format", "json"]) == 1
        assert self.codes(capsys) == {("ZZ001", "warning")}
        write(tmp_path / "work" / "ckptdoctor.toml", "select = ['above']")
        assert run(["inspect", sick]) == 0

    def test_settings_beside_the_checkpoint_have_no_say(self, sick, tmp_path):
        for name, text in (("ckptdoctor.toml", ""), ("pyproject.toml", "[tool.ckptdoctor]\n")):
            write(tmp_path / "models" / name, f"{text}ignore = ['NF']\nfail-on = 'never'")
        assert run(["inspect", sick]) == 1
        assert run(["inspect", str(tmp_path / "models")]) == 1

    def test_options_win(self, sick, tmp_path, capsys):
        write(tmp_path / "work" / "ckptdoctor.toml", "ignore = ['NF']\nfail-on = 'never'")
        assert run(["inspect", sick, "--select", "NF", "--format", "json"]) == 0
        assert self.codes(capsys) == {("NF001", "error")}
        assert run(["inspect", sick, "--select", "nan-values", "--fail-on", "error"]) == 1

    def test_thresholds_reach_the_rules(self, sick, tmp_path, capsys):
        write(tmp_path / "work" / "ckptdoctor.toml", "thresholds.above.ratio = 100")
        run(["inspect", sick, "--select", "above", "--format", "json"])
        assert self.codes(capsys) == set()
        write(tmp_path / "work" / "ckptdoctor.toml", "thresholds.above.ratio = 99.5")
        run(["inspect", sick, "--select", "above", "--format", "json"])
        assert self.codes(capsys) == {("ZZ001", "warning")}

    def test_accepted_findings_stay_visible_with_their_reason(self, sick, tmp_path, capsys):
        text = "[[ignores]]\ntensor = 'w'\ncodes = ['nan-values']\nreason = 'made so'"
        write(tmp_path / "work" / "ckptdoctor.toml", text)
        assert run(["inspect", sick]) == 0
        assert "accepted: made so" in capsys.readouterr().out

    def test_named_file_replaces_the_one_found(self, sick, tmp_path):
        write(tmp_path / "work" / "ckptdoctor.toml", "ignore = ['NF']")
        assert run(["inspect", sick]) == 0
        assert run(["inspect", sick, "--config", os.devnull]) == 1
        other = write(tmp_path / "ci.toml", "fail-on = 'never'")
        assert run(["inspect", sick, "--config", str(other)]) == 0

    def test_mistake_in_the_settings_is_wrong_usage_and_nothing_is_read(
        self, sick, tmp_path, capsys
    ):
        write(tmp_path / "work" / "ckptdoctor.toml", "ignroe = ['NF']")
        assert run(["inspect", sick]) == 2
        out, err = capsys.readouterr()
        want = "ckptdoctor: ckptdoctor.toml: 'ignroe': no such setting; did you mean 'ignore' or 'ignores'?\n"
        assert (out, err) == ("", want)

    def test_api_takes_a_file_and_looks_for_none(self, sick, tmp_path):
        path = write(tmp_path / "work" / "ckptdoctor.toml", "ignore = ['NF']")
        assert ckptdoctor.inspect(sick).verdict.serve == "unfit"
        report = ckptdoctor.inspect(sick, config=path)
        assert report.verdict.serve != "unfit"
        assert report.wishes.settings == str(path)
        assert ckptdoctor.inspect(sick, config=path, select=["NF"]).verdict.serve == "unfit"

    def test_without_a_file_tomllib_is_not_imported(self, sick):
        code = (
            "import sys\nfrom ckptdoctor.cli import run\n"
            f"run(['inspect', {sick!r}, '--format', 'json'])\n"
            "sys.exit('tomllib' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert done.returncode == 0
