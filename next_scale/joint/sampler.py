"""Drawing parts after a prompt of parts, with kept keys and values, guidance, and noise that is a sample's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from next_scale.attention import PrefixAttention
from next_scale.cli import sample_seed
from next_scale.errors import UserError
from next_scale.joint.parts import Filled, PyramidPart, TextPart, whole
from next_scale.predictors.drawing import Drawer
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions

if TYPE_CHECKING:
    from next_scale.joint.model import JointModel


class Drawn(NamedTuple):
    """name: of the part. tokens: (B, L) int64. latent: (B, C, *grid) that a pyramid's autoencoder decodes."""

    name: str
    tokens: Tensor
    latent: Tensor | None


def draw(
    model: JointModel, prompt: Sequence[Filled], names: Sequence[str], quantizers: Mapping[str, MultiScaleQuantizer],
    sampling: Mapping[str, SamplingOptions], seeds: Sequence[int],
) -> list[Drawn]:  # fmt: skip
    """Draw parts one after another.

    A sample depends on its prompt and seed, and not on those beside it: where rounding, which differs between batch
    sizes, could decide a draw, that sample is drawn again alone.

    Args:
        prompt: parts of B samples each, closed; empty to begin with nothing.
        names: of the parts to draw, in their order.
        quantizers: of the pyramids.
        sampling: of each part drawn. Guidance sets logits after all earlier parts against those of the part alone.
        seeds: B integers.

    Raises:
        UserError: the model never learned this order, or guidance towards a part that it never saw alone.
    """
    model.check([*(filled.name for filled in prompt), *names])
    for place, name in enumerate(names):
        if sampling[name].cfg > 0 and (prompt or place) and not model.knows([name]):
            raise UserError(f"the model never saw '{name}' come first, which guidance needs: set cfg to 0")
    rows = [slice(row, row + 1) for row in range(len(seeds))]

    def some(here: slice) -> tuple[list[Drawn], Tensor | None]:
        own = [Filled(f.name, f.tokens[here], None if f.inputs is None else f.inputs[here]) for f in prompt]
        return _Run(model, own, names, quantizers, sampling, seeds[here]).draw()

    if len(seeds) == 1 or any(sampling[name].smooth and not sampling[name].greedy for name in names):
        return [_stacked(parts) for parts in zip(*(some(row)[0] for row in rows), strict=True)]
    parts, sure = some(slice(len(seeds)))
    tokens = [part.tokens.clone() for part in parts]
    for row in (~sure).nonzero()[:, 0].tolist():
        for own, alone in zip(tokens, some(rows[row])[0], strict=True):
            own[row] = alone.tokens[0]
    with torch.no_grad():
        drawn = [part._replace(tokens=own) for part, own in zip(parts, tokens, strict=True)]
        return [part._replace(latent=_latents(part, quantizers)) for part in drawn]


def _stacked(parts: Sequence[Drawn]) -> Drawn:
    """Samples drawn alone, as one batch; clones, which outside inference mode are tensors like any other."""
    latent = None if parts[0].latent is None else torch.cat([part.latent for part in parts]).clone()
    return Drawn(parts[0].name, torch.cat([part.tokens for part in parts]).clone(), latent)


def _latents(part: Drawn, quantizers: Mapping[str, MultiScaleQuantizer]) -> Tensor | None:
    """One at a time, for matrix products round differently in a batch."""
    if part.latent is None:
        return None
    return torch.cat([quantizers[part.name].decode(row) for row in part.tokens.split(1)])


class _Run:
    """One generation of B samples, whose sequences grow in a cache."""

    def __init__(
        self, model: JointModel, prompt: Sequence[Filled], names: Sequence[str],
        quantizers: Mapping[str, MultiScaleQuantizer], sampling: Mapping[str, SamplingOptions], seeds: Sequence[int],
    ) -> None:  # fmt: skip
        self.model, self.prompt, self.names = model, prompt, names
        self.quantizers, self.sampling, self.seeds = quantizers, sampling, list(seeds)
        self.batch = len(self.seeds)
        layout = [*(filled.name for filled in prompt), *names]
        self.cache = model.trunk.cache(self.batch, sum(model.parts[name].places(True) for name in layout))

    @torch.inference_mode()
    def draw(self) -> tuple[list[Drawn], Tensor | None]:
        """The parts, and in a batch whether rounding decided no draw of a sample (B,)."""
        if self.prompt:
            prefix = self.model.prefix(tuple(filled.name for filled in self.prompt), closed=True)
            self.model.trunk(self.model.embed(self.prompt, closed=True), prefix, self.cache)
        drawn, sure = [], None
        for place, name in enumerate(self.names):
            part, options, followed = self.model.parts[name], self.sampling[name], place + 1 < len(self.names)
            guided = options.cfg > 0 and bool(self.prompt or place)
            other = self.model.trunk.cache(self.batch, part.length) if guided else None
            seeds = [sample_seed(seed, place) for seed in self.seeds]  # each part has noise of its own
            device = next(part.parameters()).device
            if isinstance(part, TextPart):
                options = replace(options, smooth=False)
                drawer = Drawer(options, seeds, part.codes, part.length, device)
                drawn.append(self._text(name, part, drawer, other, followed))
            else:
                drawer = Drawer(options, seeds, part.codes, part.length, device)
                drawn.append(self._pyramid(name, part, drawer, other, followed))
            if drawer.sure is not None:
                sure = drawer.sure if sure is None else sure & drawer.sure
        return drawn, sure

    def _logits(self, part: TextPart | PyramidPart, x: Tensor, step: int, other: Any) -> Tensor:
        """Logits of a step, (B, n, V); with guidance (2 B, n, V), those of the part alone last."""
        logits = part.logits(self.model.trunk(x, cache=self.cache), step)
        if other is None:
            return logits
        return torch.cat([logits, part.logits(self.model.trunk(x, cache=other), step)])

    def _text(self, name: str, part: TextPart, drawer: Drawer, other: Any, followed: bool) -> Drawn:
        end = part.codec.end
        x = part.first(self.batch)
        tokens = torch.full((self.batch, part.length), end, device=x.device)
        ended = torch.zeros(self.batch, dtype=torch.bool, device=x.device)
        strength = 0.0 if other is None else drawer.sampling.cfg
        for step in range(part.length):
            ids, _ = drawer.draw(self._logits(part, x, step, other), slice(step, step + 1), strength)
            tokens[:, step] = torch.where(ended, end, ids[:, 0])
            ended |= tokens[:, step] == end
            if ended.all():
                break
            x = part.shown(tokens[:, step : step + 1], step + 1)
        if followed:  # by what sees the rest of it
            rest = part.shown(tokens[:, step:], step + 1)
            seen = torch.arange(1, rest.shape[1] + 1) + self.cache.end
            self.model.trunk(rest, PrefixAttention(seen).to(rest.device), self.cache)
        return Drawn(name, tokens, None)

    def _pyramid(self, name: str, part: PyramidPart, drawer: Drawer, other: Any, followed: bool) -> Drawn:
        quantizer, options = self.quantizers[name], drawer.sampling
        latent = quantizer.initial_latent(self.batch)
        x, tokens, start = part.first(self.batch), [], 0
        scales = part.schedule.scales
        for k, count in enumerate(part.steps):
            guided = other if options.guided(k) else None
            strength = 0.0 if guided is None else options.strength(k, scales)
            logits = self._logits(part, x, k, guided)
            ids, weights = drawer.draw(logits, slice(start, start + count), strength, k / max(scales - 1, 1))
            tokens.append(ids)
            start += count
            latent, shown = quantizer.step(latent, ids, k, weights)
            x = part.shown(whole(latent) if shown is None else shown, start)
        if followed:
            self.model.trunk(x, cache=self.cache)
        return Drawn(name, torch.cat(tokens, dim=1), quantizer.project_out(latent))
