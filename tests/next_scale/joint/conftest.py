"""Tiny joint models: of made-up pyramids, and of notes and pictures with tokenizers of random weights."""

from pathlib import Path

import pytest
import torch

from audio_var.codecs import build_codec
from image_var.autoencoder import ConvAutoencoder
from next_scale.checkpoint import save_pretrained
from next_scale.joint.generator import JointGenerator
from next_scale.joint.model import JointModel
from next_scale.joint.text import ByteCodec
from next_scale.joint.trunk import build_trunk
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule
from next_scale.tokenizer import Tokenizer

BLOCKS = {"kind": "blocks", "width": 32, "depth": 2, "heads": 2, "qk_norm": True}
LLAMA = {
    "kind": "language", "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 512,
}  # fmt: skip
LAYOUTS = ("text line", "line text", "text grid", "grid text", "line grid", "grid line", "grid text line")


def build_quantizer(schedule: str, codes: int = 16, channels: int = 4) -> MultiScaleQuantizer:
    torch.manual_seed(1)
    schedule = Schedule.parse(schedule)
    quantizer = MultiScaleQuantizer(schedule, channels, codes, phis=2).eval()
    quantizer.start(torch.randn(256, channels, *schedule.grid))
    return quantizer


def build_model(quantizers, layouts=LAYOUTS, trunk=BLOCKS, length=8, lively=True, **options) -> JointModel:
    """`lively` opens the gates and sharpens the heads as training would."""
    torch.manual_seed(2)
    pyramids = {
        name: {"schedule": each.schedule, "codes": each.codebook_size, "channels": each.channels}
        for name, each in quantizers.items()
    }
    model = JointModel(layouts, pyramids, build_trunk(trunk), ByteCodec(length), **options).eval()
    if lively:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "modulation" in name or "head" in name:
                    parameter.normal_(std=0.3)
    return model


def fill(model, quantizers, layout, batch=3):
    """A sequence of random content."""
    generator = torch.Generator().manual_seed(5)
    sequence = []
    for i, name in enumerate(layout.split()):
        closed = i + 1 < len(layout.split())
        if name == "text":
            sequence.append(model.fill(name, ["hello", "a", "äbcdefg"][:batch]))
        else:
            part = model.parts[name]
            tokens = torch.randint(part.codes, (batch, part.length), generator=generator)
            sequence.append(model.fill(name, tokens, quantizers[name], closed))
    return sequence


@pytest.fixture(scope="session")
def quantizers():
    return {"line": build_quantizer("1 2 4"), "grid": build_quantizer("1x1 2x2 3x3")}


@pytest.fixture(scope="session")
def make_model():
    return build_model


@pytest.fixture(scope="session")
def make_quantizer():
    return build_quantizer


@pytest.fixture(scope="session")
def fill_sequence():
    return fill


@pytest.fixture(scope="session")
def llama() -> dict:
    return LLAMA


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of random weights: of clips of 16,384 samples and of gray pictures of 32 x 32."""
    folder = tmp_path_factory.mktemp("tokenizers")
    torch.manual_seed(3)
    sizes = {"fft_size": 2048, "hop": 1024, "latent_channels": 4, "width": 16, "encoder_depth": 1, "decoder_depth": 1}
    codec = build_codec("spectral", sample_rate=16_000, **sizes)
    autoencoder = ConvAutoencoder(channels_in=1, width=8, multipliers=(1, 1, 1, 1), latent_channels=4)
    found = {}
    for name, model, schedule in (("audio", codec, "1 2 4 16"), ("image", autoencoder, "1x1 2x2 4x4")):
        tokenizer = Tokenizer(model, build_quantizer(schedule)).eval()
        found[name] = save_pretrained(tokenizer, folder / name)
    return found


@pytest.fixture(scope="session")
def joint_checkpoint(tokenizers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joint model of text, clips and pictures in a folder; do not change it."""
    from next_scale.checkpoint import from_pretrained

    loaded = {name: from_pretrained(path) for name, path in tokenizers.items()}
    layouts = ("text audio", "audio text", "text image", "image text", "audio image", "image audio", "image text audio")
    model = build_model({name: each.quantizer for name, each in loaded.items()}, layouts, length=16)
    sampling = {"audio": SamplingOptions(cfg=1.0, top_k=8)}
    return save_pretrained(JointGenerator(loaded, model, sampling), tmp_path_factory.mktemp("joint") / "tiny")
