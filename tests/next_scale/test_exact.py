"""A training that is interrupted and resumed ends with the very weights of one that was not."""

import lightning as L
import pytest
import torch
from torch.utils.data import Dataset

from next_scale.exact import RandomState, TrainingLoader


class Noisy(Dataset):
    """Samples with chance in them, as random crops have."""

    def __len__(self):
        return 22

    def __getitem__(self, index):
        return index + torch.rand(3)


class Module(L.LightningModule):
    """Chance in training too, as dropout has."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.clone())
        return torch.dropout(self.linear(batch), 0.3, True).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.1)


def train(folder, workers, resume=None):
    torch.manual_seed(0 if resume is None else 7)
    module = Module()
    keep = L.pytorch.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = L.Trainer(
        max_steps=13, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[RandomState(), keep],
    )  # fmt: skip
    loader = TrainingLoader(Noisy(), 4, 3, num_workers=workers)
    trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
    return module


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [5, 7])  # at the end of an epoch of 5 steps, and in the middle of one
@pytest.mark.filterwarnings("ignore")
def test_resumed_training(tmp_path, step, workers):
    whole = train(tmp_path / "whole", workers)
    resumed = train(tmp_path / "rest", workers, tmp_path / "whole" / f"step={step}.ckpt")
    assert len(resumed.seen) == 13 - step
    assert all(map(torch.equal, whole.seen, train(tmp_path / "other", 2 - workers).seen))  # whoever reads them
    for i, (a, b) in enumerate(zip(resumed.seen, whole.seen[step:], strict=True)):
        assert torch.equal(a, b), i
    for a, b in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)
