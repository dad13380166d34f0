"""The LightningDataModule over notes and over a folder of files."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audio_var.data.datamodule import AudioDataModule
from next_scale.errors import UserError

DEMO = Path(__file__).parents[2] / "samples" / "demo_notes"


def test_notes():
    module = AudioDataModule(str(DEMO), batch_size=16)
    assert list(module.condition_spec) == ["label", "pitch", "velocity"]
    batch = next(iter(module.train_dataloader()))
    assert batch["sample"].shape == (16, 1, 16_384) and batch["sample"].dtype == torch.float32
    assert {field: (values.shape, values.dtype) for field, values in batch["condition"].items()} == {
        field: ((16,), torch.int64) for field in module.condition_spec
    }
    assert len(module.train_dataloader()) == len(module.dataset("train")) // 16
    assert sum(len(batch["sample"]) for batch in module.val_dataloader()) == len(module.dataset("validation"))
    assert sum(len(batch["sample"]) for batch in module.test_dataloader()) == len(module.dataset("test"))


def test_order_follows_the_seed_and_changes_every_epoch():
    def epochs(seed):
        loader = AudioDataModule(str(DEMO), batch_size=64, seed=seed).train_dataloader()
        return [[batch["condition"]["pitch"].tolist() for batch in loader] for _ in range(2)]

    first, second = epochs(0)
    assert first != second and epochs(0) == [first, second] and epochs(1)[0] != first


def test_folder_of_files(tmp_path):
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * np.sin(np.arange(8000) / 5), 8_000)
    module = AudioDataModule(str(tmp_path), batch_size=8, num_workers=1, sample_rate=16_000, clip_samples=4_096)
    assert module.condition_spec == {"label": [tmp_path.name]}
    batches = list(module.train_dataloader())  # fewer files than a batch: still one batch
    assert len(batches) == 1 and batches[0]["sample"].shape == (len(module.dataset("train")), 1, 4_096)
    for loader in (module.val_dataloader(), module.test_dataloader()):  # may be empty in a folder this small
        assert all(batch["sample"].shape[1:] == (1, 4_096) for batch in loader)


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="there is no data folder"):
        AudioDataModule(str(tmp_path / "none")).train_dataloader()
    with pytest.raises(UserError, match="clips of 16384 samples at 16000 Hz, not 8192 at 24000"):
        AudioDataModule(str(DEMO), sample_rate=24_000, clip_samples=8_192).val_dataloader()
    with pytest.raises(UserError, match="no usable audio file"):
        AudioDataModule(str(tmp_path)).test_dataloader()
