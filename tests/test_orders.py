"""The benchmark of orders at a tiny size: both sides, their ratio, and the page."""

import json

from recipes.benchmarks import orders


def test_orders(tmp_path, capsys, monkeypatch):
    cases = (orders.Case.same("7 tokens", (1, 2, 4)), orders.Case("7 against 9", "1 2 4", "9"))
    monkeypatch.setattr(orders, "CASES", cases)
    sizes = ["--width", "16", "--depth", "1", "--heads", "2", "--codes", "16", "--runs", "2", "--batch", "1", "2"]
    orders.main([*sizes, "--cfg", "1", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "orders.json").read_text())
    same, other = results["cases"]
    assert (same["next_scale"]["steps"], same["next_token"]["steps"], other["next_token"]["steps"]) == (3, 7, 9)
    assert same["next_scale"]["tokens"] == same["next_token"]["tokens"] == 7
    assert 0.5 < same["next_token"]["flops"] / same["next_scale"]["flops"] < 2
    assert all(len(orders.speedups(same, batch)) == 2 and min(orders.speedups(same, batch)) > 0 for batch in ("1", "2"))
    page = (tmp_path / "ORDERS.md").read_text()
    assert "| 7 tokens | 2 |" in page and "(7 / 3)" in page and "at batch 2" in page
