"""Keras in HDF5: whole models, weights of either layout; and any other HDF5 file.

Keras 1, 2 and 3 share the *legacy* layout (``.h5``, ``.hdf5``): a group for each layer, named after it,
which lists its weights in an attribute ``weight_names``.  A whole model keeps these groups in
``model_weights`` and its configuration in root attributes; a weights-only file keeps them in the
root.  Keras 3 writes ``.weights.h5``, and the same inside ``.keras``: a group for each object, named
after its class, whose ``vars`` hold its variables by number and, mostly, its real name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from ..containers.hdf5 import Contents, Dataset, is_hdf5, read_hdf5
from ..findings import Finding, Severity, container_finding
from ..keras.config import KerasConfig, parse_json, read_model_config, read_scalars
from ..roles import keras_role_of
from ..sources import ByteSource, FileSource
from ..tensors import Role, TensorInfo, TensorTable
from .base import ReadOptions

__all__ = ["KerasH5", "missing_variables", "name_layers", "tensor_rows"]

MAX_TOLD = 16
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies", "_operations")
"""Groups that hold a model's layers; Keras 2.12 and 2.13 wrote the second."""


class KerasH5:
    """Adapter for HDF5 files."""

    name = "keras-h5"
    spec = "https://keras.io/api/models/model_saving_apis/ (HDF5: https://docs.hdfgroup.org)"
    summary = "Keras 1, 2 and 3 .h5 and .hdf5: whole models, and weights of Keras 1 and 2"
    names: ClassVar = {
        "keras-weights-h5": "Keras 3 .weights.h5 (save_weights)",
        "hdf5": "any other HDF5 file: its datasets by their paths",
    }

    def sniff(self, head: bytes, source: FileSource) -> bool:
        """Whether HDF5's signature is where HDF5 looks for it."""
        return is_hdf5(head, source)

    def read(self, source: FileSource, options: ReadOptions) -> TensorTable:
        """Read the layout, the stored configuration and the layers' names.

        Raises
        ------
        FormatError
            If HDF5 cannot open the file, or dies of it.
        """
        contents = read_hdf5(source, trust=options.trust_hdf5)
        try:
            return _table(source, contents)
        except BaseException:
            if contents.decoder is not None:
                contents.decoder.close()
            raise


def _table(source: FileSource, contents: Contents) -> TensorTable:
    root = contents.attributes.get("", {})
    inner = contents.attributes.get("model_weights", {})
    format_, layout = _layout(contents)
    version = str(root.get("keras_version") or inner.get("keras_version") or "")[:40]
    config, scalars, findings = _stored_config(source, root, version)
    infos = tensor_rows(contents, keras=format_ != "hdf5")
    if format_ == "keras-weights-h5":
        infos = name_layers(infos, contents.attributes, config)
        findings += missing_variables(infos, source)
    elif format_ == "keras-h5":
        infos = [_with_legacy_layer(info, config.layers) for info in infos]
        findings += tuple(_missing_weights(contents, source))
    metadata = {"layout": layout}
    if format_ != "hdf5":
        backend = str(root.get("backend") or inner.get("backend") or "")[:40]
        metadata |= {"framework": "keras", "framework_version": version, "backend": backend}
        metadata |= {"model_class": config.class_name, "model_name": config.name}
    if contents.skipped:
        metadata["skipped"] = f"{len(contents.skipped)} datasets without numbers"
    return TensorTable(
        path=source.name,
        format=format_,
        infos={info.name: info for info in infos},
        metadata={key: value for key, value in metadata.items() if value},
        scalars=scalars,
        layers=config.layers,
        findings=(*contents.findings, *findings),
        decoder=contents.decoder,
        files=(source,),
    )


def _layout(contents: Contents) -> tuple[str, str]:
    root = contents.attributes.get("", {})
    paths = [dataset.path for dataset in contents.datasets]
    if (
        any(path[0] == "model_weights" and len(path) > 2 for path in paths)
        or "model_config" in root
    ):
        return "keras-h5", "whole model"
    if any(key.startswith("layer_names") for key in root):
        return "keras-h5", "weights only"
    if any(len(path) > 1 and path[-2] == "vars" and path[-1].isdigit() for path in paths):
        return "keras-weights-h5", "weights only"
    if "keras_version" in root:
        return "keras-h5", "weights only"
    return "hdf5", "other"


def _stored_config(
    source: ByteSource, root: Mapping[str, Any], version: str
) -> tuple[KerasConfig, dict[str, float | int], tuple[Finding, ...]]:
    config, scalars = KerasConfig(), dict[str, float | int]()
    findings: tuple[Finding, ...] = ()
    where = f"{source.name}:"
    # Keras before 3 runs Lambda bytecode of HDF5 files without asking.
    safe = not re.match(r"[012]\.", version)
    text = root.get("model_config")
    if isinstance(text, str):
        config, _, findings = read_model_config(text, where=f"{where}model_config", safe_mode=safe)
    text = root.get("training_config")
    if isinstance(text, str):
        document, odd = parse_json(text, where=f"{where}training_config")
        findings += odd + _judged(document, f"{where}training_config", safe)
        scalars = read_scalars(document, "training_config")
    return config, scalars, findings


def _judged(document: object, where: str, safe: bool) -> tuple[Finding, ...]:
    from ..keras.code import judge_code  # noqa: PLC0415

    return judge_code(document, where=where, safe_mode=safe)


def tensor_rows(contents: Contents, *, keras: bool = True) -> list[TensorInfo]:
    """Rows of the table, in the order of the file; layer names are left to the layout."""
    taken: Counter[str] = Counter()
    infos = []
    for stored in contents.datasets:
        dataset = _bfloat16(stored) if keras else stored
        name = "/".join(dataset.path)
        taken[name] += 1
        if taken[name] > 1:
            name = f"{name}#{taken[name]}"
        infos.append(_row(dataset, name, keras_role_of(dataset.path) if keras else "model"))
    return infos


def _bfloat16(dataset: Dataset) -> Dataset:
    """Tell bfloat16 by its two opaque bytes, as HDF5 gets it where Keras leaves no attribute."""
    if dataset.opaque and dataset.dtype == "uint8" and dataset.itemsize == 2:
        return dataset._replace(dtype="bfloat16", shape=dataset.shape[:-1], opaque=False)
    return dataset


def _row(dataset: Dataset, name: str, role: Role) -> TensorInfo:
    return TensorInfo(
        name=name,
        path=dataset.path,
        dtype=dataset.dtype,
        shape=dataset.shape,
        role="other" if dataset.opaque else role,
        encoding="absent" if dataset.absent else "opaque" if dataset.opaque else "plain",
        extent=dataset.extent,
        big_endian=dataset.big_endian,
        storage=dataset.storage,
    )


# --- the legacy layout ---------------------------------------------------------------------------


def _with_legacy_layer(info: TensorInfo, known: Mapping[str, Any]) -> TensorInfo:
    """Name the layer without ``model_weights`` and without the group that Keras doubles."""
    if info.role != "model":
        return info
    parts = info.path[1:-1] if info.path[0] == "model_weights" else info.path[:-1]
    layer = _legacy_layer(parts, known)
    return info if layer == info.layer else info._replace(layer_name=layer)


def _legacy_layer(parts: Sequence[str], known: Mapping[str, Any]) -> str:
    """Real name of the layer whose weights lie in a group of groups.

    Weight names repeat the layer's own name and, in subclassed and Sequential models, the names
    of the models around it: ``dense/dense``, ``bn/sequential/bn``, ``lstm/lstm/lstm_cell``; the
    layers of a nested model do not: ``resnet/post_bn``.

    Examples
    --------
    >>> [_legacy_layer(p.split("/"), {}) for p in ("fc/fc", "bn/sequential/bn", "resnet/post_bn")]
    ['fc', 'bn', 'resnet/post_bn']
    """
    if not parts:
        return ""
    first, rest = parts[0], list(parts[1:])
    if first in rest:
        rest = rest[rest.index(first) + 1 :]
    joined = "/".join((first, *rest))
    if joined not in known and rest and f"{first}/{rest[-1]}" in known:
        return f"{first}/{rest[-1]}"
    return joined


def _missing_weights(contents: Contents, source: ByteSource) -> Iterator[Finding]:
    """CK003 for layers and weights that the file lists and does not hold."""
    there = {"/".join(dataset.path) for dataset in contents.datasets} | set(contents.skipped)
    groups = {name.rpartition("/")[0] for name in there} | set(contents.attributes)
    above = {group[:at] for group in groups for at, c in enumerate(group) if c == "/"}
    groups |= above
    missing: list[tuple[str, str]] = []
    for group, attributes in contents.attributes.items():
        prefix = f"{group}/" if group else ""
        if group in ("", "model_weights"):
            missing += [
                ("layer", f"{prefix}{name}")
                for name in _listed(attributes, "layer_names")
                if f"{prefix}{name}" not in groups
            ]
        missing += [
            ("weight", f"{prefix}{name}")
            for name in _listed(attributes, "weight_names")
            if f"{prefix}{name}" not in there
        ]
    for what, name in missing[:MAX_TOLD]:
        text = f"the file lists the {what} {name[:200]!r} and does not hold it"
        yield container_finding("CK003", Severity.ERROR, text, where=source.name)
    if len(missing) > MAX_TOLD:
        text = f"{len(missing) - MAX_TOLD} more layers or weights are listed and not there"
        yield container_finding("CK003", Severity.ERROR, text, where=source.name)


def _listed(attributes: Mapping[str, Any], key: str) -> Iterator[str]:
    """Names of a list that Keras may have split into key0, key1, ..."""
    for name, value in attributes.items():
        if name.rstrip("0123456789") == key and isinstance(value, list):
            yield from (str(each) for each in value)


# --- the layout of Keras 3 -----------------------------------------------------------------------


def name_layers(
    infos: Iterable[TensorInfo], attributes: Mapping[str, Mapping[str, Any]], config: KerasConfig
) -> list[TensorInfo]:
    """Give each variable its layer's real name.

    It stands in the attribute ``name`` of the ``vars`` group, or follows from the configuration,
    which lists the layers in the order in which their groups are numbered.  The models around a
    layer are named only where two layers would otherwise be called the same.
    """
    infos = list(infos)
    groups = {info.path[:-2] for info in infos if _is_variable(info)}
    short = {group: _real_name(group, attributes, config, full=False) for group in groups}
    counts = Counter(short.values())
    names = {
        group: _real_name(group, attributes, config, full=True) if counts[name] > 1 else name
        for group, name in short.items()
    }
    counts = Counter(names.values())
    names = {group: name if counts[name] == 1 else "" for group, name in names.items()}
    return [
        info._replace(layer_name=names[info.path[:-2]]) if _is_variable(info) else info
        for info in infos
    ]


def _is_variable(info: TensorInfo) -> bool:
    return info.role == "model" and len(info.path) > 1 and info.path[-2] == "vars"


def _real_name(
    group: tuple[str, ...],
    attributes: Mapping[str, Mapping[str, Any]],
    config: KerasConfig,
    *,
    full: bool,
) -> str:
    """Names from the outermost layer to the one whose group this is; empty where unknown."""
    parts: list[str] = []
    known = False
    for depth in range(1, len(group) + 1):
        prefix = group[:depth]
        if prefix[-1] in _CONTAINERS:
            continue
        stated = attributes.get("/".join((*prefix, "vars")), {}).get("name")
        mapped = config.paths.get("/".join("layers" if p in _CONTAINERS else p for p in prefix))
        if mapped is not None and (stated is None or mapped.rpartition("/")[2] == stated):
            parts, known = [mapped], True
        elif depth < len(group) and group[depth] in _CONTAINERS and not full:
            continue
        elif isinstance(stated, str):
            parts, known = [*parts, stated], True
        elif depth == len(group):  # a group between is a list of layers
            parts.append(prefix[-1])
    return "/".join(parts)[:500] if known else ""


def missing_variables(infos: Iterable[TensorInfo], source: ByteSource) -> tuple[Finding, ...]:
    """CK003 for gaps in the numbered variables of a layer."""
    numbers: dict[tuple[str, ...], set[int]] = {}
    for info in infos:
        if (
            len(info.path) > 1
            and info.path[-2] == "vars"
            and re.fullmatch(r"\d{1,9}", info.path[-1])
        ):
            numbers.setdefault(info.path[:-1], set()).add(int(info.path[-1]))
    gaps = [
        (group, next(i for i in range(len(found) + 1) if i not in found))
        for group, found in numbers.items()
        if max(found) >= len(found)
    ]
    findings = [
        container_finding(
            "CK003",
            Severity.ERROR,
            f"variable {number} of {'/'.join(group)[:200]!r} is missing, later ones are there",
            where=source.name,
        )
        for group, number in gaps[:MAX_TOLD]
    ]
    return tuple(findings)
