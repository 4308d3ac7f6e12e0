"""The command line: exit codes, streams, what a user sees when something is wrong."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import ckptdoctor.api
import ckptdoctor.examination
from ckptdoctor import __version__
from ckptdoctor.cli import run
from ckptdoctor.errors import FormatError
from ckptdoctor.findings import Severity, container_finding
from ckptdoctor.report.escape import columns
from ckptdoctor.terminal import ProgressLine, colored, put, width_of

NAN = np.float32([np.nan, 1])
SOUND = np.float32([0.5, 1])


def write(path, arrays):
    """Write a safetensors file by its definition."""
    header, data = {}, b""
    for name, values in arrays.items():
        raw = values.tobytes()
        header[name] = {
            "dtype": "F32", "shape": values.shape, "data_offsets": [len(data), len(data) + len(raw)],
        }  # fmt: skip
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return str(path)


@pytest.fixture
def sound(tmp_path):
    return write(tmp_path / "sound.safetensors", {"w": SOUND})


@pytest.fixture
def sick(tmp_path):
    return write(tmp_path / "sick.safetensors", {"w": SOUND, "bn.values": NAN})


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes((1000).to_bytes(8, "little") + b'{"w": ')
    return str(path)


def spawn(*arguments, **options):
    command = [sys.executable, "-m", "ckptdoctor", *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, check=False, **options)


def report(capsys):
    (only,) = json.loads(capsys.readouterr().out)["reports"]
    return only


class TestExitCodes:
    def test_clean_is_0(self, sound):
        assert run(["inspect", sound]) == 0

    def test_findings_are_1(self, sick):
        assert run(["inspect", sick]) == 1

    def test_unreadable_is_3(self, broken, capsys):
        assert run(["inspect", broken]) == 3
        assert "could not be checked" in capsys.readouterr().out

    @pytest.mark.parametrize("fail_on", ["warning", "never"])
    def test_limit_moves_the_line(self, sick, fail_on):
        assert run(["inspect", sick, "--fail-on", fail_on]) == (fail_on != "never")

    def test_worst_of_several_counts_and_3_is_before_1(self, sound, sick, broken):
        assert run(["inspect", sound, sick]) == 1
        assert run(["inspect", sick, broken, sound]) == 3

    def test_names_select_as_codes_do(self, sick):
        assert run(["inspect", sick, "--ignore", "nan-values"]) == 0
        assert run(["inspect", sick, "--select", "inf-values,NAN-VALUES"]) == 1

    def test_cast_can_be_asked_for(self, sound, sick):
        assert run(["inspect", sound, "--cast-to", "bfloat16"]) == 0
        assert run(["inspect", sick, "--cast-to", "float8_e4m3fn"]) == 1

    def test_ignored_codes_do_not_count(self, sick):
        assert run(["inspect", sick, "--ignore", "NF"]) == 0
        assert run(["inspect", sick, "--select", "NF002,CK"]) == 0

    def test_other_tensors_do_not_count(self, sick):
        assert run(["inspect", sick, "--tensor", "w"]) == 0
        assert run(["inspect", sick, "--tensor", "w", "--tensor", "bn.*"]) == 1

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["inspect"],
            ["inspect", "FILE", "--bogus"],
            ["inspect", "FILE", "--purpose", "fun"],
            ["inspect", "FILE", "--fail-on"],
            ["inspect", "FILE", "--select", "ZZ"],
            ["inspect", "FILE", "--ignore", "nan-value"],
            ["inspect", "FILE", "--cast-to", "float32"],
            ["inspect", "FILE", "--config", "gone.toml"],
            ["inspect", "FILE", "--config", ""],
            ["inspect", "FILE", "--report", "yaml=x"],
            ["inspect", "FILE", "--report", "json"],
            ["inspect", "FILE", "--report", "json=FILE"],
            ["inspect", "FILE", "--report", "json=FILE.d/r.json"],
            ["inspect", "FILE", "--report", "json=/"],
            ["inspect", "FILE", "--report", "json=" + "x" * 5000],
            ["inspect", "FILE", "--tensor", "typo"],
            ["inspect", "FILE", "--weights", "ema"],
            ["inspect", "FILE", "gone.pt"],
            ["inspect", ""],
            ["inspect", "a\0b"],
            ["inspect", "x" * 5000],
            ["inspekt", "FILE"],
        ],
        ids=lambda arguments: " ".join(arguments)[:30] or "nothing",
    )
    def test_wrong_usage_is_2_and_one_or_two_lines(self, sound, capsys, arguments):
        assert run([word.replace("FILE", sound) for word in arguments]) == 2
        out, err = capsys.readouterr()
        if arguments:
            assert out == ""
            assert 1 <= len(err.splitlines()) <= 2
            assert err.startswith("ckptdoctor: ")

    def test_wrong_usage_of_one_path_is_2_unless_another_is_3(self, sound, sick, broken, capsys):
        # in the second file only, there is such a tensor
        assert run(["inspect", sound, sick, "--tensor", "bn.*"]) == 2
        out, err = capsys.readouterr()
        assert "NF001" in out
        assert out.endswith("2 paths: 1 with findings, 1 not checked\n")
        assert (
            err
            == f"ckptdoctor: {sound}: no tensor matches 'bn.*'; --tensors all lists every name\n"
        )
        assert run(["inspect", sound, broken, "--tensor", "bn.*"]) == 3
        assert run(["inspect", broken, sound, "--tensor", "bn.*"]) == 3

    def test_folder_of_several_checkpoints_is_wrong_usage(self, tmp_path, capsys):
        for name in ("a.safetensors", "b.safetensors"):
            write(tmp_path / name, {"w": SOUND})
        assert run(["inspect", str(tmp_path)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1

    def test_wrong_usage_of_a_path_leaves_json_valid(self, sound, sick, capsys):
        assert run(["inspect", sound, sick, "--tensor", "bn.*", "--format", "json"]) == 2
        first, second = json.loads(capsys.readouterr().out)["reports"]
        assert first["error"]["type"] == "UsageError"
        assert first["tensors"] == []
        assert second["error"] is None

    def test_nothing_is_checked_when_one_path_does_not_exist(self, sound, capsys):
        assert run(["inspect", sound, sound + ".gone"]) == 2
        assert capsys.readouterr().out == ""

    def test_purpose_decides_which_findings_count(self, monkeypatch, sick):
        real = ckptdoctor.api.open_path

        def open_path(path, options):
            from dataclasses import replace

            table = real(path, options)
            infos = {
                n: i._replace(role="optimizer" if "bn" in n else "model") for n, i in table.items()
            }
            return replace(table, infos=infos)

        monkeypatch.setattr(ckptdoctor.api, "open_path", open_path)
        codes = [run(["inspect", sick, "--purpose", p]) for p in ("any", "serve", "resume")]
        assert codes == [1, 0, 1]


class TestFailClosed:
    @pytest.fixture
    def crash(self, monkeypatch):
        def crash(*_args, **_options):
            raise ZeroDivisionError("one\ntwo")

        monkeypatch.setattr(ckptdoctor.examination, "measure", crash)

    def test_unexpected_exception_is_3_with_a_hint_and_no_traceback(self, crash, sound, capsys):
        assert run(["inspect", sound]) == 3
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        (line,) = err.splitlines()
        assert "ZeroDivisionError" in line
        assert "examination.py:" in line
        assert __version__ in line
        assert "report" in line

    def test_it_is_in_the_json_too(self, crash, sound, capsys):
        assert run(["inspect", sound, "--format", "json"]) == 3
        told = report(capsys)
        assert told["error"]["type"] == "ZeroDivisionError"
        assert told["error"]["where"].startswith("examination.py:")
        assert told["verdict"] is None

    def test_debug_shows_the_traceback_with_the_same_exit_code(self, crash, sound, capsys):
        assert run(["inspect", sound, "--debug"]) == 3
        err = capsys.readouterr().err
        assert "Traceback (most recent call last)" in err
        assert "ZeroDivisionError" in err

    def test_crash_of_a_rule_is_3_and_keeps_what_others_found(self, monkeypatch, sick, capsys):
        from ckptdoctor.rules import InfValues

        def crash(*_arguments):
            raise IndexError

        monkeypatch.setattr(InfValues, "check", crash)
        assert run(["inspect", sick, "--format", "json"]) == 3
        told = report(capsys)
        assert told["error"]["type"] == "InternalError"
        assert [f["code"] for f in told["findings"]] == ["NF001"]

    def test_findings_seen_before_a_refusal_are_told(self, monkeypatch, sound, capsys):
        def refuse(_path, _options):
            error = FormatError("no table", where="x+1", hint="ask its author")
            error.findings = (container_finding("CK002", Severity.ERROR, "calls os.system"),)
            raise error

        monkeypatch.setattr(ckptdoctor.api, "open_path", refuse)
        assert run(["inspect", sound]) == 3
        out = capsys.readouterr().out
        assert "no table" in out
        assert "calls os.system" in out
        assert "ask its author" in out

    def test_findings_of_the_reader_outlive_a_failure_to_measure(self, monkeypatch, sound, capsys):
        from dataclasses import replace

        real = ckptdoctor.api.open_path
        seen = (container_finding("CK005", Severity.WARNING, "two readers disagree"),)

        def refuse(*_arguments, **_options):
            raise FormatError("cannot be decoded")

        monkeypatch.setattr(
            ckptdoctor.api, "open_path", lambda *a: replace(real(*a), findings=seen)
        )
        monkeypatch.setattr(ckptdoctor.examination, "measure", refuse)
        assert run(["inspect", sound, "--format", "json"]) == 3
        assert [f["code"] for f in report(capsys)["findings"]] == ["CK005"]

    def test_crash_before_any_report_is_3(self, monkeypatch, sound, capsys):
        def crash(*_arguments):
            raise RuntimeError("no")

        monkeypatch.setattr("ckptdoctor.commands.inspect.renderer", crash)
        assert run(["inspect", sound]) == 3
        assert "unexpected RuntimeError" in capsys.readouterr().err

    def test_interruption_is_130(self, monkeypatch, sound, capsys):
        def interrupt(*_args, **_options):
            raise KeyboardInterrupt

        monkeypatch.setattr(ckptdoctor.examination, "measure", interrupt)
        assert run(["inspect", sound]) == 130
        assert capsys.readouterr().err == "ckptdoctor: interrupted\n"


class TestOutput:
    def test_json_is_one_document_for_several_files(self, sound, sick, broken, capsys):
        assert run(["inspect", sound, broken, sick, "--format", "json"]) == 3
        document = json.loads(capsys.readouterr().out)
        assert [r["file"] for r in document["reports"]] == [sound, broken, sick]
        assert [r["error"] is None for r in document["reports"]] == [True, False, True]

    def test_rows_can_be_left_out(self, sound, capsys):
        run(["inspect", sound, "--format", "json", "--tensors", "none"])
        assert report(capsys)["tensors"] == []

    def test_quiet_says_nothing_about_a_clean_file(self, sound, sick, capsys):
        run(["inspect", sound, "-q"])
        assert capsys.readouterr() == ("", "")
        run(["inspect", sound, sick, "--quiet"])
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        assert "NF001" in out

    def test_reports_are_written_beside_the_output(self, sick, tmp_path, capsys):
        text, data = tmp_path / "r.txt", tmp_path / "r.json"
        assert run(["inspect", sick, "--report", f"text={text}", "--report", f"json={data}"]) == 1
        assert "NF001" in capsys.readouterr().out
        assert "NF001" in text.read_text()
        assert json.loads(data.read_text())["reports"][0]["file"] == sick

    def test_report_that_cannot_be_written_is_3(self, sound, capsys):
        assert run(["inspect", sound, "--report", "json=/dev/full"]) == 3
        assert "could not be written: No space left" in capsys.readouterr().err

    @pytest.mark.parametrize("where", ["no/r.json", "closed/r.json", "closed"])
    def test_report_that_has_no_place_is_noticed_before_the_work(
        self, where, sound, tmp_path, monkeypatch, capsys
    ):
        (tmp_path / "closed").mkdir()
        monkeypatch.setattr("ckptdoctor.report.files.os.access", lambda *_: False)
        monkeypatch.setattr(ckptdoctor.api, "open_path", None)
        assert run(["inspect", sound, "--report", f"json={tmp_path}/{where}"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "the report cannot be written" in err

    def test_report_replaces_an_older_one_and_leaves_nothing_beside(self, sick, tmp_path):
        old = tmp_path / "r.json"
        old.write_text("old")
        old.chmod(0o640)
        link = tmp_path / "latest.json"
        link.symlink_to(old)
        assert run(["inspect", sick, "--report", f"json={link}"]) == 1
        assert json.loads(old.read_text())["schema"] == 1
        assert old.stat().st_mode & 0o777 == 0o640
        assert link.is_symlink()
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "latest.json", "r.json", "sick.safetensors",
        ]  # fmt: skip

    def test_failure_while_writing_leaves_the_older_report(self, sound, tmp_path, monkeypatch):
        from ckptdoctor.report.files import write as write_report

        old = tmp_path / "r.json"
        old.write_text("old")

        def pieces():
            yield "new"
            raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space"):
            write_report(str(old), pieces())
        assert old.read_text() == "old"
        assert len(list(tmp_path.iterdir())) == 2

    def test_report_beside_shards_replaces_an_older_one(self, tmp_path):
        write(tmp_path / "a.safetensors", {"w": SOUND})
        index = {"weight_map": {"w": "a.safetensors"}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        target = tmp_path / "report.json"
        for _ in range(2):
            assert run(["inspect", str(tmp_path), "--report", f"json={target}"]) == 0
        assert json.loads(target.read_text())["schema"] == 1

    @pytest.mark.parametrize("damaged", [False, True], ids=["readable", "refused"])
    @pytest.mark.parametrize("name", ["b.safetensors", "model.safetensors.index.json", "link"])
    def test_report_never_overwrites_a_shard(self, tmp_path, capsys, damaged, name):
        folder = tmp_path / "set"
        folder.mkdir()
        write(folder / "a.safetensors", {"w": SOUND})
        blob = tmp_path / "blob"
        write(blob, {"v": SOUND})
        (folder / "b.safetensors").symlink_to(blob)  # as the Hugging Face cache has them
        (folder / "link").symlink_to(folder / "a.safetensors")
        weight_map = {"w": "a.safetensors", "v": "b.safetensors"}
        index = folder / "model.safetensors.index.json"
        index.write_text("{" if damaged else json.dumps({"weight_map": weight_map}))
        before = {p: p.read_bytes() for p in [*folder.iterdir(), blob]}
        code = run(["inspect", str(folder), "--report", f"json={folder / name}"])
        assert code == (3 if damaged else 2)
        assert "would overwrite the checkpoint" in capsys.readouterr().err
        assert {p: p.read_bytes() for p in [*folder.iterdir(), blob]} == before

    def test_report_never_overwrites_the_checkpoint_by_another_name(self, sound, tmp_path):
        link = tmp_path / "link"
        link.symlink_to(sound)
        assert run(["inspect", sound, "--report", f"text={link}"]) == 2

    def test_colours_only_when_wanted(self, sick, capsys, monkeypatch):
        run(["inspect", sick])
        assert "\x1b" not in capsys.readouterr().out
        run(["inspect", sick, "--color", "always"])
        assert "\x1b[31;1m" in capsys.readouterr().out

    def test_no_color_and_dumb_terminals_are_respected(self, monkeypatch):
        class Terminal:
            def isatty(self):
                return True

        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm")
        assert colored("auto", Terminal())
        monkeypatch.setenv("TERM", "dumb")
        assert not colored("auto", Terminal())
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("NO_COLOR", "1")
        assert not colored("auto", Terminal())
        assert colored("always", Terminal())

    def test_hostile_file_name_is_escaped_everywhere(self, tmp_path, capsys):
        path = write(tmp_path / "a\x1b]0;x\x07b", {"w\x1b[2J": NAN})
        run(["inspect", path])
        run(["inspect", path + "gone"])
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err
        assert "\\x1b" in out
        assert "\\x1b" in err

    @pytest.mark.parametrize("ending", ["keras", "weights.h5", "h5"])
    def test_founding_case_names_its_layer_in_80_columns(self, ending, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        name = f"sample_checkpoints/sick/bn001-overflow-skipped-step.{ending}"
        assert run(["inspect", str(Path(__file__).parents[1] / name)]) == 1
        diagnosis, _, findings = capsys.readouterr().out.partition("  error  ")
        assert "post_bn" in diagnosis
        assert findings.count("post_bn") >= 2

    def test_width_is_what_columns_says(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "133")
        assert width_of(sys.stdout) == 133
        monkeypatch.setenv("COLUMNS", "wide")
        assert width_of(sys.stdout) >= 40

    def test_formats_are_listed(self, capsys):
        assert run(["formats"]) == 0
        text = capsys.readouterr().out
        assert run(["formats", "--format", "json"]) == 0
        rows = json.loads(capsys.readouterr().out)["formats"]
        assert len(rows) == len(text.splitlines()) > 3
        assert all(row["name"] and row["summary"] and row["spec"] for row in rows)
        names = {row["name"] for row in rows}
        assert {"keras-weights-h5", "hdf5", "torch-sharded", "torch-legacy-tar"} < names
        assert all(f"{name} " in text for name in names)

    def test_version(self, capsys):
        assert run(["--version"]) == 0
        assert capsys.readouterr().out == f"ckptdoctor {__version__}\n"

    @pytest.mark.parametrize("command", ["", "inspect", "explain", "rules", "formats"])
    def test_help_fits_80_columns_and_shows_examples(self, command, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        assert run([*command.split(), "--help"]) == 0
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= 80
        assert command == "formats" or f"  ckptdoctor {command or 'inspect'} " in out


class TestDefaults:
    @pytest.mark.parametrize(
        ("command", "told"),
        [
            ("inspect", ["any", "auto", "file", "error", "text", "auto"]),
            ("repair", ["channels", "0", "statistical", "text", "auto"]),
            ("preflight", ["serve", "auto", "stat", "error", "text", "auto"]),
            ("probe", ["random", "256", "32", "near", "text", "auto"]),
        ],
    )
    def test_help_tells_each_in_the_same_way(self, command, told, capsys):
        assert run([command, "--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        found = re.findall(r"\[default: ([^\]]*)\]", text)
        assert [word for word in found if word in told] == told
        assert not any(word.startswith("(") for word in found)

    def test_scope_is_that_of_both_ways_to_new_statistics(self, capsys):
        assert run(["repair", "--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "What to reset or recalibrate: broken channels" in text


def pages():
    from ckptdoctor.catalog import pages

    return pages()


class TestExplain:
    @pytest.mark.parametrize("width", [60, 80, 200])
    @pytest.mark.parametrize("page", pages(), ids=lambda page: page.code)
    def test_every_code_is_explained_within_the_width(self, page, width, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", str(width))
        assert run(["explain", page.code]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert out.startswith(f"{page.code} {page.name}\n")
        long = [line for line in out.splitlines() if len(line) > min(width, 100)]
        assert all(len(line.split()) <= 2 or line.startswith("    ") for line in long)

    def test_codes_and_names_in_any_case(self, capsys):
        assert run(["explain", "nf001", "Checksum-Mismatch"]) == 0
        out = capsys.readouterr().out
        assert out.index("NF001 nan-values") < out.index("CK001 checksum-mismatch")
        assert "What it means" in out
        assert "\x1b" not in out

    def test_titles_are_bold_where_colours_are_wanted(self, capsys):
        run(["explain", "NF001", "--color", "always"])
        assert "\x1b[1mWhat it means\x1b[0m\n" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["NF001", "NF01"], "no code 'NF01'; did you mean 'NF001' or"),
            (["nan-value"], "no code 'nan-value'; did you mean 'nan-values'"),
            (["NF"], "no code 'NF'"),
            (["\x1b[2J"], "no code '\\x1b[2J'"),
            ([""], "no code ''"),
            ([], "Missing argument"),
            (["NF001", "--format", "yaml"], "Invalid value for '--format'"),
        ],
    )
    def test_unknown_code_is_2_in_one_line(self, words, message, capsys):
        assert run(["explain", *words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1
        assert message in err

    def test_settings_are_shown_beside_the_defaults(self, capsys, tmp_path, monkeypatch):
        page = next(page for page in pages() if page.thresholds)
        name = page.thresholds[0].name
        file = tmp_path / "ckptdoctor.toml"
        file.write_text(f"thresholds.{page.code}.{name} = 12345")
        assert run(["explain", page.code, "--config", str(file)]) == 0
        assert "Your settings make it 12,345." in capsys.readouterr().out
        monkeypatch.chdir(tmp_path)
        assert run(["explain", page.code]) == 0
        assert "12,345" in capsys.readouterr().out

    def test_json_and_markdown(self, capsys):
        assert run(["explain", "NF001", "CK001", "--format", "json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["schema"] == 1
        assert [rule["code"] for rule in document["rules"]] == ["NF001", "CK001"]
        assert run(["explain", "NF001", "CK001", "--format", "markdown"]) == 0
        assert "# NF001 nan-values\n" in capsys.readouterr().out


class TestRules:
    def test_text_has_every_code_and_fits(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        assert run(["rules"]) == 0
        out = capsys.readouterr().out
        assert all(f"\n{page.code}  " in out and page.name in out for page in pages())
        assert max(map(len, out.splitlines())) <= 80

    def test_json_has_everything_about_every_code(self, capsys):
        assert run(["rules", "--format", "json"]) == 0
        rows = json.loads(capsys.readouterr().out)["rules"]
        assert [row["code"] for row in rows] == [page.code for page in pages()]
        assert all(row["summary"] and row["sections"] and row["references"] for row in rows)

    def test_markdown_is_a_table(self, capsys):
        assert run(["rules", "--format", "markdown"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == len(pages()) + 2


@pytest.mark.parametrize(
    "command", ["rules", "formats", "explain NF001", "inspect FILE", "repair FILE -n"]
)
def test_every_command_takes_the_common_options(command, sound):
    words = command.replace("FILE", sound).split()
    assert run([*words, "--config", os.devnull, "--color", "never", "--quiet"]) == 0


class TestProcess:
    """What only a real process shows."""

    def test_module_and_exit_code(self, sick):
        done = spawn("inspect", sick)
        assert done.returncode == 1
        assert b"NF001" in done.stdout
        assert done.stderr == b""

    def test_reader_that_leaves_is_no_error(self, tmp_path):
        path = write(tmp_path / "m", {f"w{i}": NAN for i in range(20000)})
        command = f"{sys.executable} -m ckptdoctor inspect {path} --tensors all | head -n 1; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=False)
        assert done.stdout.splitlines()[-1] == b"1"
        assert done.stderr == b""

    def test_output_that_is_not_utf8_loses_nothing(self, tmp_path):
        path = write(tmp_path / "m", {"中.weight": NAN})
        environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
        done = spawn("inspect", path, env=environment)
        assert done.returncode == 1
        assert b"\\u4e2d.weight" in done.stdout

    @pytest.mark.parametrize("stream", ["> /dev/full", ">&-"], ids=["full", "closed"])
    @pytest.mark.parametrize("words", ["inspect FILE", "--version", "formats"])
    def test_output_that_cannot_be_written_is_3_and_no_bug(self, sound, stream, words):
        line = f"{sys.executable} -m ckptdoctor {words.replace('FILE', sound)} {stream}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60, check=False)
        assert done.returncode == 3
        assert done.stderr.startswith(b"ckptdoctor: standard output could not be written: ")
        assert len(done.stderr.splitlines()) == 1

    def test_help_that_cannot_be_written_is_no_bug_either(self):
        line = f"{sys.executable} -m ckptdoctor --help > /dev/full"
        done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60, check=False)
        assert done.returncode == 3
        assert b"bug" not in done.stderr

    @pytest.mark.parametrize("stream", ["2> /dev/full", "2>&-"], ids=["full", "closed"])
    def test_errors_that_nobody_hears_change_no_exit_code(self, sick, stream):
        for words, code in (("--tensor typo", 2), ("", 1)):
            line = f"{sys.executable} -m ckptdoctor inspect {sick} {words} {stream}"
            done = subprocess.run(["bash", "-c", line], capture_output=True, check=False)
            assert done.returncode == code

    def test_interrupt_during_the_imports_is_130(self, monkeypatch, capsys):
        from ckptdoctor.__main__ import main

        def interrupt(_arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr("ckptdoctor.cli.run", interrupt)
        monkeypatch.setattr(sys, "argv", ["ckptdoctor", "formats"])
        assert main() == 130
        assert capsys.readouterr().err == "ckptdoctor: interrupted\n"

    def test_broken_installation_is_3_as_1_would_read_as_findings(self, monkeypatch, capsys):
        from ckptdoctor.__main__ import main

        def missing(_arguments):
            raise ModuleNotFoundError("No module named 'numpy'")

        monkeypatch.setattr("ckptdoctor.cli.run", missing)
        monkeypatch.setattr(sys, "argv", ["ckptdoctor", "preflight", "model.pt"])
        assert main() == 3
        err = capsys.readouterr().err
        assert err.startswith("ckptdoctor: cannot start: No module named 'numpy'; install it")
        assert err.count("\n") == 1

    def test_interrupt_leaves_without_a_traceback(self, tmp_path):
        fifo = tmp_path / "report"
        os.mkfifo(fifo)  # opening it for writing waits for a reader that never comes
        path = write(tmp_path / "m", {"w": SOUND})
        command = [sys.executable, "-m", "ckptdoctor", "inspect", path, "--report", f"text={fifo}"]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # a shell's background jobs, and so many CI runners, hand SIGINT down as ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
        assert b"m" in process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert err == b"ckptdoctor: interrupted\n"

    def test_nothing_is_left_behind_and_the_file_stays(self, sick, tmp_path):
        before = {p: p.read_bytes() for p in tmp_path.iterdir()}
        spawn("inspect", sick, cwd=tmp_path)
        assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


class TestProgress:
    def lines(self, calls, *, enabled=True, clock=None, monkeypatch=None):
        class Stream:
            encoding = "utf-8"
            text = ""

            def write(self, text):
                self.text += text

            def flush(self):
                pass

        now = [0.0]
        monkeypatch.setattr("ckptdoctor.terminal.time.monotonic", lambda: now[0])
        stream = Stream()
        progress = ProgressLine(stream, enabled=enabled)
        progress.start("file\x1b.pt")
        for at, done in calls:
            now[0] = at
            progress(done, 100)
        progress.clear()
        return stream.text

    def test_short_work_shows_nothing(self, monkeypatch):
        assert self.lines([(0.1, 10), (0.9, 90)], monkeypatch=monkeypatch) == ""

    def test_long_work_shows_a_line_and_wipes_it(self, monkeypatch):
        text = self.lines([(1.1, 50), (1.12, 60), (3, 120)], monkeypatch=monkeypatch)
        assert " 50%" in text
        assert " 60%" not in text
        assert "100%" in text
        assert text.endswith(" \r")
        assert "\x1b" not in text

    @pytest.mark.parametrize("width", [1, 5, 8, 20, 39, 40, 41, 60, 69, 70, 200])
    @pytest.mark.parametrize("name", ["m.pt", "a" * 90, "\u6a21\u578b" * 30])
    def test_line_never_fills_the_width(self, monkeypatch, width, name):
        size = os.terminal_size((width, 24))
        monkeypatch.setattr("ckptdoctor.terminal.os.get_terminal_size", lambda _: size)
        now, written = [0.0], []
        monkeypatch.setattr("ckptdoctor.terminal.time.monotonic", lambda: now[0])
        monkeypatch.setattr("ckptdoctor.terminal.put", lambda _, text: written.append(text))
        progress = ProgressLine(sys.__stderr__, enabled=True)
        progress.start(name)
        for now[0], done in ((2, 50), (3, 100)):
            progress(done, 100)
        assert all(columns(text.strip("\r")) < max(width, 2) for text in written)
        assert width < 8 or "100%" in written[-1]
        assert width < 40 or name[0] in written[-1]

    def test_disabled_shows_nothing(self, monkeypatch):
        assert self.lines([(9, 50)], enabled=False, monkeypatch=monkeypatch) == ""


def test_on_a_terminal_there_is_colour_and_its_width():
    master, slave = pty.openpty()
    code = "import sys; from ckptdoctor.terminal import *; print(colored('auto', sys.stdout), width_of(sys.stdout))"
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    environment["TERM"] = "xterm"
    subprocess.run(["stty", "cols", "91"], stdin=slave, check=True)
    subprocess.run([sys.executable, "-c", code], stdout=slave, env=environment, check=True)
    os.close(slave)
    assert os.read(master, 1000).split() == [b"True", b"91"]
    os.close(master)


def test_closed_pipe_is_told_once():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        assert put(stream, "x") is False
        assert put(stream, "y") is True  # nobody hears it, nothing fails
