"""The Notes set: every pitched preset of a General MIDI sound font, at every pitch and velocity, one clip a note.

The set poses NSynth's task (Engel et al. 2017, arXiv 1704.01279): instrument family x pitch x velocity. It is
rendered on the user's machine by the `fluidsynth` command from FluidR3 GM (Frank Wen, MIT licence).

Shape notation: N notes, T samples a clip, B batch.
"""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from audio_var.data.families import FAMILIES, family_of
from next_scale.errors import UserError
from next_scale.splits import SPLITS

SAMPLE_RATE = 16_000
CLIP_SAMPLES = 16_384
PITCHES = tuple(range(36, 85))  # C2 (65.4 Hz) to C6 (1046.5 Hz)
VELOCITIES = (45, 80, 115)
SOUNDFONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")  # where Debian's package puts it

# fluidsynth does not band-limit a sample played at a low output rate, so 16 kHz rendering aliases: render at three
# times the rate and low-pass once. A note's spacing is a whole number of fluidsynth's 64-sample blocks at that rate,
# the grid on which it starts events; so the onset lies at the same offset in every clip.
_OVERSAMPLE = 3
_SPACING_MS = 1_200  # 57,600 samples at 48 kHz = 900 blocks
_LATENCY = 64  # an event is heard one block after its time
_RELEASE_MS = 800
_SOUND_OFF_MS = 1_050  # after the clip's end at 1,024 ms: nothing rings on into the next note
_GAIN = 0.9  # fluidsynth's own, high above its 16-bit dither; no preset of FluidR3 GM clips at it
PEAK = 0.9  # of every preset's loudest note
SILENCE = 10 ** (-60 / 20)  # a note whose peak stays below -60 dBFS is dropped

_INSTALL = "apt-get install fluidsynth fluid-soundfont-gm"
_LICENCE = "MIT"
_ATTRIBUTION = "FluidR3 GM sound font, copyright 2000-2002, 2008 Frank Wen, released under the MIT licence"


@dataclass(frozen=True, order=True)
class Preset:
    """One instrument of a sound font, selected in MIDI by `bank` and `program` (both from 0)."""

    bank: int
    program: int
    name: str


def list_presets(soundfont: Path) -> list[Preset]:
    """All presets of an sf2 file, from its `phdr` chunk (SoundFont 2.04 specification, section 7.2), sorted."""
    data = Path(soundfont).read_bytes()
    if data[:4] != b"RIFF" or data[8:12] != b"sfbk" or (start := data.rfind(b"phdr")) < 0:
        raise UserError(f"{soundfont} is not an sf2 sound font: give FluidR3_GM.sf2 ({_INSTALL})")
    (size,) = struct.unpack_from("<I", data, start + 4)
    presets = []
    for offset in range(start + 8, start + 8 + size - 38, 38):  # the last record only ends the list
        name, program, bank = struct.unpack_from("<20sHH", data, offset)
        presets.append(Preset(bank, program, name.split(b"\0")[0].decode("latin-1").strip()))
    return sorted(presets)


def pitched_presets(soundfont: Path) -> list[Preset]:
    """The presets that belong to a family (see `families.py`), sorted by bank and program."""
    return [preset for preset in list_presets(soundfont) if family_of(preset.bank, preset.program)]


def split_of(preset: Preset, pitch: int) -> str:
    """The split of a (preset, pitch) pair: 85% train, 5% validation, 10% test, by a hash of the pair.

    All velocities of a pair fall into the same split, so a test note was never heard in training at any velocity,
    while its instrument and its pitch were.
    """
    digest = hashlib.sha256(f"{preset.bank}:{preset.program}:{pitch}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if position < 0.10 else "validation" if position < 0.15 else "train"


def _variable_length(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F | 0x80)
    return bytes(reversed(groups))


def midi_file(preset: Preset, notes: Iterable[tuple[int, int]]) -> bytes:
    """A standard MIDI file that plays `notes` (pitch, velocity) one after another, one every 1.2 s.

    One tick is one millisecond (500 ticks a beat at the default 500,000 us a beat).
    """
    events = [(0, bytes((0xB0, 0, preset.bank))), (0, bytes((0xC0, preset.program)))]
    end = 0
    for pitch, velocity in notes:
        events += [
            (end, bytes((0x90, pitch, velocity))),
            (end + _RELEASE_MS, bytes((0x80, pitch, 0))),
            (end + _SOUND_OFF_MS, bytes((0xB0, 120, 0))),
        ]
        end += _SPACING_MS
    events.append((end, b"\xff\x2f\x00"))
    track, now = b"", 0
    for time, message in events:
        track += _variable_length(time - now) + message
        now = time
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, 500) + b"MTrk" + struct.pack(">I", len(track)) + track


def render_preset(soundfont: Path, preset: Preset, notes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Clips of one preset's notes (pitch, velocity): float32 (N, T) at 16 kHz, full scale 1."""
    import soundfile
    from torchaudio.functional import resample

    rate = SAMPLE_RATE * _OVERSAMPLE
    with tempfile.TemporaryDirectory(prefix="notes-") as folder:
        score, wav = Path(folder, "score.mid"), Path(folder, "out.wav")
        score.write_bytes(midi_file(preset, notes))
        command = ["fluidsynth", "-ni", "-q", "-R", "0", "-C", "0", "-r", str(rate), "-g", str(_GAIN)]
        command += ["-o", "synth.midi-bank-select=gs", "-T", "wav", "-F", str(wav), str(soundfont), str(score)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not wav.is_file():
            reason = (done.stderr.strip() or "no output").splitlines()[-1]
            raise UserError(f"fluidsynth could not render {preset.name}: {reason}")
        stereo, _ = soundfile.read(wav, dtype="float32")  # (samples, 2)
    if np.abs(stereo).max(initial=0) >= 1:
        raise UserError(f"fluidsynth clipped {preset.name}: use the FluidR3 GM sound font, for which the gain is set")
    spacing = rate * _SPACING_MS // 1000
    mono = np.zeros(len(notes) * spacing, np.float32)
    played = stereo[_LATENCY:].mean(axis=1)[: len(mono)]
    mono[: len(played)] = played
    low = resample(torch.from_numpy(mono), rate, SAMPLE_RATE, lowpass_filter_width=64, rolloff=0.97)
    return low.view(len(notes), -1)[:, :CLIP_SAMPLES].numpy()  # (N * spacing,) -> (N, spacing) -> (N, T)


def render_notes(
    out: str | os.PathLike,
    presets: Sequence[Preset] | None = None,
    pitches: Sequence[int] = PITCHES,
    velocities: Sequence[int] = VELOCITIES,
    soundfont: str | os.PathLike | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> dict:
    """Renders the Notes set into the folder `out` and returns its manifest.

    Writes `audio.npy` (int16, (N, T), to be memory-mapped) and `manifest.json`: licence, attribution, sound font and
    its checksum, sample rate, condition spec, and for each note its family, preset, pitch, velocity and split. The same
    sound font and fluidsynth give the same notes in the same order. Presets run in parallel, one a processor.

    Each preset is scaled so that its loudest note peaks at 0.9, so a subset of pitches may come out louder than in the
    full set. Notes that stay silent (outside the range of an instrument's recordings) are left out and counted.

    Args:
        presets: default all of `pitched_presets`; `limit` keeps the first so many of them.
        pitches: MIDI note numbers. velocities: 1 to 127. Both become the values of the condition spec.
        soundfont: default Debian's FluidR3 GM.
    Raises UserError where fluidsynth or the sound font is missing, or the folder cannot be written.
    """
    from rich.progress import Progress

    soundfont = Path(soundfont or SOUNDFONT)
    if shutil.which("fluidsynth") is None:
        raise UserError(f"the command fluidsynth is not installed: {_INSTALL}")
    if not soundfont.is_file():
        raise UserError(f"no sound font at {soundfont}: {_INSTALL}, or name another sf2 file")
    presets = list(pitched_presets(soundfont) if presets is None else presets)[:limit]
    if unknown := [preset.name for preset in presets if family_of(preset.bank, preset.program) is None]:
        raise UserError(f"not a pitched preset of the Notes set: {', '.join(unknown)}; see pitched_presets()")
    played = [(pitch, velocity) for pitch in pitches for velocity in velocities]
    if not presets or not played:
        raise UserError("no notes to render: give at least one preset, pitch and velocity")
    out = Path(out)
    columns: dict[str, list] = {"family": [], "preset": [], "pitch": [], "velocity": [], "split": []}
    silent, gains = 0, []
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".render-") as scratch:
            raw = Path(scratch, "audio.raw")
            pool = ThreadPoolExecutor(os.cpu_count() or 1)
            with raw.open("wb") as file, pool, Progress(disable=not progress) as bar:
                rendered = pool.map(lambda preset: render_preset(soundfont, preset, played), presets)
                for number, clips in enumerate(bar.track(rendered, total=len(presets), description="notes")):
                    preset = presets[number]
                    peaks = np.abs(clips).max(axis=1)  # (N, T) -> (N,)
                    heard = np.flatnonzero(peaks >= SILENCE)  # before the gain, which would raise fluidsynth's dither
                    silent += len(clips) - len(heard)
                    # One gain a preset: presets become equally loud, the dynamics within each stay as played.
                    gain = PEAK / max(float(peaks.max()), SILENCE)
                    gains.append(round(gain, 4))
                    file.write(np.round(clips[heard] * (gain * 32767)).astype("<i2").tobytes())
                    columns["family"] += [FAMILIES.index(family_of(preset.bank, preset.program))] * len(heard)
                    columns["preset"] += [number] * len(heard)
                    columns["pitch"] += [played[i][0] for i in heard]
                    columns["velocity"] += [played[i][1] for i in heard]
                    columns["split"] += [SPLITS.index(split_of(preset, played[i][0])) for i in heard]
            checksum = _write_npy(raw, (len(columns["pitch"]), CLIP_SAMPLES), Path(scratch, "audio.npy"))
            os.replace(Path(scratch, "audio.npy"), out / "audio.npy")
            manifest = {
                "format": "notes",
                "version": 1,
                "storage": "npy",
                "licence": _LICENCE,
                "attribution": _ATTRIBUTION,
                "soundfont": {"name": soundfont.name, "sha256": checksum_of(soundfont)},
                "sample_rate": SAMPLE_RATE,
                "clip_samples": CLIP_SAMPLES,
                "condition": {"label": list(FAMILIES), "pitch": list(pitches), "velocity": list(velocities)},
                "splits": list(SPLITS),
                "presets": [[preset.bank, preset.program, preset.name] for preset in presets],
                "silent_dropped": silent,
                "peak": PEAK,
                "gains": gains,
                "notes": columns,
                "sha256": {"audio.npy": checksum},
            }
            Path(scratch, "manifest.json").write_text(json.dumps(manifest))
            os.replace(Path(scratch, "manifest.json"), out / "manifest.json")
    except OSError as error:
        raise UserError(f"cannot write the notes to {out}: {error.strerror or error}") from error
    return manifest


def checksum_of(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_npy(raw: Path, shape: tuple[int, int], target: Path) -> str:
    """Puts an npy header before raw int16 samples, whose number is known only after rendering; returns the sha256."""
    with raw.open("rb") as source, target.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i2", "fortran_order": False, "shape": shape})
        shutil.copyfileobj(source, file, 1 << 20)
    return checksum_of(target)


class Notes(Dataset):
    """The notes of one split: {"sample": float32 (1, T), "condition": {"label": i, "pitch": i, "velocity": i}}.

    Condition values are indices into `condition_spec`, which every split and every subset of the set shares.

    Args:
        folder: written by `render_notes` (one memory-mapped array), or a subset such as `samples/demo_notes`, which
            holds one FLAC file a note.
        split: "train", "validation", "test", or "all".
        verify: read everything once and compare it with the manifest's checksums.
    Raises UserError where the folder holds no notes, a file is missing or does not match the manifest.
    """

    def __init__(self, folder: str | os.PathLike, split: str = "train", verify: bool = False):
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        if split not in (*manifest["splits"], "all"):
            raise UserError(f"no split named {split}: choose from {', '.join((*manifest['splits'], 'all'))}")
        self.manifest = manifest
        self.sample_rate: int = manifest["sample_rate"]
        self.clip_samples: int = manifest["clip_samples"]
        self.condition_spec: dict[str, list] = manifest["condition"]
        self.presets = [Preset(*preset) for preset in manifest["presets"]]
        columns = manifest["notes"]
        every = np.asarray(columns["split"])
        rows = np.arange(len(every)) if split == "all" else np.flatnonzero(every == manifest["splits"].index(split))
        if not len(rows):
            raise UserError(f"{self.folder} holds no notes of the {split} split: render more notes")
        self.rows = rows  # (n,) positions in the whole set
        self.preset = np.asarray(columns["preset"])[rows]  # (n,) indices into `presets`
        value = {"label": columns["family"]}
        for field in ("pitch", "velocity"):
            index = {item: i for i, item in enumerate(self.condition_spec[field])}
            value[field] = [index[item] for item in columns[field]]
        self._condition = {field: torch.tensor(items)[torch.from_numpy(rows)] for field, items in value.items()}
        self._files = columns.get("file")
        self._array: np.ndarray | None = None
        stored = self._files or ["audio.npy"]
        if missing := [name for name in stored if not (self.folder / name).is_file()]:
            raise UserError(f"{self.folder / missing[0]} is missing ({len(missing)} in all): copy the notes again")
        if verify:
            for name, checksum in manifest["sha256"].items():
                if checksum_of(self.folder / name) != checksum:
                    raise UserError(f"{self.folder / name} does not match its checksum: render or copy the notes again")
        if self._files is None and self._memory().shape != (len(every), self.clip_samples):
            raise UserError(f"{self.folder}/audio.npy does not match manifest.json: render the notes again")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def manifest_sha256(self) -> str:
        """SHA-256 of the manifest, which has the checksums of the notes."""
        return checksum_of(self.folder / "manifest.json")

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        condition = {field: int(values[index]) for field, values in self._condition.items()}
        return {"sample": self.audio_batch([index])[0], "condition": condition}

    def audio_batch(self, indices: Sequence[int]) -> torch.Tensor:
        """The clips of these items at once: float32 (B, 1, T) in -1 .. 1."""
        rows = self.rows[np.asarray(indices, dtype=np.int64)]
        if self._files is None:
            clips = self._memory()[rows]
        else:
            clips = np.stack([self._read(self.folder / self._files[row]) for row in rows])
        return torch.from_numpy(clips.astype(np.float32) / 32768)[:, None]  # (B, T) -> (B, 1, T)

    def condition_batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The conditions of these items at once: field -> int64 (B,)."""
        return {field: values[torch.as_tensor(indices)] for field, values in self._condition.items()}

    def _memory(self) -> np.ndarray:
        if self._array is None:
            try:
                self._array = np.load(self.folder / "audio.npy", mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise UserError(f"{self.folder}/audio.npy is damaged ({error}): render the notes again") from error
        return self._array

    def _read(self, path: Path) -> np.ndarray:
        import soundfile

        try:
            samples, rate = soundfile.read(path, dtype="int16")
        except soundfile.SoundFileError as error:
            raise UserError(f"{path} cannot be read ({error}): copy the notes again") from error
        if rate != self.sample_rate or samples.shape != (self.clip_samples,):
            raise UserError(f"{path} is not {self.clip_samples} mono samples at {self.sample_rate} Hz: copy it again")
        return samples

    def __getstate__(self) -> dict:
        # A loader's worker maps the file itself: pickling a memory map would copy all of it.
        return {**self.__dict__, "_array": None}


def read_manifest(folder: str | os.PathLike) -> dict:
    """The manifest of a folder of notes. Raises UserError where there is none or it is another program's."""
    path = Path(folder, "manifest.json")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no manifest.json: render the notes there first") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): render the notes again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != "notes" or manifest.get("version") != 1:
        raise UserError(f"{path} does not describe a set of notes: render the notes there first")
    return manifest
