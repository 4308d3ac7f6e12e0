"""The last step: what stands in the way, what is kept, and what a failure leaves."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import write_helpers as wh

from ckptdoctor.errors import ChangedError, CkptDoctorError, UsageError, WriteError
from ckptdoctor.formats import open_path
from ckptdoctor.write import writer

FIX = [wh.edit("a.weight", np.full(3, 0.5, "f4"), [0, 7, 599])]


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.safetensors"
    wh.safetensors(path)
    path.chmod(0o640)
    return path


def fails(number):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


def repaired(model):
    out = model.with_name("wanted")
    wh.write(model, FIX, out)
    data = out.read_bytes()
    out.unlink()
    return data


def during(monkeypatch, act):
    """Have something happen between the reading back and the rename."""
    check = writer.check_draft

    def checked(*args):
        found = check(*args)
        act()
        return found

    monkeypatch.setattr(writer, "check_draft", checked)


class TestExisting:
    def test_the_same_bytes_are_accepted_and_left(self, model, tmp_path):
        out = tmp_path / "out"
        wh.write(model, FIX, out)
        inode = out.stat().st_ino
        assert wh.write(model, FIX, out).kept
        assert out.stat().st_ino == inode
        assert wh.names(tmp_path) == ["m.safetensors", "out"]

    def test_other_bytes_are_kept(self, model, tmp_path):
        (tmp_path / "out").write_bytes(b"precious")
        with pytest.raises(UsageError, match="holds something else; nothing was changed; --force"):
            wh.write(model, FIX, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == b"precious"
        assert wh.names(tmp_path) == ["m.safetensors", "out"]

    def test_other_bytes_are_replaced_when_forced(self, model, tmp_path):
        (tmp_path / "out").write_bytes(b"old")
        os.link(tmp_path / "out", tmp_path / "second")
        written = wh.write(model, FIX, tmp_path / "out", force=True)
        assert not written.kept
        assert (tmp_path / "out").read_bytes() == repaired(model)
        assert (tmp_path / "second").read_bytes() == b"old"

    @pytest.mark.parametrize("same", [True, False])
    def test_what_appears_meanwhile_is_not_replaced(self, model, tmp_path, monkeypatch, same):
        data = repaired(model) if same else b"precious"
        during(monkeypatch, lambda: (tmp_path / "out").write_bytes(data))
        if same:
            assert wh.write(model, FIX, tmp_path / "out").kept
        else:
            with pytest.raises(UsageError, match="holds something else"):
                wh.write(model, FIX, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == data
        assert wh.names(tmp_path) == ["m.safetensors", "out"]

    def test_a_dangling_link_that_appears_meanwhile_is_not_replaced(
        self, model, tmp_path, monkeypatch
    ):
        during(monkeypatch, lambda: (tmp_path / "out").symlink_to("nothing"))
        with pytest.raises(UsageError):
            wh.write(model, FIX, tmp_path / "out")
        assert (tmp_path / "out").is_symlink()

    def test_a_link_is_written_through_when_forced(self, model, tmp_path):
        (tmp_path / "real").write_bytes(b"old")
        (tmp_path / "out").symlink_to("real")
        (tmp_path / "dangling").symlink_to("new")
        for name, real in (("out", "real"), ("dangling", "new")):
            written = wh.write(model, FIX, tmp_path / name, force=True)
            assert written.path == str(tmp_path / name)
            assert (tmp_path / name).is_symlink()
            assert (tmp_path / real).read_bytes() == repaired(model)

    def test_nothing_to_change_is_the_identical_copy(self, model, tmp_path):
        written = wh.write(model, [], tmp_path / "out")
        assert (written.identical, written.changed, written.kept) == (True, 0, False)
        assert (tmp_path / "out").read_bytes() == model.read_bytes()
        assert (tmp_path / "out").stat().st_mode & 0o7777 == 0o640


class TestInPlace:
    def test_the_input_is_replaced_and_its_bytes_kept(self, model, tmp_path):
        old, new, inode = model.read_bytes(), repaired(model), model.stat().st_ino
        written = wh.write(model, FIX, None, in_place=True)
        kept = tmp_path / "m.safetensors.orig"
        assert written.backup == os.path.realpath(kept)
        assert (model.read_bytes(), kept.read_bytes()) == (new, old)
        assert kept.stat().st_ino == inode
        assert model.stat().st_mode & 0o7777 == 0o640
        assert wh.names(tmp_path) == ["m.safetensors", "m.safetensors.orig"]

    def test_without_a_backup_nothing_is_kept(self, model, tmp_path):
        new = repaired(model)
        written = wh.write(model, FIX, None, in_place=True, backup=False)
        assert (written.backup, model.read_bytes()) == ("", new)
        assert wh.names(tmp_path) == ["m.safetensors"]

    def test_an_original_that_is_there_is_kept_as_it_is(self, model, tmp_path):
        kept = tmp_path / "m.safetensors.orig"
        kept.write_bytes(model.read_bytes())
        inode = kept.stat().st_ino
        assert wh.write(model, FIX, None, in_place=True).backup
        assert kept.stat().st_ino == inode
        before = wh.listing(tmp_path)
        with pytest.raises(UsageError, match=r"'m\.safetensors\.orig' exists already and holds"):
            wh.write(model, [wh.edit("a.scalar", np.ones(1, "f4"))], None, in_place=True)
        assert wh.listing(tmp_path) == before

    def test_a_second_run_finds_nothing_to_do(self, model, tmp_path):
        """As after one that was killed behind its rename."""
        wh.write(model, FIX, None, in_place=True)
        before = wh.listing(tmp_path)
        written = wh.write(model, FIX, None, in_place=True)
        assert (written.kept, written.identical, written.backup) == (True, True, "")
        assert wh.listing(tmp_path) == before

    @pytest.mark.parametrize("to", ["m.safetensors", "copy"])
    def test_a_link_is_no_original(self, model, tmp_path, to):
        (tmp_path / "copy").write_bytes(model.read_bytes())
        (tmp_path / "m.safetensors.orig").symlink_to(to)
        before = wh.listing(tmp_path)
        with pytest.raises(UsageError, match="holds something else; nothing was changed; move"):
            wh.write(model, FIX, None, in_place=True)
        assert wh.listing(tmp_path) == before

    def test_nothing_to_change_leaves_the_input_and_makes_no_backup(self, model, tmp_path):
        inode = model.stat().st_ino
        written = wh.write(model, [], None, in_place=True)
        assert (written.kept, written.identical, written.backup) == (True, True, "")
        assert model.stat().st_ino == inode
        assert wh.names(tmp_path) == ["m.safetensors"]

    def test_a_file_system_without_links_gets_a_copy(self, model, tmp_path, monkeypatch):
        old = model.read_bytes()
        monkeypatch.setattr(os, "link", fails(errno.EPERM))
        left = tmp_path / f".m.safetensors.orig.{wh.dead_process()}-0123abcd.ckptdoctor"
        left.touch()
        wh.write(model, FIX, None, in_place=True)
        kept = tmp_path / "m.safetensors.orig"
        assert kept.read_bytes() == old
        assert kept.stat().st_mode & 0o7777 == 0o640
        assert wh.names(tmp_path) == ["m.safetensors", "m.safetensors.orig"]

    @pytest.mark.parametrize("links", [True, False])
    def test_a_rename_that_fails_leaves_everything(self, model, tmp_path, monkeypatch, links):
        old, replace = model.read_bytes(), os.replace
        if not links:
            monkeypatch.setattr(os, "link", fails(errno.EPERM))

        def failing(source, target):
            if str(target).endswith(".orig"):
                return replace(source, target)
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "replace", failing)
        with pytest.raises(WriteError, match="could not be renamed: Invalid cross-device link"):
            wh.write(model, FIX, None, in_place=True)
        assert model.read_bytes() == old
        assert wh.names(tmp_path) == ["m.safetensors"]

    def test_a_rename_that_fails_leaves_an_original_that_was_there(
        self, model, tmp_path, monkeypatch
    ):
        kept = tmp_path / "m.safetensors.orig"
        kept.write_bytes(model.read_bytes())
        monkeypatch.setattr(os, "replace", fails(errno.EIO))
        with pytest.raises(WriteError):
            wh.write(model, FIX, None, in_place=True)
        assert kept.exists()

    @pytest.mark.parametrize("links", [True, False])
    def test_a_folder_flush_that_fails_keeps_the_original(
        self, model, tmp_path, monkeypatch, links
    ):
        """The rename is done: the backup is all that is left of the original."""
        old, new, fsync = model.read_bytes(), repaired(model), os.fsync
        if not links:
            monkeypatch.setattr(os, "link", fails(errno.EPERM))

        def failing(fd):
            if os.path.samestat(os.fstat(fd), tmp_path.stat()) and model.read_bytes() == new:
                raise OSError(errno.EIO, "Input/output error")
            fsync(fd)

        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(WriteError, match="the file is complete, but its folder"):
            wh.write(model, FIX, None, in_place=True)
        assert model.read_bytes() == new
        assert (tmp_path / "m.safetensors.orig").read_bytes() == old
        assert wh.names(tmp_path) == ["m.safetensors", "m.safetensors.orig"]

    def test_a_backup_that_cannot_be_made_stops_everything(self, model, tmp_path, monkeypatch):
        old = model.read_bytes()
        monkeypatch.setattr(os, "link", fails(errno.EPERM))
        for number in (errno.ENOSPC, errno.EIO):
            with monkeypatch.context() as patch:
                during(patch, lambda p=patch, n=number: self.fill(p, n))
                with pytest.raises(WriteError, match=os.strerror(number)):
                    wh.write(model, FIX, None, in_place=True)
            assert model.read_bytes() == old
            assert wh.names(tmp_path) == ["m.safetensors"]

    def fill(self, patch, number):
        patch.setattr(os, "copy_file_range", fails(number))

    def test_a_backup_whose_folder_cannot_be_flushed_stops_everything(
        self, model, tmp_path, monkeypatch
    ):
        old, fsync = model.read_bytes(), os.fsync
        monkeypatch.setattr(os, "link", fails(errno.EPERM))

        def failing(fd):
            if os.path.samestat(os.fstat(fd), tmp_path.stat()):
                raise OSError(errno.EIO, "Input/output error")
            fsync(fd)

        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(WriteError):
            wh.write(model, FIX, None, in_place=True)
        assert model.read_bytes() == old
        assert wh.names(tmp_path) == ["m.safetensors"]

    def test_an_original_that_appears_meanwhile_is_not_touched(self, model, tmp_path, monkeypatch):
        old, kept = model.read_bytes(), tmp_path / "m.safetensors.orig"
        link = os.link

        def appears(source, target):
            Path(target).write_bytes(b"precious")
            link(source, target)

        monkeypatch.setattr(os, "link", appears)
        with pytest.raises(UsageError, match="appeared meanwhile; nothing was changed"):
            wh.write(model, FIX, None, in_place=True)
        assert (model.read_bytes(), kept.read_bytes()) == (old, b"precious")

    def test_an_interruption_leaves_either_the_old_file_or_old_and_new(
        self, model, tmp_path, monkeypatch
    ):
        old, new, replace = model.read_bytes(), repaired(model), os.replace

        def interrupted(*_):
            raise KeyboardInterrupt

        def late(*args):
            replace(*args)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", interrupted)
            with pytest.raises(KeyboardInterrupt):
                wh.write(model, FIX, None, in_place=True)
        assert wh.listing(tmp_path) == {"m.safetensors": old}
        monkeypatch.setattr(os, "replace", late)
        with pytest.raises(KeyboardInterrupt):
            wh.write(model, FIX, None, in_place=True)
        assert wh.listing(tmp_path) == {"m.safetensors": new, "m.safetensors.orig": old}

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
    def test_root_leaves_a_file_to_its_owner(self, model, tmp_path):
        os.chown(model, 12345, 23456)
        wh.write(model, FIX, None, in_place=True)
        found = model.stat()
        assert (found.st_uid, found.st_gid) == (12345, 23456)
        assert found.st_mode & 0o7777 == 0o640

    def test_others_may_not_give_files_away_and_that_is_no_failure(self, model, monkeypatch):
        asked = []

        def chown(_, owner, group):
            asked.append((owner, group))
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "chown", chown)
        found, new = model.stat(), repaired(model)
        wh.write(model, FIX, None, in_place=True)
        assert model.read_bytes() == new
        assert asked == [(found.st_uid, found.st_gid)]

    def test_a_link_stays_a_link(self, model, tmp_path):
        link = tmp_path / "link"
        link.symlink_to(model.name)
        new = repaired(model)
        wh.write(link, FIX, None, in_place=True)
        assert link.is_symlink()
        assert model.read_bytes() == new


class TestInputsThatChange:
    @pytest.mark.parametrize("in_place", [True, False])
    @pytest.mark.parametrize("how", ["touched", "grown", "cut", "replaced", "gone"])
    def test_nothing_is_written(self, model, tmp_path, monkeypatch, how, in_place):
        other = tmp_path / "other"
        other.write_bytes(model.read_bytes())

        def act():
            if how == "touched":
                os.utime(model, ns=(1, 1))
            elif how == "grown":
                with model.open("ab") as file:
                    file.write(b"more")
            elif how == "cut":
                os.truncate(model, 9)
            elif how == "replaced":
                other.rename(model)
            else:
                model.unlink()

        during(monkeypatch, act)
        with pytest.raises(ChangedError, match="changed while it was being read"):
            wh.write(model, FIX, None if in_place else tmp_path / "out", in_place=in_place)
        assert set(wh.names(tmp_path)) <= {"m.safetensors", "other"}

    @pytest.mark.parametrize("how", ["written", "grown", "cut"])
    def test_a_change_while_copying_is_told_as_one(self, model, tmp_path, monkeypatch, how):
        """Not as a fault of the disk."""
        from ckptdoctor.write import fill

        copy = fill.copy_file

        def copied(source, *args):
            copy(source, *args)
            data = bytearray(model.read_bytes())
            data[-1] ^= 1
            model.write_bytes({"written": data, "grown": data + b"x", "cut": data[:-3]}[how])

        monkeypatch.setattr(fill, "copy_file", copied)
        with pytest.raises(ChangedError):
            wh.write(model, FIX, tmp_path / "out")
        assert wh.names(tmp_path) == ["m.safetensors"]


class TestFullDisks:
    @pytest.mark.parametrize(
        ("call", "number"),
        [("copy_file_range", errno.ENOSPC), ("copy_file_range", errno.EDQUOT),
         ("write", errno.ENOSPC), ("fsync", errno.EIO), ("replace", errno.EXDEV),
         ("chmod", errno.EIO)],
    )  # fmt: skip
    @pytest.mark.parametrize("in_place", [True, False])
    def test_nothing_is_left(self, model, tmp_path, monkeypatch, call, number, in_place):
        before = wh.listing(tmp_path)
        monkeypatch.setattr(os, call, fails(number))
        with pytest.raises(WriteError, match=rf"{os.strerror(number)}; nothing was changed"):
            wh.write(model, FIX, None if in_place else tmp_path / "out", in_place=in_place)
        assert wh.listing(tmp_path) == before

    def test_too_little_room_is_said_first(self, model, tmp_path, monkeypatch):
        from types import SimpleNamespace

        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1, f_frsize=512))
        with pytest.raises(WriteError, match="expected room for"):
            wh.write(model, FIX, tmp_path / "out")
        assert wh.names(tmp_path) == ["m.safetensors"]


def test_drafts_of_runs_that_were_killed_are_swept_away(model, tmp_path):
    left = tmp_path / f".out.{wh.dead_process()}-0123abcd.ckptdoctor"
    left.touch()
    wh.write(model, FIX, tmp_path / "out")
    assert wh.names(tmp_path) == ["m.safetensors", "out"]


def test_the_input_can_be_read_all_the_while(model, monkeypatch):
    during(monkeypatch, lambda: open_path(model).close())
    wh.write(model, FIX, None, in_place=True)
    assert issubclass(ChangedError, CkptDoctorError)
