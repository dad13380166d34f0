"""`image-var tokenize-dataset`: images to shards, of tokenizers of one size and of any."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from image_var.data.folder import ImageFolder
from next_scale.shards.reader import TokenSet


@pytest.fixture
def images(tmp_path):
    """A folder of small images with a sub-folder a split, two classes in each."""
    random = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 2)):
        for label in ("a", "b"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random.integers(256, size=(40, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


def test_shards(images, tiny_checkpoint, tiny_generator, works):
    options = ["--checkpoint", tiny_checkpoint, "--shard-samples", 4, "--accelerator", "cpu"]
    out = works("tokenize-dataset", images, *options, "--out", "out", "--flip")
    said = out.splitlines()
    assert said[0].startswith("no validation shards: ") and len(said) == 3
    assert "10 images" in said[1] and "in 3 files" in said[1] and "4 images" in said[2]
    assert sorted(os.listdir("out")) == ["test", "train"]
    tokenizer, tokens = tiny_generator.tokenizer, TokenSet("out/test")
    size = tokenizer.autoencoder.size_of(tokenizer.quantizer.schedule.grid)
    data = ImageFolder(images, size[0], 1, "test", flip=True)
    wanted = tokenizer.encode(torch.stack([data[i]["sample"] for i in range(4)]))
    assert torch.equal(tokens.batch(range(4))["tokens"], wanted)
    assert tokens.batch(range(4))["condition"]["label"].tolist() == [0, 0, 1, 1]
    assert tokens.index.manifest == data.manifest_sha256


def test_any_size(images, tokenizer_checkpoint, works):
    options = ["--checkpoint", tokenizer_checkpoint, "--split", "test", "--latents"]
    works("tokenize-dataset", images, *options, "--size", 32, "--out", "out")
    index = TokenSet("out/test", latents=True).index
    assert index.latent[1:] == index.schedule.grid == index.schedule.sizes[-1]


def test_mistakes(images, tiny_checkpoint, wide_checkpoint, fails):
    options = ["--out", "out", "--checkpoint", tiny_checkpoint]
    assert "no file in the validation split" in fails("tokenize-dataset", images, *options, "--split", "validation")
    assert "use --size" in fails("tokenize-dataset", images, *options, "--size", 48)
    assert "data sets are square" in fails("tokenize-dataset", images, "--out", "out", "--checkpoint", wide_checkpoint)
