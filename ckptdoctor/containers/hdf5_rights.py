"""What the children that run HDF5's C library give up before they look at the first byte."""

from __future__ import annotations

import os

__all__ = ["give_up_rights"]


def give_up_rights(file_size: int, headroom: int) -> None:
    """Limit what the process may still do to its open files, its answer, and some memory.

    With no descriptor to spare, HDF5 can open no other file, socket or plugin, whatever the bytes
    made of it.  The parent's clock ends it in any case.

    Parameters
    ----------
    file_size
        Bytes up to which a file may grow; 0 where nothing is written.
    headroom
        Address space beyond what is in use now.
    """
    try:
        import resource  # noqa: PLC0415
    except ImportError:  # Windows: the parent's clock is the only limit
        return
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        used = 1 << 30
    limits = [
        (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, file_size),
        (resource.RLIMIT_NOFILE, 0), (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_AS, used + headroom),
    ]  # fmt: skip
    for limit, value in limits:
        try:
            hard = resource.getrlimit(limit)[1]
            least = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (least, least))
        except (OSError, ValueError):
            continue  # macOS knows no limit of address space
