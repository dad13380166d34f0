"""Flow matching on the continuous latent: the diffusion baseline (arXiv 2210.02747, arXiv 2209.03003)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from next_scale.condition import Conditioner, ConditionSpec, Encoded, VectorSpec, any_given
from next_scale.errors import UserError
from next_scale.predictors.interface import Generated, LossOutput, Predictor
from next_scale.predictors.known import Evidence
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions, guide
from next_scale.schedule import Schedule, StrideSchedule
from next_scale.transformer import Transformer, init_weight

SOLVERS = ("euler", "heun")
_WAVES = 64  # sines, and as many cosines, that tell the time
_STATISTICS = 8192  # training samples from which the latent's mean and spread are taken


class Flow(Predictor):
    """Predicts the velocity that carries noise to the latent along straight lines, with the blocks of the others.

    At time t, from 0 to 1, the network sees x_t = (1 - t) noise + t latent and learns latent - noise (rectified flow).
    Times are logit-normal (arXiv 2403.03206, section 3.1). Latents are brought to mean 0 and spread 1 a channel, by the
    statistics of the first training samples, which the checkpoint keeps. Patches of the latent are the tokens of the
    transformer, all of which see each other; time joins the condition in the adaptive norms.

    What is learned is the latent before quantization where the data has it, else that of the tokens. The sampling
    options `cfg` and `temperature` (of the noise) apply; what concerns codes does not.

    Args:
        grid: size of the latent's grid.
        latent_channels: C, of the autoencoder's latent.
        schedule: of the quantizer, whose tokens are given beside the latent.
        codebook_size: V.
        spec, vectors, words, condition_dropout, field_dropout: see :class:`next_scale.condition.Conditioner`.
        patch: side of the patches.
        solver: ``euler``, or ``heun`` (second order, two evaluations a step).
        solver_steps: steps from noise to latent; may be changed at any time.
        width, depth, heads, options: see :class:`next_scale.transformer.Transformer`.

    Raises:
        UserError: patches that do not divide the grid, or an unknown solver.

    Shape notation: B batch, C latent channels, P patches, p numbers of a patch, D width.
    """

    name = "flow"
    exact_log_prob = False

    def __init__(
        self,
        grid: Sequence[int],
        latent_channels: int,
        schedule: Schedule | str | list,
        codebook_size: int,
        spec: ConditionSpec | None = None,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        patch: int = 1,
        solver: str = "heun",
        solver_steps: int = 16,
        condition_dropout: float = 0.1,
        field_dropout: float = 0.0,
        vectors: VectorSpec | None = None,
        words: Mapping[str, object] | None = None,
        **options,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"width {width} is not a multiple of {heads} heads")
        if patch < 1 or any(side % patch for side in grid):
            raise UserError(f"patches of {patch} do not divide a latent of {'x'.join(map(str, grid))}")
        if solver not in SOLVERS or solver_steps < 1:
            raise UserError(f"the solver is one of {', '.join(SOLVERS)}, with at least one step")
        self.schedule = schedule if isinstance(schedule, Schedule) else Schedule.parse(schedule)
        self.grid, self.latent_channels, self.codebook_size = tuple(grid), latent_channels, codebook_size
        self.patch, self.solver, self.solver_steps = patch, solver, solver_steps
        self.options = {
            "width": width, "depth": depth, "heads": heads, "condition_dropout": condition_dropout,
            "field_dropout": field_dropout, "vectors": vectors, **options,
        }  # fmt: skip
        self.conditioner = Conditioner(spec or {}, width, condition_dropout, field_dropout, vectors, words)
        if self.conditioner.words is not None:
            self.options["words"] = self.conditioner.words.to_config()
        numbers = latent_channels * patch ** len(self.grid)
        self.transformer = Transformer(width, depth, heads, numbers, **options)
        self.patch_embed = nn.Linear(numbers, width)
        self.position_embed = nn.Parameter(torch.empty(math.prod(self.grid) // patch ** len(self.grid), width))
        self.time_embed = nn.Sequential(nn.Linear(2 * _WAVES, width), nn.SiLU(), nn.Linear(width, width))
        nn.init.zeros_(self.patch_embed.bias)
        init_weight(self.patch_embed.weight, numbers**-0.5)
        init_weight(self.position_embed, (3 * width) ** -0.5)
        self.register_buffer("mean", torch.zeros(latent_channels))
        self.register_buffer("square", torch.ones(latent_channels))  # mean of the squares
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @classmethod
    def for_quantizer(cls, quantizer: MultiScaleQuantizer, spec: ConditionSpec, **options) -> Flow:
        """See :meth:`next_scale.predictors.interface.Predictor.for_quantizer`."""
        if isinstance(quantizer.schedule, StrideSchedule):
            raise UserError("the predictor 'flow' has a fixed length: train a tokenizer without strides for it")
        schedule = quantizer.schedule
        return cls(schedule.grid, quantizer.latent_channels, schedule, quantizer.codebook_size, spec, **options)

    def to_config(self) -> dict:
        """Arguments that build this predictor again, for JSON."""
        return {
            "grid": list(self.grid), "latent_channels": self.latent_channels, "schedule": self.schedule.to_config(),
            "codebook_size": self.codebook_size, "spec": self.conditioner.spec, "patch": self.patch,
            "solver": self.solver, "solver_steps": self.solver_steps, **self.options,
        }  # fmt: skip

    @classmethod
    def from_config(cls, config: Mapping) -> Flow:
        """Inverse of :meth:`to_config`."""
        return cls(**{**config, "schedule": Schedule.from_config(config["schedule"])})

    def pack(self, int8: bool = False) -> None:
        """See :meth:`next_scale.transformer.Transformer.pack`."""
        self.transformer.pack(int8)

    def inputs(self, quantizer: MultiScaleQuantizer, tokens: Tensor, latent: Tensor | None = None) -> Tensor:
        """What is learned: the latent (B, C, *grid)."""
        with torch.no_grad():
            return quantizer.decode(tokens) if latent is None else latent

    # The latent's scale

    def _spread(self) -> Tensor:
        """Standard deviation of every channel: (C,)."""
        return (self.square - self.mean.square()).clamp_min(1e-12).sqrt()

    def _channelwise(self, values: Tensor) -> Tensor:
        """(C,) -> (C, 1, ...), to meet a latent."""
        return values.view(-1, *[1] * len(self.grid))

    def normalize(self, latent: Tensor) -> Tensor:
        """(B, C, *grid) to mean 0 and spread 1 a channel."""
        return (latent - self._channelwise(self.mean)) / self._channelwise(self._spread())

    def denormalize(self, latent: Tensor) -> Tensor:
        """Inverse of :meth:`normalize`."""
        return latent * self._channelwise(self._spread()) + self._channelwise(self.mean)

    @torch.no_grad()
    def _watch(self, latent: Tensor) -> None:
        """Take mean and spread from one batch more, until enough samples have been seen."""
        if self.seen >= _STATISTICS:
            return
        values = latent.transpose(0, 1).flatten(1)  # (B, C, *grid) -> (C, B ...)
        share = len(latent) / (int(self.seen) + len(latent))
        self.mean.lerp_(values.mean(1), share)
        self.square.lerp_(values.square().mean(1), share)
        self.seen += len(latent)

    # The velocity

    def _to_patches(self, latent: Tensor) -> Tensor:
        """(B, C, *grid) -> (B, P, p)."""
        p = self.patch
        if len(self.grid) == 1:
            return latent.unflatten(2, (-1, p)).transpose(1, 2).flatten(2)  # (B, C, T) -> (B, T/p, C p)
        rows = latent.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (B, C, H, W) -> (B, C, H/p, p, W/p, p)
        return rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # -> (B, H/p W/p, C p p)

    def _from_patches(self, patches: Tensor) -> Tensor:
        """Inverse of :meth:`_to_patches`."""
        p, c = self.patch, self.latent_channels
        if len(self.grid) == 1:
            return patches.unflatten(2, (c, p)).transpose(1, 2).flatten(2)  # (B, T/p, C p) -> (B, C, T)
        rows = patches.unflatten(1, (-1, self.grid[1] // p)).unflatten(3, (c, p, p))  # -> (B, H/p, W/p, C, p, p)
        return rows.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)  # -> (B, C, H, W)

    def velocity(self, x: Tensor, time: Tensor, given: Encoded) -> Tensor:
        """The velocity at x (B, C, *grid) and times (B,), for embedded conditions."""
        frequencies = torch.logspace(0, 3, _WAVES, device=x.device)  # the fastest turns 160 times from noise to latent
        phase = time[:, None] * frequencies
        c = given.vector + self.time_embed(torch.cat([phase.sin(), phase.cos()], dim=1))
        h = given.before(self.patch_embed(self._to_patches(x)) + self.position_embed)
        return self._from_patches(self.transformer(h, self.transformer.modulations(c), skip=given.length))

    def loss(self, tokens: Tensor, inputs: Tensor, condition: Mapping[str, Tensor]) -> LossOutput:
        """Mean squared error of the velocity; outside training for the same noise and evenly spread times each call."""
        if self.training:
            self._watch(inputs)
        latent = self.normalize(inputs)
        batch = latent.shape[0]
        if self.training:
            noise, time = torch.randn_like(latent), torch.randn(batch, device=latent.device).sigmoid()
        else:
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(latent.shape, generator=generator).to(latent)
            time = torch.special.ndtri((torch.arange(batch, device=latent.device) + 0.5) / batch).sigmoid()
        at = time.view(-1, 1, *[1] * len(self.grid))
        found = self.velocity(torch.lerp(noise, latent, at), time, self.conditioner.encode(condition, batch))
        loss = F.mse_loss(found, latent - noise)
        return LossOutput(loss, loss.detach()[None], loss.new_zeros(0))

    def log_prob(self, tokens: Tensor, inputs: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """There is none. Raises UserError."""
        raise UserError("flow matching gives tokens no probability: leave the likelihood out")

    # Drawing

    def steps(self, sampling: SamplingOptions) -> int:
        """One or two a step of the solver."""
        return self.solver_steps * (2 if self.solver == "heun" else 1)

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
        """Draw latents, and their nearest tokens; a sample's noise comes from its own seed.

        Args: see :meth:`next_scale.predictors.token_predictor.TokenPredictor.generate`.

        Raises:
            UserError: known tokens or evidence are given.
            ValueError: a number of seeds other than B.
        """
        if known is not None or forced is not None or evidence is not None:
            raise UserError("flow matching draws latents and keeps no tokens: edit with a predictor of tokens")
        sampling = sampling or SamplingOptions()
        if seeds is None:
            seeds = torch.randint(2**62, (batch,), generator=generator)
        seeds = [seeds + i for i in range(batch)] if isinstance(seeds, int) else [int(seed) for seed in seeds]
        if len(seeds) != batch:
            raise ValueError(f"{len(seeds)} seeds for a batch of {batch}")
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                latent = self._draw(condition, sampling, seeds)
                tokens = quantizer.encode(latent)
            return Generated(tokens.clone(), latent.clone())  # outside inference mode, tensors like any other
        finally:
            self.train(training)

    def _draw(self, condition: Mapping[str, Tensor], sampling: SamplingOptions, seeds: Sequence[int]) -> Tensor:
        batch, device = len(seeds), self.mean.device
        shape = (self.latent_channels, *self.grid)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed % 2**63)) for seed in seeds]
        given = self.conditioner.encode(condition, batch)
        guided = sampling.cfg > 0 and any_given(condition)
        if guided:  # the same samples without condition, side by side
            given = given.beside(self.conditioner.encode({}, batch))

        def velocity(x: Tensor, t: float) -> Tensor:
            x = torch.cat([x, x]) if guided else x
            v = self.velocity(x, x.new_full((len(x),), t), given)
            return guide(*v.chunk(2), sampling.cfg) if guided else v

        x = torch.stack(noise).to(device) * sampling.temperature
        return self.denormalize(solve(velocity, x, self.solver_steps, self.solver))


def solve(velocity: Callable[[Tensor, float], Tensor], x: Tensor, steps: int, solver: str = "heun") -> Tensor:
    """Follow dx/dt = velocity(x, t) from t = 0 to 1.

    Args:
        velocity: of x and t, of the shape of x.
        solver: ``euler`` or ``heun`` (the trapezoidal rule on Euler's guess, second order).
    """
    step = 1 / steps
    for i in range(steps):
        here = velocity(x, i * step)
        ahead = x + step * here
        x = ahead if solver == "euler" else x + step / 2 * (here + velocity(ahead, (i + 1) * step))
    return x
