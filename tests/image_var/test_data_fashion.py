"""Fashion-MNIST: the published files, their splits and border, damage, and their way into PNG folders and back."""

import gzip
import shutil

import numpy as np
import pytest
import torch

from image_var.data import fashion
from image_var.data.export import write_demo, write_fashion
from image_var.data.fashion import LABELS, FashionMNIST, find_fashion
from image_var.data.folder import ImageFolder
from next_scale.errors import UserError


def idx(values):
    """An array of bytes in the format of the published files."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return (0x800 + values.ndim).to_bytes(4, "big") + sizes + values.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Eight training images, the last two of which are validation, and four of the test part."""
    monkeypatch.setattr(fashion, "VALIDATION", 2)
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("t10k", 4)):
        images = rng.integers(0, 256, (count, 28, 28))
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(count) % 10)))
    return tmp_path


def test_items_and_splits(folder):
    parts = {split: FashionMNIST(folder, split) for split in ("train", "validation", "test", "all")}
    assert [len(part) for part in parts.values()] == [6, 2, 4, 12]
    assert parts["validation"].labels.tolist() == [6, 7] and parts["train"].labels.tolist() == list(range(6))
    data = parts["train"]
    assert data.condition_spec == {"label": list(LABELS)}
    item = data[-1]
    assert item["sample"].shape == (1, 32, 32) and item["sample"].dtype == torch.float32
    assert item["condition"] == {"label": 5}
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:30, 2:30] = False
    assert (item["sample"][0, border] == -1).all() and item["sample"].max() <= 1 and item["sample"].max() > 0.9
    bytes_again = ((item["sample"][0, 2:30, 2:30] + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(bytes_again, data.images[5])
    assert torch.equal(data.image_batch([5, 0])[0], item["sample"])
    colour = FashionMNIST(folder, "train", channels=3)[5]["sample"]
    assert torch.equal(colour, item["sample"].expand(3, -1, -1))


def test_flips_half_of_the_training_images(folder):
    plain, flipped = FashionMNIST(folder, "train"), FashionMNIST(folder, "train", flip=True)
    torch.manual_seed(0)
    same = [torch.equal(flipped[0]["sample"], plain[0]["sample"]) for _ in range(40)]
    assert 10 < sum(same) < 30
    mirrored = next(s for s in (flipped[0]["sample"] for _ in range(40)) if not torch.equal(s, plain[0]["sample"]))
    assert torch.equal(mirrored.flip(-1), plain[0]["sample"])
    assert not FashionMNIST(folder, "test", flip=True).flip


def test_files_are_found_packed_or_not_and_where_torchvision_puts_them(folder, tmp_path, monkeypatch):
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in folder.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    assert find_fashion(tmp_path / "root") == raw
    assert torch.equal(FashionMNIST(tmp_path / "root").images, FashionMNIST(folder).images)
    monkeypatch.setattr(fashion, "PLACES", (str(tmp_path / "nowhere"), str(folder)))
    assert find_fashion() == folder
    monkeypatch.setattr(fashion, "PLACES", (str(tmp_path / "nowhere"),))
    with pytest.raises(UserError, match="nowhere: apt-get install dataset-fashion-mnist"):
        FashionMNIST()


def test_damaged_files_are_user_errors(folder):
    labels, images = folder / "train-labels-idx1-ubyte.gz", folder / "train-images-idx3-ubyte.gz"
    whole = labels.read_bytes(), images.read_bytes()
    for name, content, message in (
        (images, whole[1][: len(whole[1]) // 2], "damaged"),
        (images, b"\x1f\x8bnonsense", "damaged"),
        (images, gzip.compress(b"short"), "damaged"),
        (labels, gzip.compress(idx(np.zeros(3))), "are not Fashion-MNIST's"),
        (labels, gzip.compress(idx(np.full(8, 10))), "are not Fashion-MNIST's"),
    ):
        name.write_bytes(content)
        with pytest.raises(UserError, match=message):
            FashionMNIST(folder)
        labels.write_bytes(whole[0]), images.write_bytes(whole[1])
    labels.unlink()
    with pytest.raises(UserError, match="train-labels-idx1-ubyte.gz is missing"):
        FashionMNIST(folder)
    with pytest.raises(UserError, match="no split named dev"):
        FashionMNIST(folder, "dev")


def test_export_is_read_back_as_it_was(folder, tmp_path):
    counts = write_fashion(tmp_path / "png", folder)
    assert counts == {"train": 6, "validation": 2, "test": 4}
    for split in counts:
        data, files = FashionMNIST(folder, split), ImageFolder(tmp_path / "png", 32, 1, split)
        assert len(files) == len(data) and not files.skipped
        for path, item in zip(files.files, (files[i] for i in range(len(files))), strict=True):
            original = data[int(path.stem)]
            assert torch.equal(item["sample"], original["sample"])
            assert files.condition_spec["label"][item["condition"]["label"]] == LABELS[original["condition"]["label"]]
    assert "Zalando" in (tmp_path / "png" / "README.md").read_text()
    shutil.rmtree(tmp_path / "png")
    assert write_demo(tmp_path / "png", folder, 3) == 4  # four classes have one image each
    assert len(ImageFolder(tmp_path / "png", 32, 1, "all")) == 4
