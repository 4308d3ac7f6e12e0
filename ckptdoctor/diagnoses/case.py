"""One illness of one checkpoint: the findings it explains, its layers in depth order, its words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

from ..findings import Finding, Severity
from .facts import Facts
from .tree import Branch, branch_of

__all__ = ["Case", "Command", "Pattern", "Text"]


class Case:
    """Findings that one pattern explains.

    Parameters
    ----------
    facts
        The checkpoint.
    indices
        Of the findings, in the order of the report.
    """

    def __init__(self, facts: Facts, indices: Sequence[int]) -> None:
        self.facts, self.indices = facts, tuple(indices)
        self.findings: tuple[Finding, ...] = tuple(facts.findings[i] for i in indices)

    @cached_property
    def codes(self) -> frozenset[str]:
        """Codes of the findings, as `Facts.code_of` knows them."""
        return frozenset(self.facts.code_of(finding) for finding in self.findings)

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """Tensors with findings, each once, in depth order."""
        placed = sorted((self.facts.place_of(f), f.tensor) for f in self.findings if f.tensor)
        return tuple(dict.fromkeys(tensor for _, tensor in placed))

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Layers with errors and warnings, each once, in depth order."""
        placed = sorted(
            self.facts.place_of(f)
            for f in self.findings
            if (f.tensor or f.layer) and f.severity > Severity.NOTE
        )
        return tuple(dict.fromkeys(place.layer for place in placed))

    @property
    def suspect(self) -> str:
        """First layer in depth order: where it most likely began."""
        return self.layers[0] if self.layers else ""

    @property
    def severity(self) -> Severity:
        """Highest of its findings."""
        return max(finding.severity for finding in self.findings)

    @cached_property
    def branch(self) -> Branch:
        """Where the decision tree puts the checkpoint."""
        return branch_of(self.facts)

    @cached_property
    def roles(self) -> frozenset[str]:
        """Roles of the tensors with errors and warnings."""
        return frozenset(f.role for f in self.findings if f.severity > Severity.NOTE)

    def of_code(self, *codes: str) -> tuple[Finding, ...]:
        """Return the findings with these codes."""
        return tuple(f for f in self.findings if self.facts.code_of(f) in codes)

    @property
    def few_elements(self) -> bool:
        """Whether single elements of weights are not finite, no matter in how many tensors."""
        bad, count = self.bad_share("weights")
        return 0 < bad <= max(1, count // 100) and bad < count

    def bad_share(self, kind: str) -> tuple[int, int]:
        """Non-finite elements and all elements of its bad tensors of a kind, see `Facts.bad`."""
        bad = self.facts.bad[kind]
        mine = [bad[name] for name in self.tensors if name in bad]
        return sum(s.nonfinite for s in mine), sum(s.count for s in mine)


Text = str | Callable[[Case], str]
"""A sentence, or what makes one of a case."""


class Command(NamedTuple):
    """A command to copy: words after ``ckptdoctor``, and what it shows and exits with.

    ``{file}`` among the words is the checkpoint.
    """

    words: tuple[str, ...]
    tells: str


class Pattern(NamedTuple):
    """A row of the table of illnesses.

    Parameters
    ----------
    key
        Identity: a contract.
    codes
        Findings it needs: with none of them the file does not have this illness.
    takes
        Codes of findings that are the same story where it has it.
    when
        Further condition on the findings it needs.
    title, inference, training, repair
        What a person reads.
    causes
        Names in `causes.CAUSES`, the likelier first where the evidence does not decide.
    snippet
        Lines of Python that do what ``repair`` says.
    next
        What to run now; the suspect's tensors where None.
    rank
        Order among diagnoses of one severity, lowest first.
    """

    key: str
    codes: tuple[str, ...]
    title: Text
    inference: Text
    repair: Text
    causes: tuple[str, ...]
    training: Text = ""
    takes: tuple[str, ...] = ()
    when: Callable[[Case], bool] = lambda _: True
    snippet: Callable[[Case], tuple[str, ...]] = lambda _: ()
    next: Callable[[Case], Command] | None = None
    rank: int = 5
