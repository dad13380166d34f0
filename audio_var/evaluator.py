"""The fixed judge of generated notes: a small network that hears a note's instrument family and pitch.

Its embedding is the feature space of the Frechet distance and of precision and recall. It is trained once, on real
training notes, and shipped, so that figures of different models compare.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio_var.losses import MEL_FLOOR, MelSpectrum
from audio_var.pitch import refine_pitch
from next_scale.errors import UserError
from next_scale.judge import load_judge, save_judge
from next_scale.training import ScheduledModule, made_by

SHIPPED = Path(__file__).parent / "models" / "evaluator"
FORMAT = "note-evaluator"
PEAK = 0.9  # every clip is brought to this peak first: loudness says nothing about family and pitch

_BANDS, _WINDOW = 64, 1024  # of the mel spectrogram
_LOWEST, _SEMITONES, _FINE = 24, 94, 3  # log-frequency spectrum: MIDI 24 to 117, three bins a semitone
_PARTS = ((0.02, 0.256), (0.1, 0.512))  # seconds: start and length of the tones whose spectrum is taken
_FFT = 16384


class Heard(NamedTuple):
    """embedding: (B, E) float32. label: (B, number of labels), pitch: (B, number of pitches) logits."""

    embedding: Tensor
    label: Tensor
    pitch: Tensor


class Judgement(NamedTuple):
    """embedding: (B, E). label, pitch: (B,) int64 indices. frequency: (B,) Hz, refined to the cent around the pitch."""

    embedding: Tensor
    label: Tensor
    pitch: Tensor
    frequency: Tensor


class LogFrequency(nn.Module):
    """Log power spectra of two stretches of a clip over log frequency: (B, T) -> (B, 2, P), P = 282.

    Three bins a semitone from MIDI 24 to 117, interpolated in a zero-padded spectrum: a pitch's partials keep their
    distances, so that one kernel finds them all.
    """

    def __init__(self, sample_rate: int):
        super().__init__()
        self.sample_rate = sample_rate
        midi = _LOWEST + (torch.arange(_SEMITONES * _FINE, dtype=torch.float64) - (_FINE - 1) / 2) / _FINE
        position = 440 * 2 ** ((midi - 69) / 12) * _FFT / sample_rate
        below = position.long().clamp_max(_FFT // 2 - 1)
        self.register_buffer("below", below, persistent=False)
        self.register_buffer("share", (position - below).float(), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        spectra = []
        for start, length in _PARTS:
            size = round(length * self.sample_rate)
            tone = audio[:, round(start * self.sample_rate) :][:, :size]
            window = torch.hann_window(size, device=audio.device)[: tone.shape[1]]
            power = torch.fft.rfft(tone * window, _FFT).abs().square() / size
            spectra.append(torch.lerp(power[:, self.below], power[:, self.below + 1], self.share))
        return torch.log10(torch.stack(spectra, 1) + MEL_FLOOR)


def _stage(channels_in: int, channels_out: int) -> nn.Sequential:
    """Halves a map in both directions; the first one, which reads the spectrogram, quarters its length in time."""
    kernel, stride, padding = ((3, 5), (2, 4), (1, 2)) if channels_in == 1 else (3, 2, 1)
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU())


class Evaluator(nn.Module):
    """Family and pitch of single notes.

    Two views of the clip at peak 0.9: a mel spectrogram (64 bands, windows of 64 ms) through strided convolutions, for
    timbre and its course in time, and a log-frequency spectrum through a convolution of five octaves, for pitch. Both
    meet in one embedding.

    Args:
        labels: names of the families.
        pitches: MIDI numbers.
        sample_rate: Hz.
        channels: of the convolutions over the mel spectrogram.
        embedding: size of the embedding, E.

    Shape notation: B batch, T samples, E embedding.
    """

    def __init__(
        self,
        labels: list[str],
        pitches: list[int],
        sample_rate: int = 16000,
        channels: tuple[int, ...] = (32, 64, 128, 160),
        embedding: int = 128,
    ):
        super().__init__()
        self.labels, self.pitches, self.sample_rate = list(labels), list(pitches), sample_rate
        self.config = {
            "labels": self.labels,
            "pitches": self.pitches,
            "sample_rate": sample_rate,
            "channels": list(channels),
            "embedding": embedding,
        }
        self.mel = MelSpectrum(sample_rate, _WINDOW, _BANDS)
        self.log_frequency = LogFrequency(sample_rate)
        pairs = zip((1, *channels[:-1]), channels, strict=True)
        self.timbre = nn.Sequential(*(_stage(a, b) for a, b in pairs))
        self.partials = nn.Sequential(
            nn.Conv1d(2, 32, 3 * _FINE, stride=_FINE, padding=_FINE), nn.BatchNorm1d(32), nn.ReLU(),
            nn.Conv1d(32, 32, 61, padding=30), nn.BatchNorm1d(32), nn.ReLU(),
        )  # fmt: skip
        self.pitch_at = nn.Conv1d(32, 1, 1)
        self.squeeze = nn.Conv1d(32, 8, 1)
        rows = math.ceil(_BANDS / 2 ** len(channels))
        self.embed = nn.Linear(channels[-1] * rows + 8 * _SEMITONES, embedding)
        self.dropout = nn.Dropout(0.2)
        self.label_head = nn.Linear(embedding, len(self.labels))
        self.pitch_head = nn.Linear(embedding, len(self.pitches))
        self.register_buffer("places", torch.tensor(self.pitches) - _LOWEST, persistent=False)

    def forward(self, waveform: Tensor) -> Heard:
        """(B, 1, T) float, at least 0.2 s -> embedding and logits."""
        audio = waveform.squeeze(1).float()
        audio = audio * (PEAK / audio.abs().amax(1, keepdim=True).clamp_min(1e-4))
        mel = torch.log10(self.mel(audio) + MEL_FLOOR)  # (B, 64, frames)
        timbre = self.timbre((mel[:, None] + 1) / 2).mean(3)  # (B, C, 4, frames / 32) -> (B, C, 4)
        partials = self.partials((self.log_frequency(audio) + 1) / 2)  # (B, 32, semitones)
        both = torch.cat([timbre.flatten(1), F.gelu(self.squeeze(partials)).flatten(1)], 1)
        embedding = F.gelu(self.embed(both))
        kept = self.dropout(embedding)
        pitch = self.pitch_at(partials)[:, 0, self.places] + self.pitch_head(kept)
        return Heard(embedding, self.label_head(kept), pitch)

    @torch.no_grad()
    def judge(self, waveform: Tensor, batch_size: int = 64) -> Judgement:
        """(B, 1, T) float -> what is heard; frequencies are refined within a semitone of the pitch heard."""
        parts = []
        for clips in waveform.split(batch_size):
            heard = self(clips)
            pitch = heard.pitch.argmax(1)
            frequency = refine_pitch(clips[:, 0], self.sample_rate, self.frequency_of(pitch))
            parts.append(Judgement(heard.embedding, heard.label.argmax(1), pitch, frequency))
        return Judgement(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def frequency_of(self, pitch: Tensor) -> Tensor:
        """Indices of pitches -> Hz, equal temperament at A4 = 440 Hz."""
        return 440 * 2 ** ((torch.tensor(self.pitches, device=pitch.device)[pitch] - 69) / 12)

    def in_tune(self, judgement: Judgement, pitch: Tensor, cents: float = 50.0) -> Tensor:
        """Whether the pitch heard is that asked for and lies within `cents` of it: (B,) indices -> (B,) bool."""
        away = 1200 * torch.log2(judgement.frequency / self.frequency_of(pitch))
        return (judgement.pitch == pitch) & (away.abs() <= cents)


def save_evaluator(model: Evaluator, folder: str | os.PathLike, provenance: dict | None = None) -> None:
    """Writes ``model.safetensors`` (float16) and ``config.json``. Raises UserError where that fails."""
    save_judge(model, folder, FORMAT, provenance)


def load_evaluator(folder: str | os.PathLike = SHIPPED) -> Evaluator:
    """The evaluator of a folder, by default the shipped one, in eval mode. Raises UserError where it is not whole."""
    return load_judge(Evaluator, folder, FORMAT, "audio-var")


def degrade(waveform: Tensor) -> Tensor:
    """What training notes go through, so that the artefacts of a codec do not decide: (B, 1, T) -> (B, 1, T).

    Every clip is shifted by up to 20 ms. Half of them are resynthesised from a short-time spectrum with errors of up to
    4 dB (one standard deviation) a bin, phases off by up to a quarter turn, and nothing above a random frequency from
    2.5 kHz up; half get white noise 20 to 60 dB below. Uses the global random state.
    """
    batch, _, length = waveform.shape
    audio = waveform.squeeze(1)
    device = audio.device
    most = 320
    starts = torch.randint(0, 2 * most + 1, (batch, 1), device=device)
    audio = F.pad(audio, (most, most)).gather(1, starts + torch.arange(length, device=device))
    chosen = torch.rand(batch, device=device) < 0.5
    if chosen.any():
        window = torch.hann_window(1024, device=device)
        spectrum = torch.stft(audio[chosen], 1024, 256, window=window, pad_mode="constant", return_complex=True)
        count = spectrum.shape[0]
        level, turn = torch.rand(2, count, 1, 1, device=device)
        gain = torch.exp(0.5 * level * torch.randn(spectrum.shape, device=device))
        error = torch.polar(gain, math.pi * turn * (torch.rand(spectrum.shape, device=device) - 0.5))
        cutoff = 160 * (1 + 2.2 * torch.rand(count, 1, 1, device=device))  # bin; 512 of them reach 8 kHz
        passed = torch.arange(513, device=device).view(1, -1, 1) < cutoff
        audio[chosen] = torch.istft(spectrum * error * passed, 1024, 256, window=window, length=length)
    noisy = torch.rand(batch, 1, device=device) < 0.5
    ratio = 10 ** -(1 + 2 * torch.rand(batch, 1, device=device))  # amplitudes: -20 to -60 dB
    power = audio.square().mean(1, keepdim=True).sqrt()
    return (audio + noisy * ratio * power * torch.randn_like(audio))[:, None]


class EvaluatorModule(ScheduledModule):
    """Trains the evaluator on real notes.

    Args:
        condition_spec: fields and values of the data's conditions, `label` and `pitch` among them.
        evaluator: further arguments of :class:`Evaluator`.
        folder: where to save the evaluator at the end; nothing is saved where it is None.
        lr, betas, weight_decay, warmup, final_lr: see :class:`next_scale.training.ScheduledModule`.
    """

    def __init__(
        self,
        condition_spec: dict,
        evaluator: dict | None = None,
        folder: str | None = None,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.05,
        warmup: int = 100,
        final_lr: float = 0.01,
    ):
        super().__init__(lr, betas, weight_decay, warmup, final_lr)
        if missing := {"label", "pitch"} - set(condition_spec):
            raise UserError(f"the data has no {' and no '.join(sorted(missing))}: the evaluator is trained on notes")
        self.evaluator = Evaluator(condition_spec["label"], condition_spec["pitch"], **(evaluator or {}))
        self.folder = folder

    def configure_optimizers(self):
        return self.optimizer_for(list(self.evaluator.parameters()))

    def losses(self, samples: Tensor, condition: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropies of family and pitch: (B, 1, T) and field -> (B,) int64 -> two scalars."""
        heard = self.evaluator(samples)
        label = F.cross_entropy(heard.label, condition["label"], label_smoothing=0.05)
        return label, F.cross_entropy(heard.pitch, condition["pitch"], label_smoothing=0.05)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        label, pitch = self.losses(degrade(batch["sample"]), batch["condition"])
        self.log_dict({"train/label": label.detach(), "train/pitch": pitch.detach()})
        self.log("loss", (label + pitch).detach(), prog_bar=True, logger=False)
        return label + pitch

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        heard, condition = self.evaluator(batch["sample"]), batch["condition"]
        for name, logits in (("label", heard.label), ("pitch", heard.pitch)):
            hits = (logits.argmax(1) == condition[name]).float().mean()
            self.log(f"val/{name}_accuracy", hits, prog_bar=True, batch_size=len(logits))

    def on_fit_end(self) -> None:
        if self.folder is not None and self.trainer.is_global_zero:
            save_evaluator(self.evaluator, self.folder, made_by(self.trainer))
