"""Conditions: validation with one-line errors, indices, embeddings, dropout."""

import pytest
import torch

from next_scale.condition import (
    Conditioner,
    any_given,
    collate_conditions,
    encode_condition,
    is_numeric,
    validate_spec,
)
from next_scale.errors import UserError

SPEC = {"label": ["bass", "brass", "flute"], "pitch": list(range(36, 85)), "velocity": [45, 80, 115]}


def test_encode_gives_indices():
    assert encode_condition(SPEC, {"label": "flute", "pitch": 60}) == {"label": 2, "pitch": 24, "velocity": -1}
    assert encode_condition(SPEC, {}) == {"label": -1, "pitch": -1, "velocity": -1}
    assert encode_condition(SPEC, {"label": None, "pitch": "36"}) == {"label": -1, "pitch": 0, "velocity": -1}


@pytest.mark.parametrize("value, index", [(45, 0), (62, 0), (62.5, 0), (63, 1), (100, 2), (115, 2)])
def test_a_number_between_listed_ones_is_the_nearest(value, index):
    assert encode_condition(SPEC, {"velocity": value})["velocity"] == index


@pytest.mark.parametrize(
    "values, message",
    [
        ({"label": "flut"}, "unknown label 'flut'; known: bass, brass, flute; did you mean 'flute'?"),
        ({"label": "zzz"}, "unknown label 'zzz'; known: bass, brass, flute"),
        ({"pitch": 20}, "pitch 20 is out of range; give a number from 36 to 84"),
        ({"pitch": 84.5}, "pitch 84.5 is out of range; give a number from 36 to 84"),
        ({"pitch": float("nan")}, "pitch nan is out of range; give a number from 36 to 84"),
        ({"pitch": "high"}, "pitch must be a number from 36 to 84, got 'high'"),
        ({"tempo": 3}, "unknown condition 'tempo'; known: label, pitch, velocity"),
    ],
)
def test_mistakes_are_one_line(values, message):
    with pytest.raises(UserError) as error:
        encode_condition(SPEC, values)
    assert str(error.value) == message


@pytest.mark.parametrize("spec", [{"a": []}, {"a": "xyz"}, {"a": ["x", "x"]}, {"a": [1, "x"]}, {"a": [True, False]}])
def test_bad_specs_are_refused(spec):
    with pytest.raises(UserError):
        validate_spec(spec)


def test_numbers_and_names_are_told_apart():
    assert is_numeric([1, 2.5])
    assert not is_numeric(["1", "2"])


def test_collate():
    batch = collate_conditions([{"label": 2, "pitch": 24}, {"label": -1}], SPEC)
    assert {name: index.tolist() for name, index in batch.items()} == {
        "label": [2, -1], "pitch": [24, -1], "velocity": [-1, -1],
    }  # fmt: skip
    assert batch["label"].dtype == torch.int64


def test_embeddings_are_summed_and_omission_has_its_own():
    conditioner = Conditioner(SPEC, 8).eval()
    label, pitch, velocity = (table.weight for table in conditioner.tables)
    out = conditioner({"label": torch.tensor([2, -1]), "pitch": torch.tensor([24, 0])}, 2)
    torch.testing.assert_close(out[0], label[2] + pitch[24] + velocity[-1])
    torch.testing.assert_close(out[1], label[-1] + pitch[0] + velocity[-1])
    torch.testing.assert_close(conditioner({}, 1)[0], label[-1] + pitch[-1] + velocity[-1])


def test_dropout_in_training_only():
    torch.manual_seed(0)
    conditioner = Conditioner(SPEC, 8, dropout=0.25, field_dropout=0.5)
    given = {"label": torch.zeros(4000, dtype=torch.int64), "pitch": torch.zeros(4000, dtype=torch.int64)}
    full, null = (conditioner.eval()(batch, 4000)[0] for batch in (given, {}))
    out = conditioner.train()(given, 4000)
    lost = (out - null).abs().amax(1) < 1e-6
    kept = (out - full).abs().amax(1) < 1e-6
    assert abs(lost.float().mean() - (0.25 + 0.75 * 0.25)) < 0.03  # all dropped, or both fields one by one
    assert abs(kept.float().mean() - 0.75 * 0.25) < 0.03
    assert torch.equal(conditioner.eval()(given, 4000)[0], full)


def test_no_fields_and_unknown_fields():
    assert torch.equal(Conditioner({}, 4)({}, 3), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="tempo"):
        Conditioner(SPEC, 4)({"tempo": torch.zeros(1, dtype=torch.int64)}, 1)


# Vectors


def test_vectors_given_and_not():
    torch.manual_seed(0)
    conditioner = Conditioner({"label": ["a", "b"]}, 16, vectors={"embedding": 8}).eval()
    vectors = torch.randn(2, 8)
    batch = collate_conditions([{"label": 0, "embedding": vectors[0]}, {}], conditioner.spec, conditioner.vectors)
    assert batch["embedding"].shape == (2, 8) and batch["embedding"][1].isnan().all() and any_given(batch)
    out = conditioner(batch, 2)
    assert out.isfinite().all()
    torch.testing.assert_close(out[1], conditioner({}, 1)[0])
    layer = conditioner.embeddings[0]
    hidden = torch.nn.functional.gelu(layer.fc1(vectors[0]), approximate="tanh")
    torch.testing.assert_close(out[0], conditioner.tables[0].weight[0] + layer.fc2(hidden))
    absent = collate_conditions([{}, {}], conditioner.spec, conditioner.vectors)
    assert not any_given(absent) and torch.equal(conditioner(absent, 2), conditioner({}, 2))


def test_vectors_are_lost_in_training_and_learned():
    torch.manual_seed(0)
    conditioner = Conditioner({}, 16, dropout=0.5, vectors={"embedding": 8})
    null = conditioner({}, 1)
    batch = {"embedding": torch.randn(1, 8).expand(400, 8)}
    lost = (conditioner(batch, 400) - null).abs().amax(1) < 1e-5
    assert 140 < int(lost.sum()) < 260
    conditioner(batch, 400).square().mean().backward()
    assert conditioner.embeddings[0].fc1.weight.grad.abs().sum() > 0
    with pytest.raises(UserError, match="both values and a vector"):
        Conditioner({"embedding": [1]}, 16, vectors={"embedding": 8})
