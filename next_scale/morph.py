"""The morph: a drawing of words becomes what they name, scale by scale.

The words are drawn as large as a sample and tokenized like one. The coarse scales of their pyramid are where generation
starts; from there on every scale adds what is missing of the sample. In training such a pyramid is made of two: after
the words' first scales each token is the code nearest to what the sum so far, which began as words, lacks of the
sample. So what a model learns is just what it is asked for: the next scale of a sum that began as words.

It works in two dimensions, with an autoencoder that says how large a sample is (``size_of``, ``channels_in``).

Shape notation: B batch, C latent channels, L tokens, K scales, H W of a sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from next_scale.conditioning import PROMPT, decode_prompts
from next_scale.conditioning.drawing import draw_words
from next_scale.errors import UserError
from next_scale.model import Generator
from next_scale.predictors.interface import Predictor
from next_scale.predictors.token_predictor import TokenPredictor
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.resample import downsample
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule
from next_scale.tokenizer import Tokenizer

_KEPT = 4096  # prompts whose tokens are kept


def draw_samples(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Clean prompts drawn as large as samples, white on black, one word a line: (B, C, H, W) float32 in [-1, 1].

    Raises:
        UserError: a tokenizer of another kind of samples, or words that do not fit.
    """
    autoencoder, schedule = tokenizer.autoencoder, tokenizer.quantizer.schedule
    if not hasattr(autoencoder, "size_of") or not isinstance(schedule, Schedule) or schedule.dim != 2:
        raise UserError("words are morphed in two dimensions: use a tokenizer of a fixed size in two dimensions")
    height, width = autoencoder.size_of(schedule.grid)
    drawn = np.zeros((len(texts), height, width), np.uint8)
    for row, text in zip(drawn, texts, strict=True):
        count = len(text.split())
        line = min(height // max(count, 1), height // 2)  # one word is no taller than two would be
        if line < 8:
            raise UserError(f"{count} words do not fit on {height} rows, 8 rows a word: use fewer")
        words = draw_words(text, count, line, width)
        top = (height - len(words)) // 2
        row[top : top + len(words)] = words
    samples = torch.from_numpy(drawn)[:, None].float() / 127.5 - 1  # (B, H, W) -> (B, 1, H, W)
    return samples.expand(-1, autoencoder.channels_in, -1, -1).to(tokenizer.device)


@torch.no_grad()
def morph_tokens(quantizer: MultiScaleQuantizer, words: Tensor, latent: Tensor, given: Tensor) -> Tensor:
    """Pyramids that begin as words and end as samples.

    Args:
        words: tokens (B, L) int64 of the words.
        latent: (B, C, *grid) float32 of the samples.
        given: (B,) int64, how many scales of the words each pyramid begins with; 0 gives the sample's own tokens.

    Returns:
        Tokens (B, L) int64.
    """
    target = quantizer.project_in(latent)
    schedule = quantizer.schedule_at(tuple(target.shape[2:]))
    total, tokens = quantizer.initial_latent(len(words), schedule.grid), []
    for k, (size, own) in enumerate(zip(schedule.sizes, schedule.split(words), strict=True)):
        missing = quantizer.nearest(downsample(target - total, size), k)
        tokens.append(torch.where((given > k)[:, None], own, missing))
        total, _ = quantizer.step(total, tokens[-1], k)
    return torch.cat(tokens, dim=1)


def given_tokens(schedule: Schedule, given: Tensor) -> Tensor:
    """The tokens of each pyramid's first scales, which (B,) int64 counts: (B, L) bool."""
    return schedule.level.to(given.device) < given[:, None]


def default_scales(schedule: Schedule) -> int:
    """How many scales of the words a morph starts with where nobody says: all but three, which make the sample."""
    return max(1, schedule.scales - 3)


class MorphTraining:
    """Makes a part of every training batch begin as words.

    Args:
        tokenizer: of the pyramids.
        predictor: one whose loss can leave tokens out.
        share: of the samples; they begin with one scale of their drawn prompt or more, up to
            :func:`default_scales`, each number as likely.

    Raises:
        UserError: a predictor or a tokenizer that cannot, or a share out of range.
    """

    def __init__(self, tokenizer: Tokenizer, predictor: Predictor, share: float) -> None:
        if type(predictor).loss is not TokenPredictor.loss:
            raise UserError(f"the predictor '{predictor.name}' does not morph: use next_scale or next_token")
        if predictor.conditioner.words is None or not 0 < share <= 1:
            raise UserError("morph is a share from 0 to 1 of samples with prompts: set model.words too")
        draw_samples(tokenizer, [])  # raises where words cannot be drawn
        self.tokenizer, self.share = tokenizer, share
        self._known: dict[str, Tensor] = {}

    def pyramids(
        self, tokens: Tensor, latent: Tensor | None, condition: Mapping[str, Tensor], training: bool
    ) -> tuple[Tensor, Tensor]:
        """Pyramids (B, L) to those that begin as words, and which tokens are given with the words, (B, L) bool.

        Args:
            latent: (B, C, *grid) before quantization; that of the tokens where it is not at hand.
            training: else all samples begin with :func:`default_scales` of the words.
        """
        quantizer, schedule = self.tokenizer.quantizer, self.tokenizer.quantizer.schedule
        words = torch.stack([self._words(text) for text in decode_prompts(condition[PROMPT])]).to(tokens.device)
        given = torch.full((len(tokens),), default_scales(schedule), device=tokens.device)
        if training:
            given = torch.randint(1, default_scales(schedule) + 1, given.shape, device=tokens.device)
            given = given * (torch.rand(given.shape, device=tokens.device) < self.share)
        with torch.no_grad():
            latent = quantizer.decode(tokens) if latent is None else latent
        return morph_tokens(quantizer, words, latent, given), given_tokens(schedule, given)

    def _words(self, text: str) -> Tensor:
        """Tokens of a drawn prompt, (L,) on the CPU; captions repeat, so that they are kept."""
        if text not in self._known:
            while len(self._known) >= _KEPT:
                del self._known[next(iter(self._known))]
            self._known[text] = self.tokenizer.encode(draw_samples(self.tokenizer, [text]))[0].cpu()
        return self._known[text]


@torch.no_grad()
def place_codebooks(quantizer: MultiScaleQuantizer, latent: Tensor, words: Tensor) -> None:
    """Place a new quantizer's codebooks so that they serve plain pyramids and those that begin as words.

    Codebooks of fine scales are made for the little that is missing there, and not for what remains of words; here
    half of the samples of the k-means begin with 1 to :func:`default_scales` scales of words.

    Args:
        latent, words: (N, C, *grid) of samples and of drawn words, as the autoencoder gives them, N in the thousands.
    """
    target, start = quantizer.project_in(latent), quantizer.project_in(words)
    schedule = quantizer.schedule_at(tuple(target.shape[2:]))
    given = torch.randint(1, default_scales(schedule) + 1, (len(target),), device=target.device)
    given = given * (torch.rand(len(target), device=target.device) < 0.5)
    total = torch.zeros_like(target)
    for k in range(schedule.scales):
        begins = (given > k).view(-1, *[1] * (target.dim() - 1))
        total = quantizer.start_scale(torch.where(begins, start, target), total, k)


@torch.inference_mode()
def morph(
    model: Generator, texts: Sequence[str], condition: Mapping[str, Tensor], seeds: Sequence[int],
    scales: int | None = None, sampling: SamplingOptions | None = None,
) -> Tensor:  # fmt: skip
    """Tokens (B, L) int64 of pyramids that begin with the words' first scales and go on as the model sees fit.

    A model trained with `morph` (see :class:`next_scale.training.PredictorModule`) has learned to make of them what
    they name. Another one is edited: it goes on from a coarse sum as from any other, and words remain words.

    Args:
        texts: B clean prompts, drawn.
        condition: as :meth:`next_scale.model.Generator.generate` takes it, with the same prompts.
        scales: of the words, from 0 to K; :func:`default_scales` by default.

    Raises:
        UserError: a model that keeps no tokens or has no two dimensions, or more scales than there are.
    """
    if not isinstance(model.predictor, TokenPredictor):
        raise UserError(f"the predictor '{model.predictor.name}' keeps no tokens: morph with one of tokens")
    drawn = draw_samples(model.tokenizer, texts)
    schedule = model.tokenizer.quantizer.schedule
    scales = default_scales(schedule) if scales is None else scales
    if not 0 <= scales <= schedule.scales:
        raise UserError(f"the words' first {scales} scales were asked for, and there are {schedule.scales}")
    words = model.tokenizer.encode(drawn)
    forced = given_tokens(schedule, torch.full((len(texts),), scales, device=words.device))
    return model.predictor.generate(
        model.tokenizer.quantizer, condition, len(seeds), sampling or model.sampling, seeds=seeds, known=words,
        forced=forced,
    ).tokens  # fmt: skip


def frames(tokenizer: Tokenizer, tokens: Tensor) -> Iterator[Tensor]:
    """What a pyramid (1, L) shows after each of its scales: samples (1, C, H, W)."""
    for count in range(1, tokenizer.quantizer.schedule.scales + 1):
        yield tokenizer.decode(tokens, count)
