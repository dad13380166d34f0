"""Latent to waveform piece by piece, in constant memory; the same samples however the pieces are cut."""

from __future__ import annotations

import torch
from torch import Tensor

from audio_var.codecs.base import Codec
from audio_var.codecs.spectral import SpectrumCodec
from audio_var.harmonics import tune_harmonics
from audio_var.phase import Turning, continued_phase

BLOCK = 32  # latent frames decoded at once, beside their context
UNCLEAR = 64  # context in latent frames where a decoder's has no clear end, as with an LSTM
SPAN = 64  # frames of a spectrum whose partials are tuned together: the length of the clips that it was made for


class StreamDecoder:
    """A codec's decoder for latents that come in pieces of any size.

    What it computes at once is always the same blocks of :data:`BLOCK` frames, each with the context that the decoder
    sees (`Codec.context`), so that the samples are the same, bit by bit, however the latent was cut. Of a codec that
    writes magnitude spectra the phases go on from block to block, and neighbouring frames are added across borders;
    partials are tuned over the frames around, not over the whole sound; Griffin-Lim polish is left out. Of a decoder
    whose context has no clear end, 64 frames on either side are taken.

    Args:
        codec: of one grid axis in time, or several of which the first is time.

    Shape notation: B sounds, C latent channels, T latent frames, N = T hop samples.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.context = UNCLEAR if codec.context is None else codec.context
        self._synthesis = Synthesis(codec) if isinstance(codec, SpectrumCodec) else None
        self._latent: Tensor | None = None  # from `context` frames before the next frame to decode
        self._lead = 0  # frames of it that are before that frame

    def push(self, latent: Tensor) -> Tensor:
        """The next frames (B, C, T, *rest), T being at least 1 in all -> the samples that are certain: (B, 1, N)."""
        return self._decode(latent, last=False)

    def finish(self) -> Tensor:
        """No more frames come -> the samples that are left: (B, 1, N)."""
        return self._decode(None, last=True)

    @torch.no_grad()
    def _decode(self, latent: Tensor | None, last: bool) -> Tensor:
        if latent is not None:
            self._latent = latent if self._latent is None else torch.cat([self._latent, latent], dim=2)
        parts = []
        while (left := self._latent.shape[2] - self._lead) >= BLOCK + self.context or (last and left > 0):
            fresh = min(BLOCK, left)
            # in one order in memory: some processors round products of strided rows in another way
            seen = self._latent[:, :, : self._lead + fresh + self.context].contiguous()
            parts.append(self._block(seen, slice(self._lead, self._lead + fresh)))
            drop = max(0, self._lead + fresh - self.context)
            self._lead += fresh - drop
            self._latent = self._latent[:, :, drop:]
        if last and self._synthesis is not None:
            parts.append(self._synthesis.finish())
        return torch.cat(parts, dim=2) if parts else self._latent.new_zeros(self._latent.shape[0], 1, 0)

    def _block(self, latent: Tensor, fresh: slice) -> Tensor:
        if self._synthesis is None:
            return self.codec.decode(latent)[..., fresh.start * self.codec.hop : fresh.stop * self.codec.hop]
        steps = self.codec.hop // self.codec.frame_hop
        frames = slice(fresh.start * steps, fresh.stop * steps)
        return self._synthesis.push(*(part[..., frames] for part in self.codec.decode_spectrum(latent)))


class Synthesis:
    """:meth:`audio_var.codecs.spectral.SpectrumCodec.synthesize` of spectra that come in pieces of :data:`BLOCK`.

    Args:
        codec: says how its spectra are to be read.

    Shape notation: B sounds, F bins, T frames, N samples.
    """

    def __init__(self, codec: SpectrumCodec) -> None:
        self.codec = codec
        self._waiting: list[Tensor] = []  # log magnitudes and corrections (B, F, T) that wait for what follows them
        self._tuned: Tensor | None = None  # corrections (B, F, SPAN / 2) of the next frames, tuned with those before
        self._turning: Turning | None = None
        self._sum: Tensor | None = None  # (B + 1, fft_size - hop): sounds under way, and the window's power
        self._margin = (
            codec.fft_size - codec.frame_hop
        ) // 2  # samples before the first frame's own and after the last's
        self._skip = self._margin  # of it at the start, still to be left out

    def push(self, log_magnitude: Tensor, correction: Tensor) -> Tensor:
        """(B, F, T) both -> (B, 1, N)."""
        new = [log_magnitude, correction]
        self._waiting = [torch.cat(pair, 2) for pair in zip(self._waiting, new, strict=True)] if self._waiting else new
        sounds = []
        while self._waiting[0].shape[2] >= SPAN:
            sounds.append(self._emit(SPAN // 2, slice(0, SPAN)))
        return torch.cat(sounds, 2) if sounds else log_magnitude.new_zeros(log_magnitude.shape[0], 1, 0)

    def finish(self) -> Tensor:
        """-> (B, 1, N), the rest."""
        sounds = []
        while left := self._waiting[0].shape[2]:
            sounds.append(self._emit(min(left, SPAN // 2), slice(0, SPAN)))
        sounds.append(self._sounding(self._sum[:, : self._sum.shape[1] - self._margin]))
        return torch.cat(sounds, dim=2)

    def _emit(self, count: int, span: slice) -> Tensor:
        """Sound the next frames, tuned with those of a span that begins there."""
        log_magnitude, correction = (part[..., :count].contiguous() for part in self._waiting)
        if self.codec.fundamentals is not None:
            correction = self._tune(count, span)
        phase, self._turning = continued_phase(
            log_magnitude, self.codec.fft_size, self.codec.frame_hop, correction, self._turning
        )
        self._waiting = [part[..., count:] for part in self._waiting]
        return self._add(torch.polar(self.codec.magnitude(log_magnitude), phase))

    def _tune(self, count: int, span: slice) -> Tensor:
        """Corrections (B, F, count): from those tuned with what came before to those tuned with what follows."""
        log_magnitude, correction = (part[..., span].contiguous() for part in self._waiting)
        if self._tuned is not None and log_magnitude.shape[2] <= self._tuned.shape[2]:
            return self._tuned[..., :count]  # the end: nothing follows
        tuned = tune_harmonics(log_magnitude, correction, *self.codec.fundamental_bins)
        now = tuned[..., :count]
        if self._tuned is not None:
            now = torch.lerp(self._tuned[..., :count], now, (torch.arange(count, device=now.device) + 0.5) / count)
        self._tuned = tuned[..., count:]
        return now

    def _add(self, spectrum: Tensor) -> Tensor:
        """Add frames (B, F, T) to what is under way: (B, 1, N), the samples to which no later frame adds."""
        added = self.codec.overlap_add(spectrum)  # (B + 1, (T - 1) hop + fft_size)
        if self._sum is not None:
            added[:, : self._sum.shape[1]] += self._sum
        ready = spectrum.shape[2] * self.codec.frame_hop
        self._sum = added[:, ready:]
        return self._sounding(added[:, :ready])

    def _sounding(self, added: Tensor) -> Tensor:
        """Sums and the windows' power (B + 1, N) -> (B, 1, N), less what lies before the first frame's own samples."""
        skip, self._skip = self._skip, max(0, self._skip - added.shape[1])
        return (added[:-1] / added[-1:].clamp_min(1e-8))[:, None, skip:]
