"""What an image tokenizer is trained for: its images, their look to a classifier, and a discriminator's judgement."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from image_var.autoencoder import ConvAutoencoder
from next_scale.errors import UserError


class ImageObjective(nn.Module):
    """Training objective of an image tokenizer: a weighted sum of terms, each switched off by weight 0.

    Reconstruction is compared before it is clamped to [-1, 1], so that gradients reach what lies outside.

    Args:
        l1, l2: weights of the mean absolute and the mean squared difference.
        perceptual: weight of :class:`image_var.perceptual.PerceptualLoss`, which needs `perceptual_weights`, a file
            with the state dict of torchvision's VGG16.
        adversarial: weight of the judgement of a :class:`image_var.discriminator.PatchDiscriminator`.
        adaptive: multiply it by the ratio of gradient norms at the decoder's last layer, see :meth:`adaptive_weight`.
        discriminator_width, discriminator_layers: its sizes.
        channels: of the images, 1 or 3; the discriminator's input.

    Raises:
        UserError: `perceptual` without a file, or a file that is not VGG16's.

    Shape notation: B batch, C channels, H W image, Z latent channels, h w latent grid.
    """

    def __init__(
        self,
        l1: float = 1.0,
        l2: float = 0.0,
        perceptual: float = 0.0,
        perceptual_weights: str | None = None,
        adversarial: float = 0.0,
        adaptive: bool = True,
        discriminator_width: int = 64,
        discriminator_layers: int = 3,
        channels: int = 3,
    ):
        super().__init__()
        self.l1, self.l2, self.perceptual_weight = l1, l2, perceptual
        self.adversarial_weight, self.adaptive = adversarial, adaptive
        self.perceptual = self.discriminator = None
        if perceptual > 0:
            from image_var.perceptual import PerceptualLoss

            if perceptual_weights is None:
                raise UserError(
                    "the perceptual loss needs weights: set perceptual_weights to a file of torchvision's VGG16, "
                    "or perceptual to 0"
                )
            self.perceptual = PerceptualLoss(perceptual_weights)
        if adversarial > 0:
            from image_var.discriminator import PatchDiscriminator

            self.discriminator = PatchDiscriminator(channels, discriminator_width, discriminator_layers)

    def forward(self, autoencoder: ConvAutoencoder, x: Tensor, latent: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Images (B, C, H, W) and latent (B, Z, h, w) -> loss and its terms, detached, by name."""
        return self._compare(autoencoder.decode_raw(latent), x)

    def _compare(self, made: Tensor, real: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, logs = made.new_zeros(()), {}
        for name, weight, term in (
            ("l1", self.l1, F.l1_loss),
            ("l2", self.l2, F.mse_loss),
            ("perceptual", self.perceptual_weight, self.perceptual),
        ):
            if weight > 0:
                value = term(made, real)
                loss = loss + weight * value
                logs[name] = value.detach()
        return loss, logs

    def adversarial(
        self, autoencoder: ConvAutoencoder, x: Tensor, latent: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """As :meth:`forward` with the discriminator's judgement added; returns the decoded images (B, C, H, W) too."""
        fake = autoencoder.decode_raw(latent)
        loss, logs = self._compare(fake, x)
        judged = self.discriminator.generator_loss(fake)
        weight = judged.new_tensor(self.adversarial_weight)
        if self.adaptive:
            weight = weight * self.adaptive_weight(loss, judged, autoencoder.last_layer)
            logs["adaptive_weight"] = weight
        return loss + weight * judged, logs | {"adversarial": judged.detach()}, fake

    @staticmethod
    def adaptive_weight(compared: Tensor, judged: Tensor, last_layer: Tensor) -> Tensor:
        """|d compared| / (|d judged| + 1e-4) with gradients by the decoder's last layer, at most 1e4, a scalar.

        VQGAN, arXiv 2012.09841, equation 7: neither loss outweighs the other, whatever their scales.
        """
        norms = [torch.autograd.grad(term, last_layer, retain_graph=True)[0].norm() for term in (compared, judged)]
        return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4).detach()

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Both (B, C, H, W) -> scalar."""
        return self.discriminator.loss(real, fake)
