"""Tables of nothing but names and shapes, and folders with a configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ckptdoctor.tensors import LayerConfig, TensorInfo, TensorTable


@pytest.fixture
def table_of() -> Callable[..., TensorTable]:
    """A table of names; of names and shapes; of paths where they are tuples."""

    def make(
        names: Iterable[Any],
        *,
        path: str = "model.safetensors",
        format: str = "safetensors",
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        layers: Iterable[LayerConfig] = (),
        **more: Any,
    ) -> TensorTable:
        infos = {}
        for each in names:
            joint = "/" if format.startswith("keras") else "."
            name = each if isinstance(each, str) else joint.join(each)
            words = tuple(name.split("/")) if joint == "/" else (name,)
            infos[name] = TensorInfo(
                name=name,
                path=words if isinstance(each, str) else tuple(each),
                dtype="float32",
                shape=(shapes or {}).get(name, (2, 2)),
                role=more.get("roles", {}).get(name, "model"),
                layer_name=more.get("layer_names", {}).get(name, ""),
            )
        return TensorTable(
            path=path,
            format=format,
            infos=infos,
            layers={layer.name: layer for layer in layers},
            findings=more.get("findings", ()),
        )

    return make


@pytest.fixture
def beside(tmp_path: Path) -> Callable[..., str]:
    """Write a ``config.json`` and give the path of a checkpoint beside it."""

    def write(config: object, name: str = "model.safetensors") -> str:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return str(tmp_path / name)

    return write
