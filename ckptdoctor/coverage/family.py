"""A family of models of Hugging Face Transformers: the rows of its weights, read by `templates`.

Each row is a name as files have it.  ``{a,b}`` stands for each of these, ``<key>`` for the numbers
from 0 to a setting of the configuration, ``<N>`` for those of its layers.  Then, each where it applies:

- ``~`` in front: may be there or not; ``-``: may be there, and loaders ignore it on purpose;
  ``!``: models are saved without it too, so that its absence is a warning; ``@``: lies with the
  body's weights, under its prefix;
- ``/ other``: either of both is enough; ``= other``: not needed where the configuration ties it;
- ``| key key``: its shape; a row without one is not measured;
- ``? key=default``: only where this setting, or its default, is true; ``!key`` where it is not,
  ``key^word`` where it begins so, ``key!=other`` where two settings differ.

Every row of every family is held against the real library by `tests/coverage/test_coverage_oracle.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["ANSWERS", "CLASSIFIER", "POOLER", "Family", "rows"]

CLASSIFIER = "classifier.{weight,bias}"
ANSWERS = "qa_outputs.{weight,bias}"
POOLER = "@pooler.dense.{weight,bias}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Weights of one ``model_type``.

    Parameters
    ----------
    stem
        How the names of its classes begin.
    base
        What loaders put before the body's names, or leave away.
    body
        Rows of the model without a head.
    heads
        Rows that a class adds, by how its name ends; those beginning with ``only`` name the parts
        of the body that the class has.
    tied
        Whether ``=`` rows are tied where the configuration does not say.
    plain
        Conditions for the rows to hold; where one fails nothing is known.
    """

    stem: str
    base: tuple[str, ...]
    body: str
    heads: Mapping[str, str] = field(default_factory=dict)
    tied: bool = False
    plain: tuple[str, ...] = ()


def rows(*parts: str) -> str:
    """Join rows, or lists of them."""
    return "\n".join(parts)
