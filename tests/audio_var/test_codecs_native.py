"""Codes of published codecs through this project's interface against what their own packages compute.

All weights are random: the published ones are downloads. What is compared is every code and the decoded waveform.
"""

import pytest
import torch
import torch.nn.functional as F

from audio_var.codecs.encodec import EncodecCodec
from audio_var.codecs.pretrained import PretrainedCodec, native_tokenizer
from next_scale.errors import UserError
from next_scale.schedule import StrideSchedule

SNAC = {
    "sampling_rate": 8000, "encoder_dim": 16, "encoder_rates": [2, 4], "decoder_dim": 64, "decoder_rates": [4, 2],
    "attn_window_size": 4, "codebook_size": 64, "codebook_dim": 4, "vq_strides": [8, 4, 2, 1],
}  # fmt: skip
ENCODEC = {"n_filters": 4, "dimension": 16, "ratios": [4, 2], "bins": 64, "codebooks": 8, "sample_rate": 8000}
HF_ENCODEC = {
    "model_type": "encodec", "sampling_rate": 8000, "num_filters": 4, "hidden_size": 16, "upsampling_ratios": [4, 2],
    "codebook_size": 64, "target_bandwidths": [24.0, 48.0], "num_lstm_layers": 1,
}  # fmt: skip
HF_DAC = {
    "model_type": "dac", "sampling_rate": 8000, "encoder_hidden_size": 4, "downsampling_ratios": [2, 5],
    "decoder_hidden_size": 16, "n_codebooks": 3, "codebook_size": 64, "codebook_dim": 4,
}  # fmt: skip
HF_MIMI = {
    "model_type": "mimi", "sampling_rate": 8000, "hidden_size": 32, "num_filters": 4, "upsampling_ratios": [4, 4, 2],
    "codebook_size": 64, "codebook_dim": 16, "vector_quantization_hidden_dimension": 16, "num_quantizers": 4,
    "num_hidden_layers": 1, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2,
    "upsample_groups": 32, "frame_rate": 125.0,
}  # fmt: skip


def noise(*shape: int) -> torch.Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def seeded(build):
    torch.manual_seed(1)
    return build()


def encodec_package(codec: EncodecCodec, **sizes):
    """An `EncodecModel` of the package with the weights and codebooks of the adapter."""
    from audio_var.codecs.encodec import VARIANTS, _model

    model = _model({**VARIANTS[codec.config["variant"]], **ENCODEC, **sizes}).eval()
    model.encoder.load_state_dict(codec.encoder.state_dict())
    model.decoder.load_state_dict(codec.decoder.state_dict())
    for layer, book in zip(model.quantizer.vq.layers, codec.levels.codebooks, strict=True):
        layer._codebook.embed.copy_(book)
    return model


class TestEncodec:
    @pytest.mark.parametrize("levels", [1, 4, 8])
    def test_24khz_codes_and_waveform(self, levels):
        codec = seeded(lambda: EncodecCodec("24khz", architecture=ENCODEC))
        model = encodec_package(codec)
        model.bandwidth = levels * 6 * 1.0  # 1,000 frames a second of 6 bits
        x = noise(2, 1, 1600)
        with torch.no_grad():
            ((codes, scale),) = model.encode(x)  # (B, K, T)
            wanted = model.decode([(codes, scale)])
        assert codes.shape == (2, levels, 200) and scale is None
        tokenizer = native_tokenizer(codec, levels)
        tokens = tokenizer.encode(x)
        assert torch.equal(tokens, codes.flatten(1))
        torch.testing.assert_close(tokenizer.decode(tokens, grid=(200,)), wanted, atol=1e-6, rtol=1e-5)

    def test_published_sizes_have_the_bandwidths_of_the_package(self):
        codec = EncodecCodec("24khz")
        assert (codec.sample_rate, codec.hop, codec.latent_channels) == (24000, 320, 128)
        assert len(codec.levels.strides) == 32 and codec.levels.codebooks[0].shape == (1024, 128)
        codec = EncodecCodec("48khz")
        assert (codec.sample_rate, codec.hop, codec.latent_channels) == (48000, 320, 129)
        assert len(codec.levels.strides) == 16

    def test_48khz_keeps_codes_stereo_and_loudness(self):
        codec = seeded(lambda: EncodecCodec("48khz", architecture=ENCODEC, stereo=True))
        model = encodec_package(codec)
        model.bandwidth = 24.0  # four codebooks
        x = 0.1 * noise(2, 2, 8000)
        with torch.no_grad():
            ((codes, scale),) = model.encode(x)
            wanted = model.decode([(codes, scale)])
        tokenizer = native_tokenizer(codec, 4)
        assert tokenizer.quantizer.schedule == StrideSchedule((1000, 1, 1, 1, 1))
        tokens = tokenizer.encode(x)
        assert torch.equal(tokens[:, 1:], codes.flatten(1))  # the first token is the gain
        made = tokenizer.decode(tokens, grid=(1000,))
        assert made.shape == (2, 2, 8000)
        ratio = (made * wanted).sum((1, 2)) / wanted.square().sum((1, 2))
        assert (20 * ratio.log10()).abs().max() < 0.9  # dB: half a step of 64 gain codes; of the published 1,024, 0.06

    def test_mono_in_mono_out_of_a_stereo_model(self):
        codec = seeded(lambda: EncodecCodec("48khz", architecture=ENCODEC))
        x = noise(1, 1, 800)
        latent = codec.encode(x)
        assert torch.equal(latent, codec.encode(x.expand(-1, 2, -1)))
        assert codec.decode(latent).shape == (1, 1, 800)

    def test_silence_is_finite(self):
        codec = seeded(lambda: EncodecCodec("48khz", architecture=ENCODEC))
        assert codec.decode(codec.encode(torch.zeros(1, 1, 800))).abs().max() < 1e-4


class TestSnac:
    @pytest.mark.parametrize("samples", [4000, 10400, 32000])  # 0.5, 1.3 and 4 s
    def test_codes_and_waveform_of_any_length(self, samples):
        package = pytest.importorskip("snac", reason="the snac package is an extra")
        from audio_var.codecs.snac import SnacCodec

        codec = seeded(lambda: SnacCodec(architecture=SNAC))
        model = seeded(lambda: package.SNAC(**SNAC)).eval()
        x = noise(2, 1, samples)
        with torch.no_grad():
            codes = model.encode(x)
            torch.manual_seed(0)  # of the decoder's noise
            wanted = model.decode(codes)
        tokenizer = native_tokenizer(codec)
        assert tokenizer.quantizer.schedule == StrideSchedule((8, 4, 2, 1))
        tokens = tokenizer.encode(x)
        assert torch.equal(tokens, torch.cat(codes, 1))
        made = tokenizer.decode(tokens, grid=(codes[-1].shape[1],))
        torch.testing.assert_close(made, wanted, atol=1e-6, rtol=1e-5)
        assert torch.equal(made, tokenizer.decode(tokens, grid=(codes[-1].shape[1],)))

    def test_without_attention(self):
        package = pytest.importorskip("snac", reason="the snac package is an extra")
        from audio_var.codecs.snac import SnacCodec

        sizes = {**SNAC, "attn_window_size": None, "vq_strides": [4, 2, 1]}
        codec, model = seeded(lambda: SnacCodec(architecture=sizes)), seeded(lambda: package.SNAC(**sizes)).eval()
        x = noise(1, 1, 777)
        assert codec.multiple == 4
        assert torch.equal(native_tokenizer(codec).encode(x), torch.cat(model.encode(x), 1))


class TestTransformers:
    @pytest.fixture(autouse=True)
    def library(self):
        return pytest.importorskip("transformers", reason="the transformers package is an extra")

    def codec(self, architecture: dict):
        from audio_var.codecs.huggingface import TransformersCodec

        return seeded(lambda: TransformersCodec(architecture=architecture))

    def model(self, library, name: str, architecture: dict):
        from audio_var.codecs.huggingface import _model

        return seeded(lambda: _model(library, name, None, architecture)).eval()

    def test_encodec(self, library):
        codec, model = self.codec(HF_ENCODEC), self.model(library, "encodec", HF_ENCODEC)
        x = noise(2, 1, 1600)
        with torch.no_grad():
            out = model.encode(x, bandwidth=24.0)
            wanted = model.decode(out.audio_codes, out.audio_scales).audio_values
        tokenizer = native_tokenizer(codec, out.audio_codes.shape[2])
        tokens = tokenizer.encode(x)
        assert torch.equal(tokens, out.audio_codes[0].flatten(1))
        torch.testing.assert_close(tokenizer.decode(tokens, grid=(200,)), wanted, atol=1e-6, rtol=1e-5)

    def test_dac(self, library):
        codec, model = self.codec(HF_DAC), self.model(library, "dac", HF_DAC)
        x = noise(2, 1, 1600)
        with torch.no_grad():
            out = model.encode(x)
            wanted = model.decode(audio_codes=out.audio_codes).audio_values
        tokenizer = native_tokenizer(codec)
        tokens = tokenizer.encode(x)
        assert torch.equal(tokens, out.audio_codes.flatten(1))
        made = tokenizer.decode(tokens, grid=(160,))[:, 0]
        assert made.shape == (2, 1600) and wanted.shape[1] <= 1600  # odd strides decode to a little less
        torch.testing.assert_close(made[:, : wanted.shape[1]], wanted, atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize("levels", [1, 4])
    def test_mimi(self, library, levels):
        codec, model = self.codec(HF_MIMI), self.model(library, "mimi", HF_MIMI)
        x = noise(1, 1, 2560)
        with torch.no_grad():
            codes = model.encode(x, num_quantizers=levels).audio_codes
            wanted = model.decode(codes).audio_values
        tokenizer = native_tokenizer(codec, levels)
        tokens = tokenizer.encode(x)
        assert torch.equal(tokens, codes.flatten(1))
        if levels == 4:  # with the semantic code alone, the library leaves the acoustic map out, not its value at zero
            made = tokenizer.decode(tokens, grid=(codes.shape[2],))
            torch.testing.assert_close(made, wanted, atol=1e-6, rtol=1e-5)

    def test_another_model_is_refused(self):
        with pytest.raises(UserError, match="no codec of the model_type 'bert'"):
            self.codec({"model_type": "bert"})


def test_dac_package():
    package = pytest.importorskip("dac", reason="the descript-audio-codec package is an extra")
    from audio_var.codecs.dac import DacCodec

    sizes = {
        "encoder_dim": 4, "encoder_rates": [2, 4], "decoder_dim": 16, "decoder_rates": [4, 2], "n_codebooks": 3,
        "codebook_size": 64, "codebook_dim": 4, "sample_rate": 8000,
    }  # fmt: skip
    codec, model = seeded(lambda: DacCodec(architecture=sizes)), seeded(lambda: package.DAC(**sizes)).eval()
    x = noise(2, 1, 1600)
    with torch.no_grad():
        latent, codes, *_ = model.encode(x)
        wanted = model.decode(latent)
    tokenizer = native_tokenizer(codec)
    tokens = tokenizer.encode(x)
    assert torch.equal(tokens, codes.flatten(1))
    torch.testing.assert_close(tokenizer.decode(tokens, grid=(200,)), wanted, atol=1e-6, rtol=1e-5)


class TestOwnCodebooksWithStrides:
    """Level q's residual averaged over a stride, over codebooks that were not made for it."""

    @pytest.mark.parametrize("samples", [512, 1024, 3200])
    def test_snac_style_by_the_book(self, samples):
        codec = seeded(lambda: EncodecCodec("24khz", architecture=ENCODEC))
        tokenizer = native_tokenizer(codec, strides=(8, 4, 2, 1))
        x = noise(2, 1, samples)
        residual = latent = codec.encode(x)
        wanted = []
        for stride, book in zip((8, 4, 2, 1), codec.levels.codebooks, strict=False):
            averaged = F.avg_pool1d(residual, stride).transpose(1, 2)  # (B, T / stride, C)
            wanted.append(torch.cdist(averaged, book).argmin(2))
            residual = residual - book[wanted[-1]].transpose(1, 2).repeat_interleave(stride, 2)
        tokens = tokenizer.encode(x)
        assert torch.equal(tokens, torch.cat(wanted, 1))
        made = tokenizer.decode(tokens, grid=(samples // 8,))
        torch.testing.assert_close(made, codec.decode(latent - residual), atol=1e-5, rtol=1e-4)

    def test_mistakes(self):
        codec = EncodecCodec("24khz", architecture=ENCODEC)
        with pytest.raises(UserError, match="8 levels, 9 were asked for"):
            native_tokenizer(codec, 9)
        with pytest.raises(UserError, match="2 levels need 2 strides"):
            native_tokenizer(codec, 2, (4, 2, 1))
        with pytest.raises(UserError, match="end at 1"):
            native_tokenizer(codec, strides=(4, 2))


def test_frozen_whatever_happens():
    codec = EncodecCodec("24khz", architecture=ENCODEC)
    codec.train()
    assert isinstance(codec, PretrainedCodec)
    assert not codec.training and not any(p.requires_grad for p in codec.parameters())
    latent = codec.encode(noise(1, 1, 800)).requires_grad_()
    codec.decode(latent).square().mean().backward()  # gradients pass through to what made the latent
    assert latent.grad.abs().sum() > 0
