"""The tokenizer's objective: its terms, its switches, and adversarial training with both codecs."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from audio_var.codecs.seanet import SeanetCodec
from audio_var.codecs.spectral import SpectralCodec
from audio_var.objective import AudioObjective, SpectrumLoss
from next_scale.errors import UserError
from next_scale.training import TokenizerModule

SAMPLES = 2048


def spectral():
    torch.manual_seed(0)
    return SpectralCodec(16_000, 256, 64, latent_channels=4, width=16, encoder_depth=1, decoder_depth=1)


def seanet():
    torch.manual_seed(0)
    return SeanetCodec(16_000, dimension=4, n_filters=2, ratios=(4, 4, 2, 2), lstm=0)


def clips(count=2):
    generator = torch.Generator().manual_seed(0)
    return 0.3 * torch.randn(count, 1, SAMPLES, generator=generator)


def test_spectrum_loss_is_zero_for_equal_spectra_and_blind_to_level():
    codec, loss = spectral(), SpectrumLoss(16_000, 256)
    wave = clips()
    magnitude, peak = codec.log_magnitude(wave), wave.abs().amax((1, 2))
    none = torch.zeros_like(magnitude)  # the frequencies that the magnitudes tell are right
    assert all(value == 0 for value in loss(magnitude, none, magnitude, peak).values())
    terms = loss(magnitude + 0.5, none + 0.25, magnitude, peak)
    torch.testing.assert_close(terms["frequency"], torch.tensor(0.25))
    quiet = loss(magnitude - 2 + 0.5, none + 0.25, magnitude - 2, peak * torch.exp(torch.tensor(-2.0)))
    for name in ("magnitude", "mel", "convergence", "frequency"):
        assert terms[name] > 0.1
        torch.testing.assert_close(quiet[name], terms[name], rtol=1e-3, atol=1e-4)
    silence = loss(magnitude, none, codec.log_magnitude(0 * wave), torch.zeros(2))
    assert all(value.isfinite() for value in silence.values())


TERMS = ("magnitude", "mel", "convergence", "frequency", "waveform_mel", "waveform_stft")


@pytest.mark.parametrize("term", TERMS)
def test_every_term_has_a_switch_and_a_gradient(term):
    off = dict.fromkeys(TERMS, 0.0)
    codec, wave = spectral(), clips()
    latent = codec.encode(wave).detach().requires_grad_()
    loss, terms = AudioObjective(fft_size=256, **(off | {term: 2.0}))(codec, wave, latent)
    torch.testing.assert_close(loss, 2 * terms[term])
    assert not terms[term].requires_grad
    loss.backward()
    assert latent.grad.isfinite().all() and latent.grad.abs().sum() > 0
    assert AudioObjective(fft_size=256, **off)(codec, wave, latent) == (0, {})


def test_spectral_terms_need_a_codec_with_magnitudes():
    with pytest.raises(UserError, match="frequency to 0"):
        AudioObjective()(seanet(), clips(), torch.zeros(2, 4, 32))


@pytest.mark.parametrize("build", [spectral, seanet])
def test_adversarial_adds_the_judgement(build):
    weights = {"magnitude": 0.0, "mel": 0.0, "convergence": 0.0, "frequency": 0.0, "waveform_mel": 1.0}
    codec, wave = build(), clips()
    objective = AudioObjective(fft_size=256, **weights, adversarial=0.5, features=2.0, discriminator_filters=2)
    latent = codec.encode(wave)
    plain, terms = objective(codec, wave, latent)
    loss, judged, fake = objective.adversarial(codec, wave, latent)
    assert fake.shape == wave.shape and set(judged) == set(terms) | {"adversarial", "features"}
    torch.testing.assert_close(loss, plain + 0.5 * judged["adversarial"] + 2 * judged["features"])
    loss.backward()
    assert all(p.grad is None for p in objective.discriminator.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in codec.encoder.parameters())
    objective.discriminator_loss(wave, fake.detach()).backward()
    assert all(p.grad is not None for p in objective.discriminator.parameters())
    assert AudioObjective(**weights).discriminator is None


@pytest.mark.parametrize("build", [spectral, seanet])
def test_adversarial_training_steps(build, tmp_path):
    """Manual optimization of both sides from the fourth step on, by Lightning, with quantizer and codec."""
    codec = build()
    spectrum = 1.0 if build is spectral else 0.0
    objective = AudioObjective(
        fft_size=256,
        magnitude=spectrum,
        mel=spectrum,
        convergence=spectrum,
        frequency=spectrum,
        waveform_mel=1.0,
        adversarial=1.0,
        features=1.0,
        discriminator_filters=2,
    )
    module = TokenizerModule(
        codec, objective, "1 2 4 8 16 32", {"codebook_size": 16}, quantize_after=2, start_samples=4, adversarial_after=3
    )
    judge = [p.clone() for p in objective.discriminator.parameters()]
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            moved = any(not torch.equal(a, b) for a, b in zip(judge, objective.discriminator.parameters(), strict=True))
            metrics = {name.removeprefix("train/") for name in trainer.callback_metrics}
            seen.append((trainer.global_step, moved, metrics))

    data = DataLoader([{"sample": clip} for clip in clips(4)], 2)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=5,
        logger=False,
        callbacks=[Watch()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        num_sanity_val_steps=0,
    )
    before = [p.clone() for p in codec.parameters()]
    trainer.fit(module, data, data)
    assert [step for step, _, _ in seen] == [1, 2, 3, 4, 5]
    assert [moved for _, moved, _ in seen] == [False, False, False, True, True]
    assert {"adversarial", "features", "discriminator", "quantizer", "loss"} <= seen[-1][2]
    assert "quantizer" not in seen[1][2] and "quantizer" in seen[2][2]
    assert trainer.callback_metrics["val/loss"].isfinite()
    assert all(p.isfinite().all() for p in module.parameters())
    assert sum(not torch.equal(a, b) for a, b in zip(before, codec.parameters(), strict=True)) > len(before) // 2
