"""Copies of open files: by the kernel, by hand, and where neither gets to the end."""

from __future__ import annotations

import errno
import os
import sys
from types import SimpleNamespace

import pytest

from ckptdoctor.errors import ChangedError, WriteError
from ckptdoctor.sources import FileSource
from ckptdoctor.write import copying
from ckptdoctor.write.copying import check_space, copy_file

DATA = bytes(range(251)) * 30_000


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in").write_bytes(DATA)
    opened = FileSource(tmp_path / "in")
    yield opened
    opened.close()


@pytest.fixture
def target(tmp_path):
    fd = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    yield fd
    os.close(fd)


def copied(source, target, tmp_path):
    seen = []
    copy_file(source, target, tmp_path, seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == source.size
    return (tmp_path / "out").read_bytes(), seen


def fails(number):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


def test_a_copy_is_the_same_bytes(source, target, tmp_path):
    assert copied(source, target, tmp_path)[0] == DATA


@pytest.mark.parametrize(
    "number",
    [errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ENOTTY,
     errno.EBADF, errno.ETXTBSY],
)  # fmt: skip
def test_what_the_kernel_cannot_is_done_by_hand(source, target, tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "copy_file_range", fails(number))
    data, seen = copied(source, target, tmp_path)
    assert data == DATA
    assert seen[:2] == [1 << 20, 2 << 20]


def test_a_kernel_without_the_call_is_done_without(source, target, tmp_path, monkeypatch):
    monkeypatch.delattr(os, "copy_file_range")
    assert copied(source, target, tmp_path)[0] == DATA


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG])
def test_other_answers_of_the_kernel_are_failures(source, target, tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "copy_file_range", fails(number))
    with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is compared)
        copy_file(source, target, tmp_path, lambda _: None)
    assert caught.value.errno == number


def test_where_the_kernel_stops_the_hand_goes_on(source, target, tmp_path, monkeypatch):
    """Some file systems copy a part, and then say 0."""
    real, calls = os.copy_file_range, []

    def some(src, dst, count, at, to):
        calls.append((count, at, to))
        return real(src, dst, min(count, 1000), at, to) if len(calls) < 4 else 0

    monkeypatch.setattr(os, "copy_file_range", some)
    data, seen = copied(source, target, tmp_path)
    assert data == DATA
    assert seen[:4] == [1000, 2000, 3000, 3000 + (1 << 20)]
    assert [call[1:] for call in calls] == [(0, 0), (1000, 1000), (2000, 2000), (3000, 3000)]
    assert calls[-1][0] == len(DATA) - 3000


def test_the_kernel_is_asked_for_a_chunk_at_a_time(source, target, tmp_path, monkeypatch):
    monkeypatch.setattr(copying, "_CHUNK", 1 << 20)
    data, seen = copied(source, target, tmp_path)
    assert data == DATA
    assert seen[:2] == [1 << 20, 2 << 20]


def test_short_writes_are_continued(source, target, tmp_path, monkeypatch):
    monkeypatch.delattr(os, "copy_file_range")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, part: write(fd, part[:99_999]))
    assert copied(source, target, tmp_path)[0] == DATA


def test_a_disk_that_fills_is_a_failure(source, target, tmp_path, monkeypatch):
    monkeypatch.delattr(os, "copy_file_range")
    monkeypatch.setattr(os, "write", fails(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        copy_file(source, target, tmp_path, lambda _: None)


@pytest.mark.parametrize("kernel", [True, False])
def test_a_source_that_shrinks_is_noticed(source, target, tmp_path, monkeypatch, kernel):
    if not kernel:
        monkeypatch.delattr(os, "copy_file_range")
    os.truncate(tmp_path / "in", len(DATA) // 2)
    with pytest.raises(ChangedError, match="shrank"):
        copy_file(source, target, tmp_path, lambda _: None)


def test_of_a_source_that_grows_only_the_first_bytes_are_copied(source, target, tmp_path):
    with (tmp_path / "in").open("ab") as file:
        file.write(b"more")
    assert copied(source, target, tmp_path)[0] == DATA


def test_blocks_are_shared_where_the_file_system_can(source, target, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    calls = []
    monkeypatch.setattr(fcntl, "ioctl", lambda *args: calls.append(args))
    monkeypatch.setattr(os, "copy_file_range", fails(errno.EIO))
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=0, f_frsize=1))
    copy_file(source, target, tmp_path, lambda _: None)
    assert calls == [(target, 0x40049409, source.fd)]


def test_no_fcntl_is_no_failure(source, target, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert copied(source, target, tmp_path)[0] == DATA


def test_an_empty_file_is_copied(tmp_path, target):
    (tmp_path / "empty").touch()
    source = FileSource(tmp_path / "empty")
    assert copied(source, target, tmp_path)[0] == b""
    source.close()


class TestSpace:
    def test_too_little_is_said_before_anything_is_written(
        self, source, target, tmp_path, monkeypatch
    ):
        free = SimpleNamespace(f_bavail=len(DATA) // 10 - 1, f_frsize=10)
        monkeypatch.setattr(os, "statvfs", lambda _: free)
        with pytest.raises(WriteError, match=r"room for 7,530,000 bytes, 7,529,990 are free") as c:
            copy_file(source, target, tmp_path, lambda _: None)
        assert "nothing was changed" in str(c.value)
        assert (tmp_path / "out").stat().st_size == 0

    def test_just_enough_is_enough(self, tmp_path, monkeypatch):
        free = SimpleNamespace(f_bavail=7, f_frsize=512)
        monkeypatch.setattr(os, "statvfs", lambda _: free)
        check_space(tmp_path, 7 * 512)
        with pytest.raises(WriteError):
            check_space(tmp_path, 7 * 512 + 1)

    def test_where_nobody_knows_writing_will_tell(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "statvfs", fails(errno.ENOSYS))
        check_space(tmp_path, 1 << 60)
        monkeypatch.delattr(os, "statvfs")
        check_space(tmp_path, 1 << 60)
