"""Drafts: hidden, locked, removed when their process is gone, renamed or without a trace."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import write_helpers as wh

from ckptdoctor.errors import WriteError
from ckptdoctor.write.draft import Draft, draft_name, flush_folder, remove_leftovers


@pytest.fixture
def target(tmp_path):
    return tmp_path / "model.pt"


@pytest.fixture(scope="module")
def dead():
    return wh.dead_process()


@pytest.fixture
def alive():
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


def fails(number):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


class TestWriting:
    def test_a_draft_takes_its_targets_place(self, target):
        target.write_bytes(b"old")
        with Draft(target) as draft:
            draft.write(2, b"cd")
            draft.write(0, b"ab")
            draft.flush(0o640)
            assert (target.read_bytes(), draft.published) == (b"old", False)
            draft.publish()
            assert draft.published
        assert target.read_bytes() == b"abcd"
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
        assert wh.names(target.parent) == ["model.pt"]

    def test_without_publishing_no_trace_is_left(self, target):
        target.write_bytes(b"old")
        with Draft(target) as draft:
            draft.write(0, b"new")
        assert target.read_bytes() == b"old"
        assert wh.names(target.parent) == ["model.pt"]
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(draft.fd)

    def test_nobody_else_may_read_it_before_it_has_its_mode(self, target):
        with Draft(target) as draft:
            assert stat.S_IMODE(draft.path.stat().st_mode) == 0o600
            assert stat.S_ISREG(draft.path.stat().st_mode)

    def test_it_can_be_cut(self, target):
        with Draft(target) as draft:
            draft.write(0, b"abcdef")
            draft.truncate(2)
            assert draft.path.read_bytes() == b"ab"

    def test_short_writes_are_continued(self, target, monkeypatch):
        write = os.write
        monkeypatch.setattr(os, "write", lambda fd, part: write(fd, part[:2]))
        with Draft(target) as draft:
            draft.write(1, b"abcde")
            assert draft.path.read_bytes() == b"\0abcde"

    @pytest.mark.parametrize(
        ("call", "act", "said"),
        [
            ("write", lambda d: d.write(0, b"x"), "written"),
            ("lseek", lambda d: d.write(0, b"x"), "written"),
            ("ftruncate", lambda d: d.truncate(0), "cut"),
            ("fsync", lambda d: d.flush(0o600), "flushed"),
            ("chmod", lambda d: d.flush(0o600), "flushed"),
            ("replace", lambda d: d.publish(), "renamed"),
            ("close", lambda d: d.publish(), "renamed"),
        ],
    )
    def test_what_the_system_refuses_leaves_nothing(self, target, monkeypatch, call, act, said):
        target.write_bytes(b"old")
        with Draft(target) as draft, monkeypatch.context() as patch:
            patch.setattr(os, call, fails(errno.ENOSPC))
            with pytest.raises(WriteError) as caught:
                act(draft)
            text = f"{target}: could not be {said}: No space left on device; nothing was changed"
            assert str(caught.value) == f"{text}; -o writes elsewhere"
            assert not draft.published
        assert wh.names(target.parent) == ["model.pt"]
        assert target.read_bytes() == b"old"

    def test_a_flush_that_fails_beside_the_caller_stops_the_next_step(self, target, monkeypatch):
        target.write_bytes(b"old")
        for act in (lambda d: d.publish(), lambda d: d.truncate(0), lambda d: d.flush(0o600)):
            with Draft(target) as draft, monkeypatch.context() as patch:
                patch.setattr(os, "fsync", fails(errno.EIO))
                draft.flush(0o600, wait=False)
                with pytest.raises(WriteError, match="could not be flushed: Input/output error"):
                    act(draft)
        assert target.read_bytes() == b"old"
        assert wh.names(target.parent) == ["model.pt"]

    def test_a_flush_that_nobody_waits_for_leaves_nothing(self, target, monkeypatch):
        monkeypatch.setattr(os, "fsync", fails(errno.EIO))
        with Draft(target) as draft:
            draft.flush(0o600, wait=False)
        assert wh.names(target.parent) == []

    def test_a_folder_that_takes_no_file_is_named(self, target, monkeypatch):
        monkeypatch.setattr(os, "open", fails(errno.EROFS))
        with pytest.raises(WriteError, match="takes no new file: Read-only file system") as caught:
            Draft(target)
        assert caught.value.where == str(target.parent)

    def test_a_folder_flush_that_fails_leaves_the_new_file(self, target, monkeypatch):
        with Draft(target) as draft:
            draft.write(0, b"new")
            monkeypatch.setattr("ckptdoctor.write.draft.os.fsync", fails(errno.EIO))
            with pytest.raises(WriteError, match="the file is complete, but its folder"):
                draft.publish()
            assert draft.published
        assert target.read_bytes() == b"new"
        assert wh.names(target.parent) == ["model.pt"]


class TestFolderFlush:
    def test_a_folder_that_is_not_there_is_a_failure(self, tmp_path):
        flush_folder(tmp_path)
        with pytest.raises(WriteError, match="could not be flushed: No such file"):
            flush_folder(tmp_path / "gone")

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
    def test_a_file_system_that_cannot_flush_folders_has_not_failed(
        self, tmp_path, monkeypatch, number
    ):
        monkeypatch.setattr(os, "fsync", fails(number))
        flush_folder(tmp_path)

    def test_the_folder_is_flushed_behind_the_rename(self, target, monkeypatch):
        calls = []
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(
            os, "fsync", lambda fd: (calls.append(stat.S_ISDIR(os.fstat(fd).st_mode)), fsync(fd))
        )
        monkeypatch.setattr(os, "replace", lambda *a: (calls.append("renamed"), replace(*a)))
        with Draft(target) as draft:
            draft.flush(0o600)
            draft.publish()
        assert calls == [False, "renamed", True]


class TestNames:
    def test_a_draft_is_hidden_beside_its_target(self, target):
        with Draft(target) as draft:
            assert draft.path.parent == target.parent
            assert draft.path.name.startswith(f".model.pt.{os.getpid()}-")
            assert draft.path.name.endswith(".ckptdoctor")

    def test_two_drafts_have_two_names(self, target):
        with Draft(target) as one, Draft(target) as two:
            assert one.path != two.path

    @pytest.mark.parametrize(
        "name",
        [
            "x" * 255,
            "\N{SNOWMAN}" * 85,
            "a" + "\N{SNOWMAN}" * 84,
            "\udcff" * 255,
            "new\nline\x1b[0m",
        ],
        ids=["long", "three bytes a letter", "cut within a letter", "no UTF-8", "control"],
    )
    def test_any_name_that_a_file_can_have_has_a_draft(self, tmp_path, name, dead):
        target = tmp_path / name
        target.write_bytes(b"old")
        with Draft(target) as draft:
            draft.write(0, b"new")
            draft.publish()
        assert target.read_bytes() == b"new"
        left = tmp_path / draft_name(target).replace(str(os.getpid()), str(dead))
        left.touch()
        remove_leftovers(target)
        assert wh.names(tmp_path) == [name]

    def test_180_bytes_of_a_name_are_kept(self):
        pid = len(str(os.getpid()))
        assert len(draft_name(Path("x" * 180))) == 1 + 180 + 1 + pid + 1 + 8 + 11
        assert len(draft_name(Path("x" * 181))) == 1 + 180 + 1 + pid + 1 + 8 + 11


class TestLeftovers:
    def leave(self, target, process, token="0123abcd", name=None):
        path = target.with_name(f".{name or target.name}.{process}-{token}.ckptdoctor")
        path.write_bytes(b"left")
        return path

    def test_what_a_dead_process_left_is_removed(self, target, dead):
        path = self.leave(target, dead)
        path.chmod(0o400)
        remove_leftovers(target)
        assert not path.exists()

    def test_folders_of_dead_processes_are_removed(self, target, dead):
        path = target.with_name(f".model.pt.{dead}-0123abcd.ckptdoctor")
        (path / "in").mkdir(parents=True)
        (path / "in" / "file").touch()
        remove_leftovers(target)
        assert not path.exists()

    def test_what_is_no_draft_of_a_dead_process_stays(self, target, dead, alive):
        kept = [
            self.leave(target, alive),
            self.leave(target, dead, token="0123abc"),
            self.leave(target, dead, token="0123abcde"),
            self.leave(target, 1234567890),
            self.leave(target, "x"),
            self.leave(target, ""),
            self.leave(target, dead, name="other.pt"),
            self.leave(target, dead, name="model.pt.orig"),
            target.with_name(f".model.pt.{dead}-0123abcd.ckptdoctor.bak"),
            target.with_name(f"model.pt.{dead}-0123abcd.ckptdoctor"),
        ]
        for path in kept:
            path.touch()
        remove_leftovers(target)
        assert all(path.exists() for path in kept)
        assert len(kept) == len(wh.names(target.parent))

    @pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
    def test_draft_of_another_thread_stays_before_it_is_locked(self, target, make):
        path = target.with_name(draft_name(target))
        make(path)
        remove_leftovers(target)
        assert path.exists()

    def test_the_largest_number_of_a_process_is_understood(self, target):
        path = self.leave(target, 999999999)
        remove_leftovers(target)
        assert not path.exists()

    def test_a_process_is_asked_for_and_not_disturbed(self, target, monkeypatch):
        asked = []
        monkeypatch.setattr(os, "kill", lambda *args: asked.append(args))
        kept = self.leave(target, 77)
        remove_leftovers(target)
        assert kept.exists()
        assert asked == [(77, 0)]

    @pytest.mark.parametrize("made", [os.mkfifo, os.mkdir])
    def test_what_has_the_name_and_is_no_file_does_not_stop_us(self, target, dead, made):
        path = target.with_name(f".model.pt.{dead}-0123abcd.ckptdoctor")
        made(path)
        remove_leftovers(target)
        assert not path.exists()

    def test_processes_of_others_are_alive(self, target, monkeypatch):
        path = self.leave(target, 77)
        monkeypatch.setattr(os, "kill", fails(errno.EPERM))
        remove_leftovers(target)
        assert path.exists()
        monkeypatch.setattr(os, "kill", fails(errno.ESRCH))
        remove_leftovers(target)
        assert not path.exists()

    def test_a_locked_draft_stays(self, target, dead):
        """Its process may live in another container, where numbers say nothing."""
        with Draft(target) as draft:
            path = target.with_name(draft.path.name.replace(str(os.getpid()), str(dead)))
            draft.path.rename(path)
            remove_leftovers(target)
            assert path.exists()
        remove_leftovers(target)
        assert not path.exists()

    def test_of_drafts_with_our_own_number_the_lock_decides(self, target):
        """In a container every run may be process 1."""
        left = self.leave(target, os.getpid())
        with Draft(target) as draft:
            remove_leftovers(target)
            assert draft.path.exists()
            assert not left.exists()

    def test_a_link_is_not_followed(self, target, dead):
        elsewhere = target.with_name("mine")
        elsewhere.mkdir()
        (elsewhere / "precious").touch()
        path = target.with_name(f".model.pt.{dead}-0123abcd.ckptdoctor")
        path.symlink_to(elsewhere)
        remove_leftovers(target)
        assert (elsewhere / "precious").exists()

    def test_without_locks_the_number_decides(self, target, dead, monkeypatch):
        path = self.leave(target, dead)
        monkeypatch.setitem(sys.modules, "fcntl", None)
        with Draft(target):
            remove_leftovers(target)
        assert not path.exists()

    def test_a_draft_is_made_where_locks_fail(self, target, monkeypatch):
        fcntl = pytest.importorskip("fcntl")
        monkeypatch.setattr(fcntl, "flock", fails(errno.ENOLCK))
        with Draft(target) as draft:
            draft.publish()
        assert target.exists()

    def test_a_folder_that_cannot_be_listed_is_no_failure(self, target, monkeypatch, dead):
        remove_leftovers(target.parent / "gone" / "model.pt")
        path = self.leave(target, dead)
        monkeypatch.setattr(Path, "unlink", fails(errno.EACCES))
        remove_leftovers(target)
        assert path.exists()
