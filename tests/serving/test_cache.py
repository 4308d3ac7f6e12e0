"""The cache of verdicts: what it believes, who scans, and that it never makes unfit fit."""

import dataclasses
import hashlib
import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import checkups
import numpy as np
import pytest

from ckptdoctor.config import Settings
from ckptdoctor.errors import UncheckedCheckpointError, UnfitCheckpointError, UsageError
from ckptdoctor.results import Exemption, Wishes
from ckptdoctor.serving import cache as module
from ckptdoctor.serving import folder as folders
from ckptdoctor.serving import scanning
from ckptdoctor.serving.cache import Shelf, VerdictCache, key_document, opened, patience
from ckptdoctor.serving.folder import PrivateFolder, UntrustedError
from ckptdoctor.serving.gate import preflight
from ckptdoctor.serving.identity import Identity

HERE = Path(__file__).resolve().parents[1]


@pytest.fixture
def fit(tmp_path):
    return checkups.fit(tmp_path / "m.safetensors")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def scans(monkeypatch):
    """Paths in the order in which they were scanned."""
    examined, seen = scanning.look, []

    def counted(path, *more):
        seen.append(path)
        return examined(path, *more)

    monkeypatch.setattr(scanning, "look", counted)
    return seen


def grade(path, **terms):
    """Verdict, and whether it was known."""
    try:
        report = preflight(path, **terms)
    except UnfitCheckpointError as error:
        return "unfit", error.report.cached
    return "fit", report.cached


def entries(cache):
    return sorted(cache.glob("*.json"))


def rewritten(entry, change):
    """Change the body of an entry, and put its checksum right."""
    _, text, _ = entry.read_bytes().split(b"\n")
    body = json.loads(text)
    change(body)
    text = json.dumps(body).encode()
    head = {"schema": 1, "sha256": hashlib.sha256(text).hexdigest()}
    entry.write_bytes(json.dumps(head).encode() + b"\n" + text + b"\n")


class TestKnown:
    def test_second_time_nothing_is_scanned(self, fit, cache, scans):
        assert grade(fit, cache=cache) == ("fit", False)
        assert grade(fit, cache=cache) == ("fit", True)
        assert len(scans) == 1

    def test_unfit_is_known_too(self, tmp_path, cache, scans):
        file = checkups.unfit(tmp_path / "m.pt")
        assert grade(file, cache=cache) == ("unfit", False)
        assert grade(file, cache=cache) == ("unfit", True)
        assert len(scans) == 1

    def test_what_could_not_be_checked_is_not(self, tmp_path, cache, scans):
        file = tmp_path / "m.pt"
        file.write_bytes(b"<html>")
        for _ in range(2):
            with pytest.raises(UncheckedCheckpointError):
                preflight(file, cache=cache)
        assert len(scans) == 2
        assert entries(cache) == []

    def test_file_that_becomes_unfit_is_unfit_and_back(self, fit, cache):
        assert grade(fit, cache=cache) == ("fit", False)
        checkups.unfit(fit)
        assert grade(fit, cache=cache) == ("unfit", False)
        assert grade(fit, cache=cache) == ("unfit", True)
        checkups.fit(fit)
        assert grade(fit, cache=cache) == ("fit", False)

    @pytest.mark.parametrize("key", ["stat", "content"])
    def test_changed_byte_is_seen_with_size_and_time_restored(self, fit, cache, key):
        verdicts = VerdictCache(cache, key)
        assert grade(fit, cache=verdicts) == ("fit", False)
        before = fit.stat()
        data = bytearray(fit.read_bytes())
        variance = checkups.fit_state()["bn3.running_var"].tobytes()
        data[data.index(variance) + 3] = 0x7F  # 1e38, Inf or NaN
        with fit.open("r+b") as stream:
            stream.write(data)
        os.utime(fit, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = fit.stat()
        assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
            before.st_size, before.st_mtime_ns, before.st_ino,
        )  # fmt: skip
        assert grade(fit, cache=verdicts) == ("unfit", False)

    def test_write_through_a_mapping_is_seen(self, tmp_path, cache):
        weights = np.linspace(-1, 1, 1 << 18, dtype=np.float32).reshape(512, 512)
        file = checkups.save_safetensors(tmp_path / "m.safetensors", {"fc.weight": weights})
        at = file.stat().st_size - weights.nbytes // 2  # in no sample
        with file.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapping:

            def times():
                os.fsync(stream.fileno())
                time.sleep(0.02)
                mapping[at] = mapping[at]  # from here on the kernel lets this page be written to
                return file.stat().st_ctime_ns

            if times() == times():
                pytest.skip("a file system in memory")
            assert grade(file, cache=cache) == ("fit", False)
            mapping[at : at + 4] = np.float32(np.nan).tobytes()
        assert grade(file, cache=cache) == ("unfit", False)

    def test_names_that_can_be_read_once_are_kept(self, fit, cache):
        for known in (False, True):
            assert grade(fit, cache=cache, expect_keys=iter(checkups.fit_state())) == ("fit", known)

    def test_changed_shard_is_seen(self, tmp_path, cache):
        folder = checkups.save_set(tmp_path / "set", checkups.fit_state())
        assert grade(folder, cache=cache) == ("fit", False)
        assert grade(folder, cache=cache) == ("fit", True)
        (folder / "model-00001-of-00002.safetensors").unlink()
        assert grade(folder, cache=cache) == ("unfit", False)

    def test_copy_elsewhere_is_known_by_content_alone(self, fit, cache):
        for key, known in (("content", True), ("stat", False)):
            assert grade(fit, cache=VerdictCache(cache, key))[0] == "fit"
            copy = fit.with_name("copy")
            copy.write_bytes(fit.read_bytes())
            copy.replace(fit)
            assert grade(fit, cache=VerdictCache(cache, key)) == ("fit", known)

    @pytest.mark.parametrize(
        "terms",
        [
            {"purpose": "resume"},
            {"weights": "model"},
            {"cast_to": "float16"},
            {"config": Settings(select=("BN",))},
            {"config": Settings(ignore=("BN",))},
            {"config": Settings(thresholds={"BN003": {"limit": 500}})},
            {"config": Settings(exempt=(Exemption(tensor="x", reason="y"),))},
            {"config": Settings(file="x.toml")},
            {"trust_hdf5": True},
            {"expect_keys": list(checkups.fit_state())},
        ],
        ids=lambda terms: next(iter(terms)),
    )
    def test_other_settings_are_another_verdict(self, fit, cache, terms):
        assert grade(fit, cache=cache) == ("fit", False)
        assert grade(fit, cache=cache, **terms) == ("fit", False)
        assert grade(fit, cache=cache, **terms) == ("fit", True)

    def test_limits_are_applied_to_what_is_known(self, tmp_path, cache):
        file = checkups.unfit(tmp_path / "m.pt")
        assert grade(file, cache=cache, fail_on="never") == ("fit", False)
        assert grade(file, cache=cache) == ("unfit", True)
        file = checkups.unsafe(tmp_path / "u.pt")
        assert grade(file, cache=cache, allow_unsafe_load=True) == ("fit", False)
        assert grade(file, cache=cache) == ("unfit", True)

    def test_other_version_is_another_verdict(self, fit, cache, monkeypatch):
        assert grade(fit, cache=cache) == ("fit", False)
        monkeypatch.setattr(module, "__version__", "0.0.1")
        assert grade(fit, cache=cache) == ("fit", False)

    def test_expected_names_in_a_file_are_read_anew(self, fit, cache, tmp_path):
        names = tmp_path / "names.txt"
        names.write_text("\n".join(checkups.fit_state()))
        assert grade(fit, cache=cache, expect_keys=names) == ("fit", False)
        assert grade(fit, cache=cache, expect_keys=names) == ("fit", True)
        names.write_text("\n".join([*checkups.fit_state(), "more.weight"]))
        assert grade(fit, cache=cache, expect_keys=names) == ("unfit", False)

    def test_digest_is_remembered_with_the_verdict(self, fit, cache, scans, monkeypatch):
        digest = hashlib.sha256(fit.read_bytes()).hexdigest()
        assert grade(fit, cache=cache) == ("fit", False)
        assert grade(fit, cache=cache, expect_sha256="0" * 64) == ("unfit", True)
        monkeypatch.setattr(scanning, "digests_of", None)
        assert grade(fit, cache=cache, expect_sha256=digest) == ("fit", True)
        assert grade(fit, cache=cache, expect_sha256="0" * 64) == ("unfit", True)
        assert grade(fit, cache=cache) == ("fit", True)
        assert len(scans) == 1

    def test_digest_of_the_scan_is_remembered(self, fit, cache, monkeypatch):
        digest = hashlib.sha256(fit.read_bytes()).hexdigest()
        monkeypatch.setattr(scanning, "digests_of", None)
        assert grade(fit, cache=cache, expect_sha256=digest) == ("fit", False)
        assert grade(fit, cache=cache, expect_sha256="0" * 64) == ("unfit", True)

    def test_every_wish_counts(self):
        others = {
            "purpose": "resume", "weights": "ema", "select": ("NF",), "ignore": ("NF",),
            "tensors": ("w",), "cast_to": "float16", "thresholds": {"BN003": {"limit": 2}},
            "exempt": (Exemption(tensor="w", reason="r", codes=("NF",)),), "trust_hdf5": True,
            "settings": "x.toml",
        }  # fmt: skip
        assert set(others) == {field.name for field in dataclasses.fields(Wishes)}
        plain = key_document({}, Wishes(), "")
        for name, value in others.items():
            assert key_document({}, Wishes(**{name: value}), "") != plain, name
        assert key_document({}, Wishes(), "x") != plain
        assert key_document({"path": ""}, Wishes(), "") != plain


class TestHostile:
    def test_entry_is_private_and_json(self, fit, cache):
        preflight(fit, cache=cache)
        (entry,) = entries(cache)
        assert cache.stat().st_mode & 0o777 == 0o700
        assert entry.stat().st_mode & 0o777 == 0o600
        for line in entry.read_text().splitlines():
            json.loads(line)
        assert not list(cache.glob(".tmp-*"))

    @pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
    def test_truncated_entry_is_scanned_again(self, fit, cache, share, caplog):
        preflight(fit, cache=cache)
        (entry,) = entries(cache)
        entry.write_bytes(entry.read_bytes()[: int(share * entry.stat().st_size)])
        assert grade(fit, cache=cache) == ("fit", False)
        assert [record.message for record in caplog.records] == [
            f"{cache}: {entry.name} is damaged; the checkpoint is scanned"
        ]
        assert grade(fit, cache=cache) == ("fit", True)

    def test_flipped_bits_never_make_it_fit(self, tmp_path, cache):
        file = checkups.unfit(tmp_path / "m.safetensors")
        grade(file, cache=cache)
        (entry,) = entries(cache)
        whole = entry.read_bytes()
        for at in range(0, len(whole), len(whole) // 50):
            for bit in (1, 16):
                data = bytearray(whole)
                data[at] ^= bit
                entry.write_bytes(data)
                assert grade(file, cache=cache)[0] == "unfit"

    @pytest.mark.parametrize(
        "data",
        [b"", b"\n\n", b"null\nnull\n", b"{}\n{}\n", b"[" * 100_000, b"\xff\xfe", b'{"schema": 1}',
         b"1" * 10_000, b'{"schema": 1, "sha256": null}\n{}\n'],
        ids=["empty", "lines", "null", "objects", "deep", "binary", "head", "number", "digest"],
    )  # fmt: skip
    def test_foreign_entry_is_scanned_again(self, fit, cache, data):
        preflight(fit, cache=cache)
        (entry,) = entries(cache)
        entry.write_bytes(data)
        assert grade(fit, cache=cache) == ("fit", False)

    def test_entry_with_something_behind_it_is_scanned_again(self, fit, cache):
        preflight(fit, cache=cache)
        (entry,) = entries(cache)
        entry.write_bytes(entry.read_bytes() + b"{}")
        assert grade(fit, cache=cache) == ("fit", False)

    def test_no_edit_of_a_key_makes_unfit_fit(self, tmp_path, cache):
        """Entry of a healthy file under the name of a sick one, whatever its key says."""
        fit = checkups.fit(tmp_path / "fit.safetensors")
        unfit = checkups.unfit(tmp_path / "unfit.safetensors")
        grade(unfit, cache=cache)
        (sick,) = entries(cache)
        right = json.loads(sick.read_bytes().split(b"\n")[1])["key"]
        grade(fit, cache=cache)
        (well,) = (entry for entry in entries(cache) if entry != sick)
        wrong = json.loads(well.read_bytes().split(b"\n")[1])["key"]

        def parts(key):
            yield from key
            for name in key["identity"]:
                yield "identity", name

        for part in parts(right):
            sick.write_bytes(well.read_bytes())
            if isinstance(part, tuple):
                changed = {**right, "identity": {**right["identity"], part[1]: "other"}}
            else:
                changed = {**right, part: wrong[part] if part == "identity" else "other"}
            rewritten(sick, lambda body, changed=changed: body.update(key=changed))
            assert grade(unfit, cache=cache) == ("unfit", False), part
        sick.write_bytes(well.read_bytes())
        assert grade(unfit, cache=cache) == ("unfit", False)

    def test_edited_verdict_is_no_entry(self, tmp_path, cache):
        file = checkups.unfit(tmp_path / "m.safetensors")
        grade(file, cache=cache)
        (entry,) = entries(cache)
        text = entry.read_text()
        entry.write_text(text.replace('"severity": 3', '"severity": 1').replace("unfit", "fit"))
        assert grade(file, cache=cache) == ("unfit", False)

    @pytest.mark.parametrize(
        "change",
        [
            lambda body: body.update(report=None),
            lambda body: body["report"].update(verdict=["safe", "well", "fit"]),
            lambda body: body["report"].pop("findings"),
            lambda body: body.update(digests=[]),
            lambda body: body.pop("key"),
        ],
        ids=["nothing", "word", "part", "digests", "key"],
    )
    def test_entry_of_another_kind_is_scanned_again(self, fit, cache, change):
        preflight(fit, cache=cache)
        (entry,) = entries(cache)
        rewritten(entry, change)
        assert grade(fit, cache=cache) == ("fit", False)

    @pytest.mark.parametrize("mode", [0o620, 0o602])
    def test_entry_that_others_may_write_is_not_believed(self, fit, cache, mode, caplog):
        preflight(fit, cache=cache)
        (entry,) = entries(cache)
        entry.chmod(mode)
        assert grade(fit, cache=cache) == ("fit", False)
        (record,) = caplog.records
        assert "the cache is not trusted" in record.message
        assert "may have been written by others" in record.message
        assert grade(fit, cache=cache) == ("fit", True)

    def test_entry_of_another_user_is_not_believed(self, fit, cache, monkeypatch):
        preflight(fit, cache=cache)
        (entry,) = entries(cache)
        if os.getuid() == 0:
            os.chown(entry, 12345, -1)
            assert grade(fit, cache=cache) == ("fit", False)
        else:
            monkeypatch.setattr(os, "getuid", lambda: 12345)
            assert grade(fit, cache=cache) == ("fit", False)

    @pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
    def test_entry_that_is_no_file_is_not_believed(self, fit, cache, tmp_path, kind):
        preflight(fit, cache=cache)
        (entry,) = entries(cache)
        if kind == "link":
            entry.rename(tmp_path / "elsewhere")
            entry.symlink_to(tmp_path / "elsewhere")
        else:
            entry.unlink()
            os.mkfifo(entry) if kind == "pipe" else entry.mkdir()
        assert grade(fit, cache=cache) == ("fit", False)

    def test_entry_without_measure_is_not_read(self, fit, cache, monkeypatch):
        preflight(fit, cache=cache)
        (entry,) = entries(cache)
        size = entry.stat().st_size
        monkeypatch.setattr(folders, "_MAX_BYTES", size - 1)
        assert grade(fit, cache=cache) == ("fit", False)
        monkeypatch.setattr(folders, "_MAX_BYTES", size)
        assert grade(fit, cache=cache) == ("fit", True)

    @pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777, 0o2775, 0o702])
    def test_in_a_folder_that_others_may_write_to_only_our_own_counts(self, fit, cache, mode):
        preflight(fit, cache=cache)
        cache.chmod(mode)
        assert grade(fit, cache=cache) == ("fit", False)
        own = cache / f"ckptdoctor-{os.getuid()}"
        assert own.stat().st_mode & 0o777 == 0o700
        assert grade(fit, cache=cache) == ("fit", True)
        own.chmod(0o777)
        assert grade(fit, cache=cache) == ("fit", False)
        assert grade(fit, cache=cache) == ("fit", False)

    def test_planted_folder_is_not_followed(self, fit, cache, tmp_path, caplog):
        cache.mkdir()
        cache.chmod(0o777)
        (tmp_path / "elsewhere").mkdir()
        (cache / f"ckptdoctor-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
        assert grade(fit, cache=cache) == ("fit", False)
        assert grade(fit, cache=cache) == ("fit", False)
        assert len(caplog.records) == 2
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_folder_of_another_user_is_not_used(self, fit, cache, monkeypatch, caplog):
        cache.mkdir(0o755)
        if os.getuid() == 0:
            os.chown(cache, 12345, -1)
        else:
            monkeypatch.setattr(os, "getuid", lambda: 12345)
        assert grade(fit, cache=cache) == ("fit", False)
        (record,) = caplog.records
        assert "belongs to another user" in record.message
        assert list(cache.iterdir()) == []


class TestUnusable:
    @pytest.mark.parametrize("place", ["file", "file/below", "nul\0"])
    def test_no_folder_means_scanning_and_one_line(self, fit, tmp_path, place, caplog):
        (tmp_path / "file").write_text("")
        assert grade(fit, cache=tmp_path / place) == ("fit", False)
        (record,) = caplog.records
        assert record.name == "ckptdoctor"
        assert "the cache cannot be used" in record.message

    def test_folder_that_takes_nothing_is_still_read(self, fit, cache, monkeypatch, caplog):
        def full(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(PrivateFolder, "write", full)
            assert grade(fit, cache=cache) == ("fit", False)
            assert grade(fit, cache=cache) == ("fit", False)
        assert [record.message for record in caplog.records] == [
            f"{cache}: the cache cannot be written: No space left on device"
        ] * 2
        assert grade(fit, cache=cache) == ("fit", False)
        caplog.clear()
        monkeypatch.setattr(PrivateFolder, "write", full)
        monkeypatch.setattr(PrivateFolder, "lock", full)
        assert grade(fit, cache=cache) == ("fit", True)
        assert grade(fit, cache=cache, purpose="resume") == ("fit", False)
        assert len(caplog.records) == 1

    def test_entry_that_cannot_be_read(self, fit, cache, monkeypatch, caplog):
        def broken(*_):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(PrivateFolder, "read", broken)
        assert grade(fit, cache=cache) == ("fit", False)
        assert "the cache cannot be read: Input/output error" in caplog.records[0].message
        assert len(caplog.records) == 1

    def test_failed_write_leaves_nothing(self, tmp_path, monkeypatch):
        with PrivateFolder(str(tmp_path / "cache")) as folder:
            monkeypatch.setattr(os, "replace", None)
            with pytest.raises(TypeError):
                folder.write("a.json", b"x")
        assert list((tmp_path / "cache").iterdir()) == []

    def test_parents_are_made(self, fit, tmp_path):
        assert grade(fit, cache=tmp_path / "a/b/c") == ("fit", False)
        assert grade(fit, cache=tmp_path / "a/b/c") == ("fit", True)

    def test_slash_at_the_end_changes_nothing(self, fit, tmp_path):
        assert grade(fit, cache=f"{tmp_path}/verdicts/") == ("fit", False)
        assert (tmp_path / "verdicts").stat().st_mode & 0o777 == 0o700

    def test_relative_folder(self, fit, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert grade(fit, cache="verdicts") == ("fit", False)
        assert grade(fit, cache=tmp_path / "verdicts") == ("fit", True)

    def test_numbers_without_measure_are_not_kept(self, fit, cache, monkeypatch, caplog):
        monkeypatch.setattr(module, "as_document", lambda _: 10**5000)
        assert grade(fit, cache=cache) == ("fit", False)
        assert "numbers without measure" in caplog.records[0].message
        assert entries(cache) == []

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"folder": ""}, "the path of a folder, found ''"),
            ({"folder": None}, "the path of a folder, found None"),
            ({"folder": "x", "key": "mtime"}, "stat or content, found 'mtime'"),
            ({"folder": "x", "wait": -1}, "wait to be seconds, found -1"),
            ({"folder": "x", "wait": "1"}, "wait to be seconds, found '1'"),
        ],
    )
    def test_cache_that_makes_no_sense(self, given, message):
        with pytest.raises(UsageError, match=message):
            VerdictCache(**given)
        assert VerdictCache("x", wait=0).wait == 0


class TestTidiness:
    def test_oldest_entries_go(self, tmp_path, monkeypatch):
        monkeypatch.setattr(folders, "_MAX_FILES", 3)
        with PrivateFolder(str(tmp_path)) as folder:
            for number in range(5):
                folder.write(f"{number}.json", b"x")
                os.utime(tmp_path / f"{number}.json", (number, number))
            (tmp_path / "lock-01").write_text("")
            folder.write("9.json", b"x")
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "3.json",
            "4.json",
            "9.json",
            "lock-01",
        ]

    def test_a_thousand_are_kept(self):
        assert folders._MAX_FILES == 1000

    def test_leftovers_of_killed_processes_go_after_an_hour(self, tmp_path):
        now = time.time()
        for name, age in ((".tmp-1", 3700), (".tmp-2", 3500), ("other", 9999)):
            (tmp_path / name).write_text("")
            os.utime(tmp_path / name, (now - age, now - age))
        with PrivateFolder(str(tmp_path)) as folder:
            folder.write("1.json", b"x")
        assert sorted(p.name for p in tmp_path.iterdir()) == [".tmp-2", "1.json", "other"]

    def test_locks_are_few(self, tmp_path, cache):
        with opened(VerdictCache(cache), Wishes(), print) as shelf:
            for number in range(300):
                with shelf.turn({"number": number}, 0):
                    pass
        assert 50 < len(list(cache.glob("lock-*"))) <= 64


class TestYoungFiles:
    def test_scan_waits_until_another_write_would_show(self, fit, cache, monkeypatch):
        slept = []
        sleep = time.sleep
        monkeypatch.setattr(scanning.time, "sleep", lambda s: (slept.append(s), sleep(s)))
        checkups.fit(fit)
        assert grade(fit, cache=cache) == ("fit", False)
        assert 0 < sum(slept) <= 2
        assert grade(fit, cache=cache) == ("fit", True)

    def test_without_a_cache_nobody_waits(self, fit, monkeypatch):
        monkeypatch.setattr(scanning.time, "sleep", None)
        assert grade(checkups.fit(fit)) == ("fit", False)

    def test_file_of_the_future_is_not_kept(self, fit, cache, monkeypatch, caplog):
        monkeypatch.setattr(scanning.time, "time", lambda: fit.stat().st_ctime - 1000)
        monkeypatch.setattr(scanning.time, "sleep", None)
        assert grade(fit, cache=cache) == ("fit", False)
        assert entries(cache) == []
        assert "its times are in the future" in caplog.records[0].message

    @pytest.mark.parametrize("part", ["holds", "unhashed"])
    def test_verdict_on_other_bytes_is_not_kept(self, fit, cache, monkeypatch, part):
        monkeypatch.setattr(Identity, part, lambda *_: False)
        assert grade(fit, cache=cache) == ("fit", False)
        assert entries(cache) == []

    def test_verdict_by_expectations_that_change_meanwhile_is_not_kept(
        self, fit, cache, monkeypatch, tmp_path
    ):
        names = tmp_path / "names.txt"
        names.write_text("\n".join(checkups.fit_state()))
        examined = scanning.look

        def edited(*given):
            report = examined(*given)
            names.write_text("fc.bias")
            return report

        monkeypatch.setattr(scanning, "look", edited)
        assert grade(fit, cache=cache, expect_keys=names) == ("fit", False)
        assert entries(cache) == []

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_verdict_on_a_file_that_changes_meanwhile_is_not_kept(
        self, fit, cache, monkeypatch, when, caplog
    ):
        examined, todo = scanning.look, [when]

        def moved(path, *more):
            now = todo.pop() if todo else ""
            if now == "before":
                checkups.fit(Path(path))
            report = examined(path, *more)
            if now == "after":
                Path(path).chmod(0o600)
            return report

        monkeypatch.setattr(scanning, "look", moved)
        assert grade(fit, cache=cache) == ("fit", False)
        assert entries(cache) == []
        assert "not kept in the cache" in caplog.records[0].message


CHILD = """
import sys, time, pathlib
from ckptdoctor.serving import scanning
from ckptdoctor.serving.cache import VerdictCache
from ckptdoctor.serving.gate import preflight
from ckptdoctor.serving.identity import Identity
examined = scanning.look
def slow(*given):
    print("scans", flush=True)
    time.sleep(float(sys.argv[3]))
    return examined(*given)
scanning.look = slow
print("ready", flush=True)
sys.stdin.readline()
print(preflight(sys.argv[1], cache=VerdictCache(sys.argv[2], wait=60)).cached, flush=True)
"""


class Replica:
    """A process that starts when told to."""

    def __init__(self, file, cache, seconds):
        arguments = [sys.executable, "-c", CHILD, str(file), str(cache), str(seconds)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            arguments, stdin=pipe, stdout=pipe, text=True, cwd=HERE.parent
        )

    def line(self):
        return self.process.stdout.readline().strip()

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def rest(self):
        return self.process.communicate(timeout=60)[0].split()


class TestReplicas:
    def test_twenty_that_start_at_once_scan_once(self, fit, cache):
        replicas = [Replica(fit, cache, 1) for _ in range(20)]
        assert {replica.line() for replica in replicas} == {"ready"}
        for replica in replicas:
            replica.go()
        told = [replica.rest() for replica in replicas]
        assert sorted(told) == [["True"]] * 19 + [["scans", "False"]]
        assert len(entries(cache)) == 1

    def test_next_one_takes_over_from_one_that_was_killed(self, fit, cache):
        killed, *others = [Replica(fit, cache, seconds) for seconds in (600, 0.5, 0.5)]
        for replica in (killed, *others):
            assert replica.line() == "ready"
        killed.go()
        assert killed.line() == "scans"
        for replica in others:
            replica.go()
        time.sleep(0.3)
        os.kill(killed.process.pid, signal.SIGKILL)
        killed.process.communicate()
        assert sorted(replica.rest() for replica in others) == [["True"], ["scans", "False"]]

    def test_threads_scan_once_too(self, fit, cache, monkeypatch):
        examined, scans, found = scanning.look, [], []

        def slow(*given):
            scans.append(1)
            time.sleep(0.3)
            return examined(*given)

        monkeypatch.setattr(scanning, "look", slow)
        threads = [
            threading.Thread(target=lambda: found.append(grade(fit, cache=cache))) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(scans) == 1
        assert sorted(found) == [("fit", False)] + [("fit", True)] * 5

    def test_nobody_waits_longer_than_asked(self, fit, cache, monkeypatch):
        examined, begun = scanning.look, threading.Event()

        def slow(*given):
            if not begun.is_set():
                begun.set()
                time.sleep(1)
            return examined(*given)

        monkeypatch.setattr(scanning, "look", slow)
        first = threading.Thread(target=grade, args=(fit,), kwargs={"cache": cache})
        first.start()
        begun.wait()
        start = time.monotonic()
        assert grade(fit, cache=VerdictCache(cache, wait=0.1)) == ("fit", False)
        assert time.monotonic() - start < 0.8
        first.join()

    def test_patience_grows_with_the_file(self):
        assert patience(0) == 30
        assert patience(500_000_000) == 40

    def test_those_behind_a_failure_do_not_queue(self, tmp_path, cache, monkeypatch):
        file = tmp_path / "m.pt"
        file.write_bytes(b"<html>")
        examined, starts, ends = scanning.look, [], []

        def slow(*given):
            starts.append(time.monotonic())
            time.sleep(0.5)
            ends.append(time.monotonic())
            return examined(*given)

        monkeypatch.setattr(scanning, "look", slow)

        def run():
            with pytest.raises(UncheckedCheckpointError):
                preflight(file, cache=cache)

        threads = [threading.Thread(target=run) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(starts) == 5
        assert max(starts[1:]) < sorted(ends)[1], "all but the first scan side by side"

    def test_word_of_an_old_failure_does_not_count(self, cache):
        key = {"number": 1}
        with opened(VerdictCache(cache), Wishes(), print) as shelf:
            with pytest.raises(RuntimeError), shelf.turn(key, 0):
                raise RuntimeError
            (lock,) = cache.glob("lock-*")
            assert lock.read_text()
            with shelf.turn(key, 0) as found:
                assert found is None
                assert lock.read_text() == ""

    def test_file_that_changes_while_one_waits_is_scanned(self, fit, cache, monkeypatch):
        examined, begun, order = scanning.look, threading.Event(), []

        def slow(*given):
            report = examined(*given)
            if not begun.is_set():
                begun.set()
                time.sleep(0.5)
            return report

        monkeypatch.setattr(scanning, "look", slow)
        put = Shelf.put

        def late(self, *given):
            if not order:
                order.append(1)
                checkups.unfit(fit)
            put(self, *given)

        monkeypatch.setattr(Shelf, "put", late)
        first = threading.Thread(target=grade, args=(fit,), kwargs={"cache": cache})
        first.start()
        begun.wait()
        assert grade(fit, cache=cache) == ("unfit", False)
        first.join()

    def test_without_locks_everyone_scans(self, fit, cache, monkeypatch):
        monkeypatch.setitem(sys.modules, "fcntl", None)
        assert grade(fit, cache=cache) == ("fit", False)
        assert grade(fit, cache=cache) == ("fit", True)


def test_untrusted_is_no_error_of_the_package():
    assert not issubclass(UntrustedError, OSError)
