"""Which kernel feeds which BatchNorm, in which order data flows, and how that is known."""

from __future__ import annotations

from .feeds import Feed, Graph
from .read import read_graph

__all__ = ["Feed", "Graph", "read_graph"]
