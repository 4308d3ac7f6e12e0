"""What the names in a pickle mean for whoever loads it: data with a reason per row, default deny.

A name is silent only where it stands on the exact list of what rebuilding tensors needs.  There is
no list of dangerous names: whatever the standard library, builtins, torch or NumPy offer besides
the rows below is an error, called or not, because importing it is already running code.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Final

from ..dtypes import TORCH, TORCH_STORAGES
from ..findings import Finding, Severity, Tally, container_finding
from .pickle import Global, PickleError, unpickle

__all__ = ["NOTED", "SILENT", "findings_about", "judge", "scan_pickles"]

SILENT: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "torch._utils._rebuild_tensor",
            "torch._utils._rebuild_tensor_v2",
            "torch._utils._rebuild_tensor_v3",
            "torch._utils._rebuild_parameter",
            "torch._utils._rebuild_parameter_with_state",
            "torch._utils._rebuild_sparse_tensor",
            "torch._utils._rebuild_sparse_csr_tensor",
            "torch._utils._rebuild_qtensor",
            "torch._utils._rebuild_nested_tensor",
            "torch._utils._rebuild_meta_tensor_no_storage",
            "torch._utils._rebuild_wrapper_subclass",
            "torch._utils._rebuild_xla_tensor",
            "torch._utils._rebuild_device_tensor_from_numpy",
            "torch._utils._rebuild_device_tensor_from_cpu_tensor",
            "torch._tensor._rebuild_from_type",
            "torch._tensor._rebuild_from_type_v2",
            "torch.tensor._rebuild_from_type",
            "torch.tensor._rebuild_from_type_v2",
            "torch.serialization._get_layout",
        ),
        "torch.save writes it for every tensor; it only arranges bytes",
    ),
    **dict.fromkeys(
        (
            "torch.Tensor",
            "torch.Size",
            "torch.device",
            "torch.dtype",
            "torch.layout",
            "torch._C.device",
            "torch.nn.parameter.Parameter",
            "torch.nn.parameter.Buffer",
            "torch.nn.parameter.UninitializedParameter",
            "torch.nn.parameter.UninitializedBuffer",
            "torch.nn.Parameter",
        ),
        "the tensor classes themselves",
    ),
    **dict.fromkeys(
        (
            "torch.per_tensor_affine",
            "torch.per_channel_affine",
            "torch.per_tensor_symmetric",
            "torch.per_channel_symmetric",
            "torch.per_channel_affine_float_qparams",
            "torch.strided",
            "torch.sparse_coo",
            "torch.sparse_csr",
            "torch.sparse_csc",
            "torch.sparse_bsr",
            "torch.sparse_bsc",
            "torch.contiguous_format",
            "torch.channels_last",
            "torch.preserve_format",
        ),
        "constants of torch",
    ),
    **{f"torch.{name}": "a dtype" for name in TORCH},
    **{f"torch.{name}": "a storage class, in persistent ids" for name in TORCH_STORAGES},
    **{f"torch.storage.{name}": "a storage class, in persistent ids" for name in TORCH_STORAGES},
    **{f"torch.cuda.{name}": "a storage class, in persistent ids" for name in TORCH_STORAGES},
    "torch.storage.TypedStorage": "a storage class, in persistent ids",
    "torch.storage._TypedStorage": "a storage class, in persistent ids",
    **dict.fromkeys(
        (
            "torch.jit._pickle.build_intlist",
            "torch.jit._pickle.build_tensorlist",
            "torch.jit._pickle.build_doublelist",
            "torch.jit._pickle.build_boollist",
            "torch.jit._pickle.build_tensor_from_id",
            "torch.jit._pickle.restore_type_tag",
        ),
        "TorchScript's typed lists",
    ),
    "collections.OrderedDict": "every state dict",
    "_codecs.encode": "bytes under pickle protocol 2",
    **dict.fromkeys(
        (
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray._reconstruct",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray.scalar",
            "numpy.core.numeric._frombuffer",
            "numpy._core.numeric._frombuffer",
            "numpy.ndarray",
            "numpy.dtype",
        ),
        "NumPy arrays and scalars as pickle writes them",
    ),
}
"""Exact names that say nothing about a file, with the reason."""

_PLAIN: Final = "plain data"
NOTED: Mapping[str, str] = {
    **{
        f"{module}.{name}": _PLAIN
        for module in ("builtins", "__builtin__")
        for name in (
            *("dict", "list", "tuple", "set", "frozenset", "int", "long", "float", "complex"),
            *("bool", "str", "unicode", "bytes", "bytearray", "object", "slice", "range"),
            *("xrange", "NoneType", "Ellipsis", "NotImplemented"),
        )
    },
    **{
        f"collections.{name}": _PLAIN
        for name in ("defaultdict", "deque", "Counter", "ChainMap", "UserDict", "UserList")
    },
    **{
        f"datetime.{name}": _PLAIN for name in ("datetime", "date", "time", "timedelta", "timezone")
    },
    **{
        f"{module}.{name}": _PLAIN
        for module in ("pathlib", "pathlib._local")
        for name in (
            *("Path", "PosixPath", "WindowsPath"),
            *("PurePath", "PurePosixPath", "PureWindowsPath"),
        )
    },
    **{f"enum.{name}": _PLAIN for name in ("Enum", "IntEnum", "StrEnum", "Flag", "IntFlag")},
    **{
        f"typing.{name}": "a type annotation"
        for name in (
            *("Any", "Optional", "Union", "List", "Dict", "Tuple", "Set", "Callable"),
            *("Sequence", "Mapping", "Iterable", "Type", "Literal", "NoReturn"),
        )
    },
    "argparse.Namespace": "command-line options kept by training scripts",
    "types.SimpleNamespace": "options kept by training scripts",
    "decimal.Decimal": _PLAIN,
    "fractions.Fraction": _PLAIN,
    "uuid.UUID": _PLAIN,
    "functools.partial": "binds a callable, which is judged by its own name",
    "copyreg._reconstructor": "makes an object of a class, which is judged by its own name",
    "copy_reg._reconstructor": "makes an object of a class, which is judged by its own name",
    "copyreg.__newobj__": "makes an object of a class, which is judged by its own name",
    "torch.nn.backends.thnn._get_thnn_function_backend": "in modules pickled before torch 1.0",
    **{
        f"numpy.random.{name}": "a random state kept for resuming"
        for name in (
            *("mtrand.RandomState", "_pickle.__randomstate_ctor", "__RandomState_ctor"),
            *("_pickle.__bit_generator_ctor", "_pickle.__generator_ctor", "_mt19937.MT19937"),
            *("_pcg64.PCG64", "_generator.Generator"),
        )
    },
}
"""Exact names worth a note: plain data that loading brings in besides tensors."""

_TORCH_CLASSES: Final = (
    ("torch.nn.", "a module class"),
    ("torch.optim.", "an optimizer or scheduler class"),
    ("torch.ao.", "a quantisation class"),
    ("torch.quantization.", "a quantisation class"),
    ("torch.distributions.", "a distribution class"),
    ("torch.utils.data.", "a data set or loader class"),
    ("torch.amp.", "a mixed-precision class"),
    ("torch.cuda.amp.", "a mixed-precision class"),
)
"""torch packages whose classes may be instantiated with a note."""

_TORCH_VALUES: Final = (
    ("torch.nn.functional.", "an activation function kept as a value"),
    ("torch.nn.init.", "an initialiser kept as a value"),
    ("torch._C._nn.", "an activation function kept as a value"),
)
"""torch functions that pickled modules keep as attributes: a note while nothing calls them."""

_OLD_STDLIB: Final = frozenset(
    # One string keeps 130 names readable.
    [
        "__builtin__",
        "__builtins__",
        "copy_reg",
        "cPickle",
        "cStringIO",
        "StringIO",
        "commands",
        "popen2",
        "os2",
        "os2emxpath",
        "posixfile",
        "test",
        "exceptions",
        "urllib2",
        "urlparse",
        "httplib",
        "ConfigParser",
        "Queue",
        "SocketServer",
        "Cookie",
        "cookielib",
        "HTMLParser",
        "htmlentitydefs",
        "thread",
        "dummy_thread",
        "dummy_threading",
        "imp",
        "asyncore",
        "asynchat",
        "smtpd",
        "distutils",
        "aifc",
        "audioop",
        "cgi",
        "cgitb",
        "chunk",
        "crypt",
        "imghdr",
        "mailcap",
        "msilib",
        "nis",
        "nntplib",
        "ossaudiodev",
        "pipes",
        "sndhdr",
        "spwd",
        "sunau",
        "telnetlib",
        "uu",
        "xdrlib",
        "formatter",
        "parser",
        "symbol",
        "macpath",
        "binhex",
        "_bootlocale",
        "fpformat",
        "md5",
        "sha",
        "sets",
        "rexec",
        "Bastille",
        "user",
        "mimetools",
        "mimify",
        "new",
        "ihooks",
        "compiler",
        "dircache",
        "fl",
        "sgmllib",
        "statvfs",
        "toaiff",
        "UserDict",
        "UserList",
        "UserString",
        "anydbm",
        "whichdb",
        "dbhash",
        "dumbdbm",
        "gdbm",
        "robotparser",
        "SimpleHTTPServer",
        "BaseHTTPServer",
        "CGIHTTPServer",
        "xmlrpclib",
        "SimpleXMLRPCServer",
        "DocXMLRPCServer",
        "Tkinter",
        "tkMessageBox",
        "_winreg",
        "repr",
        "bsddb",
        "hotshot",
        "lib2to3",
        "nt",
        "ntpath",
        "_winapi",
        "winreg",
        "msvcrt",
        "winsound",
        "riscos",
        "ce",
        "java",
    ]
)
"""Standard-library modules that the running Python no longer, or on this system never, had."""

_SIZED: Final = re.compile(r"(builtins|__builtin__)\.(bytes|bytearray|unicode|str)|torch.*Storage")
_EXPANDING: Final = re.compile(
    r"(builtins|__builtin__)\.(list|tuple|set|frozenset|bytes|bytearray)|collections\.deque"
)
_TENSOR_TYPE: Final = re.compile(r"torch\.(cuda\.|sparse\.|cuda\.sparse\.)?[A-Za-z0-9]*Tensor")
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
    if not name.isascii() or not re.fullmatch(r"[\w.]+", used.module) or "." in used.name:
        return Severity.ERROR, "not a plain module and name"
    if not used.name.isidentifier():
        return Severity.ERROR, "not a plain module and name"
    if used.largest > MAX_ALLOCATION and _SIZED.fullmatch(name):
        return Severity.ERROR, f"asked to allocate {used.largest:.3g} elements"
    if used.indirect and _EXPANDING.fullmatch(name):
        return Severity.ERROR, "expands the result of another call without bound"
    if name in SILENT:
        return None, SILENT[name]
    if name in NOTED:
        return Severity.NOTE, NOTED[name]
    top = used.module.partition(".")[0]
    if top in _OLD_STDLIB or top in sys.stdlib_module_names:
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
        for package, reason in _TORCH_CLASSES:
            if name.startswith(package):
                return Severity.NOTE, reason
        if not used.called and not used.built:
            return Severity.NOTE, "a torch class kept as a value"
        return Severity.ERROR, "a torch class that no model file needs to instantiate"
    if not used.called:
        for package, reason in _TORCH_VALUES:
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
    names: Iterable[Global], computed: Iterable[int], where: str
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
            seen, start = error.seen, len(data)
        else:
            start = seen.end
        for finding in findings_about(seen.globals, seen.computed, where):
            found.add(finding)
    message = f"more than {MAX_PICKLES:,} pickles in a row; the rest was not looked into"
    found.add(container_finding("CK005", Severity.ERROR, message, where=where, unsafe=True))
    return found.findings()


MAX_PICKLES: Final = 10_000


def _ck002(severity: Severity, message: str, where: str, name: str) -> Finding:
    return container_finding("CK002", severity, message, where=where, unsafe=True, globals=[name])


def _shown(used: Global) -> str:
    name = used.dotted
    return name if len(name) <= 120 else f"{name[:80]}...{name[-30:]}"
