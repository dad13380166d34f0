"""Editing images with one model: a part painted anew, variations, mixtures, and repair.

Shape notation: B batch, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from next_scale import editing
from next_scale.errors import UserError
from next_scale.model import Generator
from next_scale.sampling import SamplingOptions


class Editor:
    """Edits one image (C, H, W) float32 in [-1, 1], of the size that the model makes, into B images.

    Args:
        model: draws tokens; must take known ones.
        image: what is edited.
        condition: field -> (B,) int64 indices, -1 where not given: what the results shall be.
        seeds: B integers.
        sampling: the checkpoint's own by default.
    """

    def __init__(
        self, model: Generator, image: Tensor, condition: Mapping[str, Tensor], seeds: Sequence[int],
        sampling: SamplingOptions | None = None,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.image = model, model.tokenizer, image
        self.condition, self.seeds, self.sampling = condition, list(seeds), sampling

    @torch.inference_mode()
    def paint(self, painted: Tensor, keep: bool = True, candidates: int = 1, passes: int = 1) -> Tensor:
        """Paint a part anew so that it fits what is around it.

        What was in the part plays no role: it is filled with the nearest of what is around it before it is encoded,
        and this is the first guess.

        Args:
            painted: (H, W) bool, the part.
            keep: put the pixels that were not to be painted back as they were.
            candidates, passes: see :func:`next_scale.editing.redraw`.

        Returns:
            (B, C, H, W) float32.

        Raises:
            UserError: the part is empty, or the whole image.
        """
        if not painted.any() or painted.all():
            raise UserError("the part to paint must be some of the image, and not all of it")
        latent = self._latent(fill(self.image, painted))
        weight = editing.grid_weight(painted[None].to(latent.device), latent.shape[2:]).expand(len(latent), -1, -1)
        drawn = editing.redraw(
            self.model, latent, weight, self.condition, self.seeds, self.sampling, editing.DOUBT, editing.GUESS,
            candidates, passes,
        )  # fmt: skip
        made = self._decoded(drawn)
        return torch.where(painted, made, self.image) if keep else made

    @torch.inference_mode()
    def vary(self, strength: float, keep: str = "coarse") -> Tensor:
        """See :func:`next_scale.editing.vary`; gives (B, C, H, W) float32."""
        latent = self._latent(self.image)
        return self._decoded(
            editing.vary(self.model, latent, self.condition, self.seeds, strength, keep, self.sampling)
        )

    @torch.inference_mode()
    def interpolate(self, other: Tensor, amount: float = 0.5) -> Tensor:
        """Between the image, at amount 0, and another (C, H, W), at 1: (B, C, H, W), all the same.

        Raises:
            UserError: an amount outside 0 to 1.
        """
        if not 0 <= amount <= 1:
            raise UserError(f"an amount is from 0, the first, to 1, the other; got {amount:g}")
        return self._decoded(editing.between(self.model, self._latent(self.image), self._latent(other), amount))

    @torch.inference_mode()
    def denoise(self) -> Tensor:
        """The image re-encoded as something that the model holds likely: (B, C, H, W)."""
        latent = self._latent(self.image)
        nothing = latent.new_zeros(len(latent), *latent.shape[2:])
        return self._decoded(
            editing.redraw(
                self.model, latent, nothing, self.condition, self.seeds, self.sampling, doubt=editing.DEGRADED
            )
        )

    @torch.inference_mode()
    def upsample(self, small: Sequence[int]) -> Tensor:
        """Detail for an image that was enlarged from a smaller one, which the result gives again when it is reduced.

        Args:
            small: height and width of the smaller one.

        Returns:
            (B, C, H, W) float32.
        """
        made = self.denoise()
        size = tuple(self.image.shape[1:])

        def coarse(images: Tensor) -> Tensor:
            reduced = F.interpolate(images, tuple(small), mode="bilinear", antialias=True)
            return F.interpolate(reduced, size, mode="bicubic")

        return made - coarse(made) + coarse(self.image[None])

    def _latent(self, image: Tensor) -> Tensor:
        """(C, H, W) -> (B, C', *grid), all the same."""
        latent = self.tokenizer.autoencoder.encode(image[None].to(self.tokenizer.device))
        return latent.expand(len(self.seeds), *latent.shape[1:]).contiguous()

    def _decoded(self, latent: Tensor) -> Tensor:
        """(B, C', *grid) -> (B, C, H, W), one at a time, for a sample must not depend on those beside it."""
        return torch.cat([self.tokenizer.autoencoder.decode(row).cpu() for row in latent.split(1)])


def fill(image: Tensor, painted: Tensor) -> Tensor:
    """Every painted pixel as the nearest one that is not: (C, H, W), (H, W) bool -> (C, H, W)."""
    rows, columns = distance_transform_edt(painted.numpy(), return_distances=False, return_indices=True)
    return image[:, rows, columns]
