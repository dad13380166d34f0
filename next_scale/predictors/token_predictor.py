"""What predictors of tokens share: network, heads, loss, likelihood, and samples that depend on their own seed only."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from next_scale import flops
from next_scale.attention import KVCache, PrefixAttention
from next_scale.condition import Conditioner, ConditionSpec, Encoded, VectorSpec, any_given
from next_scale.errors import UserError
from next_scale.predictors.interface import Generated, LossOutput, Predictor
from next_scale.predictors.known import Evidence, Known
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule, StrideSchedule
from next_scale.transformer import Modulations, Transformer


class TokenPredictor(Predictor):
    """A transformer whose :meth:`forward` gives logits of every token of the pyramid.

    A family says in which steps tokens come and what each step sees: `forward` under teacher forcing, `_generate` step
    by step with kept keys and values.

    Args:
        schedule: of the quantizer; a text such as "1 2 4 8" will do.
        codebook_size: V.
        latent_channels: C of the inputs: the channels inside the quantizer's pyramid (`quantizer.channels`).
        spec: condition fields and their values; empty for unconditional prediction.
        width, depth, heads, mlp_ratio, shared_modulation, qk_norm, softmax_scale, dropout, drop_path: see
            :class:`next_scale.transformer.Transformer`.
        condition_dropout, field_dropout: see :class:`next_scale.condition.Conditioner`.
        vectors, words: condition fields that are vectors, and what prompts are read by, see
            :class:`next_scale.condition.Conditioner`.
        codebook_head: logits of scale k are the dot products with output embeddings of its own codes, which
            :meth:`start_from` sets to the codebook's entries; else one linear layer serves all scales (VAR: its scales
            share one codebook). With a codebook a scale, neighbouring codes share what is learned about either.
        label_smoothing: of the training loss; the losses reported per scale are without.
        scale_power: the training loss weights the mean of scale k by n_k ** scale_power: 1 is the mean over tokens
            (VAR), 0 the mean over scales. Below 1 the few coarse tokens, on which all else hangs, are learned sooner.

    Raises:
        UserError: `width` is not a multiple of `heads`.

    Shape notation: B batch, K scales, n_k tokens of scale k, L tokens in all, C channels, V codes, D width.
    """

    exact_log_prob = True

    def __init__(
        self,
        schedule: Schedule | str | list,
        codebook_size: int,
        latent_channels: int,
        spec: ConditionSpec | None = None,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        shared_modulation: bool = False,
        qk_norm: bool = False,
        softmax_scale: float | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        condition_dropout: float = 0.1,
        field_dropout: float = 0.0,
        codebook_head: bool = False,
        label_smoothing: float = 0.0,
        scale_power: float = 1.0,
        vectors: VectorSpec | None = None,
        words: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"width {width} is not a multiple of {heads} heads")
        self.schedule = schedule if isinstance(schedule, Schedule) else Schedule.parse(schedule)
        self.codebook_size, self.latent_channels = codebook_size, latent_channels
        self.label_smoothing, self.scale_power = label_smoothing, scale_power
        self.conditioner = Conditioner(spec or {}, width, condition_dropout, field_dropout, vectors, words)
        self.options = {
            "width": width, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio,
            "shared_modulation": shared_modulation, "qk_norm": qk_norm, "softmax_scale": softmax_scale,
            "dropout": dropout, "drop_path": drop_path, "condition_dropout": condition_dropout,
            "field_dropout": field_dropout, "codebook_head": codebook_head,
            "label_smoothing": label_smoothing, "scale_power": scale_power, "vectors": vectors,
        }  # fmt: skip
        if self.conditioner.words is not None:
            self.options["words"] = self.conditioner.words.to_config()
        self.codes = self.code_bias = None
        if codebook_head:
            self.codes = nn.Parameter(torch.randn(self.schedule.scales, codebook_size, latent_channels))
            self.code_bias = nn.Parameter(torch.zeros(self.schedule.scales, codebook_size))
        self.transformer = Transformer(
            width,
            depth,
            heads,
            self._tokens_a_place() * (latent_channels if codebook_head else codebook_size),
            mlp_ratio,
            shared_modulation,
            qk_norm,
            softmax_scale,
            dropout,
            drop_path,
        )
        self.prefix = self._attention(self._visible_end())

    def _tokens_a_place(self) -> int:
        """Tokens that one place of the transformer's sequence predicts."""
        return 1

    def _visible_end(self) -> Tensor:
        """Number of leading places that each place of the transformer's sequence sees: int64. Causal by default."""
        return torch.arange(1, self.schedule.length + 1)

    def _attention(self, visible_end: Tensor) -> PrefixAttention:
        """Of the prefix tokens, which see each other, and of the places after them, which see all of them as well."""
        count = self.conditioner.length
        return PrefixAttention(torch.cat([visible_end.new_full((count,), count), visible_end + count]))

    @classmethod
    def for_quantizer(cls, quantizer: MultiScaleQuantizer, spec: ConditionSpec, **options) -> TokenPredictor:
        """See :meth:`next_scale.predictors.interface.Predictor.for_quantizer`."""
        if isinstance(quantizer.schedule, StrideSchedule):
            raise UserError(f"the predictor '{cls.name}' has a fixed length: train a tokenizer without strides for it")
        return cls(quantizer.schedule, quantizer.codebook_size, quantizer.channels, spec, **options)

    def to_config(self) -> dict:
        """Arguments that build this predictor again, for JSON."""
        return {
            "schedule": self.schedule.to_config(), "codebook_size": self.codebook_size,
            "latent_channels": self.latent_channels, "spec": self.conditioner.spec, **self.options,
        }  # fmt: skip

    @classmethod
    def from_config(cls, config: Mapping) -> TokenPredictor:
        """Inverse of :meth:`to_config`."""
        return cls(**{**config, "schedule": Schedule.from_config(config["schedule"])})

    @torch.no_grad()
    def start_from(self, quantizer: MultiScaleQuantizer) -> None:
        """Set the output embeddings of `codebook_head` to the codebooks' entries, centred and at unit spread.

        Raises:
            UserError: the quantizer looks codes up in another number of channels than its pyramid has.
        """
        if self.codes is None:
            return
        for k, codes in enumerate(self.codes):
            entries = quantizer.codebook(k).weight
            if entries.shape != codes.shape:
                raise UserError(
                    "codebook_head needs codes as wide as the pyramid: leave the quantizer's code_channels out"
                )
            entries = entries - entries.mean(0)
            codes.copy_(entries / entries.square().mean().sqrt().clamp_min(1e-8))

    def pack(self, int8: bool = False) -> None:
        """See :meth:`next_scale.transformer.Transformer.pack`."""
        self.transformer.pack(int8)

    def _head(self, k: int) -> Callable[[Tensor], Tensor]:
        """From the transformer's outputs of scale k to its logits: (B, n, ...) -> (B, n, V)."""
        if self.codes is None:
            return lambda features: features
        weight, bias = self.codes[k].T * self.latent_channels**-0.5, self.code_bias[k]

        def head(features: Tensor) -> Tensor:
            flops.report_product(features, self.codes, self.codebook_size)
            return features @ weight + bias

        return head

    def _logits(self, features: Tensor, k: int) -> Tensor:
        """As :meth:`_head`, for a single step."""
        return self._head(k)(features)

    def _all_logits(self, features: Tensor) -> Tensor:
        """The transformer's outputs for the whole pyramid to logits: (B, L, ...) -> (B, L, V)."""
        if self.codes is None:
            return features
        return torch.cat([self._logits(part, k) for k, part in enumerate(self.schedule.split(features))], dim=1)

    @abstractmethod
    def forward(self, inputs: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Logits of the whole pyramid under teacher forcing.

        Args:
            inputs: as :meth:`inputs` gives them.
            condition: field -> (B,) int64 index, -1 for not given.

        Returns:
            (B, L, V) float32.
        """

    def loss(
        self, tokens: Tensor, inputs: Tensor, condition: Mapping[str, Tensor], given: Tensor | None = None
    ) -> LossOutput:
        """Cross-entropy of tokens (B, L); `inputs` and `condition` as in :meth:`forward`.

        Tokens that are `given`, (B, L) bool, are seen and not learned; a scale of which all are counts nothing.
        """
        logits = self.forward(inputs, condition)
        entropy = entropy_of(logits, tokens)
        target = entropy
        if self.label_smoothing > 0:
            uniform = logits.logsumexp(-1) - logits.mean(-1)
            target = torch.lerp(entropy, uniform, self.label_smoothing)
        weights = torch.tensor(self.schedule.counts, dtype=target.dtype, device=target.device) ** self.scale_power
        if given is None:
            means = self._scale_means
        else:
            weights = weights * self._scale_means((~given).to(target.dtype))

            def means(values: Tensor) -> Tensor:
                """Over what is learned of each scale: (B, L) -> (K,)."""
                pairs = zip(self.schedule.split(values * ~given), self.schedule.split(~given), strict=True)
                return torch.stack([part.sum() / mask.sum().clamp_min(1) for part, mask in pairs])

        loss = (means(target) * weights).sum() / weights.sum()
        with torch.no_grad():
            hits = (logits.argmax(-1) == tokens).float()
            return LossOutput(loss, means(entropy), means(hits))

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
        evidence: Evidence | None = None,
    ) -> Generated:
        """Draw pyramids.

        A sample depends on its condition and seed, and not on the samples beside it: each has its own stream of noise,
        and where rounding, which does differ between batch sizes, could decide a draw (a few samples in a hundred),
        that sample is drawn again alone. With `sampling.smooth`, with doubtful evidence, or after
        `transformer.pack(int8=True)`, rounding always decides a little, and every sample is drawn alone.

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
            evidence: a latent of B samples that is known in part, in place of `known` and `forced`.

        Raises:
            ValueError: a number of seeds other than B, or known tokens or evidence of other shapes.
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
        if evidence is not None and (known is not None or evidence.tokens.shape != shape):
            raise ValueError(f"evidence comes without known tokens, and is of {batch} samples of this schedule")

        def draw(rows: slice) -> tuple[Tensor, Tensor, Tensor | None]:
            here = {name: index[rows] for name, index in condition.items()}
            kept = None if known is None else Known(known[rows], forced[rows])
            kept = kept if evidence is None else evidence.rows(rows)
            return self._generate(quantizer, here, sampling, seeds[rows], kept)

        alone = [slice(row, row + 1) for row in range(batch)]
        training = self.training
        self.eval()
        try:
            doubtful = evidence is not None and evidence.doubt > 0
            if batch == 1 or self.transformer.int8 or doubtful or (sampling.smooth and not sampling.greedy):
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
        seeds: list[int], known: Known | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        """Tokens (B, L), latent (B, C, *grid), and in a batch whether rounding decided no draw of a sample (B,)."""

    def _whole(self, x: Tensor, given: Encoded) -> Tensor:
        """Embedded places (B, L, D), without the prefix, to head outputs (B, L, ...) under teacher forcing."""
        modulations = self.transformer.modulations(given.vector)
        return self.transformer(given.before(x), modulations, self.prefix, skip=given.length)

    def _conditions(
        self, condition: Mapping[str, Tensor], batch: int, guided: bool
    ) -> tuple[bool, Encoded, Modulations]:
        """Whether to guide, and the condition, (B, D), and all that it does; guided (2 B, D), those without it last."""
        guided = guided and any_given(condition)  # guidance towards no condition changes nothing
        given = self.conditioner.encode(condition, batch)
        if guided:
            given = given.beside(self.conditioner.encode({}, batch))
        return guided, given, self.transformer.modulations(given.vector)

    def _cache(self, given: Encoded, modulations: Modulations, length: int) -> KVCache:
        """A cache for so many places, which holds the prefix tokens already."""
        cache = self.transformer.cache(len(given.vector), given.length + length)
        if given.length:
            self.transformer(given.prefix, modulations, cache=cache, skip=given.length)
        return cache


def entropy_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of every token in nats: (B, L, V), (B, L) -> (B, L)."""
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)


def code_table(quantizer: MultiScaleQuantizer, k: int) -> Tensor:
    """All codes of scale k in the pyramid's channels, at unit spread, for those of fine scales are small: (V, C)."""
    codes = quantizer.vectors(torch.arange(quantizer.codebook_size, device=quantizer.codebook(k).weight.device), k)
    return codes / codes.square().mean().sqrt().clamp_min(1e-8)
