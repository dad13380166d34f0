"""Spectrogram sheets: the right row for a frequency, the right level, and files that can be opened."""

import numpy as np
import pytest

from audio_var.plots import check_plot, log_spectrogram, spectrogram_sheet
from next_scale.errors import UserError

RATE = 16_000


def sine(frequency, seconds=0.5, amplitude=1.0):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE)


@pytest.mark.parametrize("frequency", [250.0, 1000.0, 4000.0])
def test_level_and_row_of_a_sinusoid(frequency):
    picture = log_spectrogram(sine(frequency, amplitude=0.1), RATE)
    assert picture.shape[0] == 160 and picture.dtype == np.float32
    middle = picture[:, picture.shape[1] // 2]
    assert abs(middle.max() + 20) < 2
    found = 40 * (RATE / 2 / 40) ** (middle.argmax() / 159)
    assert abs(found / frequency - 1) < 0.05


@pytest.mark.parametrize("samples", [1, 63, 5000, 160_000, 9_600_000])
def test_any_length(samples):
    picture = log_spectrogram(np.zeros(samples), RATE)
    assert np.all(picture == -120) and 1 <= picture.shape[1] <= 700


@pytest.mark.parametrize("count", [1, 2, 5])
def test_sheet(tmp_path, count):
    clips = [(f"$clip_{i}", sine(200.0 * (i + 1))) for i in range(count)]
    spectrogram_sheet(tmp_path / "a.png", clips, RATE)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    spectrogram_sheet(tmp_path / "a.svg", clips, RATE, columns=2)
    assert "</svg>" in (tmp_path / "a.svg").read_text()


def test_names():
    check_plot(None)
    check_plot("a/b.PNG")
    with pytest.raises(UserError, match="cannot draw a.gif: end the name of a plot in .png, .pdf, .svg"):
        check_plot("a.gif")
