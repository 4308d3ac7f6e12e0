"""Files that are no checkpoint: each is named for what it is, with what to do."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zipfile

import numpy as np
import pytest

from ckptdoctor.errors import FormatError, TruncatedError
from ckptdoctor.formats import open_path
from ckptdoctor.formats.refused import KINDS
from ckptdoctor.sources import FileSource

LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345678\n"
)


def zipped(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return buffer.getvalue()


def tarred():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("model.pt"), io.BytesIO())
    return buffer.getvalue()


def npy():
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


# name of the kind, bytes, what the message says, what the hint says
CASES = [
    ("empty", b"", "empty", "download"),
    ("zeros", bytes(5000), "all 5,000 bytes are zero", "download"),
    ("zeros", bytes(2_000_000) + b"\1" + bytes(9), "first 2,000,000 of 2,000,010", "download"),
    ("git-lfs", LFS, "Git LFS pointer.*12,345,678 bytes", 'git lfs pull --include="f"'),
    ("git-annex", b"/annex/objects/SHA256E-s1--ab", "git-annex", "git annex get"),
    ("html", b"\n<!DOCTYPE HTML><html>", "HTML page", "download"),
    ("html", b"\xef\xbb\xbf<html lang=en>", "HTML page", "download"),
    ("xml", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "AccessDenied", "download"),
    ("json", b'{"error":"Invalid username or password."}', "error message", "download"),
    ("json", b'{"class_name": "Functional", "config": {}}', "architecture", "weights"),
    ("json", b'{"format": "x", "modelTopology": {}}', r"TensorFlow\.js", "weights"),
    ("json", b'["a"]', "JSON text", "weights"),
    ("tf-checkpoint-state", b'model_checkpoint_path: "model.ckpt-1"\n', "TensorFlow", "save it"),
    ("tf-checkpoint", bytes([0, 0, 6, 8]) + bytes(50) + bytes.fromhex("57fb808b247547db"),
     "index of a TensorFlow checkpoint", "save it"),
    ("tf-saved-model", b"\x08\x01\x12\xaa\x05\x0a\x03", "SavedModel", "save it"),
    ("tf-graph", b"\x0a\x0f\x0a\x01x\x12\x0bPlaceholder", "frozen TensorFlow graph", "inspect"),
    ("gguf", b"GGUF\3\0\0\0", "GGUF", "safetensors"),
    ("tflite", b"\x1c\0\0\0TFL3\x14\0", "TensorFlow Lite", "Keras"),
    ("onnx", b"\x08\x07\x12\x07pytorch\x1a", "ONNX", "exported from"),
    ("npy", npy(), r"\.npy", r"np\.savez"),
    ("msgpack", b"\x82\xa6params\x81\xa5dense\x80", "MessagePack", "safetensors"),
    ("mxnet", b"\x12\x01" + bytes(6) + b"\1", "MXNet", "savez"),
    ("gzip", gzip.compress(tarred()), "tar archive compressed by gzip", "unpack"),
    ("gzip", gzip.compress(b"\x80\2}q\0."), "pickle compressed by gzip", "unpack"),
    ("gzip", gzip.compress(b"hello"), "gzip file", "unpack"),
    ("7z", b"7z\xbc\xaf\x27\x1c\0\4", "7-Zip", "unpack"),
    ("rar", b"Rar!\x1a\7\1\0", "RAR", "unpack"),
    ("xz", b"\xfd7zXZ\0\0\4", "xz", "unpack"),
    ("bzip2", b"BZh91AY&SY", "bzip2", "unpack"),
    ("zstd", b"\x28\xb5\x2f\xfd\4\0\0\0", "Zstandard", "unpack"),
    ("lz4", b"\x04\x22\x4d\x18\4\0\0\0", "LZ4", "unpack"),
    ("zlib", b"\x78\x9c\x03\0\0\0\0\1", "zlib", "unpack"),
    ("png", b"\x89PNG\r\n\x1a\n", "PNG", "the weights: PyTorch"),
    ("jpeg", b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG", "the weights: PyTorch"),
    ("gif", b"GIF89a\1\0", "GIF", "the weights: PyTorch"),
    ("pdf", b"%PDF-1.7\n", "PDF", "the weights: PyTorch"),
    ("riff", b"RIFF\x24\0\0\0WAVE", "RIFF", "the weights: PyTorch"),
    ("program", b"\x7fELF\2\1\1\0", "program", "the weights: PyTorch"),
    ("sqlite", b"SQLite format 3\0", "SQLite", "the weights: PyTorch"),
    ("parquet", b"PAR1\x15\4\x15", "Parquet", "the weights: PyTorch"),
    ("matlab", b"MATLAB 5.0 MAT-file", "MATLAB", "loadmat"),
    ("text", b"import torch\nprint(1)\n", "Python source", "that it saves"),
    ("text", b"epoch,loss\n1,0.5\n", "text.*epoch,loss", "the weights: PyTorch"),
    ("tiny", b"\x80", "1 byte: 80", "download"),
]  # fmt: skip
IDS = [f"{kind}-{i}" for i, (kind, *_) in enumerate(CASES)]


@pytest.mark.parametrize(("kind", "data", "message", "hint"), CASES, ids=IDS)
def test_file_is_named_and_refused(tmp_path, kind, data, message, hint):
    path = tmp_path / "f"
    path.write_bytes(data)
    source = FileSource(path)
    assert next(k.name for k in KINDS if k.test(data[:4096], source)) == kind
    with pytest.raises(FormatError) as caught:
        open_path(path)
    assert re.search(message, caught.value.message)
    assert caught.value.hint
    assert re.search(hint, caught.value.hint)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_every_kind_has_a_case():
    assert {kind.name for kind in KINDS} == {kind for kind, *_ in CASES}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(zipped("m/model.safetensors"), "holds 'm/model.safetensors'", id="checkpoint"),
        pytest.param(zipped("x/y/data.pkl", "x/y/data/0"), "another folder above", id="re-zipped"),
        pytest.param(zipped("p/.data/version", "p/m.pkl"), r"torch\.package", id="torch.package"),
        pytest.param(zipped("[Content_Types].xml", "word/a"), "no checkpoint", id="document"),
        pytest.param(zipped(), "without members", id="empty"),
    ],
)
def test_zip_of_something_else_is_named(tmp_path, data, message):
    path = tmp_path / "f"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message):
        open_path(path)


class TestTransfers:
    ZIP = zipped("a/data.pkl", *(f"a/data/{i}" for i in range(30)))

    def test_zip_cut_off_is_truncated(self, tmp_path):
        path = tmp_path / "f"
        path.write_bytes(self.ZIP[:500])
        with pytest.raises(TruncatedError, match="500 bytes are here"):
            open_path(path)

    @pytest.mark.parametrize(
        "head", [b"PK\3\4", b"\x80\2", b"\x93NUMPY"], ids=["zip", "pickle", "npy"]
    )
    def test_text_mode_is_told(self, tmp_path, head):
        binary = head + bytes(range(256)) * 20
        path = tmp_path / "f"
        path.write_bytes(binary.replace(b"\n", b"\r\n"))
        with pytest.raises(FormatError, match="transferred as text"):
            open_path(path)

    def test_bytes_saved_as_text_are_told(self, tmp_path):
        path = tmp_path / "f"
        path.write_bytes((b"PK\3\4" + bytes(range(256)) * 9).decode("utf-8", "replace").encode())
        with pytest.raises(FormatError, match="saved as text"):
            open_path(path)

    def test_unknown_bytes_are_shown(self, tmp_path):
        path = tmp_path / "f"
        path.write_bytes(b"\xde\xad\xbe\xef" * 9)
        with pytest.raises(FormatError, match="36 bytes, the first are de ad be ef"):
            open_path(path)

    def test_data_file_of_a_tensorflow_checkpoint_is_told_by_its_name(self, tmp_path):
        path = tmp_path / "model.data-00000-of-00001"
        path.write_bytes(b"\xde\xad\xbe\xef" * 9)
        with pytest.raises(FormatError, match="TensorFlow"):
            open_path(path)


def test_zeros_are_counted_up_to_a_limit(tmp_path, monkeypatch):
    from ckptdoctor.errors import TruncatedError
    from ckptdoctor.formats import open_path, refused

    monkeypatch.setattr(refused, "MAX_ZEROS", 1 << 20)
    path = tmp_path / "hole.pt"
    path.write_bytes(bytes(3 << 20))
    with pytest.raises(TruncatedError, match=r"the first 1,052,\d+ of 3,145,728 bytes are zero"):
        open_path(path)
