import math

import pytest
import torch
import torchaudio

from audio_var.discriminator import AdversarialLoss
from audio_var.losses import LogMelLoss, MelDistance, MelSpectrum, MultiResolutionSTFTLoss, Spectrum, log_mel_distance
from next_scale.errors import UserError

RATE = 16000


def noise(*shape, seed=0, level=0.1):
    return level * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tiny_losses():
    return [
        LogMelLoss(RATE, windows=(64, 128), bands=(5, 8)),
        LogMelLoss(RATE, windows=(64,), bands=(5,), soft=False),
        MultiResolutionSTFTLoss(windows=(32, 128)),
        MultiResolutionSTFTLoss(windows=(64,), convergence=0.0),
        MultiResolutionSTFTLoss(windows=(64,), log_magnitude=0.0),
    ]


def test_power_spectrum_of_a_sine():
    # amplitude a at the centre of a bin: |STFT|^2 = (a * window sum / 2)^2 = (a * size / 4)^2
    size, bin_ = 512, 20
    t = torch.arange(4096)
    power = Spectrum(size)(0.5 * torch.sin(2 * math.pi * bin_ * t / size))
    middle = power[0, :, power.shape[2] // 2]
    assert middle.argmax() == bin_
    assert middle[bin_] == pytest.approx((0.5 * size / 4) ** 2, rel=1e-4)


@pytest.mark.parametrize(("window", "bands"), [(512, 40), (1024, 80), (2048, 128)])
def test_mel_is_that_of_torchaudio(window, bands):
    x = noise(2, 5000)
    options = dict(hop_length=window // 4, n_mels=bands, pad_mode="constant")
    theirs = torchaudio.transforms.MelSpectrogram(RATE, window, **options)
    torch.testing.assert_close(MelSpectrum(RATE, window, bands)(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_distance_of_a_gain_is_its_logarithm():
    # far above the floor, halving the amplitude moves every power by log10 4
    x = noise(2, 16384, level=0.3)
    assert log_mel_distance(x, 0.5 * x, RATE).item() == pytest.approx(math.log10(4), abs=1e-3)
    assert log_mel_distance(x, x, RATE).item() == 0


def test_distance_does_not_depend_on_common_gain_unless_asked():
    x, y = noise(3, 8000, level=0.3), noise(3, 8000, seed=1, level=0.3)
    torch.testing.assert_close(MelDistance(RATE)(x, y), MelDistance(RATE)(0.01 * x, 0.01 * y), rtol=1e-3, atol=1e-3)
    as_is = MelDistance(RATE, peak=None)
    assert as_is(1e-4 * x, 1e-4 * y).max() < 0.5 * as_is(x, y).min()  # the floor swallows what is quiet


def test_distance_is_one_value_a_clip_and_counts_only_above_the_floor():
    x = noise(4, 1, 3000)
    distance = MelDistance(RATE)(x, x + noise(4, 1, 3000, seed=1, level=1e-7))
    assert distance.shape == (4,) and distance.max() < 1e-3
    assert MelDistance(RATE)(torch.zeros(1, 100), torch.zeros(1, 100)).item() == 0


def test_hard_loss_equals_metric():
    x, y = noise(2, 8192), noise(2, 8192, seed=3)
    loss = LogMelLoss(RATE, soft=False)(y, x)
    assert loss.item() == pytest.approx(log_mel_distance(x, y, RATE, peak=None).item(), rel=1e-5)
    assert LogMelLoss(RATE)(y, x).item() == pytest.approx(loss.item(), rel=0.02)


@pytest.mark.parametrize("number", range(5))
def test_gradient_is_the_finite_difference(number):
    loss = tiny_losses()[number]
    x, y = noise(1, 150).double(), noise(1, 150, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda estimate: loss(estimate, x), (y,), eps=1e-8, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("length", [1, 37, 1000])
def test_silence_gives_finite_values_and_gradients(number, length):
    loss = tiny_losses()[number]
    for estimate, target in ((0, 0), (0, 1), (1, 0)):
        y = (estimate * noise(2, 1, length)).requires_grad_()
        value = loss(y, target * noise(2, 1, length, seed=1))
        value.backward()
        assert value.isfinite() and y.grad.isfinite().all()


@pytest.mark.parametrize("number", range(5))
def test_losses_are_zero_at_the_target_and_fall_towards_it(number):
    loss = tiny_losses()[number]
    x, y = noise(2, 1, 500), noise(2, 1, 500, seed=1)
    assert loss(x, x).item() < 1e-4
    assert loss(x + 0.05 * y, x) < loss(y, x)


def test_losses_keep_float32_under_autocast():
    x, y = noise(1, 2000), noise(1, 2000, seed=1)
    loss = LogMelLoss(RATE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(y, x).item() == pytest.approx(loss(y.float(), x.float()).item(), rel=1e-6)
        assert loss.mels[0](x).dtype == torch.float32


@pytest.mark.parametrize("kind", ["hinge", "least_squares"])
def test_adversarial_sides_leave_each_other_alone(kind):
    torch.manual_seed(0)
    loss = AdversarialLoss(filters=4, n_ffts=(128, 256), kind=kind)
    real, fake = noise(2, 1, 600), noise(2, 1, 600, seed=1).requires_grad_()
    adversarial, features = loss.generator_loss(real, fake)
    (adversarial + features).backward()
    assert fake.grad.abs().sum() > 0 and all(p.grad is None for p in loss.parameters())
    assert loss.generator_loss(real, real)[1].item() == 0
    fake.grad = None
    loss.discriminator_loss(real, fake).backward()
    assert fake.grad is None and all(p.grad is not None for p in loss.parameters())


def test_discriminator_learns_and_generator_loss_follows():
    torch.manual_seed(0)
    loss = AdversarialLoss(filters=4, n_ffts=(128,))
    real = torch.sin(torch.arange(600) * 0.3).expand(2, 1, -1)
    fake = noise(2, 1, 600, level=0.5)
    optimizer = torch.optim.Adam(loss.parameters(), 3e-3)
    first = loss.generator_loss(real, fake)[0].item()
    for _ in range(30):
        optimizer.zero_grad()
        value = loss.discriminator_loss(real, fake)
        value.backward()
        optimizer.step()
    assert value < 0.5 and loss.generator_loss(real, fake)[0].item() > first + 0.3


def test_unknown_adversarial_loss_is_a_user_error():
    with pytest.raises(UserError, match="hinge"):
        AdversarialLoss(kind="wasserstein")
