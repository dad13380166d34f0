"""A folder of image files: classes, splits, sizes, crops, flips, and files that cannot be used."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from image_var.data.folder import ImageFolder
from next_scale.errors import UserError

SIZE = 16


def save(path, width=SIZE, height=SIZE, colour=(200, 100, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)


def columns(path, width, height):
    """An image whose gray tells the column."""
    ramp = np.broadcast_to(np.arange(width, dtype=np.uint8), (height, width))
    Image.fromarray(np.ascontiguousarray(ramp)).save(path)


def plain(folder, **options):
    return ImageFolder(folder, SIZE, **{"channels": 1, "split": "all"} | options)


@pytest.fixture
def folder(tmp_path):
    for name, level in (("light", 250), ("dark", 5)):
        save(tmp_path / name / "a.png", colour=(level,) * 3)
        save(tmp_path / name / "deep" / "b.jpg", 40, 20, (level,) * 3)
    (tmp_path / "README.md").write_text("no image, not mentioned")
    return tmp_path


@pytest.mark.parametrize("channels", [1, 3])
def test_sub_folders_are_classes(folder, channels):
    data = plain(folder, channels=channels)
    assert data.condition_spec == {"label": ["dark", "light"]} and len(data) == 4 and data.skipped == []
    for index, path in enumerate(data.files):
        item = data[index]
        assert item["sample"].shape == (channels, SIZE, SIZE) and item["sample"].dtype == torch.float32
        name = data.condition_spec["label"][item["condition"]["label"]]
        assert name == path.relative_to(folder).parts[0]
        assert (item["sample"] > 0.9).all() if name == "light" else (item["sample"] < -0.9).all()


def test_files_without_sub_folders_are_one_class(tmp_path):
    save(tmp_path / "a.png")
    assert plain(tmp_path).condition_spec == {"label": [tmp_path.name]}


def test_channels_are_kept_or_mixed(tmp_path):
    save(tmp_path / "a.png")
    colour = plain(tmp_path, channels=3)[0]["sample"]
    torch.testing.assert_close(colour[:, 3, 3], torch.tensor([200.0, 100, 50]) / 127.5 - 1)
    assert plain(tmp_path)[0]["sample"].shape == (1, SIZE, SIZE)


def test_the_shorter_side_fits_and_the_middle_or_a_random_part_is_taken(tmp_path):
    columns(tmp_path / "a.png", 64, SIZE)
    middle = (plain(tmp_path)[0]["sample"][0, 0] + 1) * 127.5
    torch.testing.assert_close(middle, torch.arange(24.0, 40.0))
    torch.manual_seed(0)
    parts = [(plain(tmp_path, random_crop=True)[0]["sample"][0, 0] + 1) * 127.5 for _ in range(8)]
    for part in parts:
        torch.testing.assert_close(part, part[0] + torch.arange(16.0), rtol=0, atol=1e-3)
    assert len({int(part[0]) for part in parts}) > 3
    columns(tmp_path / "a.png", 128, 2 * SIZE)  # halved to 64 x 16 first
    part = (plain(tmp_path, random_crop=True)[0]["sample"][0, 8] + 1) * 127.5
    steps = part.diff()[2:-2]
    assert steps.min() > 1.8 and steps.max() < 2.2


def test_crops_and_flips_repeat_with_the_seed(tmp_path):
    columns(tmp_path / "a.png", 64, SIZE)

    def firsts(seed, workers=0):
        torch.manual_seed(seed)
        loader = DataLoader(plain(tmp_path, random_crop=True), num_workers=workers)
        return [float(batch["sample"][0, 0, 0, 0]) for _ in range(4) for batch in loader]

    assert firsts(0) == firsts(0) != firsts(1) and len(set(firsts(0))) > 2
    assert firsts(0, workers=1) == firsts(0, workers=1)
    (tmp_path / "train" / "x").mkdir(parents=True)
    columns(tmp_path / "train" / "x" / "a.png", SIZE, SIZE)
    flipped = [bool((row := item["sample"][0, 0])[0] > row[-1]) for item in _many(tmp_path, flip=True)]
    assert 5 < sum(flipped) < 35 and not any(item["sample"][0, 0, 0] > -0.9 for item in _many(tmp_path))


def _many(folder, **options):
    data = ImageFolder(folder, SIZE, 1, "train", **options)
    return [data[0] for _ in range(40)]


def test_unusable_files_are_reported_by_name_and_skipped(folder, caplog):
    light = folder / "light"
    (light / "empty.png").write_bytes(b"")
    (light / "text.jpg").write_text("no image")
    (light / "dir.png").mkdir()
    frames = [Image.new("L", (8, 8), level) for level in (0, 255)]
    frames[0].save(light / "moving.tif", save_all=True, append_images=frames[1:])
    save(folder / "lost.png")
    with caplog.at_level(logging.WARNING):
        data = plain(folder)
    assert len(data) == 4
    reasons = {path.rsplit("/", 1)[1]: reason for path, reason in data.skipped}
    assert set(reasons) == {"empty.png", "text.jpg", "dir.png", "moving.tif", "lost.png"}
    assert "0 bytes" in reasons["empty.png"] and "2 frames" in reasons["moving.tif"]
    assert reasons["lost.png"] == "it is in no class sub-folder"
    assert all(name in caplog.text for name in reasons)


def test_damage_found_while_decoding_is_skipped_too(folder, caplog):
    path = folder / "dark" / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])  # the header is whole
    data = plain(folder)
    assert len(data) == 5 and data.skipped == []
    for _ in range(2):
        assert all(data[index]["sample"].shape == (1, SIZE, SIZE) for index in range(len(data)))
    assert [path.rsplit("/", 1)[1] for path, _ in data.skipped] == ["cut.jpg"]
    assert caplog.text.count("cut.jpg") == 1


def test_nothing_usable_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        plain(tmp_path / "none")
    with pytest.raises(UserError, match="no usable image file: add .png"):
        plain(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="1 skipped"):
        plain(tmp_path)
    with pytest.raises(UserError, match="no split named dev"):
        plain(tmp_path, split="dev")


def test_splits_by_hash_are_disjoint_and_share_classes(tmp_path):
    for number in range(60):
        save(tmp_path / ("a" if number % 2 else "b") / f"{number}.png")
    parts = {split: plain(tmp_path, split=split) for split in ("train", "validation", "test", "all")}
    names = {split: {path.name for path in part.files} for split, part in parts.items()}
    assert names["train"] | names["validation"] | names["test"] == names["all"] and len(names["all"]) == 60
    assert sum(map(len, names.values())) == 120 and len(names["train"]) > 40
    assert all(part.condition_spec == {"label": ["a", "b"]} for part in parts.values())
    assert set(parts["all"].splits) == {"train", "validation", "test"}


def test_split_folders(tmp_path):
    for split in ("train", "val", "test"):
        save(tmp_path / split / "cat" / f"{split}.png")
    save(tmp_path / "train" / "dog" / "a.png")
    save(tmp_path / "other" / "dog" / "b.png")
    save(tmp_path / "train" / "c.png")
    data = plain(tmp_path, split="validation")
    assert [path.name for path in data.files] == ["val.png"] and data.condition_spec == {"label": ["cat", "dog"]}
    reasons = {path.rsplit("/", 1)[1]: reason for path, reason in data.skipped}
    assert set(reasons) == {"b.png", "c.png"} and "train, validation, test" in reasons["b.png"]
    assert len(plain(tmp_path, split="train")) == 2
    (tmp_path / "test" / "cat" / "test.png").unlink()
    with pytest.raises(UserError, match="no file in the test split"):
        plain(tmp_path, split="test")
