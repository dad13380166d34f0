"""`audio-var evaluate` and the evaluator, end to end at tiny sizes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import audio_var.codecs  # noqa: F401 - registers the codecs
from audio_var.cli import main
from audio_var.codecs.spectral import SpectralCodec
from audio_var.data.notes import Notes
from audio_var.evaluator import SHIPPED, Evaluator, EvaluatorModule, degrade, load_evaluator, save_evaluator
from audio_var.reports.generator import draw_conditions, even_draw
from audio_var.reports.tokenizer import Meter, shown_scales
from next_scale.checkpoint import save_pretrained
from next_scale.errors import UserError
from next_scale.model import Generator
from next_scale.predictors import NextScale
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.schedule import Schedule
from next_scale.tokenizer import Tokenizer

NOTES = Path(__file__).parents[2] / "samples" / "demo_notes"
SCHEDULE = Schedule.parse("1 4 64")


def _tokenizer(hop: int = 256) -> Tokenizer:
    torch.manual_seed(0)
    codec = SpectralCodec(latent_channels=4, hop=hop, width=8, encoder_depth=1, decoder_depth=1)
    return Tokenizer(codec, MultiScaleQuantizer(SCHEDULE, 4, codebook_size=32, phis=2)).eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    spec = Notes(NOTES, "test").condition_spec
    model = Generator(_tokenizer(), NextScale(SCHEDULE, 32, 4, spec, width=16, depth=1, heads=2)).eval()
    return save_pretrained(model, tmp_path_factory.mktemp("model") / "generator")


def test_tokenizer_report(checkpoint, tmp_path, capsys):
    arguments = ["evaluate", "tokenizer", str(checkpoint), "--data", str(NOTES), "--limit", "6", "--subset", "3"]
    assert main([*arguments, "--clips", "2", "--out", str(tmp_path / "a")]) == 0
    assert "kbit/s" in capsys.readouterr().out
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    whole, subset = report["systems"]
    assert whole["quality"]["notes"] == 6 and subset["quality"]["notes"] == 3
    assert whole["kbits"] == pytest.approx(69 * 5 / 1.024 / 1000)
    assert [step["bits"] for step in report["profile"]] == [5, 25, 345]
    assert report["profile"][-1]["quality"] == subset["quality"]
    assert sum(register["quality"]["notes"] for register in report["registers"]) == 6
    assert all(0 < step["usage"]["used"] <= 32 for step in report["profile"])
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert files == {"report.json", "report.md", "profile.png", "spectrograms.png", "clips"}
    assert len(list((tmp_path / "a" / "clips").glob("*_real.flac"))) == 2
    assert len(list((tmp_path / "a" / "clips").glob("*_scales03.flac"))) == 2
    # the same command, the same figures
    assert main([*arguments, "--clips", "1", "--out", str(tmp_path / "b")]) == 0
    again = json.loads((tmp_path / "b" / "report.json").read_text())
    assert {**again, "command": ""} == {**report, "command": ""}
    assert (
        set(report["provenance"]) == {"versions", "git", "data"} and len(report["provenance"]["data"]["sha256"]) == 64
    )


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="Opus is measured through ffmpeg")
def test_tokenizer_report_beside_opus(checkpoint, tmp_path):
    arguments = ["--data", str(NOTES), "--limit", "4", "--opus", "--out", str(tmp_path)]
    assert main(["evaluate", "tokenizer", str(checkpoint), *arguments]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    own, *opus = report["systems"]
    assert [system["name"].split(",")[0] for system in opus] == ["Opus"] * 4
    distances = [system["quality"]["mel"] for system in opus]
    assert distances == sorted(distances, reverse=True)
    assert opus[-1]["quality"]["mel"] < own["quality"]["mel"]


def test_generator_report(checkpoint, tmp_path, capsys):
    out = tmp_path / "deep" / "report"
    arguments = ["--data", str(NOTES), "--count", "14", "--clips", "3", "--top-k", "4", "--out", str(out)]
    assert main(["evaluate", "generator", str(checkpoint), *arguments]) == 0
    assert "generated: 14 notes" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["sampling"]["top_k"] == 4
    names = [verdict["name"] for verdict in report["verdicts"]]
    assert names[0] == "real held-out notes, all" and names[-1] == "generated"
    made = report["verdicts"][-1]
    assert made["notes"] == 14 and made["frechet"] > 0 and made["frechet_reconstructed"] >= 0
    assert made["frechet"] > report["verdicts"][-2]["frechet"]  # noise is further from notes than other notes are
    assert np.sum(report["confusion"]) == len(report["pitch_errors"]) == 14
    assert len(report["entropy"]) == 3
    # nothing learned: about as many bits as without a model
    assert report["entropy"][-1]["bits"] == pytest.approx(report["entropy"][-1]["uniform_bits"], rel=0.2)
    assert {path.name for path in out.iterdir()} == {
        "report.json", "report.md", "confusion.png", "spectrograms.png", "clips",
    }  # fmt: skip
    assert len(list((out / "clips").iterdir())) == 3
    assert "--top-k 4" in (out / "report.md").read_text()


def test_mistakes_are_told_in_one_line(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    for arguments, reason in [
        (["tokenizer", str(checkpoint), "--data", str(tmp_path)], "holds no notes"),
        (["tokenizer", str(tmp_path / "none"), "--data", str(NOTES)], "no checkpoint at"),
        (["generator", str(checkpoint), "--data", str(NOTES), "--evaluator", str(tmp_path)], "holds no evaluator"),
        (["generator", str(checkpoint), "--data", str(NOTES), "--count", "0"], "--count"),
        (["generator", str(checkpoint), "--data", str(NOTES), "--temperature", "-1"], "temperature"),
    ]:
        assert main(["evaluate", *arguments, "--out", str(out)]) == 2
        message = capsys.readouterr().err
        assert reason in message and message.count("\n") == 1
        assert not out.exists()
    tokenizer = save_pretrained(_tokenizer(hop=128), tmp_path / "tokenizer")
    assert main(["evaluate", "generator", str(tokenizer), "--data", str(NOTES), "--out", str(out)]) == 2
    assert "tokenizer only" in capsys.readouterr().err
    assert main(["evaluate", "tokenizer", str(tokenizer), "--data", str(NOTES), "--out", str(out)]) == 2
    assert "grid" in capsys.readouterr().err and not out.exists()


def test_meter_finds_nothing_wrong_with_the_original():
    time = torch.arange(16384) / 16000
    nominal = torch.tensor([220.0, 440.0])
    tone = 0.5 * torch.sin(2 * torch.pi * nominal[:, None] * time)
    meter = Meter(tone, nominal, 16000, batch_size=1)
    same = meter(tone)
    assert same["mel"].max() == 0 and same["convergence"].max() < 1e-5
    assert same["cents"].max() < 1e-3 and same["cents_blind"].max() < 1e-3
    sharp = 0.5 * torch.sin(2 * torch.pi * 2 ** (30 / 1200) * nominal[:, None] * time)
    assert meter(sharp)["cents"].tolist() == pytest.approx([30, 30], abs=0.5) and meter(sharp)["mel"].min() > 0


def test_conditions_cover_what_exists_before_any_repeats():
    notes = Notes(NOTES, "all")
    columns = notes.condition_batch(range(len(notes)))
    known = {tuple(row) for row in torch.stack(list(columns.values()), 1).tolist()}
    drawn = draw_conditions(notes, len(known) + 5, seed=1)
    rows = [tuple(row) for row in torch.stack([drawn[name] for name in columns], 1).tolist()]
    assert set(rows) == set(rows[: len(known)]) == known
    assert rows != [tuple(r) for r in torch.stack(list(draw_conditions(notes, len(rows), 2).values()), 1).tolist()]
    assert list(drawn) == list(notes.condition_spec)


def test_even_draw_takes_every_family_alike():
    notes = Notes(NOTES, "test")  # three a family
    chosen = even_draw(notes, 24, seed=0)
    label = notes.condition_batch(chosen)["label"]
    assert torch.bincount(label).tolist() == [2] * 12
    assert len(even_draw(notes, 1000, seed=0)) == len(notes)


@pytest.mark.parametrize(("scales", "wanted"), [(1, [1]), (3, [1, 2, 3]), (14, [1, 4, 6, 9, 11, 14])])
def test_shown_scales(scales, wanted):
    assert shown_scales(scales) == wanted


def test_shipped_evaluator_on_demo_notes():
    notes = Notes(NOTES, "test")
    judgement = load_evaluator().judge(notes.audio_batch(range(len(notes))))
    condition = notes.condition_batch(range(len(notes)))
    assert (judgement.label == condition["label"]).float().mean() > 0.95
    assert load_evaluator().in_tune(judgement, condition["pitch"]).float().mean() > 0.95


def test_shipped_evaluator_hears_no_loudness():
    clips = Notes(NOTES, "test").audio_batch([0, 5])
    evaluator = load_evaluator()
    loud, quiet = evaluator(clips), evaluator(0.1 * clips)
    assert torch.allclose(loud.embedding, quiet.embedding, atol=1e-3)


def test_in_tune_needs_pitch_and_cents():
    evaluator = Evaluator(["a"], [69, 70], channels=(4, 4), embedding=4)
    judgement = evaluator.judge(torch.zeros(4, 1, 16384))._replace(
        pitch=torch.tensor([0, 0, 0, 1]), frequency=torch.tensor([440.0, 452.0, 454.0, 440 * 2 ** (1 / 12)])
    )
    assert evaluator.in_tune(judgement, torch.tensor([0, 0, 0, 0])).tolist() == [True, True, False, False]


def test_evaluator_survives_saving(tmp_path):
    torch.manual_seed(0)
    evaluator = Evaluator(["a", "b"], [60, 61], channels=(4, 8), embedding=8).eval()
    save_evaluator(evaluator, tmp_path / "evaluator")
    again = load_evaluator(tmp_path / "evaluator")
    x = torch.randn(2, 1, 16384)
    assert again.config == evaluator.config
    assert torch.allclose(again(x).label, evaluator(x).label, atol=0.02)  # float16 in the file
    for name, damage in [("config.json", b"{"), ("model.safetensors", b"none")]:
        broken = shutil.copytree(tmp_path / "evaluator", tmp_path / f"broken-{name}")
        (broken / name).write_bytes(damage)
        with pytest.raises(UserError, match="holds no evaluator"):
            load_evaluator(broken)


def test_shipped_evaluator_is_small():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 2_000_000


def test_degraded_notes_keep_their_length_and_most_of_their_sound():
    torch.manual_seed(0)
    clips = Notes(NOTES, "test").audio_batch(range(12))
    worse = degrade(clips)
    assert worse.shape == clips.shape and worse.isfinite().all() and not torch.equal(worse, clips)
    assert (worse.square().mean((1, 2)) / clips.square().mean((1, 2)) > 0.5).all()


def test_evaluator_learns(tmp_path):
    import lightning

    torch.manual_seed(0)
    notes = Notes(NOTES, "train")
    rows = [row for row in range(len(notes)) if notes[row]["condition"]["label"] in (0, 2)][::2]
    batch = {"sample": notes.audio_batch(rows), "condition": notes.condition_batch(rows)}
    evaluator = {"channels": (8, 16), "embedding": 16}
    module = EvaluatorModule(notes.condition_spec, evaluator, folder=str(tmp_path / "made"), lr=1e-2, warmup=1)
    before = sum(module.losses(batch["sample"], batch["condition"]))
    trainer = lightning.Trainer(
        max_steps=12, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu",
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([batch] * 12, batch_size=None))
    assert sum(module.losses(batch["sample"], batch["condition"])) < 0.7 * before
    assert load_evaluator(tmp_path / "made").labels == notes.condition_spec["label"]


def test_evaluator_needs_labels_and_pitches():
    with pytest.raises(UserError, match="no pitch"):
        EvaluatorModule({"label": ["a"]})
