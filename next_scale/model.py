"""What a checkpoint holds: a tokenizer, and with it a predictor of its tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from next_scale.condition import ConditionSpec, VectorSpec
from next_scale.conditioning import Words
from next_scale.errors import UserError
from next_scale.packed import keep_freed_memory
from next_scale.predictors.interface import Predictor
from next_scale.predictors.known import Evidence
from next_scale.sampling import SamplingOptions
from next_scale.tokenizer import Tokenizer


class Generator(nn.Module):
    """A tokenizer and a predictor trained on its tokens.

    Args:
        tokenizer: turns tokens into samples.
        predictor: draws tokens.
        sampling: options that suit this model, used where a caller gives none.

    Shape notation: B batch, L tokens.
    """

    def __init__(self, tokenizer: Tokenizer, predictor: Predictor, sampling: SamplingOptions | None = None):
        super().__init__()
        self.tokenizer, self.predictor = tokenizer, predictor
        self.sampling = sampling or SamplingOptions()

    @property
    def condition_spec(self) -> ConditionSpec:
        """Fields and values that the model can be asked for."""
        return self.predictor.conditioner.spec

    @property
    def vectors(self) -> VectorSpec:
        """Fields that take a vector each, and its size."""
        return self.predictor.conditioner.vectors

    @property
    def words(self) -> Words | None:
        """What prompts are read by; None for a model that takes none."""
        return self.predictor.conditioner.words

    def pack(self, int8: bool = False) -> Generator:
        """Arrange the weights for fast generation on the CPU; training and saving are no longer possible.

        The whole process keeps the memory it frees, see :func:`next_scale.packed.keep_freed_memory`.

        Args:
            int8: the predictor's as 8-bit integers, see :meth:`next_scale.transformer.Transformer.pack`.

        Returns:
            This model.

        Raises:
            UserError: 8-bit integers do not work here.
        """
        self.predictor.pack(int8)
        keep_freed_memory()
        return self

    @torch.inference_mode()
    def generate(
        self,
        condition: dict[str, Tensor],
        seeds: Sequence[int],
        sampling: SamplingOptions | None = None,
        known: Tensor | None = None,
        forced: Tensor | None = None,
        evidence: Evidence | None = None,
        grid: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw one sample a seed.

        Args:
            condition: field -> (B,) int64 indices, -1 where not given; vector fields (B, S) float32, NaN where not;
                "prompt" as :func:`next_scale.condition.collate_conditions` gives it.
            seeds: B integers; a sample depends on its own seed and condition only.
            known, forced: tokens (B, L) int64 to keep and where, (B, L) bool, to change a part of something that
                exists, see :meth:`next_scale.predictors.next_scale.NextScale.generate`.
            evidence: a latent that is known in part, likewise.
            grid: size of the full grid, for a predictor of any length only; by default its own.

        Returns:
            Decoded samples (B, ...) and their tokens (B, L) int64. With `sampling.smooth` the samples are decoded from
            mixtures of codes, of which the tokens are only the heaviest.
        """
        # what only some families take, only where it is asked for
        extra = {name: value for name, value in (("evidence", evidence), ("grid", grid)) if value is not None}
        drawn = self.predictor.generate(
            self.tokenizer.quantizer, condition, len(seeds), sampling or self.sampling,
            seeds=seeds, known=known, forced=forced, **extra,
        )  # fmt: skip
        # One at a time: matrix products round differently in a batch, and a decoder may amplify that.
        return torch.cat([self.tokenizer.autoencoder.decode(row) for row in drawn.latent.split(1)]), drawn.tokens


def tokenizer_of(model: Tokenizer | Generator) -> Tokenizer:
    """The tokenizer of a model of either kind. Raises UserError where it is neither."""
    if not isinstance(model, Tokenizer | Generator):
        raise UserError("a joint model has several tokenizers: name the checkpoint of the one that is meant")
    return model.tokenizer if isinstance(model, Generator) else model


def weights_digest(model: nn.Module) -> bytes:
    """SHA-256 of a model's tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()


def fingerprint(tokenizer: Tokenizer) -> str:
    """16 hex digits that name a tokenizer's weights: tokens mean something to the tokenizer that made them only."""
    return weights_digest(tokenizer).hex()[:16]
