"""Language models as the trunk: learning in full and by low-rank updates, their own text, and checkpoints."""

import copy
import json

import pytest
import torch

from next_scale.errors import UserError
from next_scale.joint.model import JointModel
from next_scale.joint.text import TokenizerCodec
from next_scale.joint.trunk import build_trunk
from next_scale.sampling import SamplingOptions

transformers = pytest.importorskip("transformers")


def train(model, sequence, steps, lr):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        losses.append(model.loss(sequence).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    return [loss.item() for loss in losses]


@pytest.mark.parametrize("tied", [False, True])
def test_learns_generates_and_comes_back(tied, quantizers, make_model, fill_sequence, llama):
    model = make_model(quantizers, ["line text"], {**llama, "tie_word_embeddings": tied}, lively=False)
    sequence = fill_sequence(model, quantizers, "line text")
    losses = train(model, sequence, 60, 5e-3)
    assert losses[0] > 4 and losses[-1] < 1  # the three lines that come first are one of three
    (said,) = model.generate(sequence[:1], ["text"], quantizers, {"text": SamplingOptions(temperature=0)}, range(3))
    assert model.codec.decode(said.tokens) == ["hello", "a", "äbcdefg"]
    again = JointModel.from_config(json.loads(json.dumps(model.to_config()))).eval()
    again.load_state_dict(model.state_dict(), assign=True)
    torch.testing.assert_close(again.log_prob(sequence), model.log_prob(sequence))
    for each in (model, again, copy.deepcopy(model)):
        table, head = each.trunk.language.get_input_embeddings(), each.trunk.language.get_output_embeddings()
        assert (table.weight is head.weight) == tied
        assert each.parts["text"]._trunk[0] is each.trunk


def test_low_rank_updates_leave_the_language_model_as_it_is(quantizers, make_model, fill_sequence, llama):
    pytest.importorskip("peft")
    model = make_model(quantizers, ["line text"], {**llama, "lora": 4}, lively=False)
    sequence = fill_sequence(model, quantizers, "line text")
    before = {name: value.clone() for name, value in model.state_dict().items() if "language" in name}
    losses = train(model, sequence, 30, 1e-2)
    assert losses[-1] < 0.8 * losses[0]
    for name, value in model.state_dict().items():
        if "language" in name:
            assert torch.equal(value, before[name]) == ("lora" not in name), name
    again = JointModel.from_config(json.loads(json.dumps(model.to_config()))).eval()
    again.load_state_dict(model.state_dict(), assign=True)
    torch.testing.assert_close(again.log_prob(sequence), model.log_prob(sequence))
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]


def test_text_is_read_by_the_models_own_tokenizer(tmp_path, llama, quantizers):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<end>": 0, "a": 1, "low": 2, "flute": 3, "<none>": 4}
    reader = Tokenizer(models.WordLevel(words, unk_token="<none>"))
    reader.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=reader, eos_token="<end>", unk_token="<none>")
    fast.save_pretrained(tmp_path / "reader")
    trunk = build_trunk({**llama, "tokenizer": str(tmp_path / "reader"), "vocab_size": 8})
    codec = trunk.text_codec(4)
    symbols = codec.encode(["a low flute", "flute"])
    assert symbols.tolist() == [[1, 2, 3, 0], [3, 0, 0, 0]] and codec.decode(symbols) == ["a low flute", "flute"]
    with pytest.raises(UserError, match="5 tokens, and this model reads 4"):
        codec.encode(["a a a a a"])
    pyramid = {"schedule": quantizers["line"].schedule, "codes": 16, "channels": 4}
    model = JointModel(["text line"], {"line": pyramid}, trunk, codec).eval()
    again = JointModel.from_config(json.loads(json.dumps(model.to_config())), codec.definition).eval()
    again.load_state_dict(model.state_dict(), assign=True)
    text = [model.fill("text", ["a low flute"])]
    assert torch.equal(again.fill("text", ["a low flute"]).tokens, text[0].tokens)
    torch.testing.assert_close(again.log_prob(text), model.log_prob(text))
    with pytest.raises(UserError, match="has a token 4, and the language model only 3"):
        TokenizerCodec(codec.definition, 0, 3, 4)


def test_what_cannot_be_a_trunk_is_refused(llama, tmp_path):
    for options, message in (
        ({"kind": "language", "model": str(tmp_path)}, "no language model at"),
        ({**llama, "model_type": "nonsense"}, "no language model of type 'nonsense'"),
        ({**llama, "hidden_size": 33}, "no language model of type 'llama'|multiple|divisible"),
        ({"kind": "language", "model": "x/y", "hidden_size": 3}, "has its own hidden_size"),
        ({"kind": "magic"}, "a trunk is one of blocks, language"),
        ({"kind": "blocks", "widht": 3}, "cannot be built"),
        ({"kind": "blocks", "width": 30, "heads": 4}, "not a multiple"),
    ):
        with pytest.raises(UserError, match=message):
            build_trunk(options)
    config = {"layouts": ["text"], "pyramids": {}, "codec": {"kind": "bytes", "length": 4}, "text_weight": 1.0}
    with pytest.raises(ValueError, match="names a model from elsewhere"):  # a checkpoint fetches nothing
        JointModel.from_config(config | {"trunk": {"kind": "language", "model": "x/y"}})
    with pytest.raises(UserError, match="bytes need a vocabulary of 257"):
        build_trunk({**llama, "vocab_size": 100}).text_codec(8)
