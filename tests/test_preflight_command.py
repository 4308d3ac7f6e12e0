"""The preflight command: one line for each path, exit codes, reports in files."""

import hashlib
import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import checkups
import pytest

from ckptdoctor.commands.preflight import run_preflight
from ckptdoctor.commands.wishes import PreflightWish
from ckptdoctor.errors import UsageError
from ckptdoctor.serving import scanning

DEFAULTS = {
    "given": {}, "config": None, "fail_on": None, "expect_sha256": None, "expect_keys": None,
    "cache": None, "cache_key": "stat", "allow_unsafe_load": False, "format": "text",
    "reports": [], "debug": False, "quiet": False, "color": "auto",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkups.fit(tmp_path / "fit.safetensors")
    checkups.unfit(tmp_path / "unfit.safetensors")
    (tmp_path / "page.pt").write_text("<html>")


@pytest.fixture
def call(capsys):
    """Exit code, lines of the standard output, and what was said about the run."""

    def called(*paths, **options):
        code = run_preflight(PreflightWish(paths=list(paths), **{**DEFAULTS, **options}))
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return called


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class TestLines:
    def test_fit(self, call):
        code, (line,), err = call("fit.safetensors")
        assert (code, err) == (0, "")
        pattern = (
            r"fit        fit\.safetensors  safetensors, 20 tensors, \d,\d{3} parameters, "
            r"\d+\.\d KiB, checked in \d+ ms"
        )
        assert re.fullmatch(pattern, line)

    def test_long_check_is_told_in_seconds(self, call, monkeypatch):
        from ckptdoctor.commands import preflight

        for seconds, told in ((0.9994, "999 ms"), (1.0, "1.0 s"), (61.26, "61.3 s")):
            clock = SimpleNamespace(monotonic=iter([0.0, seconds]).__next__)
            monkeypatch.setattr(preflight, "time", clock)
            _, (line,), _ = call("fit.safetensors")
            assert line.endswith(f"checked in {told}")

    def test_known(self, call):
        for end in (" ms", "known from the cache"):
            code, (line,), _ = call("fit.safetensors", cache="cache")
            assert code == 0
            assert line.endswith(end)

    def test_unfit(self, call):
        code, lines, err = call("unfit.safetensors")
        assert (code, err) == (1, "")
        (line,) = lines
        assert line == (
            "unfit      unfit.safetensors  BatchNorm variance is NaN beside a finite mean in 1 layer "
            "(bn3); next: ckptdoctor inspect --purpose serve unfit.safetensors"
        )

    def test_unchecked(self, call):
        code, lines, err = call("page.pt")
        assert (code, err) == (3, "")
        (line,) = lines
        assert line == (
            "unchecked  page.pt  an HTML page, not a checkpoint; log in where needed, then download "
            "the file again"
        )

    def test_suspect_passes_unless_it_is_to_fail(self, call, tmp_path):
        checkups.suspect(tmp_path / "m.safetensors")
        code, (line,), _ = call("m.safetensors")
        assert code == 0
        assert re.match(r"suspect    m\.safetensors  Most gammas .* \(bn2\); next: ", line)
        code, (line,), _ = call("m.safetensors", fail_on="warning")
        assert code == 1
        assert "(bn2) (stopped: --fail-on warning); next: " in line

    def test_unfit_that_passes_says_so(self, call):
        code, (line,), _ = call("unfit.safetensors", fail_on="never")
        assert code == 0
        assert line.startswith("unfit      unfit.safetensors  ")
        assert "(bn3) (passes: --fail-on never); next: " in line

    def test_unsafe_is_unfit_unless_allowed(self, call, tmp_path):
        checkups.unsafe(tmp_path / "u.pt")
        assert call("u.pt")[0] == 1
        assert call("u.pt", allow_unsafe_load=True)[0] == 0

    def test_names_stay_in_their_line(self, call, tmp_path):
        checkups.fit(tmp_path / "a\n\x1b[2J.safetensors")
        _, lines, _ = call("a\n\x1b[2J.safetensors")
        assert lines[0].startswith(r"fit        a\n\x1b[2J.safetensors  ")

    def test_quiet_prints_what_fails(self, call, tmp_path):
        checkups.suspect(tmp_path / "s.safetensors")
        paths = ("fit.safetensors", "unfit.safetensors", "s.safetensors", "page.pt")
        code, lines, _ = call(*paths, quiet=True)
        assert code == 3
        assert [line.split()[0] for line in lines] == ["unfit", "unchecked"]

    def test_colours(self, call):
        _, lines, _ = call("fit.safetensors", "unfit.safetensors", "page.pt", color="always")
        assert [line.split("  ")[0] for line in lines] == [
            "\x1b[32;1mfit\x1b[0m", "\x1b[31;1munfit\x1b[0m", "\x1b[31;1munchecked\x1b[0m",
        ]  # fmt: skip
        assert all("\x1b" not in line for line in call("fit.safetensors")[1])


class TestExitCodes:
    @pytest.mark.parametrize(
        ("paths", "code"),
        [
            (("fit.safetensors",), 0),
            (("unfit.safetensors", "fit.safetensors"), 1),
            (("page.pt", "unfit.safetensors", "fit.safetensors"), 3),
            (("unfit.safetensors", "page.pt"), 3),
        ],
    )
    def test_worst_counts_and_every_path_has_its_line(self, call, paths, code):
        found, lines, _ = call(*paths)
        assert found == code
        assert [line.split()[1] for line in lines] == list(paths)

    def test_path_that_is_not_there_is_wrong_usage_told_in_its_line(self, call):
        for path in ("gone.pt", ""):
            code, (fit, line), err = call("fit.safetensors", path)
            assert (code, err) == (2, "")
            assert fit.startswith("fit        fit.safetensors")
            assert line.startswith("unchecked  ")
        assert call("gone.pt", "page.pt")[0] == call("page.pt", "gone.pt")[0] == 3
        code, (line,), _ = call("gone.pt", format="json")
        assert (code, json.loads(line)["reason"]) == (2, "no such file")

    def test_option_that_does_not_fit_the_file_is_wrong_usage(self, call):
        code, (line,), _ = call("fit.safetensors", given={"weights": "ema"})
        assert code == 2
        assert line.startswith("unchecked  fit.safetensors  expected ema weights, found none; ")
        assert call("fit.safetensors", "page.pt", given={"weights": "ema"})[0] == 3
        assert call("page.pt", "fit.safetensors", given={"weights": "ema"})[0] == 3

    def test_crash_is_told_and_shown_on_demand(self, call, monkeypatch, tmp_path):
        def crash(*_):
            raise ZeroDivisionError("oops")

        monkeypatch.setattr(scanning, "look", crash)
        code, (line,), err = call("fit.safetensors")
        assert code == 3
        assert line.startswith(
            "unchecked  fit.safetensors  ZeroDivisionError at serving/scanning.py:"
        )
        assert "fit.safetensors: ZeroDivisionError at serving/" in err
        assert "please report this line" in err
        with pytest.raises(ZeroDivisionError):
            call("fit.safetensors", debug=True)
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        assert call("page.pt", debug=True)[0] == 3

    def test_reader_who_has_gone_changes_nothing(self, monkeypatch):
        class Gone(io.StringIO):
            def write(self, _):
                raise BrokenPipeError

        monkeypatch.setattr(sys, "stdout", Gone())
        wish = PreflightWish(paths=["fit.safetensors", "unfit.safetensors"], **DEFAULTS)
        assert run_preflight(wish) == 1


class TestSettings:
    def test_purpose_is_serving_whatever_the_settings_say(self, call, tmp_path):
        import numpy as np
        import patients

        tree = {"model": checkups.fit_state(), "optimizer": patients.adam(checkups.fit_state())}
        tree["optimizer"]["state"][0]["exp_avg"][0] = np.nan
        (tmp_path / "models").mkdir()
        patients.save_torch(tmp_path / "models" / "m.pt", tree)
        (tmp_path / "ckptdoctor.toml").write_text('purpose = "resume"\n')
        assert call("models/m.pt")[0] == 0
        assert call("models/m.pt", given={"purpose": "resume"})[0] == 1

    def test_settings_of_the_working_folder_hold_and_the_line_says_so(self, call, tmp_path):
        (tmp_path / "models").mkdir()
        checkups.unfit(tmp_path / "models" / "m.safetensors")
        (tmp_path / "ckptdoctor.toml").write_text('ignore = ["BN", "NF"]\n')
        code, (line,), _ = call("models/m.safetensors")
        assert code == 0
        assert line.endswith(" ms, by the settings of ckptdoctor.toml")

    @pytest.mark.parametrize("kind", ["file", "folder", "link", "set"])
    def test_settings_that_may_have_come_with_the_checkpoint_are_not_heard(
        self, call, tmp_path, kind, monkeypatch
    ):
        settings = 'ignore = ["BN", "NF"]\nfail-on = "never"\n'
        model = tmp_path / "model"
        checkups.save_set(model, checkups.unfit_state())
        if kind != "set":
            for file in model.iterdir():
                file.unlink()
            checkups.unfit(model / "model.safetensors")
        (model / "ckptdoctor.toml").write_text(settings)
        monkeypatch.chdir(model)
        path = {"file": "model.safetensors", "folder": ".", "set": str(model)}.get(kind)
        if path is None:
            path = str(tmp_path / "link.safetensors")
            Path(path).symlink_to(model / "model.safetensors")
        code, (line,), _ = call(path)
        assert code == 2
        assert line == (
            f"unchecked  {path}  the settings of 'ckptdoctor.toml' lie beside it, and may have "
            "come with it; say --config ckptdoctor.toml, or --config /dev/null for none"
        )
        assert call(path, config="ckptdoctor.toml")[0] == 0
        assert call(path, config="/dev/null")[0] == 1
        assert "no such file" in call("nothing.pt")[1][0]
        code, lines, _ = call(path, str(tmp_path / "fit.safetensors"))
        assert (code, lines[1][:4]) == (2, "fit ")

    def test_settings_of_a_file_that_is_named_hold(self, call, tmp_path):
        (tmp_path / "other.toml").write_text('fail-on = "never"\n')
        assert call("unfit.safetensors", config="other.toml")[0] == 0
        assert call("unfit.safetensors", config="other.toml", fail_on="error")[0] == 1


class TestReports:
    def test_full_report_goes_to_a_file(self, call, tmp_path):
        reports = [("json", "r.json"), ("text", "r.txt")]
        paths = ("unfit.safetensors", "page.pt", "fit.safetensors")
        assert call(*paths, reports=reports)[0] == 3
        told = json.loads((tmp_path / "r.json").read_text())["reports"]
        assert [report["file"] for report in told] == list(paths)
        assert told[0]["verdict"]["serve"] == "unfit"
        assert told[1]["error"]["type"] == "UnknownFormatError"
        assert "diagnosis  BatchNorm variance is NaN" in (tmp_path / "r.txt").read_text()

    def test_verdict_that_is_known_has_the_same_report(self, call, tmp_path):
        pages = []
        for _ in range(2):
            call(
                "unfit.safetensors", cache="cache", reports=[("text", "r.txt"), ("json", "r.json")]
            )
            pages.append([(tmp_path / name).read_text() for name in ("r.txt", "r.json")])
        assert pages[0] == pages[1]

    def test_report_never_replaces_a_checkpoint(self, call, tmp_path):
        before = (tmp_path / "fit.safetensors").read_bytes()
        with pytest.raises(UsageError, match="would overwrite the checkpoint"):
            call("fit.safetensors", reports=[("json", "fit.safetensors")])
        folder = checkups.save_set(tmp_path / "set", checkups.fit_state())
        shard = folder / "model-00001-of-00002.safetensors"
        code, _, err = call("set", reports=[("json", str(shard))])
        assert (code, "would overwrite the checkpoint" in err) == (2, True)
        assert (tmp_path / "fit.safetensors").read_bytes() == before

    def test_report_that_cannot_be_written_is_told(self, call):
        with pytest.raises(UsageError, match="there is no such folder"):
            call("fit.safetensors", reports=[("json", "gone/r.json")])
        code, _, err = call("fit.safetensors", reports=[("json", "/dev/full")])
        assert code == 3
        assert "/dev/full: the report could not be written: No space left on device" in err


class TestJson:
    def told(self, call, *paths, **options):
        code, lines, _ = call(*paths, format="json", **options)
        return code, [json.loads(line) for line in lines]

    def test_a_line_is_an_object(self, call):
        code, (told,) = self.told(call, "unfit.safetensors")
        assert code == 1
        assert told.pop("seconds") >= 0
        assert told.pop("summary")["errors"] == 1
        assert told == {
            "schema": 1,
            "file": "unfit.safetensors",
            "grade": "unfit",
            "passes": False,
            "reason": "BatchNorm variance is NaN beside a finite mean in 1 layer (bn3)",
            "next": "ckptdoctor inspect --purpose serve unfit.safetensors",
            "format": "safetensors",
            "weights": "model",
            "verdict": {"load": "safe", "serve": "unfit", "resume": "unfit"},
            "cached": False,
            "error": None,
        }

    def test_fit_and_unchecked(self, call):
        code, told = self.told(call, "fit.safetensors", "page.pt")
        assert code == 3
        assert [line["passes"] for line in told] == [True, False]
        assert (told[0]["grade"], told[0]["reason"], told[0]["next"]) == ("fit", "", "")
        assert told[1]["grade"] == "unchecked"
        assert told[1]["verdict"] is told[1]["summary"] is None
        assert told[1]["error"]["type"] == "UnknownFormatError"
        assert told[1]["error"]["where"] == "page.pt"
        assert "HTML page, not a checkpoint; log in" in told[1]["error"]["message"]

    def test_known_verdict_says_so(self, call):
        for known in (False, True):
            _, (told,) = self.told(call, "fit.safetensors", cache="cache")
            assert told["cached"] is known

    def test_names_that_are_no_text(self, call, tmp_path):
        name = "\udcff\n.safetensors"
        checkups.fit(tmp_path / name)
        _, (told,) = self.told(call, name)
        assert told["file"] == "\\udcff\n.safetensors"


class TestDigest:
    def test_digest(self, call, tmp_path):
        right = sha256(tmp_path / "fit.safetensors")
        assert call("fit.safetensors", expect_sha256=right)[0] == 0
        code, (line,), _ = call("fit.safetensors", expect_sha256="0" * 64)
        assert code == 1
        assert f"its SHA-256 is {right}, expected {'0' * 64}; next: sha256sum fit" in line

    def test_one_digest_is_for_one_path(self, call):
        with pytest.raises(UsageError, match="expected one path for one digest, found 2"):
            call("fit.safetensors", "unfit.safetensors", expect_sha256="0" * 64)

    def test_file_of_digests(self, call, tmp_path):
        folder = checkups.save_set(tmp_path / "set", checkups.fit_state())
        files = [*sorted(folder.iterdir()), tmp_path / "fit.safetensors"]
        lines = [f"{sha256(file)} {' *'[n % 2]}{file}\n" for n, file in enumerate(files)]
        (tmp_path / "SUMS").write_text("".join(lines) + "\n" + f"\\{'1' * 64}  other\\n\n")
        assert call("set", "fit.safetensors", expect_sha256="SUMS")[0] == 0
        (tmp_path / "SUMS").write_text("".join(lines).replace(sha256(files[1]), "0" * 64))
        code, lines, _ = call("set", "fit.safetensors", expect_sha256="SUMS")
        assert code == 1
        assert f"{files[1].name!r} is not the file expected" in lines[0]
        assert lines[0].endswith(f"; next: sha256sum set/{files[1].name}")
        assert call("unfit.safetensors", expect_sha256="SUMS")[0] == 2

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "SUMS: --expect-sha256: expected lines as sha256sum writes them, found none"),
            (
                "12ab  m\n",
                "SUMS: --expect-sha256: expected lines as sha256sum writes them, found '12ab  m'",
            ),
            (
                f"{'0' * 64}  a/m\n{'1' * 64}  b/m\n",
                "SUMS: --expect-sha256: two files are named 'm'",
            ),
        ],
        ids=["empty", "short", "twice"],
    )
    def test_file_that_is_none(self, call, tmp_path, text, message):
        (tmp_path / "SUMS").write_text(text)
        with pytest.raises(UsageError, match=message):
            call("fit.safetensors", expect_sha256="SUMS")

    def test_same_name_with_the_same_digest_is_fine(self, call, tmp_path):
        right = sha256(tmp_path / "fit.safetensors")
        (tmp_path / "SUMS").write_text(f"{right}  a/fit.safetensors\n{right}  fit.safetensors\n")
        assert call("fit.safetensors", expect_sha256="SUMS")[0] == 0

    def test_neither_digest_nor_file(self, call):
        with pytest.raises(UsageError, match="neither 64 hexadecimal digits nor a file"):
            call("fit.safetensors", expect_sha256="12ab")


class TestCache:
    def test_key_of_content(self, call, tmp_path):
        call("fit.safetensors", cache="cache", cache_key="content")
        checkups.fit(tmp_path / "fit.safetensors")
        _, (line,), _ = call("fit.safetensors", cache="cache", cache_key="content")
        assert line.endswith("known from the cache")

    def test_cache_that_cannot_be_used_is_one_line(self, call):
        code, lines, err = call("fit.safetensors", cache="page.pt")
        assert (code, len(lines)) == (0, 1)
        assert err == (
            "ckptdoctor: page.pt: the cache cannot be used: Not a directory; "
            "the checkpoint is scanned\n"
        )

    def test_expected_names(self, call, tmp_path):
        (tmp_path / "names.txt").write_text("\n".join([*checkups.fit_state(), "more.weight"]))
        code, (line,), _ = call("fit.safetensors", expect_keys="names.txt")
        assert code == 1
        assert "more.weight" in line

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (None, "--expect-keys 'names.json': the names to expect cannot be read: No such file"),
            ("[]", "--expect-keys 'names.json': expected names, found none"),
            ("{", "--expect-keys 'names.json': the names to expect are no JSON"),
        ],
        ids=["absent", "empty", "broken"],
    )
    def test_names_that_cannot_be_read_stop_it_before_any_file(self, call, tmp_path, text, message):
        if text is not None:
            (tmp_path / "names.json").write_text(text)
        with pytest.raises(UsageError, match=message):
            call("fit.safetensors", expect_keys="names.json")

    def test_line_names_what_is_surplus_beside_what_is_missing(self, call, tmp_path):
        names = list(checkups.fit_state())
        (tmp_path / "names.json").write_text(json.dumps([*names[1:], "more.weight"]))
        _, (line,), _ = call("fit.safetensors", expect_keys="names.json")
        assert line.endswith(
            "The checkpoint is incomplete: 1 of the 20 weights that names.json expects is missing: "
            "'more.weight'; 1 weight that names.json does not expect: 'conv1.weight'; next: "
            "ckptdoctor preflight --report text=preflight.txt --expect-keys names.json "
            "fit.safetensors"
        )

    def test_next_command_repeats_what_was_asked_and_its_report_has_every_name(
        self, call, tmp_path
    ):
        gone = [f"gone{n}.{'x' * 9}" for n in range(20)]
        (tmp_path / "names.txt").write_text("\n".join([*checkups.fit_state(), *gone]))
        options = {"expect_keys": "names.txt", "given": {"purpose": "resume"}}
        _, (line,), _ = call("fit.safetensors", **options)
        assert line.endswith(
            "next: ckptdoctor preflight --report text=preflight.txt --expect-keys names.txt "
            "--purpose resume fit.safetensors"
        )
        call("fit.safetensors", reports=[("text", "preflight.txt")], **options)
        lines = (tmp_path / "preflight.txt").read_text().splitlines()
        assert [text.strip() for text in lines if text.startswith(" " * 13 + "gone")] == gone

    def test_report_counts_names_beyond_the_limit_and_repeats_none_that_fit_the_message(
        self, call, tmp_path
    ):
        names = list(checkups.fit_state())
        for count, ends in ((1, []), (501, ["and 1 more"])):
            gone = [f"gone.n{n}" for n in range(count)]
            (tmp_path / "names.txt").write_text("\n".join([*names, *gone]))
            call("fit.safetensors", expect_keys="names.txt", reports=[("text", "r.txt")])
            lines = [text.strip() for text in (tmp_path / "r.txt").read_text().splitlines()]
            assert [text for text in lines if text.startswith("and ")] == ends
            assert ("gone.n0" in lines) is bool(ends)

    def test_surplus_is_not_called_incomplete(self, call, tmp_path):
        names = list(checkups.fit_state())
        (tmp_path / "names.txt").write_text("\n".join(names[1:]))
        code, (line,), _ = call("fit.safetensors", expect_keys="names.txt")
        assert code == 0
        assert "  The checkpoint holds more than is expected: 1 weight that names.txt does" in line

    def test_other_names_and_shapes_are_not_called_incomplete(self, call, tmp_path):
        state = checkups.fit_state()
        (tmp_path / "names.txt").write_text("\n".join(f"net.{name}" for name in state))
        _, (line,), _ = call("fit.safetensors", expect_keys="names.txt")
        assert "  The weights have other names than the model's: 20 names lack the 'net.'" in line
        checkups.save_safetensors(
            tmp_path / "o.safetensors",
            {name: value[:1] if value.ndim else value for name, value in state.items()},
        )
        _, (line,), _ = call("fit.safetensors", expect_keys="o.safetensors")
        assert "  Weights have other shapes than the model's: " in line
