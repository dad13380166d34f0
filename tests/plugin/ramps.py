"""A modality from outside: lines of 64 numbers that rise or fall."""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from next_scale.checkpoint import register_autoencoder
from next_scale.compare.modality import Modality
from next_scale.data import SampleDataModule
from next_scale.errors import UserError


class Ramps(torch.utils.data.Dataset):
    """Ramps of random slope and start; the same seed makes the same ones."""

    condition_spec = {"label": ["falls", "rises"]}

    def __init__(self, count: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        slope, start = torch.rand(2, count, 1, generator=generator)
        self.label = (torch.arange(count) % 2).tolist()
        sign = torch.tensor(self.label)[:, None] * 2 - 1
        self.samples = (start + sign * (0.2 + slope) * torch.linspace(-0.5, 0.5, 64))[:, None]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> dict:
        return {"sample": self.samples[row], "condition": {"label": self.label[row]}}


class RampData(SampleDataModule):
    name = "ramps"

    def __init__(self, count: int = 64, batch_size: int = 16):
        super().__init__(batch_size, 0, 0)
        self.count = count

    def _open(self, split: str) -> Ramps:
        return Ramps(self.count, ("train", "validation", "test").index(split))


class Patches(nn.Module):
    """Eight numbers a latent, by one convolution there and one back: (B, 1, 64) -> (B, C, 8) -> (B, 1, 64)."""

    name = "patches"

    def __init__(self, latent_channels: int = 4):
        super().__init__()
        self.latent_channels = latent_channels
        self.there, self.back = nn.Conv1d(1, latent_channels, 8, 8), nn.ConvTranspose1d(latent_channels, 1, 8, 8)

    def encode(self, x: Tensor) -> Tensor:
        return self.there(x)

    def decode(self, latent: Tensor) -> Tensor:
        return self.back(latent)

    def to_config(self) -> dict:
        return {"latent_channels": self.latent_channels}


register_autoencoder(Patches.name, Patches)


class Distance(nn.Module):
    discriminator = None

    def forward(self, autoencoder: nn.Module, x: Tensor, latent: Tensor):
        loss = F.mse_loss(autoencoder.decode(latent), x)
        return loss, {"error": loss.detach()}


class RampModality(Modality):
    name = "ramps"
    features_name = "the ramps themselves, every eighth number"
    dims = 64

    def data(self, **options) -> RampData:
        return RampData(**options)

    def autoencoder(self, dimension: str, **options) -> Patches:
        if dimension != "1d":
            raise UserError(f"ramps have latents in 1d, not in {dimension}")
        return Patches(**options)

    def objective(self, dimension: str, **options) -> Distance:
        return Distance(**options)

    def features(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        return samples[:, 0, ::8], (samples[:, 0, -1] > samples[:, 0, 0]).long()

    def distortion(self, samples: Tensor, decoded: Tensor) -> dict[str, Tensor]:
        return {"squared error": (samples - decoded).square().mean((1, 2))}

    def write(self, folder, names, samples) -> list[dict]:
        for name, sample in zip(names, samples, strict=True):
            (folder / f"{name}.json").write_text(json.dumps(sample[0].tolist()))
        return [{"file": f"{name}.json", "picture": None, "kind": "numbers"} for name in names]
