"""Streams of sequences: captions, pairs through shared values, order and chance; and a training from a recipe."""

import itertools

import pytest
import torch
import yaml

from audio_var.data.captions import NoteCaptions
from audio_var.data.datamodule import AudioDataModule
from image_var.data.icons import IconDataModule
from next_scale.checkpoint import from_pretrained
from next_scale.errors import UserError
from next_scale.joint.data import JointDataModule
from next_scale.tokens import TokenDataModule


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture
def build(tokenizers, folder):
    def make(streams, captions=True, **options):
        said = NoteCaptions(held_out=0.2, typos=0.1) if captions else None
        notes = AudioDataModule("samples/demo_notes")
        sets = {
            "notes": TokenDataModule(notes, str(tokenizers["audio"]), str(folder), captions=said),
            "icons": TokenDataModule(IconDataModule(20), str(tokenizers["image"]), str(folder)),
        }
        data = JointDataModule(sets, streams, batch_size=4, batches=6, validation_batches=2, **options)
        data.prepare_data()
        data.setup("fit")
        return data

    return make


STREAMS = {"text audio": "notes", "audio image": "notes icons", "image text audio": "icons notes"}


def same(a, b):
    pairs = zip(a.contents, b.contents, strict=True)
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def test_batches_are_of_one_layout_and_pairs_share_their_class(build):
    data = build(STREAMS)
    assert data.layouts == list(STREAMS)
    batches = list(data.train_dataloader())
    assert len(batches) == 18 and {batch.stream for batch in batches} == set(STREAMS)
    for batch in batches:
        assert batch.layout == tuple(batch.stream.split()) and batch.size == 4
    stream = data.stream("image text audio", "test")
    batch = stream.batch(stream.rows[:8], torch.Generator().manual_seed(0))
    images, texts, sounds = batch.contents
    for image, text, sound in zip(images, texts, sounds, strict=True):
        labels = [
            {each.values[i]["label"] for i in range(len(each.set)) if torch.equal(each.set[i]["tokens"], tokens)}
            for each, tokens in zip(stream.sets, (image, sound), strict=True)
        ]
        family = NoteCaptions().look_up(text)["family"]
        assert family in labels[0] and family in labels[1]


def test_order_and_chance_are_of_seed_and_epoch_and_a_training_can_be_resumed(build):
    first = list(build(STREAMS).train_dataloader())
    loader = build(STREAMS).train_dataloader()
    list(itertools.islice(loader, 5))
    state = {"epoch": 0, "batches": 5}
    resumed = build(STREAMS).train_dataloader()
    resumed.load_state_dict(state)
    for a, b in zip(first[5:], resumed, strict=True):
        assert a.stream == b.stream and same(a, b)
    other = list(build(STREAMS, seed=1).train_dataloader())
    assert not all(a.stream == b.stream and same(a, b) for a, b in zip(first, other, strict=True))
    for a, b in zip(build(STREAMS).val_dataloader(), build(STREAMS).val_dataloader(), strict=True):
        assert same(a, b)


def test_held_out_combinations_are_kept_for_the_test(build):
    data = build({"text audio": "notes"})
    captions = data.sets["notes"].captions
    train, test = (data.stream("text audio", split) for split in ("train", "test"))
    assert not any(captions.is_held_out(train.spoken.concepts(row)) for row in train.rows)
    assert any(captions.is_held_out(test.spoken.concepts(row)) for row in test.rows)


def test_streams_that_do_not_fit_are_refused(build):
    for streams, message in (
        ({"text audio": "drums"}, "names the set 'drums'; sets: notes, icons"),
        ({"text audio": "notes icons"}, "has 1 pyramids and names 2 sets"),
        ({"text image": "icons"}, "no set with captions"),
    ):
        with pytest.raises(UserError, match=message):
            build(streams).train_dataloader()


def test_a_recipe_trains_and_its_model_comes_out(tokenizers, tmp_path, monkeypatch, capsys):
    from next_scale.compare.cli import main

    recipe = yaml.safe_load(open("recipes/multimodal/joint_debug.yaml", encoding="utf-8"))
    names = {"runs/audio_notes_debug/tokenizer": "audio", "runs/image_fashion_debug/tokenizer": "image"}
    recipe["model"]["tokenizers"] = {name: str(path) for name, path in tokenizers.items()}
    for each in recipe["data"]["sets"].values():
        each["init_args"]["tokenizer"] = str(tokenizers[names[each["init_args"]["tokenizer"]]])
        each["init_args"]["folder"] = str(tmp_path / "tokens")
    recipe["trainer"] |= {"max_steps": 6, "val_check_interval": 6, "enable_progress_bar": False, "log_every_n_steps": 1}
    recipe["trainer"]["logger"]["init_args"]["save_dir"] = str(tmp_path / "logs")
    recipe["export"]["folder"], recipe["checkpoint"]["dirpath"] = str(tmp_path / "out"), str(tmp_path / "checkpoints")
    recipe["model"]["trunk"] |= {"width": 32, "depth": 1}
    recipe["data"] |= {"batch_size": 4, "batches": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["joint", "fit", "--config", str(tmp_path / "recipe.yaml")]) == 0
    model = from_pretrained(tmp_path / "out")
    (said,) = model.generate([model.fill("audio", torch.zeros(1, 23, dtype=torch.int64))], ["text"], [0])
    assert len(said.content) == 1
    assert main(["joint", "fit", "--config", str(tmp_path / "recipe.yaml"), "--model.trunk.kind", "magic"]) == 2
    assert "a trunk is one of" in capsys.readouterr().err
