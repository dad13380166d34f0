"""Drawn icons: one a family, varied and repeatable."""

import pytest
import torch

from audio_var.data.families import FAMILIES
from image_var.data.icons import LABELS, IconDataModule, Icons, draw_icon
from next_scale.errors import UserError


def test_icons_are_of_the_families_of_notes():
    assert set(LABELS) == set(FAMILIES)


def test_icons_vary_repeat_and_stay_apart():
    train, test = Icons("train", 20), Icons("test", 20)
    assert (len(train), len(Icons("validation", 20)), len(test), len(Icons("all", 20))) == (192, 24, 24, 240)
    samples = torch.stack([train[i]["sample"] for i in range(len(train))])
    assert samples.shape == (192, 1, 32, 32) and samples.min() == -1 and samples.amax((1, 2, 3)).min() > -0.2
    assert torch.equal(train[5]["sample"], samples[5])
    assert len(torch.unique(samples.flatten(1), dim=0)) == 192  # no two alike
    assert IconDataModule(20, channels=3).dataset("train")[0]["sample"].shape == (3, 32, 32)


def test_unknown_icons_and_too_few_are_refused():
    with pytest.raises(UserError, match="no icon of 'kazoo'"):
        draw_icon("kazoo")
    with pytest.raises(UserError, match="ten a family"):
        Icons("train", 5)
