"""The LightningDataModule over Fashion-MNIST and over a folder, and `image-var data`."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from image_var.cli import main
from image_var.data import fashion
from image_var.data.datamodule import ImageDataModule
from next_scale.errors import UserError

DEMO = Path(__file__).parents[2] / "samples" / "demo_images"
INSTALLED = Path(fashion.PLACES[0]).is_dir()


def test_folder():
    module = ImageDataModule(str(DEMO), batch_size=16)
    assert module.name == "demo_images" and sorted(fashion.LABELS) == module.condition_spec["label"]
    batch = next(iter(module.train_dataloader()))
    assert batch["sample"].shape == (16, 1, 32, 32) and batch["sample"].dtype == torch.float32
    assert batch["condition"]["label"].shape == (16,) and batch["condition"]["label"].dtype == torch.int64
    assert batch["sample"].min() >= -1 and batch["sample"].max() <= 1
    assert len(module.train_dataloader()) == len(module.dataset("train")) // 16
    assert sum(len(batch["sample"]) for batch in module.val_dataloader()) == len(module.dataset("validation"))
    assert sum(len(batch["sample"]) for batch in module.test_dataloader()) == len(module.dataset("test"))


def test_order_follows_the_seed_and_changes_every_epoch():
    def epochs(seed):
        loader = ImageDataModule(str(DEMO), batch_size=64, seed=seed).train_dataloader()
        return [[batch["condition"]["label"].tolist() for batch in loader] for _ in range(2)]

    first, second = epochs(0)
    assert first != second and epochs(0) == [first, second] and epochs(1)[0] != first


def test_photos_in_colour(tmp_path):
    for number in range(3):
        Image.new("RGB", (60, 40), (50 * number, 0, 255)).save(tmp_path / f"{number}.jpg")
    module = ImageDataModule(str(tmp_path), batch_size=8, num_workers=1, size=24, channels=3, flip=True)
    batches = list(module.train_dataloader())  # fewer files than a batch: still one batch
    assert len(batches) == 1 and batches[0]["sample"].shape == (len(module.dataset("train")), 3, 24, 24)
    for loader in (module.val_dataloader(), module.test_dataloader()):  # may be empty in a folder this small
        assert all(batch["sample"].shape[1:] == (3, 24, 24) for batch in loader)


@pytest.mark.skipif(not INSTALLED, reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_found_by_name(capsys):
    module = ImageDataModule("fashion-mnist", batch_size=16)
    assert [len(module.dataset(split)) for split in ("train", "validation", "test")] == [55_000, 5_000, 10_000]
    batch = next(iter(module.train_dataloader()))
    assert batch["sample"].shape == (16, 1, 32, 32) and module.name == "fashion-mnist"
    demo = ImageDataModule(str(DEMO)).dataset("train")
    number = int(demo.files[0].stem)
    assert torch.equal(demo[0]["sample"], module.dataset("test")[number]["sample"])
    assert main(["data", "inspect", "fashion-mnist"]) == 0
    assert "70,000 images; 0 skipped" in capsys.readouterr().out
    with pytest.raises(UserError, match="set data.size to 32"):
        ImageDataModule("fashion-mnist", size=64).val_dataloader()


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="there is no data folder"):
        ImageDataModule(str(tmp_path / "none")).train_dataloader()
    with pytest.raises(UserError, match="no usable image file"):
        ImageDataModule(str(tmp_path)).test_dataloader()
    with pytest.raises(UserError, match="1 channel"):
        ImageDataModule(str(DEMO), channels=2)
    with pytest.raises(UserError, match="start at 1"):
        ImageDataModule(str(DEMO), size=0)


def test_inspect_lists_what_would_be_skipped(tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("L", (20, 30)).save(tmp_path / name / "a.png")
    (tmp_path / "dog" / "b.png").write_bytes(b"")
    noise = torch.randint(256, (64, 64), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(tmp_path / "dog" / "cut.jpg")
    (tmp_path / "dog" / "cut.jpg").write_bytes((tmp_path / "dog" / "cut.jpg").read_bytes()[:2000])
    assert main(["data", "inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "2 images; 2 skipped" in out and "b.png: is empty (0 bytes)" in out and "cut.jpg: is damaged" in out
    assert "20 x 30 to 64 x 64" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["inspect", "none"], "there is no folder none"),
        (["demo", "--out", "there"], "there exists; name a new folder"),
        (["demo", "--out", "new", "--source", "there"], "Fashion-MNIST is not in there"),
        (["fashion", "--out", "deep/new", "--source", "there"], "Fashion-MNIST is not in there"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    assert main(["data", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
