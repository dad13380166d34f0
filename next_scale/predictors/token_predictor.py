"""What predictors of tokens share: the loss, the likelihood, and draws that depend on a sample's own seed only."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from next_scale.predictors.interface import Generated, LossOutput, Predictor
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.transformer import Transformer

# Logits of a sample alone and in a batch differ by rounding, up to 8e-7 of the greatest logit in the models at hand. A
# draw decided by less than this share of it is taken from the sample alone.
TOLERANCE = 2e-6


class TokenPredictor(Predictor):
    """A predictor whose :meth:`forward` gives logits of every token of the pyramid.

    Attributes:
        transformer: its network.
        label_smoothing: of the training loss; the losses reported per scale are without.
        scale_power: the training loss weights the mean of scale k by n_k ** scale_power.

    Shape notation: B batch, K scales, n_k tokens of scale k, L tokens in all, C channels, V codes.
    """

    transformer: Transformer
    label_smoothing: float = 0.0
    scale_power: float = 1.0

    @abstractmethod
    def forward(self, inputs: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, L, V) float32 under teacher forcing, from :meth:`inputs`."""

    def pack(self, int8: bool = False) -> None:
        """See :meth:`next_scale.transformer.Transformer.pack`."""
        self.transformer.pack(int8)

    def loss(self, tokens: Tensor, inputs: Tensor, condition: Mapping[str, Tensor]) -> LossOutput:
        """Cross-entropy of tokens (B, L); `inputs` and `condition` as in :meth:`forward`."""
        logits = self.forward(inputs, condition)
        entropy = entropy_of(logits, tokens)
        target = entropy
        if self.label_smoothing > 0:
            uniform = logits.logsumexp(-1) - logits.mean(-1)
            target = torch.lerp(entropy, uniform, self.label_smoothing)
        weights = torch.tensor(self.schedule.counts, dtype=target.dtype, device=target.device) ** self.scale_power
        loss = (self._scale_means(target) * weights).sum() / weights.sum()
        with torch.no_grad():
            hits = (logits.argmax(-1) == tokens).float()
            return LossOutput(loss, self._scale_means(entropy), self._scale_means(hits))

    def _scale_means(self, values: Tensor) -> Tensor:
        """(B, L) -> (K,)."""
        return torch.stack([part.mean() for part in self.schedule.split(values)])

    def log_prob(self, tokens: Tensor, inputs: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Natural log-probability of tokens (B, L), summed within each scale: (B, K).

        Exact in eval mode; in train mode the dropouts apply.
        """
        logits = self.forward(inputs, condition)
        entropy = entropy_of(logits, tokens)
        return torch.stack([-part.sum(1) for part in self.schedule.split(entropy)], dim=1)

    def generate(
        self,
        quantizer: MultiScaleQuantizer,
        condition: Mapping[str, Tensor],
        batch: int,
        sampling: SamplingOptions | None = None,
        generator: torch.Generator | None = None,
        seeds: int | Sequence[int] | Tensor | None = None,
        known: Tensor | None = None,
        forced: Tensor | None = None,
    ) -> Generated:
        """Draw pyramids.

        A sample depends on its condition and seed, and not on the samples beside it: each has its own stream of noise,
        and where rounding, which does differ between batch sizes, could decide a draw (a few samples in a hundred),
        that sample is drawn again alone. With `sampling.smooth`, or after `transformer.pack(int8=True)`, rounding
        always decides a little, and every sample is drawn alone.

        Args:
            quantizer: turns each scale into the next scale's input; of the same schedule.
            condition: field -> (B,) int64 index, -1 for not given.
            batch: B.
            sampling: see :class:`next_scale.sampling.SamplingOptions`.
            generator: draws the seeds where none are given; the global one by default.
            seeds: one a sample; or one integer s, for s, s + 1, ... s + B - 1.
            known: tokens (B, L) int64 of something that exists already.
            forced: (B, L) bool, the places that keep their known token while the others are drawn, for zero-shot
                editing as in VAR; :meth:`next_scale.schedule.Schedule.shrink_mask` makes it of a mask over the grid.
                The others get the noise that they would have without it.

        Raises:
            ValueError: a number of seeds other than B, or `known` and `forced` of other shapes.
        """
        sampling = sampling or SamplingOptions()
        if seeds is None:
            seeds = torch.randint(2**62, (batch,), generator=generator)
        seeds = [seeds + i for i in range(batch)] if isinstance(seeds, int) else [int(seed) for seed in seeds]
        if len(seeds) != batch:
            raise ValueError(f"{len(seeds)} seeds for a batch of {batch}")
        shape = (batch, self.schedule.length)
        if (known is None) != (forced is None) or any(t is not None and t.shape != shape for t in (known, forced)):
            raise ValueError(f"known and forced belong together and have shape {shape}")

        def draw(rows: slice) -> tuple[Tensor, Tensor, Tensor | None]:
            here = {name: index[rows] for name, index in condition.items()}
            kept = None if known is None else (known[rows], forced[rows])
            return self._generate(quantizer, here, sampling, seeds[rows], kept)

        alone = [slice(row, row + 1) for row in range(batch)]
        training = self.training
        self.eval()
        try:
            if batch == 1 or self.transformer.int8 or (sampling.smooth and not sampling.greedy):
                drawn = [draw(row) for row in alone]
                tokens, latent = (torch.cat([one[i] for one in drawn]).clone() for i in range(2))
                return Generated(tokens, latent)  # clones: outside inference mode, tensors like any other
            tokens, _, sure = draw(slice(batch))
            tokens = tokens.clone()
            for row in (~sure).nonzero()[:, 0].tolist():
                tokens[row] = draw(alone[row])[0][0]
            with torch.no_grad():
                return Generated(tokens, torch.cat([quantizer.decode(row) for row in tokens.split(1)]))
        finally:
            self.train(training)

    @abstractmethod
    def _generate(
        self, quantizer: MultiScaleQuantizer, condition: Mapping[str, Tensor], sampling: SamplingOptions,
        seeds: list[int], kept: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        """Tokens (B, L), latent (B, C, *grid), and in a batch whether rounding decided none of a sample's draws (B,).

        `kept` are known tokens and where they are forced, both (B, L).
        """


def entropy_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of every token in nats: (B, L, V), (B, L) -> (B, L)."""
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)
