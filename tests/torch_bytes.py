"""Assembles torch files opcode by opcode, so that tests need no torch and can lie at will."""

import io
import struct
import zipfile


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value):
    if type(value) is bool:
        return b"\x88" if value else b"\x89"
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, int) and -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"L%dL\n" % value


def item(value):
    """Opcodes that leave a value on the stack; bytes are taken to be opcodes already."""
    if isinstance(value, bytes):
        return value
    if value is None:
        return b"N"
    if isinstance(value, str):
        return text(value)
    if isinstance(value, (int, float)):
        return number(value)
    if isinstance(value, tuple):
        return b"(" + b"".join(map(item, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(item, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(item(k) + item(v) for k, v in value.items()) + b"u"
    raise TypeError(value)


def call(module, attribute, *args):
    return name(module, attribute) + item(args) + b"R"


def storage(key, kind="FloatStorage", numel=6, *more):
    return item(("storage", name("torch", kind), key, "cpu", numel, *more)) + b"Q"


def tensor(where, shape, stride=None, offset=0):
    if stride is None:
        stride, step = [], 1
        for n in reversed(shape):
            stride.insert(0, step)
            step *= n
    hooks = call("collections", "OrderedDict")
    return call(
        "torch._utils",
        "_rebuild_tensor_v2",
        where,
        offset,
        tuple(shape),
        tuple(stride),
        False,
        hooks,
    )


def pickled(value):
    return b"\x80\x02" + item(value) + b"."


def archive(value, storages, *, top="archive/", byteorder="little", version="3", more=None):
    """Torch zip around a pickled value; ``storages`` maps keys to bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        out.writestr(f"{top}data.pkl", pickled(value))
        if byteorder:
            out.writestr(f"{top}byteorder", byteorder)
        for key, data in storages.items():
            out.writestr(f"{top}data/{key}", data)
        if version:
            out.writestr(f"{top}version", f"{version}\n")
        for member, data in (more or {}).items():
            out.writestr(member, data)
    return buffer.getvalue()


MAGIC = 0x1950A86A20F9469CFC6C


def legacy(value, storages, *, magic=MAGIC, protocol=1001):
    """Legacy stream; ``storages`` maps keys to (number of elements, bytes)."""
    out = b"\x80\x02\x8a\x0a" + magic.to_bytes(10, "little") + b"."
    out += pickled(protocol) + pickled({"little_endian": True}) + pickled(value)
    out += pickled(list(storages))
    for numel, data in storages.values():
        out += struct.pack("<q", numel) + data
    return out


def tar(members):
    """Tar archive of named bytes."""
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as out:
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
