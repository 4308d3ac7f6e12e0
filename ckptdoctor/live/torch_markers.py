"""Marks in the graphs of a TorchScript module: what hooks are to a module written in Python.

Inside a TorchScript module no hook is called: its code runs in an interpreter of its own.  So two
operators are put around every call of a submodule in its graphs, which hand the values to Python and
go on with what they get back.  Modules of one class share their graphs, so a mark only knows the way
from the caller to the called; the rest of the name is that of the call that is at work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .torch_calls import Calls

__all__ = ["mark", "mark_operators", "marked"]

_NAMESPACE = "ckptdoctor"
_calls: ContextVar[Calls | None] = ContextVar("ckptdoctor_calls", default=None)


@contextmanager
def marked(calls: Calls) -> Iterator[None]:
    """Tell of the calls that marks report from this thread."""
    token = _calls.set(calls)
    try:
        yield
    finally:
        _calls.reset(token)


def _enter(way: str, values: list[Any]) -> list[Any]:
    calls = _calls.get()
    if calls is None:
        return list(values)
    above = calls.open[-1].name if calls.open else ""
    name = f"{above}.{way}" if above else way
    return list(calls.enter(name, values))


def _leave(way: str, values: list[Any]) -> list[Any]:  # noqa: ARG001  (its mark's other half)
    calls = _calls.get()
    if calls is None or not calls.open:
        return list(values)
    return list(calls.leave(calls.open[-1].name, values))


@cache
def _operators() -> Any:
    """Register the two operators; the library lives as long as the process."""
    import torch  # noqa: PLC0415

    make: Any = torch.library.Library
    library = make(_NAMESPACE, "DEF")
    for name, call in (("enter", _enter), ("leave", _leave)):
        # conservative: nothing may be moved across it or left out
        schema = f"{name}(str way, Tensor[] values) -> Tensor[]"
        library.define(schema, alias_analysis="CONSERVATIVE")
        library.impl(name, call, "CompositeImplicitAutograd")
    return library


def mark(module: Any) -> int:
    """Put marks into all graphs of a TorchScript module, which must not have run yet.

    Returns
    -------
    int
        How many calls of submodules they contain.
    """
    _operators()
    done: set[str] = set()
    count = 0
    for each in module.modules():
        held = each._c
        key = str(held._type())
        if key not in done:
            done.add(key)
            for method in held._method_names():
                count += _mark_graph(held._get_method(method).graph)
    return count


def mark_operators(module: Any) -> dict[str, str]:
    """Put marks around the operators of a module that has no submodules left.

    Returns
    -------
    dict
        Name of each, made of the operator and a number -> the operator.
    """
    _operators()
    graph = module._c._get_method("forward").graph
    names: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for block in _blocks(graph):
        for node in list(block.nodes()):
            kind = node.kind().rpartition("::")
            if kind[0] != "aten" or node.outputsSize() != 1 or not _is_tensor(node.output()):
                continue
            number = numbers[kind[2]] = numbers.get(kind[2], -1) + 1
            name = f"{kind[2]}_{number}" if number else kind[2]
            names[name] = kind[2]
            _mark_node(graph, node, name, first=0)
    return names


def _mark_graph(graph: Any) -> int:
    count = 0
    for block in _blocks(graph):
        for node in list(block.nodes()):
            way = _way(node.inputsAt(0)) if node.kind() == "prim::CallMethod" else ""
            if way:
                _mark_node(graph, node, way, first=1)
                count += 1
    return count


def _blocks(block: Any) -> list[Any]:
    """Return a graph's blocks: itself, the branches and loops in it, and those in them."""
    found = [block]
    for node in block.nodes():
        for inner in node.blocks():
            found += _blocks(inner)
    return found


def _way(value: Any) -> str:
    """Attributes from the caller to a module: ``layers.0``; empty for itself or a way unknown."""
    words: list[str] = []
    node = value.node()
    while node.kind() == "prim::GetAttr":
        words.append(node.s("name"))
        node = node.inputsAt(0).node()
    return ".".join(reversed(words)) if node.kind() == "prim::Param" else ""


def _is_tensor(value: Any) -> bool:
    import torch  # noqa: PLC0415

    return bool(value.type().isSubtypeOf(torch._C.TensorType.get()))


def _flows(value: Any) -> bool:
    """Whether a value is a tensor that was computed: no weight, no constant."""
    return _is_tensor(value) and value.node().kind() not in ("prim::Constant", "prim::GetAttr")


def _mark_node(graph: Any, node: Any, way: str, *, first: int) -> None:
    """Have a node's tensors told of on both sides, and its neighbours use what comes back."""
    graph.setInsertPoint(node)
    told = graph.insertConstant(way)
    inputs = list(node.inputs())
    places = [at for at, value in enumerate(inputs) if at >= first and _flows(value)]
    new = _told(graph, "enter", told, [inputs[at] for at in places])
    for each in new:
        each.insertBefore(node)
    for at, value in zip(places, new[-1].outputs(), strict=False):
        node.replaceInput(at, value)
    outputs = [value for value in node.outputs() if _is_tensor(value)]
    new, last = _told(graph, "leave", told, outputs), node
    for each in new:
        each.insertAfter(last)
        last = each
    for value, replaced in zip(outputs, last.outputs(), strict=False):
        value.replaceAllUsesAfterNodeWith(last, replaced)


def _told(graph: Any, operator: str, way: Any, values: list[Any]) -> list[Any]:
    """Nodes that pack values, tell of them, and unpack what comes back, in this order."""
    import torch  # noqa: PLC0415

    tensors = torch._C.ListType(torch._C.TensorType.get())
    pack = graph.create("prim::ListConstruct", values, 1)
    pack.output().setType(tensors)
    tell = graph.create(f"{_NAMESPACE}::{operator}", [way, pack.output()], 1)
    tell.output().setType(tensors)
    unpack = graph.create("prim::ListUnpack", [tell.output()], len(values))
    for value, replaced in zip(values, unpack.outputs(), strict=True):
        replaced.setType(value.type())
    return [pack, tell, unpack]
