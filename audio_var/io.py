"""Reading and writing audio files, with one clear sentence for everything that can be wrong with one.

Shape notation: T samples, C channels.
"""

import io
import os
import struct
import sys
from pathlib import Path

import numpy as np

from next_scale.errors import UserError
from next_scale.files import check_readable, write_whole

FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
_BLOCK = 1 << 16


def check_audio(path: str | os.PathLike, max_seconds: float | None = None):
    """The header (`soundfile.info`) of a file that can be read. Raises UserError with the reason where it cannot."""
    import soundfile

    path = Path(path)
    check_readable(path, "an audio file", "record or copy it again")
    try:
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless raw samples
        raise UserError(f"{path} is no readable audio file ({_reason(error)}): convert it to wav or flac") from error
    if info.channels > 2:
        raise UserError(f"{path} has {info.channels} channels: mix it down to mono or stereo first")
    if info.frames == 0:
        raise UserError(f"{path} holds no samples: record or copy it again")
    if not 1_000 <= info.samplerate <= 768_000:
        raise UserError(f"{path} says it has {info.samplerate} samples a second: convert it to 8,000 to 192,000")
    if max_seconds is not None and info.frames > max_seconds * info.samplerate:
        raise UserError(f"{path} lasts {info.duration:,.0f} s, more than {max_seconds:,.0f} s: cut it into pieces")
    return info


def read_audio(
    path: str | os.PathLike,
    sample_rate: int,
    mono: bool = True,
    max_seconds: float | None = 600.0,
    first: float | None = None,
) -> np.ndarray:
    """Reads an audio file of any format libsndfile knows (wav, flac, ogg, opus, mp3, aiff, ...).

    Args:
        sample_rate: the rate to resample to (soxr, high quality), in Hz.
        mono: mix stereo down to the mean of both channels.
        max_seconds: refuse a longer file, judged by its header before decoding; None for no limit.
        first: read only so many seconds from the start, and what comes in the same block of samples.
    Returns:
        float32 (T,), full scale 1; with mono=False (C, T), C being 1 or 2.
    Raises UserError where the file is missing, a folder, empty, damaged, too long, without samples, of more than two
    channels, or has samples that are not finite.
    """
    import soundfile
    import soxr

    info = check_audio(path, max_seconds)
    channels = 1 if mono else info.channels
    resample = None
    if info.samplerate != sample_rate:  # block by block: as a flac file a minute of silence at 655 kHz takes 171 KB
        resample = soxr.ResampleStream(info.samplerate, sample_rate, channels, dtype="float32", quality="HQ")
    blocks, frames = [], 0
    try:
        with soundfile.SoundFile(str(path)) as file:
            # A header may understate the length: count while reading too.
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                frames += len(block)
                if max_seconds is not None and frames > max_seconds * info.samplerate:
                    raise UserError(f"{path} lasts more than {max_seconds:,.0f} s: cut it into pieces first")
                block = block.mean(axis=1, keepdims=True) if mono else block
                if not np.isfinite(block).all():
                    raise UserError(
                        f"{path} has samples that are not finite numbers (NaN or infinity): export it again"
                    )
                blocks.append(block if resample is None else resample.resample_chunk(block))
                if first is not None and frames > (first + 1) * info.samplerate:  # more shapes no earlier sample
                    break
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"{path} is damaged ({_reason(error)}): copy it again or convert it to wav") from error
    if not frames:
        raise UserError(f"{path} holds no samples: record or copy it again")
    if resample is not None:
        blocks.append(resample.resample_chunk(np.zeros((0, channels), np.float32), last=True))
    samples = np.concatenate(blocks)  # (T, C)
    if not len(samples):
        raise UserError(f"{path} is shorter than one sample at {sample_rate:,} Hz: give a longer file")
    samples = np.ascontiguousarray(samples.T, dtype=np.float32)  # (T, C) -> (C, T)
    return samples[0] if mono else samples


def write_audio(path: str | os.PathLike, samples: np.ndarray, sample_rate: int) -> None:
    """Writes mono samples, float32 (T,), to a wav (16 bit), flac (16 bit) or ogg (Vorbis) file, by the suffix.

    Samples beyond full scale are clipped. The file appears whole or not at all: it is encoded in memory, written beside
    the target under another name, and moved over it.
    Raises UserError for another suffix, no samples or samples that are not finite, a missing folder, a full disk.
    """
    import soundfile

    path = Path(path)
    check_name(path)
    samples = np.asarray(samples, dtype=np.float32)
    if samples.ndim != 1 or not len(samples):
        raise UserError(f"cannot write {path.name}: expected samples of shape (T,), got {samples.shape}")
    if not np.isfinite(samples).all():
        raise UserError(f"cannot write {path.name}: its samples are not finite numbers (NaN or infinity)")
    samples = samples.clip(-1, 1)
    container, subtype = FORMATS[path.suffix.lower()]
    options = {"compression_level": 1.0} if container == "FLAC" else {}  # smallest, and lossless all the same
    encoded = io.BytesIO()
    try:
        with soundfile.SoundFile(encoded, "w", int(sample_rate), 1, subtype, format=container, **options) as file:
            # One long write overflows the stack of libsndfile's Vorbis encoder.
            for start in range(0, len(samples), _BLOCK):
                file.write(samples[start : start + _BLOCK])
    except soundfile.SoundFileError as error:
        raise UserError(f"cannot write {path.name} at {sample_rate} Hz ({_reason(error)}): use .wav") from error
    write_whole(path, encoded.getbuffer())


class AudioWriter:
    """Mono samples written as they come: to a file that grows beside its target, or to a pipe.

    Used as a context: the file ``OUT.part`` is a WAV, FLAC or Ogg file that can be read while it grows, and becomes
    ``OUT`` when the block ends well; otherwise it is removed::

        with AudioWriter("out.wav", 16_000, 32_000) as writer:
            writer.write(np.zeros(32_000))

    Args:
        target: a file; or ``-`` for a WAV file on standard output.
        sample_rate: in Hz.
        samples: T, how many there will be: the header of a WAV file tells it beforehand, for pipes have no way back.

    Raises:
        UserError: another suffix, samples that are not finite, a missing folder, a full disk.
    """

    def __init__(self, target: str | os.PathLike, sample_rate: int, samples: int) -> None:
        self.target, self.sample_rate, self.samples = target, sample_rate, samples
        self.part: Path | None = None
        if str(target) != "-":
            check_name(target)
            self.part = Path(f"{target}.part")

    def __enter__(self) -> "AudioWriter":
        import soundfile

        header = _wav_header(self.sample_rate, self.samples)
        if self.part is None:
            self._file = sys.stdout.buffer
            self._file.write(header)
            return self
        container, subtype = FORMATS[self.part.with_suffix("").suffix.lower()]
        try:
            if container == "WAV":
                self._file = self.part.open("wb")
                self._file.write(header)
            else:
                self._file = soundfile.SoundFile(str(self.part), "w", self.sample_rate, 1, subtype, format=container)
        except (soundfile.SoundFileError, OSError) as error:
            raise self._cannot(error) from error
        return self

    def write(self, samples: np.ndarray) -> None:
        """Append samples, float (N,); beyond full scale they are clipped."""
        import soundfile

        if not np.isfinite(samples).all():
            raise UserError(f"cannot write {self.target}: its samples are not finite numbers (NaN or infinity)")
        samples = np.asarray(samples, np.float32).clip(-1, 1)
        try:
            if isinstance(self._file, soundfile.SoundFile):
                for start in range(0, len(samples), _BLOCK):
                    self._file.write(samples[start : start + _BLOCK])
            else:
                self._file.write(np.rint(samples * 32767).astype("<i2").tobytes())
                self._file.flush()
        except BrokenPipeError:
            raise
        except (soundfile.SoundFileError, OSError) as error:
            raise self._cannot(error) from error

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if self.part is None:
            return
        try:
            self._file.close()
            if error is None:
                os.replace(self.part, self.target)
        except OSError as failure:
            if error is None:
                raise self._cannot(failure) from failure
        finally:
            self.part.unlink(missing_ok=True)

    def _cannot(self, error: Exception) -> UserError:
        reason = error.strerror if isinstance(error, OSError) else _reason(error)
        return UserError(f"cannot write {self.target}: {reason}; free space or write elsewhere")


def _wav_header(sample_rate: int, samples: int) -> bytes:
    """Of a WAV file of 16-bit mono samples."""
    size = 2 * samples
    form = (16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)  # its size, PCM, channels, rates, bytes and bits a sample
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", *form, b"data", size)


def check_name(path: str | os.PathLike) -> None:
    """Raise UserError where no audio file can be written under this name."""
    if Path(path).suffix.lower() not in FORMATS:
        raise UserError(f"cannot write {path}: end the name in {', '.join(FORMATS)}")


def _reason(error: Exception) -> str:
    text = str(getattr(error, "error_string", None) or error).strip().rstrip(".")
    return text.splitlines()[0] if text else type(error).__name__
