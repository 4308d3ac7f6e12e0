"""What the names in a pickle mean for whoever loads it: default deny, by the rows of `pickle_names`.

A name is silent only where it stands on the exact list of what rebuilding tensors needs.  There is
no list of dangerous names: whatever the standard library, builtins, torch or NumPy offer besides
the rows below is an error, called or not, because importing it is already running code.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Final

from ..findings import Finding, Severity, Tally, container_finding
from .pickle import Global, PickleError, unpickle
from .pickle_names import NOTED, OLD_STDLIB, SILENT, TORCH_CLASSES, TORCH_VALUES

__all__ = ["findings_about", "judge", "scan_pickles"]

_SIZED: Final = re.compile(
    r"(builtins|__builtin__|torch|numpy|copyreg|copy_reg|fractions|decimal)\..*"
)
_UNSIZED: Final = re.compile(
    r"torch\.jit\._pickle\..*|torch\.(Size|device)|(builtins|__builtin__)\.(slice|int|float|complex|bool)"
)
"""Calls that keep the numbers they are given and allocate nothing by them (silero-vad's TorchScript
has a list of 8000 and 16000)."""
_EXPANDING: Final = re.compile(
    r"(builtins|__builtin__)\.(list|tuple|set|frozenset|bytes|bytearray)|collections\.deque"
)
_TENSOR_TYPE: Final = re.compile(r"torch\.(cuda\.|sparse\.|cuda\.sparse\.)?[A-Za-z0-9]*Tensor")
MAX_RANGE: Final = 1 << 20
MAX_ALLOCATION: Final = 1 << 26
"""64 MiB: no constructor of plain data in a checkpoint has a reason to ask for more."""


def judge(used: Global) -> tuple[Severity | None, str]:
    """Severity and reason of one name; None is silent.

    Examples
    --------
    >>> judge(Global("os", "system", 0))
    (<Severity.ERROR: 3>, 'standard library')
    >>> judge(Global("torch._utils", "_rebuild_tensor_v2", 0))[0] is None
    True
    """
    name = used.dotted
    if used.computed:
        return Severity.ERROR, "a name that the pickle computes while it is loaded"
    if (
        name in ("builtins.range", "__builtin__.xrange", "__builtin__.range")
        and used.largest > MAX_RANGE
    ):
        return Severity.ERROR, f"a range of {used.largest:.3g} numbers, for another call to expand"
    if not name.isascii() or not re.fullmatch(r"[\w.]+", used.module) or "." in used.name:
        return Severity.ERROR, "not a plain module and name"
    if not used.name.isidentifier():
        return Severity.ERROR, "not a plain module and name"
    if used.largest > MAX_ALLOCATION and _SIZED.fullmatch(name) and not _UNSIZED.fullmatch(name):
        return Severity.ERROR, f"asked to allocate {used.largest:.3g} elements"
    if used.indirect and _EXPANDING.fullmatch(name):
        return Severity.ERROR, "expands the result of another call without bound"
    if name == "numpy.ndarray" and (used.called or used.built):
        return Severity.ERROR, "allocates whatever size the file names"
    if name in SILENT:
        return None, SILENT[name]
    if name in NOTED:
        return Severity.NOTE, NOTED[name]
    top = used.module.partition(".")[0]
    if top in OLD_STDLIB or top in sys.stdlib_module_names:
        return Severity.ERROR, "builtin" if "builtin" in top else "standard library"
    if top == "torch":
        return _judge_torch(used)
    if top == "numpy":
        return _judge_numpy(used)
    if used.called and not _looks_like_a_class(used.name):
        return Severity.ERROR, "a function of a third-party package, called while loading"
    return Severity.NOTE, "a third-party class" if _looks_like_a_class(used.name) else "third-party"


def _judge_torch(used: Global) -> tuple[Severity, str]:
    name = used.dotted
    if _TENSOR_TYPE.fullmatch(name):
        if used.called or used.built:
            return Severity.ERROR, "allocates whatever size the file names"
        return Severity.NOTE, "a tensor type kept as a value"
    if _looks_like_a_class(used.name):
        for package, reason in TORCH_CLASSES:
            if name.startswith(package):
                return Severity.NOTE, reason
        if not used.called and not used.built:
            return Severity.NOTE, "a torch class kept as a value"
        return Severity.ERROR, "a torch class that no model file needs to instantiate"
    if not used.called and used.name not in sys.stdlib_module_names:
        for package, reason in TORCH_VALUES:
            if name.startswith(package):
                return Severity.NOTE, reason
    return Severity.ERROR, "a torch function"


def _judge_numpy(used: Global) -> tuple[Severity | None, str]:
    if used.module.startswith("numpy.dtypes") and used.name.endswith("DType"):
        return None, "a NumPy dtype"
    scalar = re.fullmatch(r"(u?int|float|complex|bool|str|bytes)\d*_?", used.name)
    if used.module == "numpy" and scalar:
        return Severity.NOTE, "a NumPy scalar type"
    return Severity.ERROR, "a NumPy function"


def _looks_like_a_class(name: str) -> bool:
    return name.lstrip("_")[:1].isupper()


def findings_about(
    names: Iterable[Global], computed: Iterable[int], where: str, endless: Iterable[int] = ()
) -> tuple[Finding, ...]:
    """CK002 findings: one per name that is an error, one for all that are worth a note.

    Parameters
    ----------
    names
        Every name the pickle mentions.
    computed
        Offsets of calls whose callee is the result of another call.
    where
        ``file:member`` of the pickle.
    endless
        Offsets where loading would hash a tuple that unfolds without end.
    """
    found = Tally(where)
    noted: list[str] = []
    for used in names:
        severity, reason = judge(used)
        if severity is Severity.ERROR:
            verb = "calls" if used.called or used.built else "names"
            message = f"the pickle {verb} {_shown(used)} ({reason}): loading it can run code"
            place = f"{where}+{used.offset}"
            found.add(_ck002(Severity.ERROR, message, place, used.dotted))
        elif severity is not None:
            noted.append(used.dotted)
    for offset in list(computed)[:1]:
        message = (
            "the pickle calls, or changes, what another call returned: loading it can run code"
        )
        found.add(_ck002(Severity.ERROR, message, f"{where}+{offset}", "<computed>"))
    for offset in endless:
        message = "a key is a tuple that unfolds without end: hashing it, loading hangs"
        place = f"{where}+{offset}"
        found.add(container_finding("CK005", Severity.ERROR, message, where=place, unsafe=True))
    if noted:
        shown = ", ".join(name[:80] for name in noted[:4])
        more = f" and {len(noted) - 4} more" if len(noted) > 4 else ""
        message = f"loading it needs more than tensors: {shown}{more}"
        found.add(
            container_finding("CK002", Severity.NOTE, message, where=where, globals=noted[:100])
        )
    return found.findings()


def scan_pickles(data: bytes, where: str, base: int = 0) -> tuple[Finding, ...]:
    """Judge the names in bytes that may be pickles, one behind the other, that nobody needs read.

    Parameters
    ----------
    data
        The bytes.
    where
        ``file:member`` that holds them.
    base
        Their offset in it.
    """
    found, start = Tally(where), 0
    for _ in range(MAX_PICKLES):
        if start >= len(data):
            return found.findings()
        try:
            seen = unpickle(data, where, base=base, start=start)
        except PickleError as error:
            # junk between two pickles must not hide the second
            seen, start = error.seen, _next_mark(data, start + 1)
        else:
            start = seen.end
        for finding in findings_about(seen.globals, seen.computed, where, seen.endless):
            found.add(finding)
    message = f"more than {MAX_PICKLES:,} pickles in a row; the rest was not looked into"
    found.add(container_finding("CK005", Severity.ERROR, message, where=where, unsafe=True))
    return found.findings()


def _next_mark(data: bytes, start: int) -> int:
    """Offset of the next bytes that a pickle of protocol 2 to 5 starts with; the end without any."""
    found = re.compile(rb"\x80[\x02-\x05]").search(data, start)
    return found.start() if found else len(data)


MAX_PICKLES: Final = 10_000


def _ck002(severity: Severity, message: str, where: str, name: str) -> Finding:
    return container_finding("CK002", severity, message, where=where, unsafe=True, globals=[name])


def _shown(used: Global) -> str:
    name = used.dotted
    return name if len(name) <= 120 else f"{name[:80]}...{name[-30:]}"
