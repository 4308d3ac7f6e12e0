"""Where an archive states a member's CRC-32, in every form that writers use."""

from __future__ import annotations

import struct

import pytest
import write_helpers as wh

from ckptdoctor.containers.zip import read_archive
from ckptdoctor.errors import FormatError
from ckptdoctor.sources import FileSource, WindowSource
from ckptdoctor.write.zip_fields import crc_fields

MEMBERS = {"a": b"first", "b/c": b"second member"}


def fields(data, name="b/c", source=None, **how):
    archive = read_archive(source or WindowSource.over(data, "z"))
    return crc_fields(archive.checksum(archive.get(name)), **how)


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("wide", [False, True], ids=["zip", "zip64"])
@pytest.mark.parametrize("stream", [False, True], ids=["local header", "data descriptor"])
def test_every_field_is_found(name, wide, stream):
    data = wh.zipped(MEMBERS, stream=stream, wide=wide)
    wanted = list(wh.crc_places(data))
    mine = wanted[:2] if name == "a" else wanted[2:]
    assert sorted(fields(data, name)) == sorted(mine)


def test_a_descriptor_without_a_signature_is_found():
    data = wh.unsigned(wh.zipped(MEMBERS, stream=True))
    assert sorted(fields(data)) == sorted(list(wh.crc_places(data))[2:])


def test_a_local_header_that_states_it_besides_the_descriptor_is_a_field_too():
    data = bytearray(wh.zipped(MEMBERS, stream=True))
    directory, descriptor = list(wh.crc_places(data))[2:]
    local = data.index(b"PK\3\4", 4) + 14
    data[local : local + 4] = data[descriptor : descriptor + 4]
    assert sorted(fields(bytes(data))) == sorted([local, descriptor, directory])


def test_offsets_are_those_of_the_archives_source(tmp_path):
    data = wh.zipped(MEMBERS)
    (tmp_path / "z").write_bytes(bytes(100) + data)
    source = WindowSource("z", FileSource(tmp_path / "z"), 100, len(data))
    assert fields(data, source=source) == fields(data)
    source.below.close()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
def test_a_field_that_holds_something_else_is_refused_unless_it_is_to_be_restated(which, stream):
    data = bytearray(wh.zipped(MEMBERS, stream=stream))
    archive = read_archive(WindowSource.over(bytes(data), "z"))
    checksum = archive.checksum(archive.get("b/c"))
    data[list(wh.crc_places(data))[2 + which]] ^= 1
    changed = WindowSource.over(bytes(data), "z")
    checksum = checksum._replace(extent=checksum.extent._replace(source=changed))
    with pytest.raises(FormatError, match="z:b/c: the archive states two checksums"):
        crc_fields(checksum)
    assert len(crc_fields(checksum, agree=False)) == 2


def test_what_is_no_local_header_is_refused_whatever_is_asked():
    data = bytearray(wh.zipped(MEMBERS))
    archive = read_archive(WindowSource.over(bytes(data), "z"))
    checksum = archive.checksum(archive.get("a"))
    struct.pack_into("<I", data, 0, 0)
    changed = WindowSource.over(bytes(data), "z")
    checksum = checksum._replace(extent=checksum.extent._replace(source=changed))
    for agree in (False, True):
        with pytest.raises(FormatError):
            crc_fields(checksum, agree=agree)
