"""A folder of audio files as a data set: one sub-folder a class.

Shape notation: T samples a clip.
"""

import logging
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from audio_var.io import check_audio
from next_scale.errors import UserError
from next_scale.files import manifest_of
from next_scale.splits import check_split, split_of

logger = logging.getLogger(__name__)

# Other files (notes, pictures, manifests) are none of ours and go unmentioned.
SUFFIXES = frozenset(
    ".aif .aifc .aiff .au .avr .caf .flac .htk .ircam .mp3 .nist .oga .ogg .opus .paf .pvf .rf64 .sd2 .sds .snd .sph "
    ".svx .voc .w64 .wav .wave .wve .xi".split()
)
_WINDOW = 0.01  # seconds over which the level is measured when silence is trimmed
_MARGIN = 64  # frames read around a crop so that the resampling filter has settled at its edges


class AudioFolder(Dataset):
    """Clips of the audio files in a folder: {"sample": float32 (1, T), "condition": {"label": i}}.

    The class of a file is the sub-folder it is in; without sub-folders there is one class, named after the folder.
    Only the frames of a clip are decoded, so long files cost no more than short ones. Stereo is mixed to mono, other
    rates are resampled (soxr), short files are padded with zeros at the end.

    A file that cannot be used (unreadable, empty, without samples, NaN, all silent, more than two channels) is logged
    by name, listed in `skipped` as (path, reason) and left out; damage that only decoding shows is found when the file
    is first read, and the next good file takes its place.

    Args:
        sample_rate: in Hz. clip_samples: T.
        split: "train", "validation", "test" (see `split_of`), or "all".
        loudness: bring each clip to this loudness (LUFS, ITU-R BS.1770), but no higher than full scale; None: as it is.
        trim_silence_db: skip the head and tail of a file that stay this far below its loudest 10 ms; None: keep them.
        random_crop: take a random part of a long file (default for "train"), else its first. The position comes from
            torch's random generator, which a loader seeds for each worker and epoch.
    Raises UserError where nothing usable is left.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        sample_rate: int,
        clip_samples: int,
        split: str = "train",
        loudness: float | None = -23.0,
        trim_silence_db: float | None = 60.0,
        random_crop: bool | None = None,
    ):
        self.folder = Path(folder)
        check_split(split)
        if not self.folder.is_dir():
            raise UserError(f"there is no folder {self.folder}: check the path")
        self.sample_rate, self.clip_samples = sample_rate, clip_samples
        self.loudness, self.trim_silence_db = loudness, trim_silence_db
        self.random_crop = split == "train" if random_crop is None else random_crop
        self.skipped: list[tuple[str, str]] = []
        found = sorted(path for path in self.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        usable = [(path, info) for path in found if (info := self._check(path)) is not None]
        if nested := any(len(path.relative_to(self.folder).parts) > 1 for path, _ in usable):
            for path, _ in usable:
                if path.parent == self.folder:
                    self._skip(path, "it is in no class sub-folder")
            usable = [(path, info) for path, info in usable if path.parent != self.folder]
        if not usable:
            why = f" ({len(self.skipped)} skipped, first: {self.skipped[0][1]})" if self.skipped else ""
            raise UserError(f"{self.folder} holds no usable audio file{why}: add wav, flac, ogg or mp3 files")
        names = [path.relative_to(self.folder).parts[0] if nested else self.folder.resolve().name for path, _ in usable]
        classes = sorted(set(names))  # of all splits, so that a class has the same index in each
        self.condition_spec: dict[str, list] = {"label": classes}
        kept = [
            (path, info, classes.index(name))
            for (path, info), name in zip(usable, names, strict=True)
            if split in ("all", split_of(path.relative_to(self.folder).as_posix()))
        ]
        if not kept:
            cause = f"{self.folder} has no file in the {split} split ({len(usable)} in all)"
            raise UserError(f"{cause}: add files, or use split all")
        self.files = [path for path, _, _ in kept]
        self.labels = [label for _, _, label in kept]
        self._rates = [info.samplerate for _, info, _ in kept]
        self._frames = [info.frames for _, info, _ in kept]
        self._bounds: dict[int, tuple[int, int]] = {}  # first and last + 1 frame that is not silence
        self._bad: set[int] = set()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def manifest_sha256(self) -> str:
        """Hash of the files and of how they are read, see :func:`next_scale.files.manifest_of`."""
        options = (self.sample_rate, self.clip_samples, self.loudness, self.trim_silence_db, self.random_crop)
        return manifest_of(self.folder, self.files, labels=self.labels, options=options)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        for offset in range(len(self)):
            candidate = (index + offset) % len(self)
            if candidate in self._bad:
                continue
            try:
                clip = self._clip(candidate)
            except _Unusable as error:
                self._bad.add(candidate)
                self._skip(self.files[candidate], str(error))
                continue
            return {"sample": clip[None], "condition": {"label": self.labels[candidate]}}  # (T,) -> (1, T)
        raise UserError(f"no file in {self.folder} can be decoded, last: {self.skipped[-1][1]}")

    def _check(self, path: Path):
        """The header of a usable file, None (and a line in `skipped`) of any other."""
        import soundfile

        try:
            info = check_audio(path)
            if info.subtype in ("FLOAT", "DOUBLE"):  # only these can hold NaN
                with soundfile.SoundFile(str(path)) as file:
                    if not all(np.isfinite(block).all() for block in file.blocks(1 << 16, dtype="float32")):
                        raise UserError("it has samples that are not finite numbers (NaN or infinity)")
        except (UserError, soundfile.SoundFileError, OSError) as error:
            self._skip(path, str(error).removeprefix(f"{path} "))
            return None
        return info

    def _skip(self, path: Path, reason: str) -> None:
        self.skipped.append((str(path), reason))
        logger.warning("skipped %s: %s", path, reason)

    def _clip(self, index: int) -> torch.Tensor:
        """One clip: float32 (T,)."""
        import soundfile
        import soxr

        rate = self._rates[index]
        needed = math.ceil(self.clip_samples * rate / self.sample_rate)
        try:
            first, end = self._sound(index)
            room = end - first - needed
            start = first + (int(torch.randint(room + 1, ())) if room > 0 and self.random_crop else 0)
            lead = min(start - first, _MARGIN) if rate != self.sample_rate else 0
            with soundfile.SoundFile(str(self.files[index])) as file:
                file.seek(start - lead)
                wanted = min(needed + lead + _MARGIN, end - start + lead)
                samples = file.read(wanted, dtype="float32", always_2d=True).mean(axis=1)  # (frames, C) -> (frames,)
        except (soundfile.SoundFileError, OSError) as error:
            raise _Unusable(f"it is damaged ({error})") from error
        if not len(samples):
            raise _Unusable("its samples end before its header says")
        if not np.isfinite(samples).all():
            raise _Unusable("it has samples that are not finite numbers (NaN or infinity)")
        if rate != self.sample_rate:
            samples = soxr.resample(samples, rate, self.sample_rate, quality="HQ")
        samples = samples[round(lead * self.sample_rate / rate) :][: self.clip_samples]
        clip = torch.zeros(self.clip_samples)
        clip[: len(samples)] = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
        return clip if self.loudness is None else normalize_loudness(clip, self.sample_rate, self.loudness)

    def _sound(self, index: int) -> tuple[int, int]:
        """First and last + 1 frame of a file without its silent head and tail."""
        import soundfile

        if self.trim_silence_db is None:
            return 0, self._frames[index]
        if index not in self._bounds:
            window = max(1, round(_WINDOW * self._rates[index]))
            levels = []
            with soundfile.SoundFile(str(self.files[index])) as file:
                for block in file.blocks(window * 1000, dtype="float32", always_2d=True):
                    power = np.square(block.mean(axis=1))
                    power = np.pad(power, (0, -len(power) % window))
                    levels.append(
                        power.reshape(-1, window).mean(axis=1)
                    )  # (frames,) -> (windows, window) -> (windows,)
            level = np.concatenate(levels) if levels else np.zeros(1)
            if level.max() == 0:
                raise _Unusable("it is all silence")
            loud = np.flatnonzero(level >= level.max() * 10 ** (-self.trim_silence_db / 10))
            self._bounds[index] = int(loud[0]) * window, min((int(loud[-1]) + 1) * window, self._frames[index])
        return self._bounds[index]


class _Unusable(Exception):
    """A file turned out to be damaged while decoding."""


def normalize_loudness(clip: torch.Tensor, sample_rate: int, target: float) -> torch.Tensor:
    """A clip (T,) brought to `target` LUFS (ITU-R BS.1770-4), less where its peak would pass full scale.

    Clips under 0.4 s, the length of one measuring block, are measured as if silence followed; silence stays silence.
    """
    from torchaudio.functional import loudness

    block = math.ceil(0.4 * sample_rate) + 1
    measured = float(loudness(torch.nn.functional.pad(clip, (0, max(0, block - len(clip))))[None], sample_rate))
    peak = float(clip.abs().max())
    if not math.isfinite(measured) or peak == 0:
        return clip
    return clip * min(10 ** ((target - measured) / 20), 1 / peak)
