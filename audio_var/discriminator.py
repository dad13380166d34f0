"""The judge of adversarial training: EnCodec's multi-scale STFT discriminator, its losses and feature matching."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from encodec.msstftd import MultiScaleSTFTDiscriminator
from torch import Tensor, nn

from next_scale.errors import UserError
from next_scale.frozen import frozen


class AdversarialLoss(nn.Module):
    """Losses of a discriminator on complex STFTs of several sizes (EnCodec, arXiv 2210.13438, section 3.4).

    One module, two sides: give `parameters()` to the discriminator's optimizer, and call `generator_loss` in the
    codec's step (it leaves no gradient on the discriminator), `discriminator_loss` in the discriminator's.

    Args:
        filters: channels of every convolution.
        n_ffts: transform sizes, one sub-discriminator each; the hop is a quarter. Clips must be at least this long.
        kind: 'hinge' (EnCodec) or 'least_squares' (LSGAN, arXiv 1611.04076).

    Shape notation: B batch, N samples.
    """

    def __init__(self, filters: int = 16, n_ffts: Sequence[int] = (1024, 2048, 512), kind: str = "hinge"):
        super().__init__()
        if kind not in ("hinge", "least_squares"):
            raise UserError(f"unknown adversarial loss '{kind}': choose 'hinge' or 'least_squares'")
        sizes = list(n_ffts)
        self.discriminator = MultiScaleSTFTDiscriminator(
            filters=filters, n_ffts=sizes, win_lengths=sizes, hop_lengths=[n // 4 for n in sizes]
        )
        self.kind = kind

    def generator_loss(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """How far the discriminator is from taking `fake` for real, and how far its features are from those of `real`.

        Feature matching is the mean over layers of mean |f_real - f_fake| / mean |f_real|.

        Args:
            real, fake: (B, 1, N) float.

        Returns:
            adversarial, features: scalars; gradients flow to `fake` only.
        """
        with torch.no_grad():
            _, real_maps = self.discriminator(real)
        with frozen(self):
            logits, fake_maps = self.discriminator(fake)
        if self.kind == "hinge":
            adversarial = torch.stack([F.relu(1 - x).mean() for x in logits]).mean()
        else:
            adversarial = torch.stack([(1 - x).square().mean() for x in logits]).mean()
        pairs = [(r, f) for rs, fs in zip(real_maps, fake_maps, strict=True) for r, f in zip(rs, fs, strict=True)]
        features = torch.stack([(r - f).abs().mean() / r.abs().mean().clamp_min(1e-8) for r, f in pairs]).mean()
        return adversarial, features

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """What the discriminator minimises: real, fake (B, 1, N) float -> scalar; no gradient reaches `fake`."""
        real_logits, _ = self.discriminator(real)
        fake_logits, _ = self.discriminator(fake.detach())
        if self.kind == "hinge":
            terms = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real_logits, fake_logits, strict=True)]
        else:
            terms = [(1 - r).square().mean() + f.square().mean() for r, f in zip(real_logits, fake_logits, strict=True)]
        return torch.stack(terms).mean()
