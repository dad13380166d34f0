"""YAML from strangers: what aliases stand for is counted before it is built."""

import pytest
import yaml

from next_scale.yaml_limits import MOST_BYTES, MOST_DEPTH, MOST_VALUES, check_yaml


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "x" * MOST_BYTES,
        "[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1),
        "[" + "1, " * MOST_VALUES + "1]",
        "a: &a [" + "1, " * 100 + "1]\nb: [" + "*a, " * 30 + "*a]",
        "a: &a {b: [*a]}",
        "a: &a [1, 2]\n<<: [*a",
    ],
)
def test_refused(text):
    with pytest.raises(yaml.YAMLError):
        check_yaml(text)


def test_read():
    check_yaml("a: &a [1, 2]\nb: &b {c: *a, d: *a}\ne: [*b, *b]\nf: &f text\ng: *f")
    check_yaml("")
    check_yaml("a: *unknown")  # the loader says what is wrong with that


def test_a_recipe(tmp_path, capsys):
    """The limits hold where a training reads its recipe."""
    from audio_var.cli import main

    laughs = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" if i else "l0: &l0 [a]" for i in range(12))
    (tmp_path / "recipe.yaml").write_text(laughs)
    assert main(["fit", "tokenizer", "--config", str(tmp_path / "recipe.yaml")]) == 2
    err = capsys.readouterr().err
    assert "aliases written out" in err and err.count("\n") == 1
