"""Editing recordings of any length: spans drawn anew, continued, varied, mixed, and degraded ones repaired.

What is not edited keeps its own samples. A codec without phases meets them anywhere in their period, so that what is
drawn is first moved by up to 20 ms to where it fits, and then cross-faded within 10 ms of what is kept.

Shape notation: T samples of the recording, N samples of a window, W windows, F bins, M frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from audio_var.cli.clips import windows_for
from audio_var.gap import Gap, bridge, carry_error, fill_gap
from audio_var.repair import banded, masked
from next_scale import editing
from next_scale.cli import sample_seed
from next_scale.commands.backend import Advance
from next_scale.condition import collate_conditions
from next_scale.errors import UserError
from next_scale.model import Generator
from next_scale.sampling import SamplingOptions

FADE = 0.010  # seconds of what is kept over which it gives way
MOVED = 0.020  # seconds that what is drawn may be moved to fit: a period of 50 Hz
BRIDGED = 0.15  # seconds from what is known that are interpolated rather than drawn, unless asked otherwise
_SHORTEST = 0.001  # seconds


class Editor:
    """Edits mono recordings (T,) float32 at the model's sample rate with one model.

    Args:
        model: draws tokens; must take known ones.
        condition: field -> index of the value that the edited sound shall have, or a vector; what is left out is left
            to the model.
        seed: same seed, same result.
        sampling: the checkpoint's own by default.
        advance: is told the share of an edit that has just been done.
        bridged: seconds from what is known over which a gap is interpolated in the spectrogram, see
            :func:`audio_var.gap.bridge`; 0 leaves all of it to the model.

    Shape notation: see :mod:`audio_var.editing`.
    """

    def __init__(
        self, model: Generator, condition: Mapping[str, int | Tensor] | None = None, seed: int = 0,
        sampling: SamplingOptions | None = None, advance: Advance | None = None, bridged: float = BRIDGED,
    ) -> None:  # fmt: skip
        self.model, self.codec = model, model.tokenizer.autoencoder
        self.condition, self.seed, self.bridged = dict(condition or {}), seed, bridged
        self.sampling = sampling or model.sampling
        self.advance = advance or (lambda share: None)

    @property
    def rate(self) -> int:
        """Of the recordings, in Hz."""
        return self.codec.sample_rate

    # Spans

    def inpaint(self, audio: Tensor, start: float, end: float, candidates: int = 1, passes: int = 1) -> Tensor:
        """Draw a span anew so that it fits what is around it: (T,) -> (T,).

        Args:
            start, end: of the span, in seconds.
            candidates, passes: see :func:`next_scale.editing.redraw`.

        Raises:
            UserError: an empty span, one that reaches beyond the recording, or one that leaves nothing.
        """
        seconds = len(audio) / self.rate
        first, last = check_span(start, end, seconds)
        return self._fill(audio, round(first * self.rate), min(len(audio), round(last * self.rate)), candidates, passes)

    def continued(self, audio: Tensor, seconds: float, candidates: int = 1, passes: int = 1) -> Tensor:
        """Append what might follow: (T,) -> (T + seconds * rate,).

        Where the recording is longer than the model's clips, its last part is what the model goes by; it draws window
        by window, each knowing the one before.

        Raises:
            UserError: nothing, or not a number, to append.
        """
        if not seconds * self.rate >= 1 or not math.isfinite(seconds):
            raise UserError(f"a continuation lasts some time, such as 2.0 seconds, not {seconds:g}")
        return self._fill(audio, len(audio), len(audio) + round(seconds * self.rate), candidates, passes)

    def _fill(self, audio: Tensor, start: int, end: int, candidates: int, passes: int) -> Tensor:
        """Samples from `start` to `end`, which may lie beyond the recording, drawn window by window."""
        _check_line(audio)
        size = windows_for(self.model.tokenizer, max(len(audio), end)).size
        total = max(len(audio), end)
        out = F.pad(audio, (0, total - len(audio)))
        position, number = start, 0
        while position < end:
            count = min(end - position, size // 2)
            after = 0 if position + count < end else min(total - end, (size - count) // 2)
            begin = max(0, min(position - (size - count - after), total - size))
            until = min(end, begin + size)
            window = F.pad(out[begin : begin + size], (0, max(0, begin + size - total)))
            hidden = torch.zeros(size, dtype=torch.bool)
            hidden[position - begin : end - begin] = True
            hidden[total - begin :] = True  # beyond the end is nothing known
            gap = Gap(position - begin, min(end - begin, size), self.rate, after=end < min(total, begin + size))
            drawn = self._drawn(window, hidden, gap, min(size, total - begin), number, candidates, passes)
            place = position - begin, until - begin
            whole = self._joined(window, drawn, place, kept_after=until == end < total)
            out[begin : begin + len(whole)] = whole[: total - begin]
            self.advance((until - position) / (end - start))
            position, number = until, number + 1
        return out

    def _drawn(
        self, window: Tensor, hidden: Tensor, gap: Gap, length: int, number: int, candidates: int, passes: int
    ) -> Tensor:
        """The model's version of a window (N,) of which a part is hidden, (N,) bool; its first `length` samples count.

        It draws near a first guess, what is beside the gap drawn across it, as far as tokens allow.
        """
        sample, doubt = window.masked_fill(hidden, 0), 0.0
        guess = fill_gap(sample[None, :length], gap)
        if guess is not None:
            guess = F.pad(guess[0], (0, len(window) - length))
            sample = self._joined(sample, guess, (gap.start, gap.end), gap.after)
            doubt = editing.DOUBT
        device = self.model.tokenizer.device
        with torch.inference_mode():
            latent = self.codec.encode(sample[None, None].to(device))
            weight = editing.grid_weight(hidden[None].to(device), latent.shape[2:])
            latent = editing.redraw(
                self.model, latent, weight, self._conditions(1), [sample_seed(self.seed, number)], self.sampling,
                doubt=doubt, guess=editing.GUESS, candidates=candidates, passes=passes,
            )  # fmt: skip
            decoded = self.codec.decode(latent)[0, 0].cpu()
        drawn = decoded.clone()
        known, part = window[None, :length], drawn[None, :length]
        drawn[:length] = bridge(known, carry_error(known, part, gap), gap, self.bridged)[0]
        return drawn

    def _joined(self, kept: Tensor, drawn: Tensor, place: tuple[int, int], kept_after: bool) -> Tensor:
        """A window (N,) with what was drawn in its place, from one sample to another, cross-faded at its borders."""
        start, end = place
        fade = min(round(FADE * self.rate), start)
        fade_after = min(round(FADE * self.rate), len(kept) - end) if kept_after else 0
        drawn = best_shift(kept, drawn, place, fade, fade_after, round(MOVED * self.rate))
        share = torch.zeros(len(kept))  # of what was drawn
        share[start:end] = 1
        share[start - fade : start] = _ramp(fade)
        if fade_after:
            share[end : end + fade_after] = _ramp(fade_after).flip(0)
        return torch.lerp(kept, drawn, share)

    # Whole recordings

    def vary(self, audio: Tensor, strength: float, keep: str = "coarse") -> Tensor:
        """Another version: some scales stay and the others are drawn anew, (T,) -> (T,).

        Args:
            strength: share of the scales that is drawn, from 0 to 1.
            keep: ``coarse`` or ``fine``, the scales that stay.

        Raises:
            UserError: a strength outside 0 to 1.
        """
        editing.scales_kept(1, strength)  # complains of the strength before anything is computed

        def edit(latent: Tensor, seeds: list[int]) -> Tensor:
            return editing.vary(self.model, latent, self._conditions(len(latent)), seeds, strength, keep, self.sampling)

        return self._through(audio, edit)

    def interpolate(self, audio: Tensor, other: Tensor, amount: float = 0.5) -> Tensor:
        """Between two recordings in the codec's latent: (T,), (T',) -> (max(T, T'),).

        Args:
            amount: 0 is the first recording, 1 the other, both through the tokenizer.

        Raises:
            UserError: an amount outside 0 to 1.
        """
        if not 0 <= amount <= 1:
            raise UserError(f"an amount is from 0, the first, to 1, the other; got {amount:g}")
        longest = max(len(audio), len(other))
        audio, other = (F.pad(one, (0, longest - len(one))) for one in (audio, other))
        windows = windows_for(self.model.tokenizer, longest)
        others = iter(windows.cut(other.numpy()))

        def edit(latent: Tensor, seeds: list[int]) -> Tensor:
            also = self.codec.encode(next(others)[None].to(latent.device))
            return editing.between(self.model, latent, also, amount)

        return self._through(audio, edit)

    def denoise(self, audio: Tensor) -> Tensor:
        """Take steady noise off: (T,) -> (T,).

        The recording, with the noise subtracted that is in its quietest frames, is re-encoded as something that the
        model holds likely, and tells how much of every bin of the recording to keep, see
        :func:`audio_var.repair.masked`.
        """
        return masked(audio, self.rate, self._likely(masked(audio, self.rate)))

    def upsample(self, audio: Tensor, cutoff: float, passes: int = 2) -> Tensor:
        """Add what a recording of a lower rate lacks above half of that rate: (T,) -> (T,).

        Args:
            audio: already at the model's rate; below the cutoff it keeps its own samples.
            cutoff: Hz, half the lower rate.
            passes: how often the result is re-encoded as something that the model holds likely.

        Raises:
            UserError: a cutoff that is not between 0 and half the model's rate.
        """
        if not 0 < cutoff < self.rate / 2:
            raise UserError(f"a cutoff lies between 0 and {self.rate / 2:,.0f} Hz, got {cutoff:g}")
        wide = audio
        for _ in range(passes):
            wide = banded(audio, self._likely(wide, editing.DEGRADED / 2, 1 / passes), cutoff, self.rate)
        return wide

    def _likely(self, audio: Tensor, doubt: float = editing.DEGRADED, share: float = 1.0) -> Tensor:
        """A recording re-encoded as something that the model holds likely: (T,) -> (T,)."""

        def edit(latent: Tensor, seeds: list[int]) -> Tensor:
            nothing = latent.new_zeros(len(latent), latent.shape[2])
            condition = self._conditions(len(latent))
            return editing.redraw(self.model, latent, nothing, condition, seeds, self.sampling, doubt)

        return self._through(audio, edit, share)

    def _through(self, audio: Tensor, edit: Callable[[Tensor, list[int]], Tensor], share: float = 1.0) -> Tensor:
        """A recording with the latent of every window edited, which is a share of the work: (T,) -> (T,)."""
        _check_line(audio)
        windows = windows_for(self.model.tokenizer, len(audio))
        clips = []
        for number, window in enumerate(windows.cut(audio.numpy())):
            with torch.inference_mode():
                latent = self.codec.encode(window[None].to(self.model.tokenizer.device))
                clips.append(self.codec.decode(edit(latent, [sample_seed(self.seed, number)])).cpu())
            self.advance(share / windows.count)
        return torch.from_numpy(windows.join(torch.cat(clips)))

    def _conditions(self, batch: int) -> dict[str, Tensor]:
        return collate_conditions([self.condition] * batch, self.model.condition_spec, self.model.vectors)


def _check_line(audio: Tensor) -> None:
    """Raise UserError where a tensor is no recording."""
    if audio.dim() != 1 or not len(audio):
        raise UserError(
            f"a recording is a line of samples (T,), not {tuple(audio.shape)}: take one channel of one clip"
        )


def check_span(start: float, end: float, seconds: float) -> tuple[float, float]:
    """A span of a recording of so many seconds; an end up to a millisecond beyond it is its end.

    Raises:
        UserError: an empty span, one that reaches beyond the recording, or one that leaves nothing.
    """
    if not (math.isfinite(start) and math.isfinite(end)) or end - start < _SHORTEST:
        raise UserError(f"the span {start:g}:{end:g} is empty; give START:END in seconds, such as 0.3:0.6")
    if start < 0 or end > seconds + _SHORTEST:
        raise UserError(f"the span {start:g}:{end:g} reaches beyond the clip, which lasts {seconds:.3f} s")
    if end - start > seconds - _SHORTEST:
        raise UserError(f"the span {start:g}:{end:g} is the whole clip: leave some of it, or use generate")
    return start, end


def best_shift(kept: Tensor, drawn: Tensor, place: tuple[int, int], before: int, after: int, most: int) -> Tensor:
    """What was drawn, moved in time to where its waveform agrees best with what is kept at the borders of a place.

    Args:
        kept, drawn: (N,) float32.
        place: first sample of the place, and the first after it.
        before, after: samples of what is kept to compare with on either side.
        most: samples that it may move either way.

    Returns:
        (N,) float32; where it has moved away from an end, the end is repeated in zeros.
    """
    start, end = place
    score = torch.arange(-most, most + 1).abs() * -1e-6  # of equals the least
    for low, high in ((start - before, start), (end, end + after)):
        if high > low:
            around = F.pad(drawn, (most, most))[low : high + 2 * most]
            segments = around.unfold(0, high - low, 1)  # (2 most + 1, high - low)
            size = segments.norm(dim=1) * kept[low:high].norm()
            score += (segments @ kept[low:high]) / size.clamp_min(1e-9)
    shift = int(score.argmax()) - most  # drawn[i + shift] goes to place i
    return F.pad(drawn, (most, most))[most + shift : most + shift + len(drawn)]


def _ramp(count: int) -> Tensor:
    """From 0 to 1 by a squared sine, without both ends: (count,)."""
    return torch.sin(torch.linspace(0, math.pi / 2, count + 2)[1:-1]) ** 2
