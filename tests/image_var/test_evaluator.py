"""The judge of images: what it learns, keeps and refuses."""

import shutil
from pathlib import Path

import lightning
import pytest
import torch

from image_var.cli import main
from image_var.data.fashion import FashionMNIST, find_fashion
from image_var.evaluator import SHIPPED, Evaluator, EvaluatorModule, degrade, load_evaluator, save_evaluator
from image_var.io import write_image
from next_scale.errors import UserError

RECIPE = Path(__file__).parents[2] / "recipes" / "image_fashion" / "evaluator.yaml"
TINY = {"size": [16, 16], "channels": [8, 16], "embedding": 12}


def stripes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 1, 16, 16) of horizontal (0) and vertical (1) stripes in noise, and their classes (N,)."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(count) % 2
    wave = torch.sin(torch.arange(16) * 1.2 + 6 * torch.rand(count, 1, generator=generator))  # (N, 16)
    images = torch.where(label[:, None, None] == 0, wave[:, :, None], wave[:, None, :])
    noise = 0.3 * torch.randn(images.shape, generator=generator)
    return (images + noise).clamp(-1, 1)[:, None], label


def test_it_learns_and_is_saved_at_the_end(tmp_path):
    torch.manual_seed(0)
    images, label = stripes(64)
    module = EvaluatorModule({"label": ["flat", "upright"]}, TINY, str(tmp_path / "made"), lr=1e-2, warmup=1)
    batch = {"sample": images, "condition": {"label": label}}
    trainer = lightning.Trainer(
        max_steps=40, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu",
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([batch] * 40, batch_size=None))
    made = load_evaluator(tmp_path / "made")
    assert made.labels == ["flat", "upright"]
    fresh, wanted = stripes(200)
    assert (made.judge(fresh[100:]).label == wanted[100:]).float().mean() > 0.95


def test_recipe_trains_one_on_a_folder(tmp_path, monkeypatch):
    images, label = stripes(40)
    for index, (image, kind) in enumerate(zip(images, label.tolist(), strict=True)):
        folder = tmp_path / "shapes" / ("train" if index < 30 else "validation") / ("flat", "upright")[kind]
        folder.mkdir(parents=True, exist_ok=True)
        write_image(folder / f"{index}.png", image)
    monkeypatch.chdir(tmp_path)
    small = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    data = ["--data.data", "shapes", "--data.size", "16", "--data.batch_size", "8"]
    evaluator = ["--model.evaluator", '{"size": [16, 16], "channels": [8, 16], "embedding": 12}']
    options = [*small, *data, *evaluator, "--trainer.enable_progress_bar", "false", "--model.folder", "made"]
    assert main(["fit", "evaluator", "--config", str(RECIPE), *options]) == 0
    assert load_evaluator(tmp_path / "made").labels == ["flat", "upright"]


def test_batches_and_modes_change_nothing():
    torch.manual_seed(0)
    evaluator = Evaluator(["a", "b", "c"], 3, (20, 28), (4, 8), 6).eval()
    images = torch.rand(7, 3, 20, 28) * 2 - 1
    seen, judged = evaluator(images), evaluator.judge(images, batch_size=3)
    assert seen.embedding.shape == (7, 6) and seen.label.shape == (7, 3)
    torch.testing.assert_close(judged.embedding, seen.embedding, rtol=1e-4, atol=1e-5)
    assert judged.label.tolist() == seen.label.argmax(1).tolist()


def test_survives_saving(tmp_path):
    torch.manual_seed(0)
    evaluator = Evaluator(["a", "b"], **TINY).eval()
    save_evaluator(evaluator, tmp_path / "evaluator")
    again = load_evaluator(tmp_path / "evaluator")
    images, _ = stripes(4)
    assert again.config == evaluator.config
    assert torch.allclose(again(images).label, evaluator(images).label, atol=0.02)  # float16 in the file
    for name, damage in [("config.json", b"{"), ("model.safetensors", b"none")]:
        broken = shutil.copytree(tmp_path / "evaluator", tmp_path / f"broken-{name}")
        (broken / name).write_bytes(damage)
        with pytest.raises(UserError, match="holds no evaluator.*image-var fit evaluator"):
            load_evaluator(broken)


def test_refuses_other_images():
    evaluator = Evaluator(["a", "b"], **TINY)
    evaluator.check(["a", "b"], (1, 16, 16))
    with pytest.raises(UserError, match="other classes"):
        evaluator.check(["a", "c"], (1, 16, 16))
    with pytest.raises(UserError, match="1 x 16 x 16, these have 3 x 32 x 32"):
        evaluator.check(["a", "b"], (3, 32, 32))
    with pytest.raises(UserError, match="no label"):
        EvaluatorModule({"emotion": ["calm"]})


@pytest.mark.parametrize("shape", [(9, 1, 16, 16), (5, 3, 12, 20)])
def test_degraded_images_are_moved_blurred_and_noisy_but_the_same(shape):
    torch.manual_seed(0)
    ramp = torch.linspace(-1, 1, shape[3]).expand(shape).contiguous()
    worse = degrade(ramp)
    assert worse.shape == shape and worse.isfinite().all() and not torch.equal(worse, ramp)
    step = 2 / (shape[3] - 1)
    # moved by at most two steps, and noise of a standard deviation of at most 0.2
    assert (worse - ramp).abs().mean((1, 2, 3)).max() < 2 * step + 0.2
    flat = degrade(torch.full(shape, 0.5))
    assert (flat.mean((1, 2, 3)) - 0.5).abs().max() < 0.1


def test_shipped_one_is_small_and_right_nine_times_in_ten():
    try:
        find_fashion()
    except UserError as error:
        pytest.skip(str(error))
    evaluator = load_evaluator()
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 2_000_000
    test = FashionMNIST(split="test")
    evaluator.check(test.condition_spec["label"], (1, 32, 32))
    judged = evaluator.judge(test.image_batch(range(3000)))
    assert (judged.label == test.labels[:3000]).float().mean() > 0.9
