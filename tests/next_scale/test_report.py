"""What reports of all modalities share."""

import argparse

import pytest
import torch

from next_scale.figure import draw_confusion, new_figure
from next_scale.report import (
    confusion_counts,
    distances,
    draw,
    draw_conditions,
    even_draw,
    markdown_table,
    number,
    percent,
    share,
    size_name,
)
from next_scale.report_options import add_report_options, report_command


def test_texts():
    assert number(None, 2) == percent(None) == ""
    assert (number(1234.567, 1), number(-0.0004, 2), percent(0.1234)) == ("1,234.6", "0.00", "12.3%")
    assert (size_name((4,)), size_name((4, 6))) == (4, "4x6")
    assert markdown_table(("a", "b"), [("x", 1)]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n"


def test_draws_are_in_order_different_and_repeatable():
    chosen = draw(5, 100, seed=3)
    assert chosen.tolist() == sorted(set(chosen.tolist())) and len(chosen) == 5
    assert torch.equal(chosen, draw(5, 100, seed=3)) and not torch.equal(chosen, draw(5, 100, seed=4))
    assert draw(9, 4).tolist() == [0, 1, 2, 3]


def test_even_draw_takes_what_a_class_has():
    label = torch.tensor([0] * 10 + [1] * 10 + [2] * 2)
    chosen = even_draw(label, 3, 12, seed=0)
    assert torch.bincount(label[chosen]).tolist() == [4, 4, 2]
    assert len(even_draw(label, 3, 1000, seed=0)) == len(label)


def test_conditions_are_those_that_occur_each_once_before_any_twice():
    columns = {"label": torch.tensor([0, 0, 1, 1, 1]), "pitch": torch.tensor([5, 5, 6, 7, 7])}
    drawn = draw_conditions(columns, 7, seed=0)
    rows = list(zip(drawn["label"].tolist(), drawn["pitch"].tolist(), strict=True))
    assert set(rows[:3]) == set(rows[3:6]) == {(0, 5), (1, 6), (1, 7)} and len(rows) == 7


def test_confusion_of_classes():
    counts = confusion_counts(torch.tensor([0, 0, 2, 2, 2]), torch.tensor([0, 1, 2, 2, 0]), 3)
    assert counts == [[1, 1, 0], [0, 0, 0], [1, 0, 2]]
    axis = new_figure(3, 3).subplots()
    draw_confusion(axis, counts, ["a", "b", "c"])
    assert sorted(text.get_text() for text in axis.texts) == ["1", "1", "1", "2"]
    assert share(torch.tensor([])) is None and share(torch.tensor([True, False])) == 0.5


def test_distances_of_a_set_to_itself():
    features = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    found = distances(features, features)
    assert found["frechet"] == pytest.approx(0, abs=1e-9)
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)


def test_command_of_a_report_holds_what_was_asked_for():
    parser = argparse.ArgumentParser()
    add_report_options(parser, "the shipped one", "some data", "a folder", 16)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--ramp", action=argparse.BooleanOptionalAction)
    parser.add_argument("--top-k", type=int)
    command = "audio-var evaluate tokenizer --data 'some data' --out here --batch-size 16"
    read = parser.parse_args
    assert report_command("audio-var", "tokenizer", read(["--out", "here"]), {"fast"}) == command
    more = read(["model", "--out", "here", "--fast", "--no-ramp", "--top-k", "4"])
    given = command.replace("tokenizer", "tokenizer model") + " --fast --no-ramp --top-k 4"
    assert report_command("audio-var", "tokenizer", more, {"fast"}) == given
