"""Training by captions from the recipes, and the measurement of prompt accuracy, as a user runs them at tiny size."""

import json
from pathlib import Path

import pytest
import torch

from audio_var.data.captions import NoteCaptions
from image_var.cli import main
from image_var.data.fashion import LABELS
from next_scale.checkpoint import from_pretrained, save_pretrained
from next_scale.sampling import SamplingOptions
from recipes.check_debug import losses
from recipes.prompts import accuracy, morph_tokenizer
from tests.image_var.conftest import build_image_generator, build_image_tokenizer
from tests.prompts import BYTES, RENDERED, with_words

ROOT = Path(__file__).parents[1]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with recipes, samples and a tiny tokenizer."""
    for name in ("recipes", "samples"):
        (tmp_path / name).symlink_to(ROOT / name)
    save_pretrained(build_image_tokenizer(), tmp_path / "tokenizer")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(overlay, *options):
    base = ["recipes/image_fashion/next_scale_debug.yaml", f"recipes/prompts/{overlay}.yaml"]
    configs = [part for path in base for part in ("--config", path)]
    tokenizer = ["--model.tokenizer", "tokenizer", "--data.tokenizer", "tokenizer"]
    sizes = ["--model.predictor.width", "32", "--model.predictor.depth", "1", "--data.batch_size", "8"]
    short = ["--trainer.limit_val_batches", "1", "--trainer.log_every_n_steps", "1", "--trainer.max_steps", "4"]
    return main(["fit", "next-scale", *configs, *tokenizer, *sizes, *short, "--trainer.val_check_interval", "2", *QUIET,
                 *map(str, options)])  # fmt: skip


def test_training_by_captions(folder, capsys):
    """Words, a morph and labels of the same concepts on one token set; and what cannot be trained."""
    assert fit("fashion_morph_debug") == 0
    runs = folder / "runs/prompts_debug/fashion_morph"
    values = losses(runs / "logs", "val/morph_loss")
    assert len(values) == 2 and all(0 < value < 10 for value in values)
    model = from_pretrained(runs)
    assert model.words.kind == "rendered" and model.condition_spec == {}
    assert main(["morph", "--checkpoint", str(runs), "--prompt", "bag", "--out", "morphs"]) == 0

    made = list((folder / "runs/image_fashion_debug/tokens").iterdir())
    labels = ["--data.captions.init_args.form", "labels", "--model.words", "null", "--model.morph", 0]
    assert fit("fashion_debug", *labels, "--export.folder", "labels") == 0
    assert from_pretrained("labels").words is None and "label" in from_pretrained("labels").condition_spec
    assert list((folder / "runs/image_fashion_debug/tokens").iterdir()) == made  # token sets keep the fields

    capsys.readouterr()
    assert fit("fashion_debug", "--model.words", "null") == 2
    assert "the data has prompts, and nothing reads them: set model.words" in capsys.readouterr().err
    assert fit("fashion_debug", "--data.captions.init_args.form", "labels") == 2
    assert "model.words reads prompts, and the data has none" in capsys.readouterr().err


def test_accuracy_of_tiny_models(folder, capsys):
    """The whole measurement: three models, four kinds of prompts, typos, one plot."""
    tokenizer, labels = build_image_tokenizer(), list(LABELS)
    for name, model in {
        "rendered": with_words(tokenizer, {**RENDERED, "lines": 8}),
        "bytes": with_words(tokenizer, BYTES),
        "labels": build_image_generator(spec={"label": labels}),
    }.items():
        model.sampling = SamplingOptions(cfg=0.0)
        save_pretrained(model, folder / name)
    models = [part for name in ("rendered", "bytes", "labels") for part in ("--model", f"{name}={name}")]
    command = ["fashion", *models, "--count", "6", "--typos", "0", "0.3", "--out", "out", "--device", "cpu"]
    assert accuracy.main(command) == 0
    out = capsys.readouterr().out
    assert "| rendered | sentences |" in out and "| labels | 30% typos |" in out
    found = json.loads((folder / "out/accuracy.json").read_text())
    assert (folder / "out/accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert {name: each["kind"] for name, each in found["models"].items()} == {
        "rendered": "rendered", "bytes": "bytes", "labels": "labels",
    }  # fmt: skip
    for each in found["models"].values():
        assert list(each["tests"]) == ["trained", "sentences", "synonyms"] and len(each["typos"]) == 2
        assert each["typos"][0] == each["tests"]["trained"]  # no typos: the same prompts, the same noise
        assert all(0 <= share <= 1 for test in each["tests"].values() for share in test.values())
    # a model of labels, told them by look-up, is the label model itself
    labels_model = found["models"]["labels"]["tests"]
    assert labels_model["trained"] == labels_model["sentences"]  # sentences use the same names
    assert accuracy.main(["fashion", "--model", "rendered"]) == 2
    assert "NAME=CHECKPOINT, got 'rendered'" in capsys.readouterr().err
    save_pretrained(build_image_generator(spec={"kind": ["a"]}), folder / "other")
    assert accuracy.main(["fashion", "--model", "a=other", "--out", "none"]) == 2
    assert "knows the labels kind" in capsys.readouterr().err and not (folder / "none").exists()


def test_accuracy_of_notes_hears_loudness():
    """The level of real notes tells soft from loud, and the judge of all three is right of most real notes."""
    import argparse

    from audio_var.data.notes import Notes

    args = argparse.Namespace(evaluator=None, held_out=0.1, data=str(ROOT / "samples/demo_notes"))
    judge = accuracy.NotesJudge(args)
    notes = Notes(args.data, "train")
    items = [notes[i] for i in range(0, len(notes), 3)]
    spec = notes.condition_spec
    asks = [
        accuracy.Ask(judge.captions.concepts({f: spec[f][i] for f, i in item["condition"].items()}), "")
        for item in items
    ]
    shares = accuracy.score(asks, judge.judge(torch.stack([item["sample"] for item in items])))
    assert shares["family"] > 0.9 and shares["register"] > 0.9 and shares["loudness"] > 0.5


def test_levels_are_of_every_loudness_where_velocities_take_turns():
    class Turns:
        condition_spec = {"label": ["flute"], "pitch": [60], "velocity": [45, 80, 115]}

        def __len__(self):
            return 12_000

        def __getitem__(self, index):
            sample = torch.full((1, 2048), 0.1 * (1 + index % 3))
            return {"sample": sample, "condition": {"label": 0, "pitch": 0, "velocity": index % 3}}

    judge = object.__new__(accuracy.NotesJudge)
    judge.captions = NoteCaptions()
    levels = judge._levels(Turns())["flute"]
    assert levels["soft"] < levels["medium"] < levels["loud"]


def test_prompts_of_the_measurement():
    captions = NoteCaptions(held_out=0.1)
    tests = accuracy.tests_of(captions, 40, 0)
    assert list(tests) == ["trained", "sentences", "synonyms", "unseen combinations"]
    assert all(captions.is_held_out(ask.concepts) for ask in tests["unseen combinations"])
    assert not any(captions.is_held_out(ask.concepts) for test in ("trained", "synonyms") for ask in tests[test])
    assert all(captions.look_up(ask.text) == ask.concepts for ask in tests["trained"])
    again = accuracy.tests_of(captions, 40, 0)
    assert again == tests
    misspelt = accuracy.build_asks(captions, captions.combinations(False), "trained", 40, 0, 0.3)
    assert sum(captions.look_up(ask.text) == ask.concepts for ask in misspelt) < 20


def test_the_tokenizer_of_the_morph(folder, capsys):
    command = ["--tokenizer", "tokenizer", "--data", "samples/demo_images", "--out", "morph", "--codes", "8"]
    schedule = ["--schedule", "1x1 4x4 8x8 8x8 8x8", "--samples", "60"]
    assert morph_tokenizer.main([*command, *schedule]) == 0
    out = capsys.readouterr().out
    assert "tokenizer of 209 tokens in morph" in out and out.count("\n| ") >= 3
    made, own = from_pretrained("morph"), from_pretrained("tokenizer")
    assert made.quantizer.codebook_size == 8
    weights = zip(made.autoencoder.state_dict().values(), own.autoencoder.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
