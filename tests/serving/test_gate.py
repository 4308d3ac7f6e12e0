"""Preflight from Python: what passes, what does not, and that nothing else ever returns."""

import asyncio
import copy
import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import checkups
import numpy as np
import pytest

from ckptdoctor.config import Settings
from ckptdoctor.errors import (
    CkptDoctorError,
    InternalError,
    TruncatedError,
    UncheckedCheckpointError,
    UnfitCheckpointError,
    UnknownFormatError,
    UsageError,
)
from ckptdoctor.results import Exemption, Report
from ckptdoctor.rules import RULES
from ckptdoctor.serving import identity, scanning
from ckptdoctor.serving.cache import VerdictCache
from ckptdoctor.serving.gate import apreflight, preflight


@pytest.fixture
def fit(tmp_path):
    return checkups.fit(tmp_path / "fit.safetensors")


@pytest.fixture
def unfit(tmp_path):
    return checkups.unfit(tmp_path / "unfit.safetensors")


def refusal(path, **terms):
    """The one line of a checkpoint that is unfit."""
    with pytest.raises(UnfitCheckpointError) as caught:
        preflight(path, **terms)
    assert "\n" not in str(caught.value)
    return caught.value


def puzzle(path, **terms):
    """The one line of a checkpoint that could not be checked."""
    with pytest.raises(UncheckedCheckpointError) as caught:
        preflight(path, **terms)
    assert "\n" not in str(caught.value)
    assert caught.value.report.error is not None
    return caught.value


class TestVerdict:
    @pytest.mark.parametrize("kind", [str, Path], ids=["text", "path"])
    def test_fit_checkpoint_gives_its_report(self, fit, kind):
        report = preflight(kind(fit))
        assert isinstance(report, Report)
        assert report.verdict.serve == "fit"
        assert report.wishes.purpose == "serve"
        assert not report.cached
        assert report.stats["bn1.running_var"].nan == 0
        assert next(iter(report.table)) == "conv1.weight"

    def test_unfit_checkpoint_raises_with_diagnosis_layers_and_next_step(self, unfit):
        error = refusal(unfit)
        assert str(error) == (
            f"{unfit}: unfit to serve: BatchNorm variance is NaN beside a finite mean in 1 layer "
            f"(bn3); next: ckptdoctor inspect --purpose serve {unfit}"
        )
        assert error.report.verdict.serve == "unfit"
        assert isinstance(error, CkptDoctorError)
        assert error.__cause__ is None

    def test_set_of_shards_is_one_checkpoint(self, tmp_path):
        assert preflight(checkups.save_set(tmp_path / "a", checkups.fit_state())).summary.tensors
        refusal(checkups.save_set(tmp_path / "b", checkups.unfit_state()))

    def test_missing_shard_is_named(self, tmp_path):
        folder = checkups.save_set(tmp_path / "set", checkups.fit_state())
        (folder / "model-00002-of-00002.safetensors").unlink()
        assert "incomplete: 1 of 2 shards are missing, first 'model-00002" in str(refusal(folder))

    def test_warnings_pass_unless_they_are_to_fail(self, tmp_path):
        file = checkups.suspect(tmp_path / "m.safetensors")
        assert preflight(file).verdict.serve == "suspect"
        error = refusal(file, fail_on="warning")
        assert f"{file}: suspect: Most gammas are 0 in 1 layer (bn2); next:" in str(error)

    def test_errors_pass_where_nothing_is_to_fail(self, unfit):
        assert preflight(unfit, fail_on="never").verdict.serve == "unfit"

    def test_only_what_the_purpose_uses_counts(self, tmp_path):
        import patients

        tree = {"model": checkups.fit_state(), "optimizer": patients.adam(checkups.fit_state())}
        tree["optimizer"]["state"][0]["exp_avg"][0] = np.nan
        file = patients.save_torch(tmp_path / "m.pt", tree)
        assert preflight(file).verdict.resume == "unfit"
        assert "unfit to resume: The optimizer" in str(refusal(file, purpose="resume"))
        error = refusal(file, purpose="any")
        assert ": unfit: The optimizer" in str(error)
        assert f"next: ckptdoctor inspect {file}" in str(error)

    def test_next_command_asks_what_preflight_asked(self, tmp_path, unfit):
        config = tmp_path / "rules.toml"
        config.write_text('ignore = ["WT"]\n')
        error = refusal(unfit, weights="model", cast_to="float16", config=config)
        asked = f"--purpose serve --weights model --cast-to float16 --config {config} {unfit}"
        assert str(error).endswith(f"next: ckptdoctor inspect {asked}")

    def test_settings_are_heard(self, tmp_path, unfit):
        config = tmp_path / "rules.toml"
        config.write_text('ignore = ["BN", "NF"]\n')
        assert preflight(unfit, config=config).findings == ()
        accepted = Exemption(tensor="bn3.*", reason="known")
        assert preflight(unfit, config=Settings(exempt=(accepted,))).summary.notes
        assert preflight(unfit, config=Settings(purpose="resume", ignore=("BN", "NF")))

    def test_further_diagnoses_are_counted(self, tmp_path):
        state = checkups.unfit_state()
        state["fc.weight"][0, 0] = 1e5
        file = checkups.save_safetensors(tmp_path / "m.safetensors", state)
        assert "; 1 more diagnosis; next:" in str(refusal(file))
        state["conv1.weight"][:] = 0
        file = checkups.save_safetensors(tmp_path / "n.safetensors", state)
        assert "; 2 more diagnoses; next:" in str(refusal(file))

    def test_many_layers_are_counted(self, tmp_path):
        import patients

        state = {
            f"net.{block}.{name}": value
            for block in range(2)
            for name, value in patients.state().items()
        }
        for name, value in state.items():
            if name.endswith("running_var"):
                value[:] = np.nan
        file = checkups.save_safetensors(tmp_path / "m.safetensors", state)
        assert " and 3 more); next:" in str(refusal(file))

    def test_hostile_names_stay_in_their_line(self, tmp_path):
        state = {"a\nb\x1b[2J.weight": np.full((4, 4), np.nan, np.float32)}
        file = checkups.save_safetensors(tmp_path / "m\n\x1b[2J.safetensors", state)
        text = str(refusal(file))
        assert text.isprintable()

    def test_long_names_are_shortened(self, tmp_path):
        state = {f"{'x' * 5000}.weight": np.full((4, 4), np.nan, np.float32)}
        file = checkups.save_safetensors(tmp_path / "m.safetensors", state)
        assert len(str(refusal(file))) < 1000


class TestUnsafe:
    def test_unsafe_to_load_is_unfit(self, tmp_path):
        error = refusal(checkups.unsafe(tmp_path / "m.pt"))
        assert "Loading the file the usual way can run code of the file: " in str(error)
        assert "os.system" in str(error)

    @pytest.mark.parametrize("terms", [{"fail_on": "never"}, {"config": Settings(ignore=("CK",))}])
    def test_neither_limit_nor_ignored_code_lets_it_pass(self, tmp_path, terms):
        refusal(checkups.unsafe(tmp_path / "m.pt"), **terms)

    def test_ignored_code_leaves_a_reason(self, tmp_path):
        file = checkups.unsafe(tmp_path / "m.pt")
        error = refusal(file, config=Settings(ignore=("CK",)))
        assert "loading it the usual way can run code, hang or exhaust memory" in str(error)

    def test_allowed_it_passes(self, tmp_path):
        report = preflight(checkups.unsafe(tmp_path / "m.pt"), allow_unsafe_load=True)
        assert report.verdict.load == "unsafe"

    def test_allowing_that_allows_nothing_else(self, tmp_path):
        import torch_bytes as tb

        values = np.full(6, np.nan, np.float32).tobytes()
        tree = {"w": tb.tensor(tb.storage("0"), (2, 3)), "x": tb.call("os", "system", "true")}
        file = tmp_path / "m.pt"
        file.write_bytes(tb.archive(tree, {"0": values}))
        assert "Weights of 1 layer are lost" in str(refusal(file, allow_unsafe_load=True))


class TestUnchecked:
    def test_no_such_path(self, tmp_path):
        error = puzzle(tmp_path / "gone.pt")
        assert str(error) == f"{tmp_path}/gone.pt: could not be checked: no such file"
        assert isinstance(error.__cause__, UsageError)

    @pytest.mark.parametrize(
        ("data", "cause"),
        [(b"", TruncatedError), (b"<html>", UnknownFormatError), (b"\x80\x02.", CkptDoctorError)],
        ids=["empty", "html", "pickle"],
    )
    def test_bytes_that_nothing_reads(self, tmp_path, data, cause):
        file = tmp_path / "m.pt"
        file.write_bytes(data)
        error = puzzle(file, fail_on="never")
        assert isinstance(error.__cause__, cause)
        assert str(error).startswith(f"{file}: could not be checked: ")
        assert error.report.error.type == type(error.__cause__).__name__

    def test_place_of_the_damage_is_told(self, tmp_path):
        file = checkups.fit(tmp_path / "m.pt")
        file.write_bytes(file.read_bytes()[:3000])
        assert f"(at {file}+3000)" in str(puzzle(file))

    def test_argument_that_does_not_fit_the_file(self, fit):
        error = puzzle(fit, weights="ema")
        assert isinstance(error.__cause__, UsageError)
        assert "expected ema weights, found none" in str(error)

    @pytest.mark.parametrize(
        "raised",
        [RuntimeError("a\nb"), RecursionError("deep"), OSError(5, "bad disk")],
        ids=lambda error: type(error).__name__,
    )
    def test_whatever_goes_wrong_it_never_returns(self, fit, monkeypatch, raised):
        def broken(*_):
            raise raised

        monkeypatch.setattr(scanning, "look", broken)
        error = puzzle(fit, fail_on="never")
        assert error.__cause__ is raised
        assert type(raised).__name__ in str(error)

    @pytest.mark.parametrize("place", ["look", "rule"])
    def test_lack_of_memory_is_no_bug(self, unfit, monkeypatch, place):
        def greedy(*_):
            raise MemoryError

        if place == "look":
            monkeypatch.setattr(scanning, "look", greedy)
        else:
            monkeypatch.setattr(RULES[-1], "check", greedy)
        error = puzzle(unfit, fail_on="never")
        told = "could not be checked: there is not enough memory to check it; allow more of it"
        assert str(error) == f"{unfit}: {told}"
        assert isinstance(error.__cause__.__cause__, MemoryError)
        assert not error.report.error.bug
        assert bool(error.findings) == (place == "rule")

    def test_rule_that_crashes(self, fit, monkeypatch):
        def crash(*_):
            raise ZeroDivisionError("oops")

        monkeypatch.setattr(RULES[0], "check", crash)
        error = puzzle(fit, fail_on="never")
        assert isinstance(error.__cause__, InternalError)
        assert f"rule {RULES[0].code} crashed: ZeroDivisionError: oops" in str(error)

    def test_what_was_seen_before_is_kept(self, unfit, monkeypatch):
        def crash(*_):
            raise ZeroDivisionError("oops")

        monkeypatch.setattr(RULES[-1], "check", crash)
        error = puzzle(unfit)
        assert any(finding.tensor == "bn3.running_var" for finding in error.findings)
        assert error.report.findings == error.findings

    def test_file_that_changes_meanwhile(self, fit, monkeypatch):
        examined = scanning.look

        def slow(path, wishes, progress, prepared):
            def writing(table):
                Path(path).write_bytes(Path(path).read_bytes() + b"x")
                return prepared(table)

            return examined(path, wishes, progress, writing)

        monkeypatch.setattr(scanning, "look", slow)
        assert "changed while it was being read" in str(puzzle(fit))

    @pytest.mark.parametrize("cached", [False, True])
    @pytest.mark.parametrize("kind", ["file", "shard"])
    def test_byte_that_is_changed_meanwhile_with_size_and_time_put_back(
        self, tmp_path, monkeypatch, kind, cached
    ):
        if kind == "file":
            path = victim = checkups.fit(tmp_path / "m.safetensors")
        else:
            path = checkups.save_set(tmp_path / "m", checkups.fit_state(), shards=1)
            victim = path / "model-00001-of-00001.safetensors"
        examined = scanning.look

        def overtaken(*given):
            report = examined(*given)
            if todo:
                checkups.save_safetensors(victim, todo.pop())
                os.utime(victim, ns=(0, written))
            return report

        todo, written = [checkups.unfit_state()], victim.stat().st_mtime_ns
        monkeypatch.setattr(scanning, "look", overtaken)
        with pytest.raises(UnfitCheckpointError, match="variance is NaN"):
            preflight(path, cache=tmp_path / "cache" if cached else None)

    def test_file_that_is_touched_again_and_again(self, fit, monkeypatch):
        examined, touched = scanning.look, []

        def touching(path, *more):
            report = examined(path, *more)
            Path(path).chmod(0o600)
            touched.append(path)
            return report

        monkeypatch.setattr(scanning, "look", touching)
        assert "changed while it was being read" in str(puzzle(fit))
        assert len(touched) == 3

    def test_file_that_is_touched_once_is_read_again(self, fit, monkeypatch):
        examined, linked = scanning.look, []

        def linking(path, *more):
            report = examined(path, *more)
            if not linked:
                linked.append(os.link(path, f"{path}.link"))
            return report

        monkeypatch.setattr(scanning, "look", linking)
        assert preflight(fit).verdict.serve == "fit"

    @pytest.mark.parametrize("cached", [False, True])
    @pytest.mark.parametrize("moves", ["at each look", "each second"])
    def test_mount_that_makes_ctime_up_is_scanned_once(
        self, fit, tmp_path, monkeypatch, moves, cached
    ):
        examined, times, clock, scans = scanning.look, identity._times, [0.0], []

        def passing(seconds):
            clock[0] += seconds

        def made_up(found):
            passing(1 if moves == "at each look" else 0)
            return (*times(found)[:3], int(clock[0]))

        def slow(path, *more):
            scans.append(path)
            passing(1)
            return examined(path, *more)

        monkeypatch.setattr(identity, "_times", made_up)
        monkeypatch.setattr(identity.time, "sleep", passing)
        monkeypatch.setattr(scanning, "look", slow)
        cache = tmp_path / "cache"
        assert preflight(fit, cache=cache if cached else None).verdict.serve == "fit"
        assert len(scans) == 1
        assert list(cache.glob("*.json")) == []

        def written(path, *more):
            report = slow(path, *more)
            Path(path).write_bytes(Path(path).read_bytes() + b"x")
            return report

        monkeypatch.setattr(scanning, "look", written)
        assert "changed while it was being read" in str(puzzle(fit))

    @pytest.mark.parametrize(
        ("after", "again", "moved"),
        [((1, 2, 3, 5), (1, 2, 3, 6), False), ((1, 2, 3, 5), (1, 2, 9, 6), True)],
        ids=["by itself", "by a write during the third look"],
    )
    def test_ctime_that_moves_again_is_made_up_where_nothing_else_moves(self, after, again, moved):
        assert identity.moved(((1, 2, 3, 4),), (after,), lambda: (again,)) is moved

    def test_interruption_is_none_of_it(self, fit, monkeypatch):
        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(scanning, "look", interrupted)
        with pytest.raises(KeyboardInterrupt):
            preflight(fit)


class TestArguments:
    @pytest.mark.parametrize(
        ("terms", "message"),
        [
            ({"fail_on": "Error"}, "fail_on to be error, warning or never, found 'Error'"),
            ({"fail_on": None}, "fail_on to be error"),
            ({"purpose": "served"}, "purpose to be any, serve or resume"),
            ({"weights": "best"}, "weights to be auto, model or ema"),
            ({"cast_to": "float32"}, "cast_to to be float16"),
            ({"expect_sha256": "12ab"}, "64 hexadecimal digits, found '12ab'"),
            ({"expect_sha256": {"m": "12"}}, "64 hexadecimal digits, found '12'"),
            ({"expect_sha256": {}}, "64 hexadecimal digits, found {}"),
            ({"expect_sha256": "g" * 64}, "64 hexadecimal digits"),
            ({"expect_sha256": "a" * 65}, "64 hexadecimal digits"),
            ({"expect_keys": []}, r"expect_keys to be names or a file, found \[\]"),
            ({"expect_keys": ["a", ""]}, "expect_keys to be names"),
            ({"expect_keys": b"names.txt"}, "expect_keys to be names or a file, found b'names"),
            ({"expect_keys": 3}, "expect_keys to be names or a file, found 3"),
            ({"cache": ""}, "cache to be the path of a folder, found ''"),
            ({"cache": 3}, "cache to be the path of a folder, found 3"),
            ({"allow_unsafe_load": "false"}, "True or False, found 'false'"),
            ({"config": "gone.toml"}, "gone.toml: cannot be read"),
        ],
        ids=lambda part: next(iter(part)) if isinstance(part, dict) else "",
    )
    def test_wrong_whatever_the_file(self, fit, terms, message):
        with pytest.raises(UsageError, match=message):
            preflight(fit, **terms)

    @pytest.mark.parametrize("path", [None, 3, b"m.pt"], ids=["nothing", "number", "bytes"])
    def test_path_that_is_none(self, path):
        with pytest.raises(UsageError, match="expected the path of a checkpoint, found"):
            preflight(path)

    def test_empty_path_is_not_the_working_folder(self, fit, monkeypatch):
        monkeypatch.chdir(fit.parent)
        assert "found an empty one" in str(puzzle(""))

    def test_no_purpose_is_serving(self, fit):
        assert preflight(fit, purpose=None).wishes.purpose == "serve"


class TestDigest:
    def digest(self, file):
        return hashlib.sha256(file.read_bytes()).hexdigest()

    @pytest.mark.parametrize("change", [str, str.upper, "sha256:{}".format, " {}\n".format])
    def test_right_digest_passes(self, fit, change):
        assert preflight(fit, expect_sha256=change(self.digest(fit)))

    @pytest.mark.parametrize("limit", ["error", "never"])
    def test_another_file_is_unfit_however_healthy(self, fit, limit):
        error = refusal(fit, expect_sha256="0" * 64, fail_on=limit)
        assert str(error) == (
            f"{fit}: unfit to serve: It is not the file expected: its SHA-256 is "
            f"{self.digest(fit)}, expected {'0' * 64}; next: sha256sum {fit}"
        )
        report = error.report
        assert (report.verdict.serve, report.verdict.resume) == ("unfit", "unfit")
        assert (report.verdict.load, report.summary.errors) == ("safe", 1)
        assert (report.findings[0].code, report.relevant) == ("CK001", (True,))

    def test_it_is_the_first_thing_said_about_a_sick_one(self, unfit):
        report = refusal(unfit, expect_sha256="0" * 64).report
        first, second = report.diagnoses[:2]
        assert (first.key, first.findings) == ("another-file", (0,))
        assert "BatchNorm" in second.title
        assert {report.findings[at].code[:2] for at in second.findings} == {"BN"}
        assert len(report.relevant) == len(report.findings) == report.summary.errors

    def test_another_file_that_nothing_reads_is_unfit(self, tmp_path):
        file = tmp_path / "m.pt"
        file.write_bytes(b"<html>")
        error = refusal(file, expect_sha256="0" * 64)
        assert "not the file expected" in str(error)
        assert error.report.error.type == "UnknownFormatError"
        puzzle(file, expect_sha256=self.digest(file))
        puzzle(tmp_path / "gone.pt", expect_sha256="0" * 64)

    def test_set_needs_a_digest_for_each_file(self, tmp_path):
        folder = checkups.save_set(tmp_path / "set", checkups.fit_state())
        wanted = {file.name: self.digest(file) for file in folder.iterdir()}
        assert preflight(folder, expect_sha256={**wanted, "README.md": "1" * 64})
        one = "model-00001-of-00002.safetensors"
        error = refusal(folder, expect_sha256={**wanted, one: "0" * 64})
        assert f"'{one}' is not the file expected" in str(error).lower()
        more = dict.fromkeys(wanted, "0" * 64)
        assert "(and 2 more) is not the file" in str(refusal(folder, expect_sha256=more))
        error = puzzle(folder, expect_sha256="0" * 64)
        assert "expected one file for one SHA-256, found 3 files" in str(error)
        del wanted[one]
        error = puzzle(folder, expect_sha256=wanted)
        assert f"no SHA-256 is given for '{one}'" in str(error)
        assert isinstance(error.__cause__, UsageError)

    def test_name_of_a_single_file_counts_too(self, fit):
        assert preflight(fit, expect_sha256={fit.name: self.digest(fit)})
        puzzle(fit, expect_sha256={"other": self.digest(fit)})


class TestCoverage:
    def test_missing_and_surplus_weights_are_named(self, fit):
        names = [name for name in checkups.fit_state() if name != "fc.bias"]
        error = refusal(fit, expect_keys=[*names, "fc2.weight"])
        assert "fc2.weight" in str(error)
        text = " ".join(finding.message for finding in error.report.findings)
        assert "fc.bias" in text
        assert preflight(fit, expect_keys=list(checkups.fit_state())).verdict.serve == "fit"


class TestServers:
    def test_errors_can_be_pickled_and_copied(self, unfit, tmp_path):
        for error in (refusal(unfit), puzzle(tmp_path / "gone.pt")):
            for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
                assert type(twin) is type(error)
                assert str(twin) == str(error)
                assert twin.message == error.message
                assert twin.report.findings == error.report.findings
                assert twin.report.verdict == error.report.verdict
        assert pickle.loads(pickle.dumps(refusal(unfit))).report.table["fc.bias"].shape == (4,)

    def test_report_can_be_pickled(self, fit):
        report = preflight(fit)
        twin = pickle.loads(pickle.dumps(report))
        assert twin.table == report.table
        assert dict(twin.stats) == dict(report.stats)
        assert report.table.files == ()

    def test_threads_do_not_disturb_each_other(self, tmp_path):
        files = [
            (checkups.unfit if number % 2 else checkups.fit)(tmp_path / f"{number}.safetensors")
            for number in range(8)
        ]
        found = {}

        def run(number):
            try:
                found[number] = preflight(files[number]).verdict.serve
            except UnfitCheckpointError as error:
                found[number] = error.report.verdict.serve

        threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found[number] for number in range(8)] == ["fit", "unfit"] * 4

    def test_event_loop_goes_on(self, fit, unfit, monkeypatch):
        examined = scanning.look

        def slow(*given):
            time.sleep(0.3)
            return examined(*given)

        monkeypatch.setattr(scanning, "look", slow)

        async def main():
            task = asyncio.create_task(apreflight(fit, fail_on="warning"))
            ticks = 0
            while not task.done():
                await asyncio.sleep(0.01)
                ticks += 1
            with pytest.raises(UnfitCheckpointError):
                await apreflight(unfit)
            with pytest.raises(UsageError):
                await apreflight(fit, fail_on="no")
            return ticks, await task

        ticks, report = asyncio.run(main())
        assert ticks > 5
        assert report.verdict.serve == "fit"

    def test_it_imports_no_framework(self, fit, tmp_path):
        code = (
            "import sys\nfrom ckptdoctor.serving.gate import preflight\n"
            f"preflight({str(fit)!r}, cache={str(tmp_path / 'cache')!r})\n"
            f"assert preflight({str(fit)!r}, cache={str(tmp_path / 'cache')!r}).cached\n"
            "print(*sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        heavy = {b"torch", b"tensorflow", b"keras", b"transformers", b"h5py", b"asyncio"}
        assert not heavy & set(done.stdout.split())
        assert done.stderr == b""

    def test_cache_may_be_a_folder_or_an_object(self, fit, tmp_path):
        folder = tmp_path / "cache"
        assert not preflight(fit, cache=folder).cached
        assert preflight(fit, cache=str(folder)).cached
        assert preflight(fit, cache=VerdictCache(folder)).cached

    def test_verdict_from_the_cache_reads_the_same(self, unfit, tmp_path):
        texts, reports = [], []
        for _ in range(2):
            error = refusal(unfit, cache=tmp_path / "cache")
            texts.append(str(error))
            reports.append(error.report)
        assert texts[0] == texts[1]
        assert [report.cached for report in reports] == [False, True]
        from ckptdoctor.report import FORMATS, renderer
        from ckptdoctor.results import View

        for kind in FORMATS:
            pages = ["".join(renderer(kind)([report], View(tensors="all"))) for report in reports]
            assert pages[0] == pages[1]
        assert json.loads(pages[1])["reports"][0]["verdict"]["serve"] == "unfit"


class TestNothingToServe:
    def written(self, path, **tensors):
        from safetensors.numpy import save_file

        save_file(tensors, path)
        return path

    def test_optimizer_alone_is_unfit_to_serve_and_not_to_resume(self, tmp_path):
        path = self.written(tmp_path / "o.safetensors", **{"optimizer.exp_avg": np.ones(4, "f4")})
        assert "only tensors of the optimizer, and no weights" in str(refusal(path))
        assert preflight(path, purpose="resume").verdict.resume == "fit"

    def test_file_without_tensors_is_unfit_to_serve(self, tmp_path):
        assert "no tensors, and no weights" in str(
            refusal(self.written(tmp_path / "e.safetensors"))
        )
