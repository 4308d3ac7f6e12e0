"""Samples that were hurt on the way, that carry code, or that are no checkpoint at all."""

from __future__ import annotations

import io
import pickletools
import struct
import tempfile
import zipfile
from pathlib import Path

from . import SAMPLES, sample
from .networks import tiny_state
from .torch_files import rewrite
from .torch_old import LEGACY_PICKLES

EPOCH = (1980, 1, 1, 0, 0, 0)


def made(of: str) -> bytes:
    """Bytes of another sample."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, Path(of).name)
        SAMPLES[of].write(path)
        return path.read_bytes()


def text(value: str) -> bytes:
    """Opcode BINUNICODE."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def with_code(pickled: bytes) -> bytes:
    """Add an item to a pickled dict: what ``os.system("echo ...")`` returns on loading.

    Opcodes by hand, so that nothing here ever holds the call as an object.
    """
    system = b"cos\nsystem\n"
    called = text("echo this file runs code when it is loaded") + b"\x85R"
    return pickled.removesuffix(b".") + text("epoch") + system + called + b"s."


@sample("sick/ck001-flipped-bit.pt", "One bit of a weight flipped on the way; its checksum tells")
def flipped_bit(path: Path) -> None:
    data = bytearray(made("healthy/state-dict.pt"))
    weights = data.index(tiny_state()["conv1.weight"].numpy().tobytes())
    data[weights + 402] ^= 0x01
    path.write_bytes(data)


@sample("sick/ck001-flipped-bit.npz", "The same in a NumPy archive")
def flipped_bit_npz(path: Path) -> None:
    data = bytearray(made("healthy/arrays.npz"))
    header = data.index(b"\x93NUMPY")
    data[header + 128 + 18] ^= 0x01
    path.write_bytes(data)


@sample("sick/ck002-os-system.pt", "Its pickle names `os.system`: loading it runs a command")
def os_system(path: Path) -> None:
    def change(name: str, data: bytes) -> bytes:
        return with_code(data) if name == "data.pkl" else data

    path.write_bytes(rewrite(made("healthy/state-dict.pt"), change))


@sample("sick/ck002-os-system-legacy.pth", "The same in a legacy stream")
def os_system_legacy(path: Path) -> None:
    data = made("healthy/legacy-stream.pth")
    stream = io.BytesIO(data)
    start = end = 0
    for _ in range(LEGACY_PICKLES):
        start = end
        for _ in pickletools.genops(stream):
            pass
        end = stream.tell()
    path.write_bytes(data[:start] + with_code(data[start:end]) + data[end:])


@sample("sick/ck005-two-pickles.pt", "Two members `data.pkl`: torch reads one, Python the other")
def two_pickles(path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(made("healthy/state-dict.pt"))) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data)
            if name.endswith("/data.pkl"):
                archive.writestr(zipfile.ZipInfo(name, EPOCH), with_code(data))


@sample("sick/interrupted-download.pt", "The first 60 %: the archive's directory never came")
def interrupted_zip(path: Path) -> None:
    data = made("healthy/state-dict.pt")
    path.write_bytes(data[: len(data) * 6 // 10])


@sample("sick/interrupted-download.pth", "The same of a legacy stream: some storages are there")
def interrupted_legacy(path: Path) -> None:
    data = made("healthy/legacy-stream.pth")
    path.write_bytes(data[: len(data) * 9 // 10])


@sample("sick/interrupted-download.safetensors", "The same of safetensors: the header is whole")
def interrupted_safetensors(path: Path) -> None:
    data = made("healthy/transformer.safetensors")
    path.write_bytes(data[: len(data) * 6 // 10])


@sample("sick/interrupted-download.h5", "The same of HDF5, whose superblock knows its true size")
def interrupted_hdf5(path: Path) -> None:
    data = made("healthy/keras2-weights.h5")
    path.write_bytes(data[: len(data) * 6 // 10])


@sample("sick/git-lfs-pointer.safetensors", "What `git clone` leaves without Git LFS: 130 bytes")
def lfs_pointer(path: Path) -> None:
    version = "version https://git-lfs.github.com/spec/v1"
    path.write_text(f"{version}\noid sha256:{'5d' * 32}\nsize 438007519\n")


@sample("sick/html-error-page.pt", "A download that saved the server's answer")
def html(path: Path) -> None:
    path.write_text("<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>\n")


@sample("sick/all-zero.pt", "Space was reserved for the file; its bytes were never written")
def all_zero(path: Path) -> None:
    path.write_bytes(bytes(4096))


@sample("sick/empty.pt", "A file of no bytes")
def empty(path: Path) -> None:
    path.write_bytes(b"")


@sample("sick/gguf-model.bin", "A format that ckptdoctor does not read (GGUF)")
def gguf(path: Path) -> None:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(8))
