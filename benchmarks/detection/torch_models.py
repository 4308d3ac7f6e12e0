"""The torch architectures, tiny."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tasks import (
    BLOBS,
    CLASSES,
    IMAGES,
    LENGTH,
    PAIRS,
    SENTENCES,
    SEQUENCES,
    TABLES,
    VOCABULARY,
    Task,
)


class BasicBlock(nn.Module):
    """ResNet v1; with ``zero_init`` the last gamma starts at zero."""

    def __init__(self, cin: int, cout: int, stride: int, zero_init: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        if zero_init:
            nn.init.zeros_(self.bn2.weight)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or cin != cout:
            self.downsample = nn.Sequential(
                nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class PreBlock(nn.Module):
    """ResNet v2: normalisation and activation before the convolutions."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(cin)
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(cin, cout, 1, stride, bias=False) if stride > 1 or cin != cout else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        skip = self.shortcut(out) if self.shortcut is not None else x
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + skip


class ResNet(nn.Module):
    def __init__(self, width: int, *, pre: bool, zero_init: bool = False) -> None:
        super().__init__()
        self.pre = pre
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        blocks: list[nn.Module] = []
        cin = width
        for stage in range(3):
            for i in range(2):
                stride = 2 if stage and not i else 1
                cout = width << stage
                blocks.append(
                    PreBlock(cin, cout, stride) if pre else BasicBlock(cin, cout, stride, zero_init)
                )
                cin = cout
        self.bn1 = nn.BatchNorm2d(cin if pre else width)
        self.layers = nn.Sequential(*blocks)
        self.fc = nn.Linear(cin, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.layers(x if self.pre else F.relu(self.bn1(x)))
        x = F.relu(self.bn1(x)) if self.pre else x
        return self.fc(x.mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, max(4, channels // 4), 1)
        self.expand = nn.Conv2d(max(4, channels // 4), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class MBConv(nn.Module):
    """Inverted residual: MobileNetV2's, or EfficientNet's with ``se``."""

    def __init__(self, cin: int, cout: int, stride: int, *, se: bool) -> None:
        super().__init__()
        options = {"eps": 1e-3, "momentum": 0.01} if se else {}
        act: Callable[[], nn.Module] = nn.SiLU if se else nn.ReLU6
        wide = cin * 4
        self.expand = nn.Sequential(
            nn.Conv2d(cin, wide, 1, bias=False), nn.BatchNorm2d(wide, **options), act()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide, **options),
            act(),
        )
        self.se: nn.Module = SqueezeExcite(wide) if se else nn.Identity()
        self.project = nn.Sequential(
            nn.Conv2d(wide, cout, 1, bias=False), nn.BatchNorm2d(cout, **options)
        )
        self.skip = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.se(self.depthwise(self.expand(x))))
        return x + out if self.skip else out


class MobileNet(nn.Module):
    def __init__(self, width: int, *, se: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.SiLU() if se else nn.ReLU6(),
        )
        plan = [
            (width, width, 1),
            (width, width * 2, 2),
            (width * 2, width * 2, 1),
            (width * 2, width * 3, 2),
        ]
        self.features = nn.Sequential(*[MBConv(*row, se=se) for row in plan])
        self.head = nn.Sequential(
            nn.Conv2d(width * 3, width * 6, 1, bias=False), nn.BatchNorm2d(width * 6), nn.ReLU()
        )
        self.classifier = nn.Linear(width * 6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.head(self.features(self.stem(x))).mean((2, 3)))


def double(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cout, 3, 1, 1), nn.BatchNorm2d(cout), nn.ReLU(),
        nn.Conv2d(cout, cout, 3, 1, 1), nn.BatchNorm2d(cout), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down1, self.down2 = double(3, width), double(width, width * 2)
        self.middle = double(width * 2, width * 4)
        self.up2 = nn.ConvTranspose2d(width * 4, width * 2, 2, 2)
        self.decode2 = double(width * 4, width * 2)
        self.up1 = nn.ConvTranspose2d(width * 2, width, 2, 2)
        self.decode1 = double(width * 2, width)
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        low = self.middle(F.max_pool2d(two, 2))
        two = self.decode2(torch.cat([two, self.up2(low)], 1))
        return self.out(self.decode1(torch.cat([one, self.up1(two)], 1)))


class DCGAN(nn.Module):
    """Generator and discriminator; the output is the discriminator's view of a generated image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width * 2
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(16, w * 2, 4, 1, 0, bias=False), nn.BatchNorm2d(w * 2), nn.ReLU(),
            nn.ConvTranspose2d(w * 2, w, 4, 2, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU(),
            nn.ConvTranspose2d(w, 3, 4, 2, 1, bias=False), nn.Tanh(),
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            nn.Conv2d(3, w, 4, 2, 1, bias=False), nn.LeakyReLU(0.2),
            nn.Conv2d(w, w * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(w * 2), nn.LeakyReLU(0.2),
            nn.Conv2d(w * 2, 1, 4, 1, 0, bias=False),
        )  # fmt: skip
        for module in self.modules():  # DCGAN's own initialiser
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.02)

    def forward(self, z: Tensor) -> Tensor:
        image = self.generator(z[:, :, None, None])
        return torch.cat([image.flatten(1), self.discriminator(image).flatten(1)], 1)


class MLP(nn.Module):
    def __init__(self, width: int, *, norm: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        cin = 20
        for _ in range(3):
            layers.append(nn.Linear(cin, width * 4))
            layers += [nn.BatchNorm1d(width * 4)] if norm else []
            layers += [nn.ReLU()]
            cin = width * 4
        self.net = nn.Sequential(*layers, nn.Linear(cin, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Attention(nn.Module):
    bias: Tensor

    def __init__(self, width: int, heads: int, *, packed: bool) -> None:
        super().__init__()
        self.heads = heads
        self.packed = packed
        if packed:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        mask = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        parts = (
            self.qkv(x).chunk(3, -1) if self.packed
            else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )  # fmt: skip
        q, k, v = (part.view(b, n, self.heads, -1).transpose(1, 2) for part in parts)
        scores = q @ k.transpose(-1, -2) / (width / self.heads) ** 0.5 + self.mask[:n, :n]
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, width))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, *, packed: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, 4, packed=packed)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """GPT-like: embeddings tied with the head, the causal mask a buffer of -Inf."""

    def __init__(self, width: int, *, packed: bool) -> None:
        super().__init__()
        width *= 4
        self.wte, self.wpe = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        nn.init.normal_(self.wte.weight, 0, 0.02)
        nn.init.normal_(self.wpe.weight, 0, 0.02)
        self.h = nn.Sequential(*[TransformerBlock(width, packed=packed) for _ in range(3)])
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        return self.lm_head(self.ln_f(self.h(x)))


class LSTM(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width * 2, padding_idx=0)
        self.lstm = nn.LSTM(width * 2, width * 4, num_layers=2, batch_first=True)
        self.fc = nn.Linear(width * 4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.lstm(self.embedding(tokens))[0][:, -1])


class TCN(nn.Module):
    """Dilated convolutions with weight norm, as WaveNet-like models have it."""

    def __init__(self, width: int, *, old: bool) -> None:
        super().__init__()
        norm: Any = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
        self.embedding = nn.Embedding(VOCABULARY, width * 2)
        self.convs = nn.ModuleList(
            norm(nn.Conv1d(width * 2, width * 2, 2, dilation=1 << i)) for i in range(3)
        )
        self.out = nn.Linear(width * 2, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens).transpose(1, 2)
        for i, conv in enumerate(self.convs):
            x = x + F.relu(conv(F.pad(x, (1 << i, 0))))
        return self.out(x.transpose(1, 2))


MODELS: Mapping[str, tuple[Callable[[int, int], nn.Module], Task]] = {
    "resnet_v1": (lambda w, seed: ResNet(w, pre=False, zero_init=seed % 2 == 1), IMAGES),
    "resnet_v2": (lambda w, _: ResNet(w, pre=True), IMAGES),
    "mobilenet": (lambda w, _: MobileNet(w, se=False), IMAGES),
    "efficientnet": (lambda w, _: MobileNet(w, se=True), IMAGES),
    "unet": (lambda w, _: UNet(w), BLOBS),
    "dcgan": (lambda w, _: DCGAN(w), PAIRS),
    "mlp_bn": (lambda w, _: MLP(w), TABLES),
    "transformer": (lambda w, seed: Transformer(w, packed=seed % 2 == 0), SENTENCES),
    "lstm": (lambda w, _: LSTM(w), SEQUENCES),
    "tcn": (lambda w, seed: TCN(w, old=seed % 2 == 0), SENTENCES),
}
"""Name -> how to build it of a width and a seed, and what it learns."""
