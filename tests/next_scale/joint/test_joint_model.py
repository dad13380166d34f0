"""The joint model: what places see, exact likelihood, one path with and without kept keys and values, learning."""

import json
import math

import pytest
import torch

from next_scale.errors import UserError
from next_scale.joint.model import JointModel
from next_scale.joint.parts import Filled
from next_scale.joint.sampler import draw
from next_scale.joint.text import ByteCodec
from next_scale.sampling import SamplingOptions

LAYOUTS = ["text line", "line text", "text grid", "grid text", "line grid", "grid line", "grid text line"]
GREEDY = {name: SamplingOptions(temperature=0) for name in ("text", "line", "grid")}


def test_text_is_causal_pyramids_are_scale_causal_and_parts_see_all_before_them(quantizers, make_model):
    model = make_model(quantizers, length=3)
    text, line = [1, 2, 3, 4], [5, 7, 7, 11, 11, 11, 11]
    assert model.prefix(("text", "line")).visible_end.tolist() == text + line
    line, text = [1, 3, 3, 7, 7, 7, 7, 11, 11, 11, 11], [12, 13, 14]  # the pyramid's end shows all of it
    assert model.prefix(("line", "text")).visible_end.tolist() == line + text
    assert model.prefix(("text",), closed=True, start=5).visible_end.tolist() == [6, 7, 8, 9]


def test_nothing_is_seen_before_its_time_and_everything_after_it(quantizers, make_model, fill_sequence):
    model = make_model(quantizers)
    text, grid = fill_sequence(model, quantizers, "text grid")
    before = model([text, grid])
    changed = text.tokens.clone()
    changed[:, 2] = ord("x")
    after = model([Filled("text", changed), grid])
    assert torch.equal(before[0][:, :3], after[0][:, :3]) and not torch.allclose(before[0][:, 3], after[0][:, 3])
    assert not torch.allclose(before[1][:, 0], after[1][:, 0])
    grid, line = fill_sequence(model, quantizers, "grid line")
    before = model([grid, line])
    for place, first in ((0, 1), (1, 5), (13, 14)):  # a token of each scale, and the first place that sees it
        tokens = grid.tokens.clone()
        tokens[:, place] = (tokens[:, place] + 1) % 16
        after = model([model.fill("grid", tokens, quantizers["grid"]), line])
        assert torch.allclose(before[0][:, :first], after[0][:, :first], atol=1e-5)
        assert first == 14 or not torch.allclose(before[0][:, first], after[0][:, first])
        assert not torch.allclose(before[1][:, 0], after[1][:, 0])  # the finest scale is seen by what follows too


@pytest.mark.parametrize("trunk", ["blocks", "llama"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_with_kept_keys_and_values_equal_the_whole(layout, trunk, quantizers, make_model, fill_sequence, llama):
    model = make_model(quantizers, **({"trunk": llama} if trunk == "llama" else {}))
    sequence = fill_sequence(model, quantizers, layout)
    with torch.inference_mode():
        x = model.embed(sequence)
        whole = model.trunk(x, model.prefix(tuple(layout.split())))
        cache = model.trunk.cache(3, x.shape[1])
        sizes = []
        for name in layout.split():
            part = model.parts[name]
            sizes += [*part.steps, part.closing]
        steps = [model.trunk(step, cache=cache) for step in x.split(sizes[:-1], dim=1)]  # nothing ends the last part
        assert cache.end == x.shape[1]
        torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=2e-5, rtol=1e-4)
        first = layout.split()[0]  # the first part at once, as prompts are read
        count = model.parts[first].places(True)
        cache = model.trunk.cache(3, x.shape[1])
        shown = model.trunk(x[:, :count], model.prefix((first,), closed=True), cache)
        torch.testing.assert_close(shown, whole[:, :count], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_drawn_greedily_is_what_the_whole_sequence_finds_likeliest(
    layout, quantizers, make_model, fill_sequence
):
    model = make_model(quantizers)
    first, *rest = layout.split()
    prompt = fill_sequence(model, quantizers, layout)[:1]
    drawn = model.generate(prompt, rest, quantizers, GREEDY, [1, 2, 3])
    assert [part.name for part in drawn] == rest
    sequence = prompt + [
        model.fill(part.name, part.tokens, quantizers.get(part.name), i + 1 < len(rest)) for i, part in enumerate(drawn)
    ]
    for part, logits in zip(drawn, model(sequence)[1:], strict=True):
        likeliest = logits.argmax(-1)
        counted = model.parts[part.name].weights(part.tokens) > 0
        assert torch.equal(likeliest[counted], part.tokens[counted])
        if part.name != "text":
            torch.testing.assert_close(part.latent, quantizers[part.name].decode(part.tokens))


def test_probabilities_sum_to_one(make_model, make_quantizer):
    quantizers = {"line": make_quantizer("1 2", codes=3)}
    model = make_model(quantizers, ["text line"], length=2)
    texts = model.fill("text", torch.tensor([[first, 256] for first in range(257)]))
    longer = model.fill("text", torch.tensor([[65, second] for second in range(257)]))
    every = torch.cartesian_prod(*[torch.arange(3)] * 3)
    line = model.fill("line", every, quantizers["line"], closed=False)
    with torch.inference_mode():
        first = model.log_prob([texts])[:, 0]
        second = model.log_prob([longer])[:, 0]
        text = model.fill("text", ["a"] * 27)
        after = model.log_prob([text, line])[:, 1]
    # "A" and its end, and "A" and every other symbol, are together all that begins with "A"
    stops, begins = first.exp(), second.exp().sum()
    assert after.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert second[256].item() == pytest.approx(first[65].item(), abs=1e-5)
    logits = model([texts])[0][0, 0]
    assert begins.item() == pytest.approx(logits.softmax(-1)[65].item(), abs=1e-5)
    assert stops[256].item() == pytest.approx(logits.softmax(-1)[256].item(), abs=1e-5)


def test_loss_is_the_mean_of_what_likelihood_sums(quantizers, make_model, fill_sequence):
    model = make_model(quantizers, text_weight=0.5)
    sequence = fill_sequence(model, quantizers, "text line")
    out, likelihood = model.loss(sequence), model.log_prob(sequence)
    said = sum(min(len(text.encode()) + 1, 8) for text in ("hello", "a", "äbcdefg"))
    means = [-likelihood[:, 0].sum() / said, -likelihood[:, 1].mean() / 7]
    torch.testing.assert_close(torch.stack(out.nats), torch.stack(means))
    torch.testing.assert_close(out.loss, (0.5 * means[0] + means[1]) / 1.5)


def test_learns_both_ways(make_model, make_quantizer):
    """Four words and four lines that belong together: from about 4 nats to below 0.3, and each recalls the other."""
    quantizers = {"line": make_quantizer("1 2 4")}
    model = make_model(quantizers, ["text line", "line text"], lively=False, length=6)
    model.parts["line"].scale_power = 0.5
    words, lines = (
        ["one", "two", "three", "four"],
        torch.randint(16, (4, 7), generator=torch.Generator().manual_seed(1)),
    )
    forth = [model.fill("text", words), model.fill("line", lines, quantizers["line"], closed=False)]
    back = [model.fill("line", lines, quantizers["line"]), model.fill("text", words)]
    model.start_from(quantizers)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.0)
    for step in range(100):
        loss = model.loss(back).loss + model.loss(forth).loss
        if step == 0:
            assert loss.item() / 2 == pytest.approx((math.log(257) + math.log(16)) / 2, abs=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # what comes first is one of four, which nobody knows
    assert loss.item() / 2 < 0.3
    sampling = GREEDY | {"line": SamplingOptions(temperature=0, cfg=0.5)}
    (line,) = model.generate(forth[:1], ["line"], quantizers, sampling, range(4))
    (said,) = model.generate(back[:1], ["text"], quantizers, sampling, range(4))
    assert (line.tokens == lines).float().mean() > 0.9
    assert model.codec.decode(said.tokens) == words


def test_a_sample_depends_on_its_own_seed_and_prompt_only(quantizers, make_model, fill_sequence):
    model = make_model(quantizers)
    prompt = fill_sequence(model, quantizers, "grid text")[:1]
    sampling = {name: SamplingOptions(top_k=12) for name in GREEDY}
    together = draw(model, prompt, ["text", "line"], quantizers, sampling, [7, 8, 9])
    alone = [Filled("grid", prompt[0].tokens[1:2], prompt[0].inputs[1:2])]
    for one, many in zip(draw(model, alone, ["text", "line"], quantizers, sampling, [8]), together, strict=True):
        assert torch.equal(one.tokens[0], many.tokens[1])
        assert one.latent is None or torch.allclose(one.latent[0], many.latent[1], atol=1e-5)
    other = draw(model, alone, ["text", "line"], quantizers, sampling, [10])
    assert not torch.equal(other[0].tokens[0], together[0].tokens[1])
    smooth = draw(model, prompt, ["text"], quantizers, {"text": SamplingOptions(smooth=True)}, [7, 8, 9])
    assert smooth[0].tokens.shape == (3, 8)


def test_guidance_is_away_from_the_part_alone(quantizers, make_model, fill_sequence):
    model = make_model(quantizers)
    prompt = fill_sequence(model, quantizers, "text line", batch=1)[:1]
    drawn = {}
    for cfg in (0.0, 3.0):
        options = {"line": SamplingOptions(temperature=0, cfg=cfg, cfg_ramp=False)}
        drawn[cfg] = draw(model, prompt, ["line"], quantizers, options, [1])[0].tokens
    line = model.fill("line", drawn[3.0], quantizers["line"], closed=False)
    given, alone = model([*prompt, line])[1], model([line])[0]
    assert torch.equal((4 * given - 3 * alone).argmax(-1), drawn[3.0])
    assert not torch.equal(drawn[0.0], drawn[3.0])
    without = make_model(quantizers, ["text line"])
    with pytest.raises(UserError, match="never saw 'line' come first"):
        draw(without, prompt, ["line"], quantizers, {"line": SamplingOptions(cfg=1.0)}, [1])


def test_orders_that_were_not_learned_are_refused(quantizers, make_model, fill_sequence):
    model = make_model(quantizers, ["text line", "grid"])
    assert model.knows(["text"]) and model.knows(["grid"]) and not model.knows(["line"])
    with pytest.raises(UserError, match="never learned the order 'grid line'; it knows 'text line', 'grid'"):
        model.check(["grid", "line"])
    with pytest.raises(UserError, match="names the part 'shape'"):
        make_model(quantizers, ["text shape"])
    with pytest.raises(UserError, match="needs layouts"):
        make_model(quantizers, [])


def test_configuration_builds_the_same_model(quantizers, make_model, fill_sequence):
    model = make_model(quantizers)
    again = JointModel.from_config(json.loads(json.dumps(model.to_config()))).eval()
    again.load_state_dict(model.state_dict())
    sequence = fill_sequence(model, quantizers, "grid text line")
    torch.testing.assert_close(again.log_prob(sequence), model.log_prob(sequence))


def test_texts_are_bytes_and_come_back():
    codec = ByteCodec(8)
    symbols = codec.encode(["flöte", "a", "12345678"])
    assert symbols.shape == (3, 8) and symbols[0].tolist() == [*"flöte".encode(), 256, 256]
    assert codec.decode(symbols) == ["flöte", "a", "12345678"]
    assert codec.said(symbols).sum(1).tolist() == [7, 2, 8]
    with pytest.raises(UserError, match="9 bytes, and this model reads 8"):
        codec.encode(["123456789"])
    with pytest.raises(UserError, match="empty"):
        codec.encode([""])
    assert codec.decode(torch.tensor([[0xFF, 256, 65, 65, 65, 65, 65, 65]])) == ["\ufffd"]
