"""Codecs trained elsewhere, frozen behind this project's interface, and the pyramids that their own codebooks make."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio_var.codecs.base import Codec
from audio_var.codecs.weights import digest_of
from next_scale.errors import UserError, first_line
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.schedule import StrideSchedule
from next_scale.tokenizer import Tokenizer

T = TypeVar("T")

_QUIETEST, _LOUDEST = 1e-5, 4.0  # root mean squares that a gain code can tell


@dataclass(frozen=True)
class Levels:
    """The residual codebooks that a codec came with, coarse to fine.

    Args:
        strides: latent frames that a code of each level stands for.
        codebooks: one (V, D) float tensor a level.
        code_in, code_out: where codes are looked up in D channels of their own: a linear map (weight, bias) a level
            from the latent's C channels, (D, C) and (D,), and back, (C, D) and (C,). Empty where D = C.
        cosine: codes are looked up by direction.

    Shape notation: V codes, D channels of a code, C channels of the latent.
    """

    strides: tuple[int, ...]
    codebooks: tuple[Tensor, ...]
    code_in: tuple[tuple[Tensor, Tensor], ...] = ()
    code_out: tuple[tuple[Tensor, Tensor], ...] = ()
    cosine: bool = False


class PretrainedCodec(Codec):
    """Encoder and decoder of a published codec. They never learn and always stay in evaluation mode.

    Codecs that normalise loudness (EnCodec at 48 kHz) get one latent channel more, the natural logarithm of the clip's
    root mean square, the same in every frame, so that a quantizer can keep the level too. A whole clip is normalised at
    once; the `encodec` package does so second by second.

    A checkpoint holds the weights, or names where they come from and holds their SHA-256, by which other weights found
    there are refused.

    Args:
        sample_rate: of the waveforms, in Hz.
        hop: samples a latent frame stands for.
        latent_channels: channels of the model's own latent.
        inner_channels: channels of the model's waveforms: 1 or 2.
        stereo: give and take two channels, where the model has them; else mono goes in on both, and their mean comes
            out.
        normalize: the model is made for clips of root mean square 1.
        multiple: frames come in multiples of this.
        levels: its own codebooks.

    Shape notation: B batch, N samples, C latent channels, T latent frames.
    """

    def __init__(
        self,
        sample_rate: int,
        hop: int,
        latent_channels: int,
        levels: Levels,
        inner_channels: int = 1,
        stereo: bool = False,
        normalize: bool = False,
        multiple: int = 1,
    ):
        super().__init__(sample_rate=sample_rate, hop=hop, latent_channels=latent_channels + normalize)
        if stereo and inner_channels != 2:
            raise UserError(f"the codec '{self.name}' is mono here: leave out stereo")
        self.inner_channels, self.channels = inner_channels, 2 if stereo else 1
        self.normalize, self.multiple = normalize, multiple
        self.levels: Levels | None = levels
        self.embed, self.source = True, ""

    def freeze(self, source: str | None, embed: bool) -> None:
        """Called once all parts are there: stop learning, and settle what checkpoints hold.

        Args:
            source: where the weights came from; None for random ones.
            embed: checkpoints hold the weights; else they name `source`.
        """
        if not embed and source is None:
            raise UserError(f"the codec '{self.name}' has weights of its own only: set embed, or name its weights")
        self.requires_grad_(False)
        super().train(False)
        self.embed, self.source = embed, source or ""
        self.stored = tuple(self.state_dict())
        if not embed:
            self.register_buffer("digest", digest_of(self))
            self.register_state_dict_post_hook(_leave_out_weights)
        self.register_load_state_dict_pre_hook(_before_loading)

    def train(self, mode: bool = True) -> PretrainedCodec:
        """Does nothing: the codec is frozen."""
        return self

    @abstractmethod
    def encode_normal(self, waveform: Tensor) -> Tensor:
        """The model's encoder: (B, inner_channels, N) -> (B, C, T), N a multiple of hop and `multiple`."""

    @abstractmethod
    def decode_normal(self, latent: Tensor) -> Tensor:
        """The model's decoder: (B, C, T) -> (B, inner_channels, about T * hop)."""

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Tensor:
        """(B, 1 or 2, N) float in [-1, 1] -> (B, C, T). Silence completes a length that does not fit."""
        waveform = F.pad(waveform, (0, -waveform.shape[-1] % (self.hop * self.multiple)))
        waveform = waveform.expand(-1, self.inner_channels, -1)
        if not self.normalize:
            return self.encode_normal(waveform)
        gain = waveform.mean(1, keepdim=True).square().mean(2, keepdim=True).sqrt() + 1e-8  # (B, 1, 1)
        latent = self.encode_normal(waveform / gain)
        return torch.cat([latent, gain.log().expand(-1, 1, latent.shape[2])], 1)

    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, T) -> (B, channels, T * hop)."""
        gain = None
        if self.normalize:
            latent, gain = latent[:, :-1], latent[:, -1:].mean(2, keepdim=True).exp()
        waveform = self.decode_normal(latent)
        waveform = F.pad(waveform, (0, latent.shape[2] * self.hop - waveform.shape[2]))  # longer ones are cut
        if self.inner_channels > self.channels:
            waveform = waveform.mean(1, keepdim=True)
        return waveform if gain is None else waveform * gain


def _leave_out_weights(codec: PretrainedCodec, state: dict, prefix: str, metadata: dict) -> None:
    for name in [name for name in state if name.startswith(prefix) and name != f"{prefix}digest"]:
        del state[name]


def _before_loading(codec: PretrainedCodec, state: dict, prefix: str, *_) -> None:
    if codec.embed:
        codec.levels = None  # the codebooks are no part of what is loaded now
        return
    found = state.get(f"{prefix}digest")
    if found is not None and not torch.equal(found.cpu(), codec.digest.cpu()):
        raise UserError(f"the weights in {codec.source} are not those that this checkpoint was made with")
    # nn.Module.load_state_dict asks for every tensor: those left out are the ones here
    own = dict(codec.named_parameters()) | dict(codec.named_buffers())
    for name in codec.stored:
        state.setdefault(prefix + name, own[name])


def built(codec: str, build: Callable[[], T]) -> T:
    """What `build()` makes of an architecture from a file. Raises UserError where it makes nothing."""
    try:
        return build()
    except UserError:
        raise
    except Exception as error:  # a package's constructor given arbitrary values raises almost anything
        raise UserError(f"this architecture makes no codec '{codec}': {first_line(error)[:200]}") from error


def native_tokenizer(
    codec: PretrainedCodec, levels: int | None = None, strides: Sequence[int] | None = None
) -> Tokenizer:
    """A tokenizer over the codec's own codebooks, which stay as they are.

    With its own strides the tokens are those of the codec itself, code by code: one scale a level, in the order of
    :class:`next_scale.schedule.StrideSchedule`. With others, level q's residual is averaged over ``strides[q]`` frames
    and its code repeated, as SNAC does (arXiv 2410.14411, section 2): a pyramid from a codec that has none.

    A codec that normalises loudness gets one scale more, the coarsest, of about one token a second: the gain.

    Args:
        levels: use this many leading codebooks; all by default, or as many as there are `strides`.
        strides: of the levels, coarse to fine, ending at 1; the codec's own by default.

    Raises:
        UserError: more levels than the codec has, strides that are no schedule, or a codec read from a checkpoint,
            which holds no codebooks.
    """
    own = codec.levels
    if own is None:
        raise UserError(f"a checkpoint keeps no codebooks of '{codec.name}': open the codec from its own weights")
    count = levels or len(strides or own.strides)
    if not 1 <= count <= len(own.strides):
        raise UserError(f"the codec '{codec.name}' has {len(own.strides)} levels, {count} were asked for")
    chosen = tuple(strides or own.strides[:count])
    if len(chosen) != count:
        raise UserError(f"{count} levels need {count} strides, got {len(chosen)}")
    codebooks = [book.float() for book in own.codebooks[:count]]
    if codec.normalize:
        unit = chosen[0] * math.ceil(codec.sample_rate / codec.hop / chosen[0])
        chosen = (unit, *chosen)
        codebooks = [_gain_codes(codebooks[0]), *(F.pad(book, (0, 1)) for book in codebooks)]  # no gain in a code
    size, width = codebooks[0].shape
    quantizer = MultiScaleQuantizer(
        StrideSchedule(chosen),
        codec.latent_channels,
        codebook_size=size,
        code_channels=width if own.code_in else None,
        phis=0,
        cosine=own.cosine,
        upsampling="nearest",
        revive=0.0,
    )
    with torch.no_grad():
        for k, codes in enumerate(codebooks):
            quantizer.codebook(k).weight.copy_(codes)
        for maps, linears in ((own.code_in, quantizer.code_in), (own.code_out, quantizer.code_out)):
            for (weight, bias), linear in zip(maps, linears, strict=False):
                linear.weight.copy_(weight)
                linear.bias.copy_(bias)
    quantizer.requires_grad_(False)
    return Tokenizer(codec, quantizer).eval()


def _gain_codes(like: Tensor) -> Tensor:
    """Codes that differ in the last of C + 1 channels only, evenly on a logarithmic scale: (V, C) -> (V, C + 1)."""
    codes = like.new_zeros(like.shape[0], like.shape[1] + 1)
    codes[:, -1] = torch.linspace(math.log(_QUIETEST), math.log(_LOUDEST), like.shape[0])
    return codes


def pointwise(convolution: nn.Module) -> tuple[Tensor, Tensor]:
    """A convolution of kernel 1 as a linear map: weight (out, in) and bias (out,)."""
    # weight norm by hooks computes the weight in a forward pass only
    convolution(convolution.bias.new_zeros(1, convolution.in_channels, 1))
    weight = convolution.weight.detach()[..., 0].clone()
    return weight, convolution.bias.detach().clone()


def factorized_levels(quantizers: Sequence[nn.Module], strides: Sequence[int]) -> Levels:
    """Levels of DAC and SNAC: each with ``in_proj``, ``codebook`` and ``out_proj``, compared by direction."""
    return Levels(
        strides=tuple(strides),
        codebooks=tuple(level.codebook.weight.detach().clone() for level in quantizers),
        code_in=tuple(pointwise(level.in_proj) for level in quantizers),
        code_out=tuple(pointwise(level.out_proj) for level in quantizers),
        cosine=True,
    )
