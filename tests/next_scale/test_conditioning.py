"""Prompts as a condition: prefix tokens in every family, the same with kept keys and without, learned, and stored."""

import json

import pytest
import torch

from next_scale.condition import Conditioner, any_given, collate_conditions
from next_scale.conditioning import build_words, encode_prompt
from next_scale.conditioning.drawing import draw_words
from next_scale.errors import UserError
from next_scale.predictors import AnyLength, Flow, Masked, NextScale, NextToken, predictor_class
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule, StrideSchedule

RENDERED = {"kind": "rendered", "lines": 2, "height": 8, "columns": 32, "patch": 8}
BYTES = {"kind": "bytes", "length": 12}
PROMPTS = ["flute", "soft brass", "ash"]


def quantizer_for(schedule):
    torch.manual_seed(1)
    quantizer = MultiScaleQuantizer(schedule, 4, 16).eval()
    quantizer.start(torch.randn(256, 4, *(schedule.grid if isinstance(schedule, Schedule) else (8,))))
    return quantizer


def setup(kind, words=RENDERED, lively=True, **options):
    schedule = StrideSchedule((8, 4, 2, 1)) if kind is AnyLength else Schedule.parse("1 2 4 8")
    quantizer = quantizer_for(schedule)
    torch.manual_seed(2)
    sizes = {"width": 32, "depth": 2, "heads": 2, "words": words, **options}
    model = kind.for_quantizer(quantizer, {"pitch": [1, 2, 3]}, **sizes).eval()
    if lively:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "modulation" in name or "head" in name:
                    parameter.normal_(std=0.3)
    return quantizer, model


def batch_of(prompts, spec=None):
    rows = [{"prompt": encode_prompt(text)} if text else {} for text in prompts]
    return collate_conditions(rows, spec or {})


def test_a_batch_of_prompts():
    batch = batch_of(["flute", None])
    assert batch["prompt"].shape == (2, 256) and batch["prompt"].dtype == torch.int32
    assert any_given(batch) and not any_given({"prompt": batch["prompt"][1:]})
    assert "prompt" not in collate_conditions([{}, {}], {"label": ["a"]})


@pytest.mark.parametrize(
    "kind, words, cfg",
    [(NextScale, RENDERED, 2.0), (NextScale, BYTES, 0.0), (NextToken, RENDERED, 2.0), (AnyLength, BYTES, 2.0)],
)
def test_kept_keys_give_what_the_whole_sequence_gives(kind, words, cfg):
    """Greedy tokens of step by step generation are the most likely ones of the whole sequence, prefix and all."""
    quantizer, model = setup(kind, words)
    condition = batch_of([*PROMPTS[:2], None])
    tokens = model.generate(quantizer, condition, 3, SamplingOptions(temperature=0, cfg=cfg, cfg_ramp=False)).tokens
    if kind is AnyLength:
        quantizer.schedule = model.schedule
    with torch.no_grad():
        logits = model(model.inputs(quantizer, tokens), condition)
        if cfg:
            logits = torch.lerp(model(model.inputs(quantizer, tokens), {}), logits, 1 + cfg)
    assert torch.equal(tokens, logits.argmax(-1))
    assert not torch.equal(tokens[0], tokens[1])  # the words matter


@pytest.mark.parametrize("kind", [Masked, Flow, predictor_class("delay")])
def test_the_other_families_see_the_prompt(kind):
    quantizer, model = setup(kind) if kind is not predictor_class("delay") else delayed()
    condition = batch_of(PROMPTS[:2])
    drawn = model.generate(quantizer, condition, 2, SamplingOptions(cfg=1.0), seeds=[5, 5])
    assert not torch.equal(drawn.latent[0], drawn.latent[1])
    alone = model.generate(quantizer, batch_of(PROMPTS[1:2]), 1, SamplingOptions(cfg=1.0), seeds=[5])
    assert torch.equal(alone.tokens[0], drawn.tokens[1])
    loss = model.loss(drawn.tokens, model.inputs(quantizer, drawn.tokens), condition).loss
    loss.backward()
    assert model.conditioner.words.places.grad.abs().sum() > 0


def delayed():
    schedule = Schedule.parse("8 8")
    quantizer = quantizer_for(schedule)
    torch.manual_seed(2)
    model = predictor_class("delay").for_quantizer(quantizer, {}, width=32, depth=2, heads=2, words=RENDERED)
    with torch.no_grad():
        for parameter in (*model.transformer.modulation.parameters(), *model.transformer.head.parameters()):
            parameter.normal_(std=0.3)
    return quantizer, model.eval()


def test_all_tokens_see_the_whole_prefix_and_no_prefix_token_sees_them():
    _, model = setup(NextScale)
    ends = model.prefix.visible_end.tolist()
    assert ends == [8] * 8 + [9] + [11] * 2 + [15] * 4 + [23] * 8


@pytest.mark.parametrize("words", [RENDERED, BYTES], ids=["rendered", "bytes"])
def test_prompts_are_learned(words):
    """Three pyramids told apart by their prompt alone: from log 16 = 2.77 to below 0.3."""
    quantizer, model = setup(NextScale, words, lively=False, condition_dropout=0.0, depth=1)
    tokens = torch.randint(16, (3, 15), generator=torch.Generator().manual_seed(0))
    inputs, condition = model.inputs(quantizer, tokens), batch_of(PROMPTS)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.0)
    model.train()
    for _ in range(50):
        loss = model.loss(tokens, inputs, condition).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
    assert torch.equal(model.generate(quantizer, condition, 3, SamplingOptions(temperature=0)).tokens, tokens)


def test_the_null_prompt_is_learned_where_prompts_are_dropped():
    torch.manual_seed(0)
    conditioner = Conditioner({}, 16, dropout=0.5, words=RENDERED)
    given = conditioner.encode({"prompt": encode_prompt("ash").expand(200, -1)}, 200)
    null = conditioner.encode({}, 1)
    lost = (given.prefix - null.prefix).abs().amax((1, 2)) < 1e-6
    assert 70 < int(lost.sum()) < 130
    given.prefix.square().sum().backward()
    assert conditioner.words.null.grad.abs().sum() > 0
    with pytest.raises(UserError, match="'prompt' is the words'"):
        Conditioner({"prompt": ["a"]}, 8, words=BYTES)
    with pytest.raises(ValueError, match="prompt"):
        Conditioner({}, 8).encode({"prompt": encode_prompt("a")[None]}, 1)


@pytest.mark.parametrize("kind", [NextScale, AnyLength, Flow])
def test_a_config_builds_the_same_words_again(kind):
    _, model = setup(kind)
    again = kind.from_config(json.loads(json.dumps(model.to_config())))
    assert again.conditioner.words.to_config() == RENDERED
    again.load_state_dict(model.state_dict())
    assert "words" not in setup(kind, words=None)[1].to_config()  # older programs read what needs no words


# The kinds


def test_drawings():
    drawn = draw_words("soft flute", 3, 12, 64)
    assert drawn.shape == (36, 64) and drawn.dtype.name == "uint8"
    assert drawn[:12].max() > 200 and drawn[12:24].max() > 200 and not drawn[24:].any()
    assert (drawn[12:24, :40] > 0).sum() > 40
    wide, narrow = draw_words("mmmmmmmm", 1, 12, 96), draw_words("mmmmmmmm", 1, 12, 48)
    assert wide[:, 48:].any() and narrow[:, 36:].any()  # condensed to fit
    assert not (draw_words("שלום", 1, 12, 48) == draw_words("םולש", 1, 12, 48)).all()
    assert all(draw_words(letter, 1, 12, 16).any() for letter in "lтE|-é")


@pytest.mark.parametrize(
    "config, message",
    [
        ({}, "words need a kind, one of rendered, bytes, t5, clap; got 'None'"),
        ({"kind": "braille"}, "got 'braille'"),
        ({"kind": "bytes", "lines": 3}, "cannot be built"),
        ({"kind": "bytes", "length": 0}, "says nothing"),
        ({"kind": "rendered", "patch": 7}, "not cut into patches of 7"),
        ({"kind": "clap", "length": 3}, "leave length out"),
    ],
)
def test_bad_words(config, message):
    with pytest.raises(UserError, match=message):
        build_words(config, 16)


BAD = {
    "": "the prompt is empty",
    " \n\t\u200b": "the prompt is empty",
    "a" * 10_000: "10,000 characters",
    "w " * 200: "399 characters",
    "\x1b[31mred": r"control character, \\x1b",
    "a\x00b": r"control character, \\x00",
    "\udc80": r"control character, \\udc80",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_prompts_that_nothing_takes(text):
    with pytest.raises(UserError, match=BAD[text]) as error:
        encode_prompt(text)
    assert str(error.value).isprintable() and len(str(error.value)) < 200


@pytest.mark.parametrize("kind", ["rendered", "bytes"])
@pytest.mark.parametrize(
    "text",
    ["two\nlines\tand more", "مرحبا", "שלום", "😀😂", "e\u0301\u0302\u0303\u0304\u0305", "\u202eevil\u202c", "ﬁ…½",
     "漢字", "🥾", "a b c d e f g h i", "x" * 80],
)  # fmt: skip
def test_odd_prompts_are_read_or_refused(kind, text):
    torch.manual_seed(0)
    words = build_words({"kind": kind}, 16)
    from next_scale.conditioning import clean_prompt

    text = clean_prompt(text)
    try:
        words.check(text)
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 200
        with pytest.raises(UserError):
            words([text])
        return
    tokens, summary = words([text, None])
    assert tokens.shape == (2, words.count, 16) and tokens.isfinite().all() and summary.isfinite().all()


def test_misspelt_words_look_alike():
    """A drawing of a typo is nearer to the word than to other words; this is what rendered prompts build on."""
    flute, typo, other = (torch.from_numpy(draw_words(t, 1, 12, 48)).float() for t in ("flute", "flvte", "organ"))
    assert (flute - typo).norm() < 0.6 * (flute - other).norm()


@pytest.fixture
def tiny_t5(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the transformers package is an extra")
    config = transformers.T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    torch.manual_seed(0)
    transformers.T5EncoderModel(config).save_pretrained(tmp_path)
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_frozen_t5(tiny_t5):
    quantizer, model = setup(NextScale, {"kind": "t5", "source": str(tiny_t5), "length": 12})
    assert model.conditioner.words.size == 16
    assert not [name for name in model.state_dict() if "frozen" in name or "block" in name and "words" in name]
    first = model.generate(quantizer, batch_of(PROMPTS), 3, SamplingOptions(temperature=0)).tokens
    again = NextScale.from_config(model.to_config()).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.generate(quantizer, batch_of(PROMPTS), 3, SamplingOptions(temperature=0)).tokens, first)
    assert not torch.equal(first[0], first[1])
    tokens, used = model.conditioner.words.read(["ash", "", "a much longer prompt than fits"])
    assert used.sum(1).tolist() == [4, 0, 12]  # ByT5 ends a text with a token of its own
    model.train()
    model.loss(first, model.inputs(quantizer, first), batch_of(PROMPTS)).loss.backward()
    assert model.conditioner.words.embed.weight.grad.abs().sum() > 0
    with pytest.raises(UserError, match="no t5 text model at .*nowhere"):
        build_words({"kind": "t5", "source": str(tiny_t5 / "nowhere")}, 8)


def test_frozen_clap(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the transformers package is an extra")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ClapTextConfig(vocab_size=384, projection_dim=24, max_position_embeddings=300, **sizes)
    torch.manual_seed(0)
    transformers.ClapTextModelWithProjection(config).save_pretrained(tmp_path)
    transformers.ByT5Tokenizer(model_max_length=64).save_pretrained(tmp_path)
    words = build_words({"kind": "clap", "source": str(tmp_path)}, 16)
    tokens, used = words.read(["ash", "flute"])
    assert words.size == 24 and words.count == 1 and tokens.shape == (2, 1, 16) and used.all()
    assert abs(words._of("ash").norm() - 1) < 1e-5
    assert not torch.allclose(tokens[0], tokens[1])
