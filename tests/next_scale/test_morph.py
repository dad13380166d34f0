"""The morph: pyramids that begin as words and end as samples, their loss, and codebooks that serve both."""

import pytest
import torch

from audio_var.codecs import build_codec
from image_var.autoencoder import build_autoencoder
from next_scale.condition import collate_conditions
from next_scale.conditioning import encode_prompt
from next_scale.errors import UserError
from next_scale.model import Generator
from next_scale.morph import (
    MorphTraining,
    default_scales,
    draw_samples,
    frames,
    given_tokens,
    morph,
    morph_tokens,
    place_codebooks,
)
from next_scale.predictors import Masked, NextScale
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule
from next_scale.tokenizer import Tokenizer

WORDS = {"kind": "rendered", "lines": 2, "height": 8, "columns": 32, "patch": 8}


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    sizes = {"width": 8, "multipliers": (1, 1, 2), "encoder_blocks": 1, "decoder_blocks": 1, "latent_channels": 4}
    autoencoder = build_autoencoder("vqgan", channels_in=1, **sizes)
    quantizer = MultiScaleQuantizer(Schedule.parse("1x1 2x2 4x4 4x4 4x4"), 4, 16, phis=0).eval()
    quantizer.start(torch.randn(64, 4, 4, 4))
    return Tokenizer(autoencoder, quantizer).eval()


def predictor_of(tokenizer, kind=NextScale, **options):
    torch.manual_seed(1)
    sizes = {"width": 32, "depth": 1, "heads": 2, "words": WORDS, **options}
    return kind.for_quantizer(tokenizer.quantizer, {}, **sizes).eval()


def test_words_are_drawn_as_large_as_samples(tokenizer):
    drawn = draw_samples(tokenizer, ["bag", "ankle boot"])
    assert drawn.shape == (2, 1, 16, 16) and drawn.min() == -1 and drawn.max() > 0
    assert (drawn[0, 0, :4] == -1).all() and (drawn[1, 0, :8] > -0.5).any()  # one word in the middle, two on all rows
    with pytest.raises(UserError, match="3 words do not fit on 16 rows"):
        draw_samples(tokenizer, ["a b c"])
    codec = build_codec("spectral", sample_rate=16000, fft_size=256, hop=64, latent_channels=4, width=16,
                        encoder_depth=1, decoder_depth=1)  # fmt: skip
    quantizer = MultiScaleQuantizer(Schedule.parse("1 2 4"), 4, 16)
    with pytest.raises(UserError, match="two dimensions"):
        draw_samples(Tokenizer(codec, quantizer), ["bag"])


def test_pyramids_begin_as_words_and_add_what_is_missing(tokenizer):
    quantizer, schedule = tokenizer.quantizer, tokenizer.quantizer.schedule
    torch.manual_seed(2)
    latent, words = torch.randn(3, 4, 4, 4), torch.randint(16, (3, schedule.length))
    given = torch.tensor([0, 2, 5])
    tokens = morph_tokens(quantizer, words, latent, given)
    assert torch.equal(tokens[0], quantizer.encode(latent[:1])[0])
    forced = given_tokens(schedule, given)
    assert forced.sum(1).tolist() == [0, 5, schedule.length]
    assert torch.equal(tokens[forced], words[forced])
    # every later scale is nearest to what the sum so far lacks: none of another token would leave less
    sums = [quantizer.decode(tokens[1:2], count) for count in range(2, 6)]
    errors = [float((latent[1] - total).square().mean()) for total in sums]
    assert errors[-1] < errors[0]


def test_given_tokens_are_seen_and_not_learned(tokenizer):
    model = predictor_of(tokenizer)
    tokens = torch.randint(16, (2, tokenizer.quantizer.schedule.length))
    inputs = model.inputs(tokenizer.quantizer, tokens)
    given = given_tokens(tokenizer.quantizer.schedule, torch.tensor([3, 3]))
    other = torch.where(given, (tokens + 1) % 16, tokens)
    losses = [model.loss(one, inputs, {}, given) for one in (tokens, other)]
    assert torch.equal(losses[0].loss, losses[1].loss)
    assert losses[0].per_scale[:3].abs().sum() == 0 and (losses[0].per_scale[3:] > 1).all()
    none = model.loss(tokens, inputs, {}, torch.zeros_like(given))
    torch.testing.assert_close(none.loss, model.loss(tokens, inputs, {}).loss)


def test_a_model_learns_to_morph(tokenizer):
    """Two prompts, two samples: greedy generation from the words' scales ends at the sample that they name."""
    quantizer, schedule = tokenizer.quantizer, tokenizer.quantizer.schedule
    texts = ["bag", "boot"]
    condition = collate_conditions([{"prompt": encode_prompt(text)} for text in texts], {})
    torch.manual_seed(3)
    latent = torch.randn(2, 4, 4, 4)
    plain = quantizer.encode(latent)
    model = predictor_of(tokenizer, condition_dropout=0.0, width=48)
    training = MorphTraining(tokenizer, model, 1.0)
    tokens, given = training.pyramids(plain, latent, condition, training=False)
    assert default_scales(schedule) == 2 and given.sum(1).tolist() == [5, 5]
    words = tokenizer.encode(draw_samples(tokenizer, texts))
    assert torch.equal(tokens[given], words[given])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.0)
    model.train()
    for _ in range(50):
        loss = model.loss(tokens, model.inputs(quantizer, tokens), condition, given).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    whole = Generator(tokenizer, model.eval(), SamplingOptions(temperature=0))
    made = morph(whole, texts, condition, [0, 1])
    assert (made == tokens).float().mean() > 0.95
    shown = list(frames(tokenizer, made[:1]))
    assert len(shown) == 5 and torch.equal(shown[-1], tokenizer.decode(made[:1]))
    with pytest.raises(UserError, match="9 scales were asked for, and there are 5"):
        morph(whole, texts, condition, [0, 1], scales=9)
    # in training the number of given scales varies, and some samples stay whole
    some = MorphTraining(tokenizer, model, 0.5)
    counts = {int(n) for _ in range(20) for n in some.pyramids(plain, None, condition, training=True)[1].sum(1)}
    assert counts == {0, 1, 5}


def test_codebooks_for_both(tokenizer):
    """Codes placed on samples alone cannot draw words; those placed on both can, and take them away again."""
    torch.manual_seed(4)
    latent = 0.3 * torch.randn(200, 4, 4, 4)
    words = torch.randn(200, 4, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    count = default_scales(tokenizer.quantizer.schedule)
    drawn = []
    for place in (lambda q: q.start(latent), lambda q: place_codebooks(q, latent, words)):
        quantizer = MultiScaleQuantizer(tokenizer.quantizer.schedule, 4, 16, phis=0).eval()
        place(quantizer)
        tokens = morph_tokens(quantizer, quantizer.encode(words), latent, torch.full((200,), count))
        drawn.append(float((quantizer.decode(tokens, count) - words).square().mean()))
    ended = float((quantizer.decode(tokens) - latent).square().mean())
    assert drawn[1] < 0.7 * drawn[0] and ended < 0.7 * float(latent.square().mean())


def test_what_does_not_morph(tokenizer):
    with pytest.raises(UserError, match="'masked' does not morph"):
        MorphTraining(tokenizer, predictor_of(tokenizer, Masked), 0.5)
    with pytest.raises(UserError, match="set model.words too"):
        MorphTraining(tokenizer, predictor_of(tokenizer, words=None), 0.5)
