"""The spectral codec: an exact STFT round trip, shapes, gradients, learning, and its checkpoint."""

import pytest
import torch

from audio_var.codecs import build_codec
from audio_var.codecs.spectral import SpectralCodec
from audio_var.objective import AudioObjective
from next_scale.checkpoint import from_pretrained, save_pretrained
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.schedule import Schedule
from next_scale.tokenizer import Tokenizer

SMALL = {"latent_channels": 8, "width": 24, "encoder_depth": 1, "decoder_depth": 2}


def codec_for(fft_size=256, hop=64, **options):
    torch.manual_seed(0)
    return SpectralCodec(16_000, fft_size, hop, **(SMALL | options))


@pytest.mark.parametrize("fft_size, hop", [(1024, 256), (256, 64), (256, 128), (512, 100)])
@pytest.mark.parametrize("frames", [1, 2, 64])
def test_stft_and_inverse_are_exact(fft_size, hop, frames):
    """Also at the clip's ends, which only the window's foot covers."""
    codec = codec_for(fft_size, hop)
    wave = torch.randn(3, frames * hop)
    spectrum = codec.stft(wave)
    assert spectrum.shape == (3, fft_size // 2 + 1, frames)
    torch.testing.assert_close(codec.inverse_stft(spectrum), wave, atol=2e-5, rtol=0)


@pytest.mark.parametrize("frames", [1, 5, 16])
def test_shapes_and_values(frames):
    codec = codec_for().eval()
    wave = 0.3 * torch.randn(2, 1, frames * codec.hop)
    latent = codec.encode(wave)
    assert latent.shape == (2, 8, frames) and torch.equal(latent, codec.encode_log_magnitude(codec.log_magnitude(wave)))
    assert codec.log_magnitude(wave).shape == codec.decode_spectrum(latent)[0].shape == (2, 129, frames)
    made = codec.decode(latent)
    assert made.shape == wave.shape and made.isfinite().all()
    assert torch.equal(made, codec.decode(latent))  # nothing is drawn at random


def test_an_untrained_decoder_cannot_overflow():
    codec = codec_for().eval()
    assert codec.decode(1e4 * torch.randn(1, 8, 16)).isfinite().all()
    assert codec.decode_spectrum(1e4 * torch.randn(1, 8, 16))[0].max() <= codec.ceiling


def test_magnitudes_are_floored_softly():
    codec = codec_for()
    silent = codec.log_magnitude(torch.zeros(1, 1, 640))
    torch.testing.assert_close(silent.exp(), torch.full_like(silent, codec.floor))
    loud = 0.5 * torch.randn(1, 640)
    want = codec.stft(loud).abs()
    big = want > 0.1
    torch.testing.assert_close(codec.log_magnitude(loud[:, None]).exp()[big], want[big], rtol=1e-4, atol=0)


@pytest.mark.parametrize("polish", [0, 2])
def test_gradients_of_synthesis_reach_the_magnitudes(polish):
    codec = codec_for(polish=polish)
    magnitude = codec.log_magnitude(0.3 * torch.randn(2, 1, 640)).detach().requires_grad_()
    codec.synthesize(magnitude).square().sum().backward()
    assert magnitude.grad.isfinite().all() and (magnitude.grad != 0).float().mean() > 0.9
    silent = codec.log_magnitude(torch.zeros(1, 1, 640)).detach().requires_grad_()
    codec.synthesize(silent).square().sum().backward()
    assert silent.grad.isfinite().all()


def test_polish_makes_frames_agree():
    """Griffin-Lim from the locked phases brings the magnitudes of what sounds closer to those asked for."""
    wave = 0.3 * torch.randn(1, 1, 4096)
    error = []
    for polish in (0, 8):
        codec = codec_for(polish=polish)
        asked = codec.stft(wave[:, 0]).abs()
        made = codec.stft(codec.synthesize(codec.log_magnitude(wave))[:, 0]).abs()
        error.append((made - asked).norm() / asked.norm())
    assert error[1] < 0.7 * error[0]


def test_tiny_training_reaches_a_stated_loss():
    """Eight notes through 8 channels a frame: mean log10-mel difference from above 1 to below 0.4 in 150 steps."""
    torch.manual_seed(0)
    time = torch.arange(2048) / 16_000
    pitch = torch.tensor([110.0, 147, 196, 262, 330, 440, 587, 880])[:, None]
    wave = sum(torch.sin(2 * torch.pi * n * pitch * time) / n for n in (1, 2, 3)) * torch.exp(-10 * time) * 0.4
    wave = wave[:, None]
    codec, objective = codec_for(width=48), AudioObjective(16_000, 256, frequency=1.0)
    optimizer = torch.optim.AdamW(codec.parameters(), 3e-3)
    values = []
    for _ in range(150):
        loss, terms = objective(codec, wave, codec.encode(wave))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
        values.append(terms["mel"].item())
    assert values[0] > 1 and values[-1] < 0.4


@pytest.mark.parametrize("half", [False, True])
def test_checkpoint_round_trip(half, tmp_path):
    tokenizer = Tokenizer(codec_for(), MultiScaleQuantizer(Schedule.parse("1 2 4 8"), 8, 32)).eval()
    save_pretrained(tokenizer, tmp_path, torch.float16 if half else None)
    again = from_pretrained(tmp_path)
    assert again.autoencoder.to_config() == tokenizer.autoencoder.to_config()
    wave = 0.3 * torch.randn(2, 1, 512)
    near = {"atol": 2e-2, "rtol": 2e-2} if half else {"atol": 0, "rtol": 0}
    torch.testing.assert_close(again.autoencoder.encode(wave), tokenizer.autoencoder.encode(wave), **near)
    assert not any("window" in name for name in tokenizer.state_dict())


def test_built_by_name():
    codec = build_codec("spectral", **codec_for().to_config())
    assert isinstance(codec, SpectralCodec) and (codec.sample_rate, codec.hop, codec.latent_channels) == (16_000, 64, 8)
