"""Names that pickles of models mention, as data with a reason per row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..dtypes import TORCH, TORCH_STORAGES

__all__ = ["NOTED", "OLD_STDLIB", "SILENT", "TORCH_CLASSES", "TORCH_VALUES"]

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
    "torch.ScriptObject": "packed weights of dynamic quantisation",
    "torch.utils.hooks.RemovableHandle": "hooks of lazy modules",
    "torch.amp.grad_scaler._refresh_per_optimizer_state": "in pickled GradScalers",
    "torch.cuda.amp.grad_scaler._refresh_per_optimizer_state": "in pickled GradScalers",
    "torch._C.Generator": "a random state kept for resuming",
    "torch.nn.backends.thnn._get_thnn_function_backend": "in modules pickled before torch 1.0",
    **{
        f"numpy.random.{name}": "a random state kept for resuming"
        for name in (
            *("mtrand.RandomState", "_pickle.__randomstate_ctor", "__RandomState_ctor"),
            *("_pickle.__bit_generator_ctor", "_pickle.__generator_ctor", "_mt19937.MT19937"),
            *("_pcg64.PCG64", "_generator.Generator", "bit_generator.SeedSequence"),
            "bit_generator.__pyx_unpickle_SeedSequence",
        )
    },
}
"""Exact names worth a note: plain data that loading brings in besides tensors."""

TORCH_CLASSES: Final = (
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

TORCH_VALUES: Final = (
    ("torch.nn.functional.", "an activation function kept as a value"),
    ("torch.nn.init.", "an initialiser kept as a value"),
    ("torch._C._nn.", "an activation function kept as a value"),
)
"""torch functions that pickled modules keep as attributes: a note while nothing calls them."""

_OLD_STDLIB: Final = """
__builtin__ __builtins__ copy_reg cPickle cStringIO StringIO commands popen2 os2 os2emxpath
posixfile test exceptions urllib2 urlparse httplib ConfigParser Queue SocketServer Cookie
cookielib HTMLParser htmlentitydefs thread dummy_thread dummy_threading imp asyncore asynchat
smtpd distutils aifc audioop cgi cgitb chunk crypt imghdr mailcap msilib nis nntplib ossaudiodev
pipes sndhdr spwd sunau telnetlib uu xdrlib formatter parser symbol macpath binhex _bootlocale
fpformat md5 sha sets rexec Bastille user mimetools mimify new ihooks compiler dircache fl
sgmllib statvfs toaiff UserDict UserList UserString anydbm whichdb dbhash dumbdbm gdbm
robotparser SimpleHTTPServer BaseHTTPServer CGIHTTPServer xmlrpclib SimpleXMLRPCServer
DocXMLRPCServer Tkinter tkMessageBox _winreg repr bsddb hotshot lib2to3 nt ntpath _winapi winreg
msvcrt winsound riscos ce java _interpreters _xxsubinterpreters _testcapi _testinternalcapi
_ctypes_test _pyrepl _pylong _pydatetime __hello__ __phello__ xxlimited xxsubtype annotationlib
compression _colorize _suggestions _opcode_metadata _apple_support _ios_support _android_support
sitecustomize usercustomize future_builtins imputil mutex mhlib rfc822 dl htmllib multifile
stringold strop sre xmllib Tix ttk tkFileDialog ScrolledText Dialog FileDialog macurl2path MacOS
Carbon EasyDialogs FrameWork pip setuptools _distutils_hack pkg_resources
"""
OLD_STDLIB: Final = frozenset(_OLD_STDLIB.split())
"""Modules of some standard library that the running Python does not list, and what installs code."""
