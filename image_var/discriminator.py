"""The judge of adversarial training: a convolutional discriminator of overlapping patches, and its hinge loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from next_scale.errors import UserError
from next_scale.frozen import frozen
from next_scale.network import group_norm


class PatchDiscriminator(nn.Module):
    """Tells real from made patch by patch (PatchGAN, arXiv 1611.07004, section 3.2.2).

    It has group norm in place of batch norm, so that an image is judged the same whatever else is in its batch.

    One module, two sides: give `parameters()` to the discriminator's optimizer, and call `generator_loss` in the
    autoencoder's step (it leaves no gradient on the discriminator), `loss` in the discriminator's.

    Args:
        channels: of the images.
        width: channels after the first convolution; each further one of stride 2 doubles them, up to eight times.
        layers: convolutions of stride 2. The patches are 16, 34, 70, 142 pixels wide with 1, 2, 3, 4 of them.

    Raises:
        UserError: a size is below 1.

    Shape notation: B batch, C channels, H W image, h w patches.
    """

    def __init__(self, channels: int = 3, width: int = 64, layers: int = 3):
        super().__init__()
        if min(channels, width, layers) < 1:
            raise UserError("channels, width and layers of a discriminator start at 1")
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            parts += [nn.Conv2d(widths[i - 1], widths[i], 4, stride, 1), group_norm(widths[i], 32), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, 1, h, w), above 0 where a patch looks real."""
        return self.layers(x)

    def generator_loss(self, fake: Tensor) -> Tensor:
        """How far `fake` (B, C, H, W) is from being taken for real: minus the mean judgement, a scalar."""
        with frozen(self):
            return -self(fake).mean()

    def loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Hinge loss that the discriminator minimises, a scalar; both (B, C, H, W), no gradient reaches `fake`."""
        return 0.5 * (F.relu(1 - self(real)).mean() + F.relu(1 + self(fake.detach())).mean())
