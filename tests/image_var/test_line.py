"""Images as a line: nothing is lost on the way, and it trains."""

import pytest
import torch

import image_var
from image_var.autoencoder import build_autoencoder
from image_var.data.fashion import LABELS
from image_var.line import LineAutoencoder
from image_var.objective import ImageObjective
from next_scale.checkpoint import from_pretrained, save_pretrained
from next_scale.errors import UserError
from next_scale.model import Generator
from next_scale.predictors import NextScale
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.schedule import parse_schedule
from next_scale.tokenizer import Tokenizer

SMALL = {"height": 8, "width": 8, "base": 8, "multipliers": (1, 2, 2), "latent_channels": 8}


@pytest.mark.parametrize("order", ["raster", "hilbert"])
def test_the_line_comes_back_as_the_image(order):
    model = LineAutoencoder(order, **SMALL)
    model.encoder = model.decoder = model.quant_conv = model.post_quant_conv = torch.nn.Identity()
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    assert torch.equal(model.decode(model.encode(x)), x)
    if order == "raster":
        assert torch.equal(model.encode(x), x.flatten(2))


def test_it_trains_and_is_restored(tmp_path):
    torch.manual_seed(0)
    model, objective = LineAutoencoder(**SMALL), ImageObjective(channels=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x = (torch.rand(16, 1, 2, 2) * 2 - 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    losses = []
    for _ in range(120):
        loss, _ = objective(model, x, model.encode(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    quantizer = MultiScaleQuantizer(parse_schedule("1 4 16"), 8, codebook_size=16)
    save_pretrained(Tokenizer(model, quantizer), tmp_path)
    again = from_pretrained(tmp_path).autoencoder
    assert again.to_config() == model.to_config() and torch.equal(again.eval()(x), model.eval()(x))


def test_the_program_draws_images_of_a_line(tmp_path):
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(parse_schedule("1 4 16"), 8, codebook_size=16)
    spec = {"label": list(LABELS)}
    predictor = NextScale.for_quantizer(quantizer, spec, width=16, depth=1, heads=2)
    save_pretrained(Generator(Tokenizer(LineAutoencoder(**SMALL), quantizer), predictor), tmp_path)
    model = image_var.load(tmp_path, "cpu")
    assert model.size == (8, 8) and model(count=1, label="bag").shape == (1, 1, 8, 8)


def test_bad_input():
    with pytest.raises(UserError, match="takes images of 8 x 8, not 8 x 16"):
        LineAutoencoder(**SMALL).encode(torch.zeros(1, 1, 8, 16))
    with pytest.raises(UserError, match="power of two, not 12 x 12"):
        build_autoencoder("line", height=12, width=12)
    with pytest.raises(UserError, match="a line of 63 pixels does not divide by 16"):
        build_autoencoder("line", order="raster", height=9, width=7)
    with pytest.raises(UserError, match="1 channel"):
        build_autoencoder("line", channels_in=2)
