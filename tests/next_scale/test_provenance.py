"""Checkpoints tell where they come from, and never the time."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from next_scale import provenance
from next_scale.checkpoint import WEIGHTS, from_pretrained, provenance_of, save_pretrained
from next_scale.training import Export, Provenance
from tests.next_scale.test_training import loader, module_for, trainer_for

KEYS = {"versions", "git", "seed", "data", "recipe"}


def test_trainings_tell_where_they_come_from_and_identical_ones_are_identical(tmp_path):
    def train(folder, recipe):
        keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=2)
        callbacks = [Export(str(folder / "out")), Provenance(recipe), keep]
        trainer_for(folder, 4, *callbacks).fit(module_for(quantize_after=9), loader())
        return (folder / "out" / WEIGHTS).read_bytes()

    first = train(tmp_path / "a", {"lr": 1})
    assert first == train(tmp_path / "b", {"lr": 1}) != train(tmp_path / "c", {"lr": 2})
    made = provenance_of(tmp_path / "a" / "out")
    assert set(made) == KEYS and made["recipe"] == {"lr": 1} and made["data"] is None
    assert made["versions"]["torch"].startswith(torch.__version__.split("+")[0]) and "python" in made["versions"]
    kept = torch.load(tmp_path / "a" / "step=4.ckpt", weights_only=True)["provenance"]
    assert kept == made
    from_pretrained(tmp_path / "a" / "out")


def test_checkpoints_from_before_it_was_kept(tiny_generator, tiny_checkpoint, works, tmp_path):
    assert provenance_of(tiny_checkpoint) is None
    assert "not recorded" in works("info", tiny_checkpoint)
    save_pretrained(tiny_generator, tmp_path / "told", provenance={"seed": 3, "recipe": {"lr": 0.5}, "git": "abc+"})
    assert from_pretrained(tmp_path / "told").condition_spec == tiny_generator.condition_spec
    out = works("info", tmp_path / "told")
    assert "abc+" in out and "lr: 0.5" in out
    assert json.loads(works("info", tmp_path / "told", "--json"))["provenance"]["seed"] == 3


def test_info_of_a_training(works, fails, tmp_path):
    keep = ModelCheckpoint(tmp_path, "last", every_n_train_steps=2)
    trainer_for(tmp_path, 2, keep, Provenance({"lr": 0.25})).fit(module_for(quantize_after=9), loader())
    out = works("info", tmp_path / "last.ckpt")
    assert "step 2" in out and "lr: 0.25" in out and "lightning" in out
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.ckpt")
    assert "not a checkpoint of a training" in fails("info", tmp_path / "other.ckpt")


def test_listing_hash(tmp_path):
    (tmp_path / "flute").mkdir()
    (tmp_path / "flute" / "a.wav").write_bytes(b"1234")
    first = provenance.listing_hash(tmp_path)
    (tmp_path / ".cache").write_bytes(b"1")
    assert provenance.listing_hash(tmp_path) == first
    (tmp_path / "flute" / "a.wav").write_bytes(b"12345")
    longer = provenance.listing_hash(tmp_path)
    (tmp_path / "flute" / "a.wav").rename(tmp_path / "flute" / "b.wav")
    renamed = provenance.listing_hash(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    listed = provenance.listing_hash(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    assert len({first, longer, renamed, listed, provenance.listing_hash(tmp_path)}) == 5
    assert len(provenance.listing_hash(tmp_path / "manifest.json")) == 64


@pytest.mark.parametrize(
    "place",
    ["config", "ckpt_path", "trainer.logger", "export.folder", "checkpoint.dirpath", "trainer.default_root_dir"],
)
def test_recipes_are_kept_without_places(place):
    config = {"trainer": {"max_steps": 3}, "export": {"half": True}, "checkpoint": {}, "data": {"data": "notes"}}
    *outer, last = place.split(".")
    (config[outer[0]] if outer else config)[last] = "/somewhere"
    recipe = provenance.recipe_of(config)
    assert "/somewhere" not in json.dumps(recipe)
    assert recipe["trainer"] == {"max_steps": 3} and recipe["data"] == {"data": "notes"}
