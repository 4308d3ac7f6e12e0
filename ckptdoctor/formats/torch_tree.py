"""Walks the object a torch pickle holds and names every tensor in it, as `state_dict()` would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..containers.pickle import Call, Global, PDict, Persistent, PSet, Unpickled
from ..dtypes import of_numpy
from ..findings import Finding, Severity, Tally, container_finding
from ..roles import role_of
from ..tensors import Array, LayerConfig, Role, TensorInfo
from .numpy_values import array_of, number_of
from .torch_values import Refusal, Resolver, Storage, Value, is_plain_dict

__all__ = ["Tree", "TreeReader", "numbers_in"]

MAX_DEPTH: Final = 150
"""Containers inside each other; real checkpoints reach 30 (pickled modules in Lightning files)."""

FREE_VISITS: Final = 50_000
"""Containers visited beyond one for each byte of the pickle, since shared ones count again: a list
that holds another list twice, forty times over, has 2^40 paths in 200 bytes."""

MAX_SCALARS: Final = 20_000


@dataclass(slots=True)
class Tree:
    """What the walk found."""

    infos: dict[str, TensorInfo] = field(default_factory=dict)
    scalars: dict[str, float | int] = field(default_factory=dict)
    layers: dict[str, LayerConfig] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    """Layer name -> the module that defines its class, as the pickle names it."""
    arrays: dict[str, Array] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


class TreeReader:
    """One walk over one unpickled object.

    Parameters
    ----------
    resolver
        Turns calls into tensors.
    where
        ``file:member`` of the pickle, for findings.
    size
        Bytes of the pickle: what the walk may cost is measured by it.
    """

    def __init__(self, resolver: Resolver, where: str, size: int) -> None:
        self.resolver, self.where = resolver, where
        self._budget = FREE_VISITS + size
        self.tree = Tree()
        self._found = Tally(where)
        self._visits = 0
        self._open: set[int] = set()
        self._gave_up = False

    def read(self, root: Any, prefix: tuple[str, ...] = (), role: Role | None = None) -> Tree:
        """Walk ``root``; ``prefix`` and ``role`` are for parts of a larger whole."""
        if role is None and type(root) is PDict and _is_optimizer(root):
            role = "optimizer"
        self._walk(root, prefix, (), role)
        self.tree.findings = self._found.findings()
        return self.tree

    # path: the name's components; module: those of them that are inside a pickled module, whose
    # words are a parameter's own name and say nothing about its role.

    def _walk(
        self, value: Any, path: tuple[str, ...], module: tuple[str, ...], role: Role | None
    ) -> None:
        kind = type(value)
        if kind in (int, float):
            self._scalar(value, path + module)
            return
        if kind not in (Call, PDict, list, tuple, PSet, Persistent):
            return
        if kind is Call or kind is Persistent:
            try:
                tensor = self.resolver.value(value)
            except Refusal as refusal:
                self._refuse(path + module, refusal)
                return
            if tensor is not None:
                self._row(tensor, path, module, role)
                return
        if kind is Persistent or not self._enter(value, path + module):
            return
        if kind is PDict:
            self._walk_pairs(value.pairs, path, module, role)
        elif kind is Call:
            self._walk_call(value, path, module, role)
        else:
            elements = value.elements if kind is PSet else value
            for index, item in enumerate(elements):
                if type(item) is not str:
                    self._step(item, str(index), path, module, role)
        self._open.discard(id(value))

    def _step(
        self, item: Any, key: str, path: tuple[str, ...], module: tuple[str, ...], role: Role | None
    ) -> None:
        if module:
            self._walk(item, path, (*module, key), role)
        else:
            self._walk(item, (*path, key), (), role)

    def _enter(self, value: Any, path: tuple[str, ...]) -> bool:
        """Whether to look inside a container: not into itself, nor deeper or longer than sane."""
        self._visits += 1
        if id(value) in self._open:
            return False
        if self._visits > self._budget or len(self._open) >= MAX_DEPTH:
            if not self._gave_up:
                self._gave_up = True
                limit = (
                    f"deeper than {MAX_DEPTH} levels"
                    if len(self._open) >= MAX_DEPTH
                    else f"to more than {self._budget:,} containers"
                )
                message = (
                    f"the pickled object at {_shown(path)} unfolds {limit}; the rest was not read"
                )
                self._find("CK005", Severity.ERROR, message, unsafe=True)
            return False
        self._open.add(id(value))
        return True

    def _walk_pairs(
        self,
        pairs: list[tuple[Any, Any]] | tuple[()],
        path: tuple[str, ...],
        module: tuple[str, ...],
        role: Role | None,
    ) -> None:
        for key, item in pairs:
            if type(item) is not str:
                self._step(item, _label(key), path, module, role)

    def _walk_call(
        self, call: Call, path: tuple[str, ...], module: tuple[str, ...], role: Role | None
    ) -> None:
        if self._numpy(call, path + module, role):
            return
        state = call.state[-1] if call.state else None
        if type(state) is tuple and len(state) == 2 and type(state[0]) in (PDict, type(None)):
            state = state[0] or state[1]  # (dict, slots)
        attributes = dict(_string_pairs(state))
        if "_modules" in attributes or "_parameters" in attributes:
            self._walk_module(call, attributes, path, module, role)
            return
        if is_plain_dict(call):
            for arg in call.args if type(call.args) is tuple else ():
                self._walk_pairs(_pairs_of(arg), path, module, role)
            self._walk_pairs(call.pairs, path, module, role)
            return
        if type(call.callee) is Global and call.callee.module.startswith("__torch__"):
            self._layer(call, attributes, ".".join(path))
        if type(call.args) is tuple:
            for index, item in enumerate(call.args):
                self._step(item, str(index), path, module, role)
        self._walk_pairs(call.pairs, path, module, role)
        for index, item in enumerate(call.elements):
            self._step(item, str(index), path, module, role)
        if isinstance(state, (PDict, Call)):
            self._walk_pairs(state.pairs, path, module, role)
        elif state is not None:
            self._step(state, "state", path, module, role)

    def _walk_module(
        self,
        call: Call,
        attributes: Mapping[str, Any],
        path: tuple[str, ...],
        module: tuple[str, ...],
        role: Role | None,
    ) -> None:
        """Parameters, buffers and children under their plain names; then what else it carries."""
        role = role or role_of((*path, "module.parameter")) if not module else role
        self._layer(call, attributes, ".".join(path + module))
        for holder in ("_parameters", "_buffers", "_modules"):
            for key, item in _string_pairs(attributes.get(holder)):
                if type(item) in (Call, Persistent):
                    self._walk(item, path, (*module, key), role)
        for key, item in attributes.items():
            if key not in _MODULE_MACHINERY and type(item) in (Call, PDict, list, tuple):
                self._walk(item, path, (*module, key), "other" if role == "model" else role)

    def _layer(self, call: Call, attributes: Mapping[str, Any], name: str) -> None:
        settings = {
            key: item
            for key, item in attributes.items()
            if not key.startswith("_") and (type(item) in (int, float, bool, str) or _axes(item))
        }
        if not name or len(self.tree.layers) >= MAX_SCALARS or type(call.callee) is not Global:
            return
        self.tree.modules[name] = call.callee.module
        eps, momentum = settings.get("eps"), settings.get("momentum")
        self.tree.layers[name] = LayerConfig(
            name=name,
            class_name=call.callee.name,
            epsilon=_float(eps),
            momentum=_float(momentum),
            settings=settings,
        )

    def _numpy(self, call: Call, path: tuple[str, ...], role: Role | None) -> bool:
        number = number_of(call)
        if number is not None:
            self._scalar(number, path)
            return True
        array = array_of(call)
        if array is None:
            return False
        row = of_numpy(array.dtype)
        if row is not None:
            told = role or role_of(path)
            name = self._name(path)
            self.tree.arrays[name] = array
            self.tree.infos[name] = TensorInfo(
                name=name,
                path=path,
                dtype=row.name,
                shape=array.shape,
                role="other" if told == "model" else told,  # a model's weights are torch tensors
            )
        return True

    def _row(
        self, value: Value, path: tuple[str, ...], module: tuple[str, ...], role: Role | None
    ) -> None:
        whole = path + module
        told = role or role_of(whole if not module else (*path, ".".join((*module, ""))))
        if value.parts:
            for key, part in value.parts.items():
                if type(part) in (Call, Persistent):
                    self._walk(part, (*whole, key), (), told)
            if value.encoding == "absent":  # a sparse tensor is its parts
                return
        name = self._name(whole)
        storage = value.storage
        self.tree.infos[name] = TensorInfo(
            name=name,
            path=whole,
            dtype=value.dtype,
            shape=value.shape,
            role=told,
            encoding=value.encoding,  # type: ignore[arg-type]
            extent=value.extent,
            strides=value.strides,
            big_endian=storage.big_endian if storage else False,
            storage=storage.key if storage else "",
            quantisation=value.quantisation(name),
        )

    def _name(self, path: tuple[str, ...]) -> str:
        """Join a path and make it unique: ``x`` then ``x#2``."""
        name = base = ".".join(path) or "tensor"
        number = 1
        while name in self.tree.infos:
            number += 1
            name = f"{base}#{number}"
        return name

    def _scalar(self, value: float, path: tuple[str, ...]) -> None:
        if len(self.tree.scalars) < MAX_SCALARS and path:
            self.tree.scalars[".".join(path)] = value

    def _refuse(self, path: tuple[str, ...], refusal: Refusal) -> None:
        name = ".".join(path) or "tensor"
        message = f"tensor {name[:120]!r} cannot be read: {refusal}"
        self._find(refusal.code, Severity.ERROR, message, tensor=name)

    def _find(self, code: str, severity: Severity, message: str, **more: Any) -> None:
        self._found.add(container_finding(code, severity, message, where=self.where, **more))


_MODULE_MACHINERY = frozenset(
    {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
    | {f"_{when}_hooks" for when in ("forward", "backward", "forward_pre", "state_dict")}
    | {"_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_backward_pre_hooks"}
)


def numbers_in(unpickled: Unpickled) -> Mapping[str, float | int]:
    """Python numbers of an unpickled object by name, as its table has them; no storage is needed."""

    def no_storage(pid: Any) -> Storage:  # noqa: ARG001
        raise Refusal("storages are not looked for")

    return TreeReader(Resolver(no_storage), "", unpickled.end).read(unpickled.value).scalars


def _pairs_of(arg: Any) -> list[tuple[Any, Any]]:
    """Pairs of a dictionary's constructor: Python 2 pickles an OrderedDict as a list of them."""
    if isinstance(arg, PDict):
        return arg.pairs
    items = arg if type(arg) in (list, tuple) else ()
    return [(i[0], i[1]) for i in items if type(i) in (list, tuple) and len(i) == 2]


def _is_optimizer(root: PDict) -> bool:
    """Whether this is the state dict of a torch.optim optimizer, saved alone (optimizer.pt)."""
    keys = {key for key, _ in root.pairs[:8] if type(key) is str}
    return len(root.pairs) <= 8 and {"state", "param_groups"} <= keys


def _string_pairs(value: Any) -> list[tuple[str, Any]]:
    pairs = value.pairs if type(value) in (PDict, Call) else ()
    return [(key, item) for key, item in pairs if type(key) is str]


def _axes(value: Any) -> bool:
    """Whether this is a window's size or stride, one number for each axis."""
    return type(value) is tuple and len(value) <= 8 and all(type(each) is int for each in value)


def _float(value: Any) -> float | None:
    if type(value) is int and value.bit_length() < 64:
        return float(value)
    return value if type(value) is float else None


def _label(key: Any) -> str:
    """``str(key)`` without running anything: class objects and tuples occur as keys too."""
    kind = type(key)
    if kind is str:
        return str(key)
    if kind is int:
        return str(key) if key.bit_length() < 256 else f"<integer of {key.bit_length()} bits>"
    if kind is Global:
        return str(key.dotted)
    if kind in (float, bool, bytes, type(None)):
        return str(key)[:80]
    if kind is tuple and len(key) <= 8 and all(type(k) in (str, int) for k in key):
        return "(" + ", ".join(_label(k) for k in key) + ")"
    if kind is Call and type(key.callee) is Global:
        return f"<{key.callee.name}>"
    return f"<{kind.__name__}>"


def _shown(path: tuple[str, ...]) -> str:
    return repr(".".join(path)[:120]) if path else "its top"
