"""The benchmark at a tiny size: figures, shares and page."""

import torch

from recipes.benchmarks.generate import Bench, Measure, describe_machine, train_predictor, train_tokenizer, write_page

CPU = torch.device("cpu")


def test_figures_and_page(tiny_generator):
    bench = Bench(tiny_generator, CPU)
    assert bench.seconds == 1024 / 16_000
    one = bench.generate("one clip", 1, runs=3, target=1e9)
    many = bench.generate("batch 2", 2, runs=2, target=1e9, real_time=True)
    assert (one.runs, one.met, many.met) == (3, True, False)
    assert 0 < one.least <= one.median <= one.greatest and one.processor > 0
    measures = [one, many, train_predictor(tiny_generator, CPU), train_tokenizer(tiny_generator, CPU)]
    assert all(measure.median > 0 for measure in measures)
    shares = {1: bench.shares(1, 2)}
    assert shares[1]["transformer"] > 0 and shares[1]["codec, network"] > 0
    model = {"parameters": 1, "seconds": bench.seconds, "sampling": {"cfg": 1.0}}
    page = write_page({"machine": describe_machine("cpu"), "model": model, "shares": shares}, measures, "command")
    assert "| one clip |" in page and "| transformer |" in page
    assert "forward" not in vars(tiny_generator.predictor.transformer)  # the timers are gone


def test_targets():
    assert Measure("", "s", 0.2, 0.1, 0.3, 3, target=0.3).met is True
    assert Measure("", "x", 14.9, 10, 20, 3, target=15.0, more_is_better=True).met is False
    assert Measure("", "s", 0.2, 0.1, 0.3, 3).met is None
