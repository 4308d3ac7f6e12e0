"""docs/detection.md."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from .patients import HARM
from .score import Control, Row
from .table import alarms, by_rule, control_line, misses, siblings

TEXT = """\
# Detection: what the rules see, and what they see that is not there

This page is written by `python -m benchmarks.detection --half {half} --runs {runs} --first {first}
--page docs/detection.md`.

Small networks of the architectures that people use (torch: ResNet v1 and v2, MobileNet,
EfficientNet with squeeze-and-excitation, U-Net, DCGAN, MLP with BatchNorm, transformer with tied
embeddings and a causal mask, LSTM, convolutions with weight norm; Keras: ResNet v2, MobileNet, MLP
with BatchNorm and Normalization, LSTM, U-Net) are trained on synthetic data, {runs} seeds each, with
widths, optimizers and initialisations that follow from the seed. Each is damaged in the ways the
rules are about, at early, middle and late layers and in several strengths; some damage is done by
really running what causes it (an exploded batch whose step was skipped, batches of zeros, batches of
one, divergence, a constant initialiser). Every result is written to disk as a state dict, a training
checkpoint, Lightning's, a whole module, TorchScript, safetensors, `.h5`, `.weights.h5` or `.keras`,
and read back by `ckptdoctor` alone.

- **Effective**: the fault changes the output in evaluation mode by more than rounding every weight to
  bfloat16 does; faults of training state, precision and configuration count by definition.
- **Detected**: a finding of the rule's code (or of one that counts as well, see below), at a tensor
  that was damaged, of the rule's severity but at most a warning. **Over {harm:.0%}**: the same for
  faults that change the output by more than that.
- **Errors elsewhere**: damaged files with an error at a tensor that nothing was done to.
- **Controls**: healthy files, the traps of `benchmarks/detection/*_controls.py` among them.

Models and seeds are split in two halves by a hash of their names. The authors of the rules were
shown misses of the half `fit`; the numbers here are of the half `{half}`, seeds {first} and up.
A reason is given where it was checked against the missed files or the rule states it; the other
misses are open.
"""


def page(rows: Sequence[Row], controls: Sequence[Control], options: Namespace) -> str:
    """Write the page of a run."""
    said = list(alarms(controls, rows))
    parts = [
        TEXT.format(half=options.half, runs=options.runs, first=options.first, harm=HARM),
        by_rule(rows, controls),
        f"{len(rows):,} damaged files. {control_line(controls)}",
        "## Every miss",
        misses(rows) or "None.",
        "## Codes that count as well",
        siblings(),
        "## Findings on healthy files and healthy tensors",
        "\n".join(f"- {line[:240]}" for line in said[:200]) or "None.",
    ]
    return "\n\n".join(parts) + "\n"
