"""The Notes set: presets and splits, a small rendering measured by its spectrum, and the shipped demo set."""

import json
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from audio_var.data import notes as module
from audio_var.data.demo import select_notes, write_demo_notes
from audio_var.data.families import FAMILIES, PROGRAM_FAMILY, family_of
from audio_var.data.folder import AudioFolder
from audio_var.data.notes import (
    CLIP_SAMPLES,
    PITCHES,
    SAMPLE_RATE,
    SOUNDFONT,
    SPLITS,
    Notes,
    Preset,
    list_presets,
    midi_file,
    pitched_presets,
    render_notes,
    split_of,
)
from next_scale.errors import UserError

DEMO = Path(__file__).parents[2] / "samples" / "demo_notes"
FLUTE, HARPSICHORD = Preset(0, 73, "Flute"), Preset(0, 6, "Harpsichord")
needs_fluidsynth = pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not SOUNDFONT.is_file(), reason="needs fluidsynth and fluid-soundfont-gm"
)


def fundamental(clip: np.ndarray) -> float:
    """Frequency (Hz) whose first eight harmonics hold the largest product of magnitudes."""
    size = 1 << 17
    magnitude = np.abs(np.fft.rfft(clip[1000:11000] * np.hanning(10000), size)) + 1e-3
    lowest, highest = int(50 * size / SAMPLE_RATE), int(600 * size / SAMPLE_RATE)
    score = sum(np.log(magnitude[lowest * k : highest * k : k]) for k in range(1, 9))
    return (lowest + int(score.argmax())) * SAMPLE_RATE / size


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notes")
    render_notes(folder, [FLUTE, HARPSICHORD], pitches=(60, 67), velocities=(80, 115), progress=False)
    return folder


def test_families():
    assert set(PROGRAM_FAMILY.values()) == set(FAMILIES) and list(FAMILIES) == sorted(FAMILIES)
    assert family_of(0, 73) == "flute" and family_of(8, 80) == "synth_lead"
    assert family_of(128, 0) is None  # a drum kit
    assert family_of(0, 86) is None  # two notes a fifth apart
    assert family_of(0, 127) is None  # a gun shot


def test_splits_are_of_pairs_and_in_proportion():
    presets = [Preset(bank, program, "") for bank in (0, 8) for program in range(128)]
    found = [split_of(preset, pitch) for preset in presets for pitch in PITCHES]
    share = {name: found.count(name) / len(found) for name in set(found)}
    assert share == pytest.approx({"train": 0.85, "validation": 0.05, "test": 0.10}, abs=0.01)
    # Pinned: a published model's test notes must stay unheard.
    assert [pitch for pitch in PITCHES if split_of(FLUTE, pitch) == "test"] == [53, 75]
    assert split_of(FLUTE, 60) == split_of(Preset(0, 73, "another name"), 60)


def test_midi_file_is_well_formed():
    data = midi_file(Preset(8, 80, "Sine Wave"), [(60, 45), (62, 80)])
    assert data[:14] == b"MThd" + struct.pack(">IHHH", 6, 0, 1, 500)
    assert data[14:18] == b"MTrk" and struct.unpack(">I", data[18:22])[0] == len(data) - 22
    assert data[22:29] == bytes((0, 0xB0, 0, 8, 0, 0xC0, 80))
    assert data[29:33] == bytes((0, 0x90, 60, 45))
    assert data[33:38] == bytes((0x86, 0x20, 0x80, 60, 0))  # 800 = 6 * 128 + 32 ticks later
    assert data[-4:] == bytes((0x16, 0xFF, 0x2F, 0x00))  # the track ends 150 = 128 + 22 ticks after


def test_presets_are_parsed_from_the_header_chunk(tmp_path):
    records = b"".join(
        struct.pack("<20sHHHIII", n, p, b, 0, 0, 0, 0) for n, p, b in [(b"B", 5, 8), (b"A", 3, 0), (b"EOP", 0, 0)]
    )
    body = (
        b"sfbk"
        + b"LIST"
        + struct.pack("<I", 12 + len(records))
        + b"pdta"
        + b"phdr"
        + struct.pack("<I", len(records))
        + records
    )
    path = tmp_path / "tiny.sf2"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert list_presets(path) == [Preset(0, 3, "A"), Preset(8, 5, "B")]
    path.write_bytes(b"no sound font")
    with pytest.raises(UserError, match="not an sf2 sound font"):
        list_presets(path)


@needs_fluidsynth
def test_pitched_presets_cover_every_family():
    presets = pitched_presets(SOUNDFONT)
    assert len(presets) == 123
    assert {family_of(preset.bank, preset.program) for preset in presets} == set(FAMILIES)


@needs_fluidsynth
def test_rendering_has_the_asked_pitch_onset_and_tail(rendered):
    notes = Notes(rendered, "all", verify=True)
    assert len(notes) == 8 and notes.sample_rate == SAMPLE_RATE
    assert notes.condition_spec == {"label": list(FAMILIES), "pitch": [60, 67], "velocity": [80, 115]}
    for index in range(8):
        item = notes[index]
        clip = item["sample"][0].numpy()
        assert item["sample"].shape == (1, CLIP_SAMPLES) and item["sample"].dtype == torch.float32
        nominal = 440 * 2 ** ((notes.condition_spec["pitch"][item["condition"]["pitch"]] - 69) / 12)
        assert abs(1200 * np.log2(fundamental(clip) / nominal)) < 30  # cents
        if item["condition"]["label"] == FAMILIES.index("keyboard"):  # a plucked string: its onset is sharp
            onset = np.flatnonzero(np.abs(clip) > 0.05 * np.abs(clip).max())[0]
            assert onset < 0.005 * SAMPLE_RATE
            level = [np.sqrt(np.mean(clip[start : start + 800] ** 2)) for start in (11_200, 15_500)]
            assert level[1] < 0.1 * level[0]  # released at 0.8 s
    assert float(notes.audio_batch(range(8)).abs().max()) == pytest.approx(module.PEAK, abs=1e-3)
    soft, loud = notes.audio_batch([0, 1]).square().mean(dim=(1, 2))
    assert loud > 1.5 * soft  # the velocity is heard


@needs_fluidsynth
def test_rendering_is_deterministic_and_complete(rendered, tmp_path):
    render_notes(tmp_path, [FLUTE, HARPSICHORD], pitches=(60, 67), velocities=(80, 115), progress=False)
    assert (tmp_path / "manifest.json").read_bytes() == (rendered / "manifest.json").read_bytes()
    assert (tmp_path / "audio.npy").read_bytes() == (rendered / "audio.npy").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio.npy", "manifest.json"]


@needs_fluidsynth
def test_silent_notes_are_dropped(tmp_path):
    contrabass = Preset(0, 43, "Contrabass")  # it has no recordings up there
    manifest = render_notes(tmp_path, [contrabass], pitches=(40, 80), velocities=(115,), progress=False)
    assert manifest["silent_dropped"] == 1 and manifest["notes"]["pitch"] == [40]


@needs_fluidsynth
def test_render_mistakes(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="Standard"):
        render_notes(tmp_path, [Preset(128, 0, "Standard")], progress=False)
    with pytest.raises(UserError, match="no notes to render"):
        render_notes(tmp_path, [], progress=False)
    with pytest.raises(UserError, match="apt-get install fluidsynth fluid-soundfont-gm"):
        render_notes(tmp_path, [FLUTE], soundfont=tmp_path / "none.sf2", progress=False)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="apt-get install fluidsynth fluid-soundfont-gm"):
        render_notes(tmp_path, [FLUTE], progress=False)


def test_demo_set_is_whole_and_covers_the_task():
    everything = Notes(DEMO, "all", verify=True)
    train, test = Notes(DEMO, "train"), Notes(DEMO, "test")
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 5_000_000
    columns = train.condition_batch(range(len(train)))
    assert set(columns["label"].tolist()) == set(range(len(FAMILIES)))
    assert set(columns["pitch"].tolist()) == set(range(len(PITCHES)))
    assert set(columns["velocity"].tolist()) == {0, 1, 2}
    assert len(test) >= 24 and len(everything) == len(train) + len(test) + len(Notes(DEMO, "validation"))
    batch = train.audio_batch([0, 5, -1])
    assert batch.shape == (3, 1, CLIP_SAMPLES) and torch.isfinite(batch).all() and batch.abs().amax(-1).min() > 1e-3
    columns = everything.manifest["notes"]
    for preset, pitch, split in zip(columns["preset"], columns["pitch"], columns["split"], strict=True):
        assert split_of(everything.presets[preset], pitch) == SPLITS[split]


def test_demo_set_is_also_an_audio_folder():
    folder = AudioFolder(DEMO, SAMPLE_RATE, CLIP_SAMPLES, "all", loudness=None, trim_silence_db=None)
    notes = Notes(DEMO, "all")
    assert folder.condition_spec["label"] == list(FAMILIES) and len(folder) == len(notes) and not folder.skipped
    index = folder.files.index(DEMO / notes.manifest["notes"]["file"][0])
    assert torch.equal(folder[index]["sample"], notes[0]["sample"])


def test_a_subset_can_be_taken_of_a_subset(tmp_path):
    manifest = write_demo_notes(DEMO, tmp_path, {"train": 2, "test": 1})
    copy, source = Notes(tmp_path, "all", verify=True), Notes(DEMO, "all")
    assert len(copy) == 3 * len(FAMILIES) and (tmp_path / "README.md").read_text().startswith("# Demo notes")
    original = source.manifest["notes"]["file"].index(manifest["notes"]["file"][7])
    assert torch.equal(copy[7]["sample"], source[original]["sample"])  # lossless
    assert len(select_notes(source, 1)) == len(FAMILIES)


def test_notes_survive_pickling_without_their_audio():
    notes = Notes(DEMO, "test")
    again = pickle.loads(pickle.dumps(notes))
    assert torch.equal(again[3]["sample"], notes[3]["sample"]) and again[3]["condition"] == notes[3]["condition"]
    with pytest.raises(IndexError):
        notes[len(notes)]


def test_mistakes_are_explained(tmp_path):
    with pytest.raises(UserError, match="holds no manifest.json"):
        Notes(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        Notes(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="does not describe"):
        Notes(tmp_path)
    with pytest.raises(UserError, match="choose from train, validation, test, all"):
        Notes(DEMO, "dev")
    manifest = json.loads((DEMO / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is missing"):
        Notes(tmp_path)
    shutil.copytree(DEMO, tmp_path, dirs_exist_ok=True)
    (tmp_path / manifest["notes"]["file"][0]).write_bytes(b"changed")
    with pytest.raises(UserError, match="checksum"):
        Notes(tmp_path, verify=True)
    with pytest.raises(UserError, match="cannot be read"):
        Notes(tmp_path, "all")[0]
