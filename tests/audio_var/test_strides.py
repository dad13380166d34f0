"""Relative strides from end to end: one tokenizer and one generator for clips of 0.5, 1.3 and 4 seconds."""

import math

import pytest
import soundfile
import torch

from audio_var.cli import main
from audio_var.cli.clips import schedule_of
from audio_var.codecs.pretrained import native_tokenizer
from next_scale.checkpoint import from_pretrained, save_pretrained
from next_scale.errors import UserError
from next_scale.model import Generator
from next_scale.predictors import AnyLength
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule, StrideSchedule, parse_schedule

RATE = 8000
SIZES = {
    "sampling_rate": RATE, "encoder_dim": 16, "encoder_rates": [8, 8], "decoder_dim": 64, "decoder_rates": [8, 8],
    "attn_window_size": 16, "codebook_size": 32, "codebook_dim": 4, "vq_strides": [8, 4, 2, 1],
}  # fmt: skip


def test_snac_strides_in_training_and_generation(tmp_path):
    pytest.importorskip("snac", reason="the snac package is an extra")
    from audio_var.codecs.snac import SnacCodec

    torch.manual_seed(0)
    codec = SnacCodec(architecture=SIZES)
    tokenizer = native_tokenizer(codec)
    options = {"width": 32, "depth": 1, "heads": 2, "condition_dropout": 0.0}
    predictor = AnyLength((8, 4, 2, 1), 32, codec.latent_channels, {"label": ["a", "b"]}, **options)
    optimizer = torch.optim.AdamW(predictor.parameters(), 1e-2)
    condition = {"label": torch.tensor([0, 1])}
    losses = {}
    for seconds in (0.5, 1.3, 4.0):
        samples = round(seconds * RATE)
        frames = 16 * math.ceil(samples / 64 / 16)  # of 64 samples, in whole windows of attention
        tokens = tokenizer.encode(0.1 * torch.randn(2, 1, samples))
        assert tokens.shape == (2, frames * 15 // 8)
        assert schedule_of(tokenizer, samples).grid[0] % 16 == 0  # of the windows that commands cut recordings into
        losses[seconds] = tokens, tokenizer.quantizer.teacher_forcing(tokens)
    before = [predictor.loss(*pair, condition).loss.item() for pair in losses.values()]
    for _ in range(12):
        for pair in losses.values():
            optimizer.zero_grad()
            predictor.loss(*pair, condition).loss.backward()
            optimizer.step()
    after = [predictor.loss(*pair, condition).loss.item() for pair in losses.values()]
    assert all(late < 0.9 * early for early, late in zip(before, after, strict=True))

    save_pretrained(Generator(tokenizer, predictor, SamplingOptions(top_k=8)), tmp_path / "model")
    model = from_pretrained(tmp_path / "model")
    for tokens, _ in losses.values():
        grid = StrideSchedule((8, 4, 2, 1)).of_length(tokens.shape[1]).grid
        clips, drawn = model.generate(condition, [1, 2], grid=grid)
        assert clips.shape == (2, 1, grid[0] * 64) and drawn.shape == tokens.shape and clips.isfinite().all()
    again, packed = model.pack().generate(condition, [1, 2], grid=grid)  # as the commands do
    assert torch.equal(packed, drawn) and torch.allclose(again, clips, atol=1e-4)

    command = ["generate", "--checkpoint", str(tmp_path / "model"), "--out", str(tmp_path / "clips")]
    assert main([*command, "--label", "a", "--seconds", "0.7"]) == 0
    (clip,) = (tmp_path / "clips").glob("*.wav")
    assert soundfile.info(clip).frames == round(0.7 * RATE)


def test_seconds_that_cannot_be(tmp_path, capsys):
    for seconds, reason in (("0", "above 0"), ("nan", "above 0"), ("4000", "up to 3600")):
        assert main(["generate", "--seconds", seconds, "--out", str(tmp_path / "clips")]) == 2
        said = capsys.readouterr().err
        assert reason in said and said.count("error") == 1
    assert not (tmp_path / "clips").exists()


def test_schedules_as_text():
    assert parse_schedule("1 2 4") == Schedule.parse("1 2 4")
    assert parse_schedule("strides 8 4 2 1") == StrideSchedule((8, 4, 2, 1))
    with pytest.raises(UserError, match="as strides"):
        parse_schedule("strides 8 a")
    assert StrideSchedule((4, 2, 1)).of_length(14).grid == (8,)
    with pytest.raises(UserError, match="no pyramid"):
        StrideSchedule((4, 2, 1)).of_length(8)
