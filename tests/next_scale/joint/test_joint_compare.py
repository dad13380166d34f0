"""The comparison of sharing: equal FLOPs, verdicts, and the whole of it in miniature."""

import json

import pytest
import yaml

from next_scale.errors import UserError
from recipes.multimodal.compare import JOINT, MODELS, budget_of, main, rows_of, verdict


def test_three_ways_to_spend_one_budget():
    joint = dict(zip(MODELS[JOINT], (20.0, 30.0, 15.0, 22.0, 40.0, 39.0), strict=True))
    places = {"text": 190, "audio": 890, "image": 650}
    whole = budget_of(JOINT, joint, places, 600)
    assert whole == 100 * sum(joint.values())
    for others in (("text+audio", "text+image", "audio+image"), ("text", "audio", "image")):
        assert sum(budget_of(model, joint, places, 600) for model in others) == pytest.approx(whole)


def test_a_verdict_needs_all_seeds_and_a_difference():
    assert verdict([1.0, 1.1, 0.9], [2.0, 2.1, 1.9], "low") == "helps"
    assert verdict([1.0, 1.1, 0.9], [2.0, 2.1, 1.9], "high") == "hurts"
    assert verdict([1.0, 3.0, 1.0], [2.0, 2.0, 2.0], "low") == "no clear difference"
    assert verdict([1.0], [1.0], "low") == "no clear difference"
    assert verdict([1.0], [], "low") == ""


def test_in_miniature(tokenizers, tmp_path, capsys):
    recipe = yaml.safe_load(open("recipes/multimodal/joint_debug.yaml", encoding="utf-8"))
    recipe["model"]["tokenizers"] = {name: str(path) for name, path in tokenizers.items()}
    kinds = {"notes": "audio", "clothes": "image", "icons": "image"}
    for name, each in recipe["data"]["sets"].items():
        each["init_args"] |= {"tokenizer": str(tokenizers[kinds[name]]), "folder": str(tmp_path / "tokens")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    plan = yaml.safe_load(open("recipes/multimodal/compare_debug.yaml", encoding="utf-8"))
    plan |= {"recipe": str(tmp_path / "recipe.yaml"), "steps": 6, "rows": 4, "drawn": 2}
    plan["data"] = {"batch_size": 2, "batches": 2}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    arguments = ["--plan", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [result["model"] for result in results] == list(MODELS)
    flops = {result["model"]: result["flops"] for result in results}
    two = sum(flops[model] for model in MODELS if "+" in model)
    assert two == pytest.approx(flops[JOINT], rel=1e-6)  # the same steps of the same streams
    rows = {row["measure"]: row for row in rows_of(results)}
    assert {"audio, bits", "text after image, bits", "audio to text", "image to audio"} <= set(rows)
    assert all(value > 0 for value in rows["audio, bits"][JOINT] + rows["audio, bits"]["one"])
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.count("\n| ") >= 11 + 6 + 7
    before = (tmp_path / "out" / "joint-0" / "trained.json").read_bytes()
    capsys.readouterr()
    assert main([*arguments, "--seeds", "0"]) == 0  # finds everything done
    assert (tmp_path / "out" / "joint-0" / "trained.json").read_bytes() == before

    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan | {"models": [JOINT]}))
    assert main(arguments) == 0  # of some of the models, what there is
    alone = (tmp_path / "out" / "table.md").read_text()
    assert alone.splitlines()[0] == table.splitlines()[0] and "| text+audio |" not in alone
    audio = next(line for line in alone.splitlines() if line.startswith("| audio, bits"))
    assert [cell.strip() for cell in audio.split("|")[3:]] == [""] * 5
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan | {"models": ["text+sculpture"]}))
    with pytest.raises(UserError, match=r"no model 'text\+sculpture'; models are joint, text\+audio"):
        main(arguments)
