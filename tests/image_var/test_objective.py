"""The tokenizer's objective: its terms, its switches, the discriminator and its adaptive weight, VGG16's weights."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from image_var.autoencoder import ConvAutoencoder
from image_var.discriminator import PatchDiscriminator
from image_var.objective import ImageObjective
from image_var.perceptual import PerceptualLoss
from next_scale.errors import UserError


def autoencoder(channels=1):
    torch.manual_seed(0)
    return ConvAutoencoder(channels, 4, (1, 2), 1, 1, attention=False, latent_channels=3)


def images(channels=1, count=2, side=32):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, side, side, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """VGG16's convolutions with random weights, as torchvision names them."""
    torch.manual_seed(0)
    state, channels, place = {}, 3, 0
    for width, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            state[f"features.{place}.weight"] = torch.randn(width, channels, 3, 3) * (2 / (9 * channels)) ** 0.5
            state[f"features.{place}.bias"] = torch.zeros(width)
            channels, place = width, place + 2
        place += 1  # pooling
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file(state | {"classifier.0.weight": torch.zeros(2, 2)}, path)
    return path


@pytest.mark.parametrize("term", ["l1", "l2"])
def test_every_term_has_a_switch_and_a_gradient(term):
    off = dict.fromkeys(("l1", "l2"), 0.0)
    model, x = autoencoder(), images()
    latent = model.encode(x).detach().requires_grad_()
    loss, terms = ImageObjective(**(off | {term: 2.0}))(model, x, latent)
    difference = model.decode_raw(latent) - x
    torch.testing.assert_close(terms[term], (difference.abs() if term == "l1" else difference.square()).mean())
    torch.testing.assert_close(loss, 2 * terms[term])
    assert not terms[term].requires_grad
    loss.backward()
    assert latent.grad.isfinite().all() and latent.grad.abs().sum() > 0
    assert ImageObjective(**off)(model, x, latent) == (0, {})


def test_gradients_reach_what_the_clamp_would_hide():
    model, x = autoencoder(), images()
    with torch.no_grad():
        model.decoder.conv_out.bias.fill_(5.0)
    latent = model.encode(x).detach().requires_grad_()
    ImageObjective()(model, x, latent)[0].backward()
    assert latent.grad.abs().sum() > 0


@pytest.mark.parametrize("adaptive", [False, True])
def test_adversarial_adds_the_judgement(adaptive):
    model, x = autoencoder(3), images(3)
    objective = ImageObjective(adversarial=0.8, adaptive=adaptive, discriminator_width=4, discriminator_layers=2)
    latent = model.encode(x)
    plain, terms = objective(model, x, latent)
    loss, judged, fake = objective.adversarial(model, x, latent)
    assert fake.shape == x.shape
    assert set(judged) - set(terms) == {"adversarial"} | ({"adaptive_weight"} if adaptive else set())
    weight = judged.get("adaptive_weight", torch.tensor(0.8))
    torch.testing.assert_close(loss, plain + weight * judged["adversarial"])
    if adaptive:  # but for the recipe's own weight both sides push the last layer alike
        terms = (plain, judged["adaptive_weight"] * objective.discriminator.generator_loss(fake))
        push = [torch.autograd.grad(t, model.last_layer, retain_graph=True)[0].norm() for t in terms]
        assert float(push[1]) == pytest.approx(0.8 * float(push[0]), rel=0.05)
    loss.backward()
    assert all(p.grad is None for p in objective.discriminator.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    objective.discriminator_loss(x, fake.detach()).backward()
    assert all(p.grad is not None for p in objective.discriminator.parameters())
    assert ImageObjective().discriminator is None


def test_the_adaptive_weight_is_limited():
    last = torch.ones(2, requires_grad=True)
    compared, silent = 1e9 * last.sum(), 0.0 * last.sum()
    assert float(ImageObjective.adaptive_weight(compared, silent, last)) == 1e4
    assert float(ImageObjective.adaptive_weight(silent, compared, last)) == 0


def test_the_discriminator_looks_at_patches_and_learns():
    for layers, side in ((1, 16), (2, 34), (3, 70)):
        judge = PatchDiscriminator(1, 2, layers)
        for part in judge.modules():  # norms look at the whole image: without them
            if isinstance(part, nn.GroupNorm):
                part.forward = lambda x: x
        x = torch.zeros(1, 1, 96, 96, requires_grad=True)
        judgement = judge(x)
        middle = judgement.shape[-1] // 2
        judgement[0, 0, middle, middle].backward()
        seen = x.grad[0, 0].abs().sum(0).nonzero()
        assert int(seen.max() - seen.min()) + 1 == side
    judge = PatchDiscriminator(1, 8, 2)
    optimizer = torch.optim.Adam(judge.parameters(), 2e-3)
    real, fake = images(count=8), images(count=8).mean((2, 3), keepdim=True).expand(-1, -1, 32, 32)
    start = judge.loss(real, fake).item()
    for _ in range(20):
        optimizer.zero_grad()
        judge.loss(real, fake).backward()
        optimizer.step()
    assert start > 0.7 and judge.loss(real, fake).item() < 0.1
    assert judge.generator_loss(fake).item() > 0.5 > -0.5 > judge.generator_loss(real).item()
    with pytest.raises(UserError, match="start at 1"):
        PatchDiscriminator(3, 0)


def test_perceptual_loss(weights):
    loss, x = PerceptualLoss(weights), images()
    assert loss(x, x).item() == 0 and not list(loss.parameters()) and not loss.state_dict()
    near, far = ((x + strength * images(count=2).flip(-1)).clamp(-1, 1) for strength in (0.05, 0.8))
    near.requires_grad_()
    value = loss(near, x)
    assert 0 < value.item() < loss(far, x).item()
    torch.testing.assert_close(loss(near.expand(-1, 3, -1, -1), x.expand(-1, 3, -1, -1)), value)
    value.backward()
    assert near.grad.abs().sum() > 0
    objective = ImageObjective(l1=0.0, perceptual=2.0, perceptual_weights=str(weights))
    model = autoencoder()
    total, terms = objective(model, x, model.encode(x))
    torch.testing.assert_close(total, 2 * terms["perceptual"])


def test_perceptual_weights_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="set perceptual_weights"):
        ImageObjective(perceptual=1.0)
    with pytest.raises(UserError, match="no weights at .*nothing.pth: give a state dict"):
        ImageObjective(perceptual=1.0, perceptual_weights=str(tmp_path / "nothing.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match="cannot be read"):
        PerceptualLoss(tmp_path / "text.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")  # a pickled object: it is not loaded
    with pytest.raises(UserError, match="holds more than tensors"):
        PerceptualLoss(tmp_path / "module.pth")
    torch.save({"features.0.weight": torch.zeros(64, 1, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not of VGG16 \\(features.0.weight"):
        PerceptualLoss(tmp_path / "other.pth")
