"""Byte sources: exact reads, named errors, and the watch over a file's identity."""

import os

import pytest

from ckptdoctor.errors import ChangedError, ReadError, TruncatedError, UsageError
from ckptdoctor.sources import Extent, FileSource, WindowSource


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "m.bin"
    path.write_bytes(bytes(range(100)))
    return path


def test_a_file_gives_exactly_what_was_asked(file):
    source = FileSource(file)
    assert source.pread(10, 5) == bytes(range(10, 15))
    assert source.pread(100, 0) == b""
    assert (source.size, source.name) == (100, str(file))
    buffer = bytearray(4)
    source.pread_into(96, memoryview(buffer))
    assert buffer == bytes(range(96, 100))


@pytest.mark.parametrize(("offset", "length"), [(99, 2), (-1, 3), (101, 0), (0, -1), (2**70, 1)])
def test_bytes_outside_a_file_are_truncation(file, offset, length):
    with pytest.raises(TruncatedError, match=r"m\.bin\+"):
        FileSource(file).pread(offset, length)


def test_a_window_is_a_source_of_its_own(file):
    window = WindowSource("m.bin:part", FileSource(file), 20, 10)
    assert window.pread(0, 10) == bytes(range(20, 30))
    assert Extent(window, 2, 3).read() == bytes(range(22, 25))
    assert str(Extent(window, 2, 3)) == "m.bin:part+2"
    for offset, length in [(9, 2), (-1, 1), (11, 0)]:
        with pytest.raises(TruncatedError, match=r"m\.bin:part"):
            window.pread(offset, length)
    with pytest.raises(TruncatedError):
        window.pread_into(8, memoryview(bytearray(3)))


def test_a_window_beyond_its_source_is_truncation(file):
    with pytest.raises(TruncatedError):
        WindowSource("m.bin:part", FileSource(file), 95, 10)


def test_a_missing_file_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        FileSource(tmp_path / "none")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ReadError, match="not a regular file"):
        FileSource(tmp_path / "pipe")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ReadError, match=r"not a regular file|cannot be opened"):
        FileSource(tmp_path)


def test_a_path_with_a_null_byte_is_refused():
    with pytest.raises(ReadError, match="cannot be opened"):
        FileSource("a\0b")


def test_a_file_that_grows_or_is_touched_is_noticed(file):
    source = FileSource(file)
    source.check_unchanged()
    file.write_bytes(bytes(101))
    with pytest.raises(ChangedError, match="changed while it was being read"):
        source.check_unchanged()


def test_a_file_that_is_replaced_under_its_name_is_noticed(file, tmp_path):
    source = FileSource(file)
    (tmp_path / "new").write_bytes(file.read_bytes())
    (tmp_path / "new").replace(file)
    with pytest.raises(ChangedError, match="changed while it was being read"):
        source.check_unchanged()
    file.unlink()
    with pytest.raises(ChangedError):
        source.check_unchanged()


def test_a_file_that_shrinks_is_noticed_while_reading(file):
    source = FileSource(file)
    os.truncate(file, 50)
    with pytest.raises(ChangedError, match="shrank"):
        source.pread(40, 20)


def test_a_closed_file_can_be_closed_again(file):
    source = FileSource(file)
    source.close()
    source.close()
    with pytest.raises(ReadError):
        source.pread(0, 1)
