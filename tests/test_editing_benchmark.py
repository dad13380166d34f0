"""The benchmark of editing: its baselines, and its page."""

import math

import torch

from recipes.benchmarks.editing import image_quality, repeat_period, write_page


def test_a_period_is_repeated():
    audio = torch.sin(2 * math.pi * 200 * torch.arange(16_000) / 16_000)
    hidden = audio.clone()
    hidden[6000:9000] = 0
    assert (repeat_period(hidden, 6000, 9000, 16_000) - audio).abs().max() < 0.01


def test_only_what_is_hidden_counts():
    original, hidden = torch.zeros(2, 1, 16, 16), torch.zeros(16, 16, dtype=torch.bool)
    hidden[:8] = True
    assert image_quality(original, original + 5 * ~hidden, hidden) == {"l1": 0.0, "ssim": 1.0}
    assert image_quality(original, original + 1.0, hidden)["l1"] == 0.5


def test_page():
    hidden = {"silence": 4.0, "edit, told": 1.0, "the codec": 0.5}
    quality = {name: {"si_sdr": value, "log_mel": -value} for name, value in hidden.items()}
    results = {
        "clips": 7,
        "images": 9,
        "gaps": {
            "gap 0.3 to 0.6 s": {"hidden": {"frames interpolated": 2.0} | hidden, "kept": {"edit, told": 0.1}},
            "continued": {"hidden": {"last frame held": 3.0} | hidden, "kept": {"edit, told": 0.2}},
        },
        "noise": {"0": quality},
        "relabels": [{"strength": 0.5, "keep": "fine", "new": 0.75, "old": 0.125, "in_tune": 1.0}],
        "bands": {"4000": quality},
        "masks": {"box": {name: {"l1": value, "ssim": value} for name, value in hidden.items()}},
    }
    page = write_page(results, "command")
    assert page.count("**") % 2 == 0 and "7 held-out notes" in page and "9" in page
    assert "| silence | 4.000 | 4.000 |" in page and "| edit, told | **1.000** | **1.000** |" in page
    assert "| spectrogram frames interpolated (held, where nothing follows) | 2.000 | 3.000 |" in page
    assert "| 50%, fine | 75.0% | 12.5% | 100.0% |" in page
    assert "| silence | **4.0** | **-4.000** |" in page
