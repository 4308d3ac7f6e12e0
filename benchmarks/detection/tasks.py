"""What the models learn: synthetic data of five kinds, for torch and for Keras."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CLASSES = 10
VOCABULARY = 32
LENGTH = 16
SIDE = 16


@dataclass(frozen=True, slots=True)
class Task:
    """Data of one kind, and what the output is compared with.

    Parameters
    ----------
    batch
        Inputs and targets of one step.
    loss
        Of outputs and targets.
    """

    batch: Callable[[torch.Generator, int], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]


def images(rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Standardised images: a wave whose direction and frequency is the class, and noise."""
    label = torch.randint(CLASSES, (count,), generator=rng)
    axis = torch.linspace(-1, 1, SIDE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle = label[:, None, None] * (torch.pi / CLASSES)
    phase = torch.rand(count, 1, 1, generator=rng) * 6.28
    wave = torch.sin(
        (4 + label[:, None, None] % 3 * 2) * (x * angle.cos() + y * angle.sin()) + phase
    )
    colour = torch.stack([wave, wave.roll(3, -1), -wave], 1)
    return colour + 0.5 * torch.randn(colour.shape, generator=rng), label


def tables(rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Rows of standardised columns; the class is the largest of fixed projections."""
    x = torch.randn(count, 20, generator=rng)
    fixed = torch.Generator().manual_seed(7)
    return x, (x @ torch.randn(20, CLASSES, generator=fixed)).argmax(1)


def blobs(rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Images with a bright disc, and the disc's mask."""
    axis = torch.linspace(-1, 1, SIDE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    centre = torch.rand(count, 2, 1, 1, generator=rng) - 0.5
    radius = 0.2 + 0.3 * torch.rand(count, 1, 1, generator=rng)
    mask = ((x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2 < radius**2).float()[:, None]
    return mask.repeat(1, 3, 1, 1) * 2 - 0.5 + 0.5 * torch.randn(
        count, 3, SIDE, SIDE, generator=rng
    ), mask


def sentences(rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Token sequences in which most steps add a constant: next-token targets."""
    step = torch.randint(1, 4, (count, 1), generator=rng)
    start = torch.randint(VOCABULARY, (count, 1), generator=rng)
    tokens = (start + step * torch.arange(LENGTH + 1)) % VOCABULARY
    noise = torch.rand(tokens.shape, generator=rng) < 0.05
    tokens = torch.where(noise, torch.randint(VOCABULARY, tokens.shape, generator=rng), tokens)
    return tokens[:, :-1], tokens[:, 1:]


def sequences(rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Token sequences and which of four steps made them."""
    tokens, _ = sentences(rng, count)
    return tokens, (tokens[:, 1] - tokens[:, 0]) % 4


def noises(rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Latents of a generator, and real images for its discriminator."""
    return torch.randn(count, 16, generator=rng), blobs(rng, count)[0].clamp(-1, 1)


def language_loss(out: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), target.flatten())


IMAGES = Task(images, F.cross_entropy)
TABLES = Task(tables, F.cross_entropy)
BLOBS = Task(blobs, F.binary_cross_entropy_with_logits)
SENTENCES = Task(sentences, language_loss)
SEQUENCES = Task(sequences, F.cross_entropy)
PAIRS = Task(noises, F.cross_entropy)
