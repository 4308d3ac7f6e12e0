"""Sets of shards: a new folder, which appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import write_helpers as wh

from ckptdoctor.edits import Restamp, Trim
from ckptdoctor.errors import ChangedError, UnsupportedError, UsageError, WriteError
from ckptdoctor.formats import open_path
from ckptdoctor.write import writer


@pytest.fixture(scope="module")
def dead():
    return wh.dead_process()


SAID = {"remedy": "test", "kind": "destructive", "cures": (), "title": "test"}


@pytest.fixture(params=[False, True], ids=["safetensors", "torch"])
def index(request, tmp_path):
    return wh.sharded(tmp_path / "llama", torch=request.param)


def shards(folder):
    return sorted(p.name for p in folder.iterdir() if "-of-" in p.name)


def test_one_shard_is_made_anew_the_other_linked_the_rest_copied(index):
    home = index.parent
    first, second = shards(home)
    (home / first).chmod(0o604)
    before = wh.listing(home)
    written = wh.write(index, [wh.edit("a.weight", np.full(2, np.nan, "f4"), [0, 44])], None)
    out = home.with_name("llama.repaired")
    assert written.path == str(out)
    assert (written.identical, written.kept, written.moved) == (False, False, "")
    after = wh.listing(out)
    assert sorted(after) == sorted(before)
    assert [name for name in after if after[name] != before[name]] == [first]
    assert wh.listing(home) == before
    assert written.size == sum(map(len, (before[n] for n in (first, second, index.name))))
    assert (out / second).samefile(home / second)
    for name in (index.name, "config.json", "LICENSE", "tokenizer.model"):
        assert not (out / name).samefile(home / name)
    assert (out / first).stat().st_mode & 0o7777 == 0o604
    with open_path(out) as table:
        assert np.isnan(table.read("a.weight").reshape(-1)[[0, 44]]).all()
    assert wh.names(home.parent) == ["llama", "llama.repaired"]


def test_both_shards_can_be_edited(index):
    edits = [wh.edit("a.bias", np.zeros(9, "f4")), wh.edit("b.weight", np.ones(1, "f4"), [7])]
    written = wh.write(index, edits, None)
    with open_path(written.path) as table:
        assert not table.read("a.bias").any()
        assert table.read("b.weight")[7] == 1


def test_the_same_folder_that_is_there_is_accepted_another_is_not(index):
    edits = [wh.edit("a.bias", np.zeros(9, "f4"))]
    out = Path(wh.write(index, edits, None).path)
    inode = out.stat().st_ino
    assert wh.write(index, edits, None).kept
    assert out.stat().st_ino == inode
    (out / "more").touch()
    for force in (False, True):
        with pytest.raises(UsageError, match="exists already and holds something else"):
            wh.write(index, edits, None, force=force)
    (out / "more").unlink()
    (out / "config.json").write_text("[]")
    before = wh.listing(index.parent.parent)
    with pytest.raises(UsageError, match="exists already and holds something else"):
        wh.write(index, edits, None)
    assert wh.listing(index.parent.parent) == before


def test_what_a_model_needs_goes_along_and_other_weights_do_not(index):
    home = index.parent
    for name in ("merges.txt", "README.md", "chat.jinja", "model.h5", ".hidden.json", "x.tmp"):
        (home / name).write_text(name)
    (home / "consolidated.pth.index.json").write_text("{}")
    (home / "folder.json").mkdir()
    with (home / "huge.json").open("wb") as file:
        file.truncate((1 << 26) + 1)
    with (home / "large.json").open("wb") as file:
        file.truncate(1 << 26)
    out = Path(wh.write(index, [wh.edit("b.bias", np.zeros(3, "f4"))], None).path)
    beside = {"merges.txt", "README.md", "chat.jinja", "config.json", "LICENSE", "large.json"}
    beside |= {"tokenizer.model", index.name, *shards(home)}
    assert set(wh.names(out)) == beside


def test_shards_are_copied_where_there_are_no_links(index, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    out = Path(wh.write(index, [wh.edit("b.bias", np.zeros(3, "f4"))], None).path)
    first, _ = shards(out)
    assert (out / first).read_bytes() == (index.parent / first).read_bytes()
    assert not (out / first).samefile(index.parent / first)


def no_links(*_, **__):
    raise OSError(1, "Operation not permitted")


def test_linked_shards_of_a_cache_are_linked_through(index):
    home = index.parent
    first, second = shards(home)
    blobs = home / "blobs"
    blobs.mkdir()
    for name in (first, second):
        (home / name).rename(home / f"{name}.real")
        (home / name).symlink_to(f"{name}.real")
    out = Path(wh.write(index, [wh.edit("a.bias", np.zeros(9, "f4"))], None).path)
    assert not (out / second).is_symlink()
    assert (out / second).samefile(home / second)
    assert (home / first).is_symlink()


def test_a_failure_leaves_nothing(index, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = wh.listing(index.parent.parent)
    for name in ("write", "lseek", "fsync", "rename", "mkdir"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(WriteError, match="No space left on device"):
                wh.write(index, [wh.edit("a.bias", np.zeros(9, "f4"))], None)
        assert wh.listing(index.parent.parent) == before


def test_a_change_of_a_shard_meanwhile_is_noticed(index, monkeypatch):
    check = writer.check_draft

    def meddle(*args):
        path = index.parent / shards(index.parent)[1]
        os.utime(path, ns=(1, 1))
        return check(*args)

    monkeypatch.setattr(writer, "check_draft", meddle)
    with pytest.raises(ChangedError):
        wh.write(index, [wh.edit("a.bias", np.zeros(9, "f4"))], None)
    assert wh.names(index.parent.parent) == ["llama"]


def test_what_is_no_value_cannot_be_written(index):
    for change in (Trim(size=3, **SAID), Restamp(where="m:x", **SAID)):
        with pytest.raises(UnsupportedError, match="sharded set"):
            wh.write(index, [change], None)
    assert wh.names(index.parent.parent) == ["llama"]


def test_a_set_is_not_replaced_in_place(index):
    with pytest.raises(UsageError, match="not repaired in place"):
        wh.write(index, [], None, in_place=True)


def test_a_damaged_draft_is_noticed(index, monkeypatch):
    link = os.link

    def other(source, target):
        link(source, target)
        if target.name.endswith(".json"):
            return
        data = bytearray(Path(source).read_bytes())
        target.unlink()
        Path(target).write_bytes(data[:-4])

    monkeypatch.setattr(os, "link", other)
    with pytest.raises(WriteError):
        wh.write(index, [wh.edit("a.bias", np.zeros(9, "f4"))], None)
    assert wh.names(index.parent.parent) == ["llama"]


def test_a_folder_flush_that_fails_leaves_the_complete_folder(index, monkeypatch):
    fsync = os.fsync
    parent = index.parent.parent

    def failing(fd):
        if os.path.samestat(os.fstat(fd), parent.stat()):
            raise OSError(5, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(WriteError, match="is complete, but"):
        wh.write(index, [wh.edit("a.bias", np.zeros(9, "f4"))], None)
    assert wh.names(parent) == ["llama", "llama.repaired"]
    with open_path(parent / "llama.repaired") as table:
        assert not table.read("a.bias").any()


def test_where_folders_cannot_be_locked_a_set_is_written_all_the_same(index, monkeypatch):
    opened, refused = os.open, []

    def refuse(path, flags, *more, **where):
        if str(path).endswith(".ckptdoctor") and not refused:
            refused.append(flags)
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *more, **where)

    monkeypatch.setattr(os, "open", refuse)
    wh.write(index, [wh.edit("a.bias", np.zeros(9, "f4"))], None)
    assert refused == [os.O_RDONLY]
    assert wh.names(index.parent.parent) == ["llama", "llama.repaired"]


class TestTwoRunsAtOnce:
    """A draft folder that another run still makes is not swept away under it."""

    def draft(self, index, process):
        path = index.parent.parent / f".llama.repaired.{process}-0123abcd.ckptdoctor"
        path.mkdir()
        (path / "x").touch()
        return path

    def test_what_a_dead_run_left_is_removed(self, index, dead):
        draft = self.draft(index, dead)
        wh.write(index, [wh.edit("a.bias", np.zeros(9, "f4"))], None)
        assert not draft.exists()

    def test_what_is_locked_from_elsewhere_stays(self, index, dead):
        import fcntl

        draft = self.draft(index, dead)
        fd = os.open(draft, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        wh.write(index, [wh.edit("a.bias", np.zeros(9, "f4"))], None)
        assert (draft / "x").exists()
        os.close(fd)

    def test_a_folder_is_locked_while_it_is_made(self, index, monkeypatch):
        import fcntl

        seen = []

        check = writer.check_draft

        def look(table, plan, path, options):
            fd = os.open(Path(path).parent, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            seen.append(path)
            os.close(fd)
            return check(table, plan, path, options)

        monkeypatch.setattr(writer, "check_draft", look)
        wh.write(index, [wh.edit("a.bias", np.zeros(9, "f4"))], None)
        assert len(seen) == 1


def test_descriptors_are_closed(index):
    before = wh.names("/proc/self/fd")
    for _ in range(2):
        wh.write(index, [wh.edit("a.bias", np.zeros(9, "f4"))], None)
    assert len(wh.names("/proc/self/fd")) <= len(before)
