"""Tiny image models with random weights, for everything that needs a model and not a good one."""

from pathlib import Path

import pytest
import torch

from image_var.autoencoder import build_autoencoder
from next_scale.checkpoint import save_pretrained
from next_scale.model import Generator
from next_scale.predictors import NextScale
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule, StrideSchedule
from next_scale.tokenizer import Tokenizer

LABELS = ["t-shirt", "sneaker", "bag", "ankle-boot"]


def build_image_tokenizer(
    seed: int = 0, channels: int = 1, schedule: Schedule | StrideSchedule | None = None
) -> Tokenizer:
    """Four times down, 8 x 8 latents and 85 tokens of 16 codes an image of 32 x 32."""
    torch.manual_seed(seed)
    autoencoder = build_autoencoder(
        "vqgan", channels_in=channels, width=8, multipliers=(1, 1, 2), encoder_blocks=1, decoder_blocks=1,
        latent_channels=4,
    )  # fmt: skip
    schedule = schedule or Schedule.parse("1x1 2x2 4x4 8x8")
    quantizer = MultiScaleQuantizer(schedule, 4, codebook_size=16, phis=2, dim=2).eval()
    quantizer.start(torch.randn(64, 4, *(schedule.grid if isinstance(schedule, Schedule) else (8, 8))))
    with torch.no_grad():
        autoencoder.decoder.conv_out.weight *= 4  # images of some contrast
    return Tokenizer(autoencoder, quantizer).eval()


def build_image_generator(
    seed: int = 0, channels: int = 1, spec: dict | None = None, schedule: Schedule | None = None
) -> Generator:
    """The tiny tokenizer with a transformer whose gates and head are open, as after training."""
    tokenizer = build_image_tokenizer(seed, channels, schedule)
    predictor = NextScale(
        tokenizer.quantizer.schedule, 16, 4, {"label": LABELS} if spec is None else spec, width=32, depth=2, heads=2
    )
    with torch.no_grad():
        for name, parameter in predictor.named_parameters():
            if "modulation" in name or "head" in name:
                parameter.normal_(std=0.3)
    return Generator(tokenizer, predictor, SamplingOptions(cfg=1.0, top_k=8)).eval()


@pytest.fixture
def program():
    """Tests here run `image-var`."""
    from image_var.cli import main

    return "image-var", main


@pytest.fixture(scope="session")
def tiny_generator() -> Generator:
    """A gray tokenizer and a predictor in memory; do not change it."""
    return build_image_generator()


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint folder; do not change it."""
    return save_pretrained(tiny_generator, tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of RGB images with other weights and numbered classes."""
    model = build_image_generator(1, 3, {"label": list(range(1000))})
    return save_pretrained(model, tmp_path_factory.mktemp("checkpoint") / "other")


@pytest.fixture(scope="session")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of RGB images, 32 high and 64 wide, of classes with awkward names."""
    model = build_image_generator(3, 3, {"label": ["日本", "a/b, c"]}, Schedule.parse("1x1 2x4 4x8 8x16"))
    return save_pretrained(model, tmp_path_factory.mktemp("checkpoint") / "wide")


@pytest.fixture(scope="session")
def tokenizer_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An RGB tokenizer without predictor, of any size that divides by 16."""
    tokenizer = build_image_tokenizer(2, 3, StrideSchedule((4, 2, 1)))
    return save_pretrained(tokenizer, tmp_path_factory.mktemp("checkpoint") / "tokenizer")
