"""What an established codec does at a bit rate: Opus, through the ffmpeg command."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np

from next_scale.errors import UserError

_RATES = (8000, 12000, 16000, 24000, 48000)  # what libopus codes without resampling


def _run(*command: str, given: bytes | None = None) -> bytes:
    try:
        done = subprocess.run(command, input=given, capture_output=True)
    except FileNotFoundError as error:
        raise UserError(f"the command {command[0]} is not installed: apt-get install ffmpeg") from error
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").strip() or "no message").splitlines()[-1]
        raise UserError(f"{command[0]} failed: {reason}")
    return done.stdout


def opus_roundtrip(audio: np.ndarray, sample_rate: int, bitrate: float) -> tuple[np.ndarray, float]:
    """Codes audio with libopus (variable bit rate, 20 ms frames, complexity 10, `audio` mode) and decodes it again.

    The rate is counted, not asked for: the bits of all Opus packets over the duration of the audio. Container pages and
    the two header packets are left out. An encoder under variable bit rate spends what the material needs, so give many
    clips at once: (N, T) is coded as one stream of N clips without gaps.

    The decoder's delay is undone: pre-skip by ffmpeg, and what remains (up to 4 ms, depending on the mode that Opus
    chose) by the shift that maximises the cross-correlation with the input.

    Args:
        audio: (T,) or (N, T) float, full scale 1.
        sample_rate: Hz; 8000, 12000, 16000, 24000 or 48000.
        bitrate: bits per second to ask for, 500 to 256,000.

    Returns:
        decoded: float32, shaped like `audio`.
        actual: bits per second spent.

    Raises UserError where ffmpeg is missing or refuses.

    Shape notation: N clips, T samples.
    """
    if sample_rate not in _RATES:
        raise UserError(f"Opus does not code {sample_rate} Hz: resample to one of {', '.join(map(str, _RATES))}")
    samples = np.ascontiguousarray(audio, dtype="<f4").reshape(-1)  # (N, T) -> (N * T)
    if not samples.size:
        raise UserError("no audio to code with Opus: give at least one sample")
    raw = ("-f", "f32le", "-ar", str(sample_rate), "-ac", "1")
    quiet = ("ffmpeg", "-y", "-v", "error")
    with tempfile.TemporaryDirectory(prefix="opus-") as folder:
        coded = str(Path(folder, "coded.opus"))
        rate = ("-c:a", "libopus", "-b:a", str(round(bitrate)), "-vbr", "on", "-application", "audio")
        _run(*quiet, *raw, "-i", "pipe:0", *rate, coded, given=samples.tobytes())
        sizes = _run("ffprobe", "-v", "error", "-show_entries", "packet=size", "-of", "default=nw=1:nk=1", coded)
        decoded = np.frombuffer(_run(*quiet, "-i", coded, *raw, "pipe:1"), "<f4")
    actual = 8 * sum(int(size) for size in sizes.split()) * sample_rate / samples.size
    aligned = shift(decoded, -delay(samples, decoded, round(0.004 * sample_rate)), samples.size)
    return aligned.reshape(np.shape(audio)), actual


def delay(reference: np.ndarray, delayed: np.ndarray, most: int) -> int:
    """Samples by which `delayed` lags behind `reference`, from -most to most: the lag of greatest cross-correlation.

    Shapes: reference (T,), delayed (U,) float.
    """
    size = min(len(reference), len(delayed))
    most = min(most, size - 1)
    lags = range(-most, most + 1)
    scores = [
        np.dot(reference[max(0, -lag) : size - max(0, lag)], delayed[max(0, lag) : size - max(0, -lag)]) for lag in lags
    ]
    return lags[int(np.argmax(scores))]


def shift(samples: np.ndarray, by: int, size: int) -> np.ndarray:
    """Moves samples later by `by` (earlier where negative), zeros moving in, and cuts or completes them to `size`.

    Shapes: samples (T,) float -> (size,) float32.
    """
    moved = np.zeros(size, np.float32)
    source = samples[max(0, -by) :]
    length = max(0, min(size - max(0, by), len(source)))
    moved[max(0, by) : max(0, by) + length] = source[:length]
    return moved
