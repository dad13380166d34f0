"""Masked prediction with confidence decoding: MaskGIT (arXiv 2202.04200), by levels SoundStorm (arXiv 2305.09636)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from next_scale.errors import UserError
from next_scale.predictors.drawing import TOLERANCE, Drawer
from next_scale.predictors.interface import LossOutput
from next_scale.predictors.known import Known
from next_scale.predictors.next_scale import NextScale
from next_scale.predictors.token_predictor import code_table, entropy_of
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import NoiseStreams, SamplingOptions, guide
from next_scale.transformer import init_weight

_CHOICE = 0x5DEECE66D
_DRAWS = 8  # of masks, of which the lower bound is the mean


class Masked(NextScale):
    """Predicts masked tokens of a scale from its other tokens, all coarser scales, and the condition.

    A schedule of one scale is MaskGIT; on a pyramid scales come from coarse to fine, as SoundStorm's levels do. The
    input of a token is that of :class:`next_scale.predictors.next_scale.NextScale` plus an embedding of its own code,
    or of the mask; attention is next-scale's.

    In training every scale of every sample is masked by a share of its own, cos(pi u / 2) with u uniform, and the
    masked tokens are learned. A scale is drawn in several steps: each draws all masked tokens and keeps those it is
    surest of, so many that cos(pi i / 2 I) of them stay masked after step i of I. Keys and values that finer scales see
    are those of the scale's last step, in which a few tokens are still masked, as they may be in training.

    Args:
        iterations: steps a scale at most; one of n tokens takes at most 1 + log2 n.
        choice_temperature: of the Gumbel noise on the logarithm of the confidence; it falls to 0 at the last step.
        others, errors and notation: see :class:`next_scale.predictors.token_predictor.TokenPredictor`.
    """

    name = "masked"
    exact_log_prob = False

    def __init__(self, *args, iterations: int = 8, choice_temperature: float = 4.5, **options) -> None:
        super().__init__(*args, **options)
        if iterations < 1 or not choice_temperature >= 0:
            raise UserError("iterations must be 1 or more, and choice_temperature 0 or more")
        self.iterations, self.choice_temperature = iterations, choice_temperature
        self.options |= {"iterations": iterations, "choice_temperature": choice_temperature}
        width = self.transformer.width
        self.own_embed = nn.Linear(self.latent_channels, width, bias=False)
        self.mask_embed = nn.Parameter(torch.empty(width))
        for weight in (self.own_embed.weight, self.mask_embed):
            init_weight(weight, (3 * width) ** -0.5)

    def _iterations(self, count: int) -> int:
        """Steps of a scale of so many tokens."""
        return min(self.iterations, count.bit_length())

    def steps(self, sampling: SamplingOptions) -> int:
        """Those of all scales."""
        return sum(self._iterations(count) for count in self.schedule.counts)

    @torch.no_grad()
    def inputs(self, quantizer: MultiScaleQuantizer, tokens: Tensor, latent: Tensor | None = None) -> Tensor:
        """At every token the latent so far, zero in the first scale, and its own code: (B, L, 2 C)."""
        coarser = quantizer.teacher_forcing(tokens)
        first = coarser.new_zeros(tokens.shape[0], self.schedule.counts[0], coarser.shape[2])
        codes = [F.embedding(ids, code_table(quantizer, k)) for k, ids in enumerate(self.schedule.split(tokens))]
        return torch.cat([torch.cat([first, coarser], dim=1), torch.cat(codes, dim=1)], dim=2)

    def _own(self, codes: Tensor, masked: Tensor) -> Tensor:
        """What tokens show of themselves: codes (B, n, C) and masks (B, n) bool to (B, n, D)."""
        return torch.where(masked[..., None], self.mask_embed, self.own_embed(codes))

    def forward(self, inputs: Tensor, condition: Mapping[str, Tensor], masked: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) float32.

        Args:
            inputs: (B, L, 2 C), from :meth:`inputs`.
            masked: (B, L) bool, the tokens whose own code is hidden; all by default, as in the first step of a scale.
        """
        given = self.conditioner.encode(condition, inputs.shape[0])
        coarser, codes = inputs.chunk(2, dim=2)
        masked = masked if masked is not None else torch.ones_like(codes[..., 0], dtype=torch.bool)
        x = torch.cat([self._first(given.vector), self.word_embed(coarser[:, self.schedule.counts[0] :])], dim=1)
        x = x + self._places() + self._own(codes, masked)
        return self._all_logits(self._whole(x, given))

    def _random_masks(self, batch: int, device: torch.device, even: bool, generator: torch.Generator | None) -> Tensor:
        """Masks (B, L) bool; of each scale 1 to n_k tokens, by the cosine, or `even`, each number as likely."""
        parts = []
        for count in self.schedule.counts:
            share = torch.rand(batch, 1, generator=generator)
            number = share.mul(count).long() + 1 if even else (torch.cos(share * math.pi / 2) * count).ceil()
            order = torch.rand(batch, count, generator=generator).argsort(1).argsort(1)
            parts.append(order < number.clamp(1, count))
        return torch.cat(parts, dim=1).to(device)

    def loss(self, tokens: Tensor, inputs: Tensor, condition: Mapping[str, Tensor]) -> LossOutput:
        """Cross-entropy of the masked tokens; outside training for the same masks each call."""
        generator = None if self.training else torch.Generator().manual_seed(0)
        masked = self._random_masks(tokens.shape[0], tokens.device, False, generator)
        logits = self.forward(inputs, condition, masked)
        entropy = entropy_of(logits, tokens)
        target = entropy
        if self.label_smoothing > 0:
            uniform = logits.logsumexp(-1) - logits.mean(-1)
            target = torch.lerp(entropy, uniform, self.label_smoothing)
        weights = torch.tensor(self.schedule.counts, dtype=target.dtype, device=target.device) ** self.scale_power
        loss = (self._masked_means(target, masked) * weights).sum() / weights.sum()
        with torch.no_grad():
            hits = (logits.argmax(-1) == tokens).float()
            return LossOutput(loss, self._masked_means(entropy, masked), self._masked_means(hits, masked))

    def _masked_means(self, values: Tensor, masked: Tensor) -> Tensor:
        """Means over the masked tokens of each scale: (B, L), (B, L) -> (K,)."""
        pairs = zip(self.schedule.split(values * masked), self.schedule.split(masked), strict=True)
        return torch.stack([part.sum() / mask.sum() for part, mask in pairs])

    def log_prob(self, tokens: Tensor, inputs: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """A lower bound of the natural log-probability of tokens (B, L), by scale, (B, K): the mean over masks.

        Were a scale's tokens drawn one by one in random order, the i-th would be predicted from i - 1 others. With the
        number of masked tokens uniform from 1 to n_k, n_k times their mean log-probability is in the mean that of a
        random order (arXiv 2110.02037, section 2), which bounds the logarithm of the mixture of all orders from below.
        """
        generator = torch.Generator().manual_seed(0)
        found = []
        for _ in range(_DRAWS):
            masked = self._random_masks(tokens.shape[0], tokens.device, True, generator)
            entropy = entropy_of(self.forward(inputs, condition, masked), tokens) * masked
            pairs = zip(self.schedule.split(entropy), self.schedule.split(masked), strict=True)
            found.append(torch.stack([-part.shape[1] * part.sum(1) / mask.sum(1) for part, mask in pairs], dim=1))
        return torch.stack(found).mean(0)

    @torch.inference_mode()
    def _generate(
        self, quantizer: MultiScaleQuantizer, condition: Mapping[str, Tensor], sampling: SamplingOptions,
        seeds: list[int], known: Known | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        batch, schedule = len(seeds), self.schedule
        if sampling.smooth and not sampling.greedy:
            raise UserError("masked prediction draws no mixtures of codes: leave smooth out")
        guided, given, modulations = self._conditions(condition, batch, sampling.guided(0))
        cache, c = self._cache(given, modulations, schedule.length), given.vector
        device = c.device
        draws = sum(self._iterations(count) * count for count in schedule.counts)
        drawer = Drawer(sampling, seeds, self.codebook_size, draws, device, known)
        choices = NoiseStreams([seed ^ _CHOICE for seed in seeds])  # not the noise of the codes
        places = self._places()
        latent = quantizer.initial_latent(batch)
        x, tokens = self._first(c), []
        for k, (start, count) in enumerate(zip(schedule.starts, schedule.counts, strict=True)):
            here = slice(start, start + count)
            drawer.enter(k, latent)
            if guided and not sampling.guided(k):  # from here on without the unconditional half
                guided, x, modulations = False, x[:batch], modulations.keep(batch)
                cache.keep(batch)
            base = x + places[here]
            head, table = self._head(k), code_table(quantizer, k)
            strength = sampling.strength(k, schedule.scales)
            ids = torch.zeros(batch, count, dtype=torch.int64, device=device)
            masked = torch.ones(batch, count, dtype=torch.bool, device=device)
            if known is not None:
                ids, masked = known.tokens[:, here].to(device), ~known.forced[:, here].to(device)
            open_at_first = masked.sum(1)
            iterations = self._iterations(count)
            for i in range(1, iterations + 1):
                own = self._own(F.embedding(ids, table), masked)
                features = self.transformer(base + (torch.cat([own, own]) if guided else own), modulations, cache=cache)
                if i < iterations:
                    cache.back(count)
                logits = head(features)
                greatest = float(logits.abs().amax()) if drawer.sure is not None else 0.0
                if guided:
                    logits = guide(*logits.chunk(2), strength)
                drawn, _ = drawer.draw(logits, here, strength)
                ids = torch.where(masked, drawn, ids)
                score = logits.log_softmax(-1).gather(2, drawn[..., None])[..., 0]
                if not sampling.greedy:
                    noise = choices.gumbel(count, 1, device)[..., 0]
                    score = score + self.choice_temperature * (1 - i / iterations) * noise
                stay = (open_at_first * math.cos(math.pi / 2 * i / iterations)).floor().long()
                stay = stay if i < iterations else torch.zeros_like(stay)
                tolerance = 2 * TOLERANCE * greatest * (1 + 2 * strength)
                masked = self._least_sure(score.masked_fill(~masked, math.inf), stay, drawer, tolerance)
            tokens.append(ids)
            latent, shown = quantizer.step(latent, ids, k)
            if shown is not None:
                x = self.word_embed(shown)
                x = torch.cat([x, x]) if guided else x
        return torch.cat(tokens, dim=1), quantizer.project_out(latent), drawer.sure

    @staticmethod
    def _least_sure(score: Tensor, stay: Tensor, drawer: Drawer, tolerance: float) -> Tensor:
        """The tokens that stay masked: of scores (B, n) the `stay` (B,) lowest. Tells the drawer where it was close."""
        order = score.argsort(dim=1, stable=True)
        if drawer.sure is not None and score.shape[1] > 1:
            ranked = score.gather(1, order)
            gap = (ranked[:, 1:] - ranked[:, :-1]).gather(1, (stay - 1).clamp_min(0)[:, None])[:, 0]
            drawer.sure &= (gap > tolerance) | (stay == 0)  # between the last that stays and the first that does not
        return order.argsort(1) < stay[:, None]
