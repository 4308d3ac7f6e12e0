"""A small image classifier: the model that the serving examples of this folder load."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import nn

WIDTHS = (3, 8, 16)


class Classifier(nn.Module):
    """Two convolutions with BatchNorm, and a linear layer over four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(WIDTHS[0], WIDTHS[1], 3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[1])
        self.conv2 = nn.Conv2d(WIDTHS[1], WIDTHS[2], 3, bias=False)
        self.bn2 = nn.BatchNorm2d(WIDTHS[2])
        self.fc = nn.Linear(WIDTHS[2], 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.bn1(self.conv1(images)))
        hidden = torch.relu(self.bn2(self.conv2(hidden)))
        return self.fc(hidden.mean((2, 3)))


def load(path: str) -> Classifier:
    """Model with the weights of a safetensors file, ready to predict."""
    model = Classifier()
    model.load_state_dict(load_file(path))
    return model.eval()


def predict(model: Classifier, image: list) -> list[float]:
    """Probabilities of the four classes for one image of shape (3, height, width)."""
    with torch.inference_mode():
        return model(torch.tensor(image)[None]).softmax(1)[0].tolist()
