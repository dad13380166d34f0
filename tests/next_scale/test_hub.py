"""Files of the hub."""

import pytest

from next_scale.checkpoint import from_pretrained
from next_scale.errors import UserError
from next_scale.hub import hub_file


def test_without_a_network_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the hub did not give its config.json.*download it elsewhere") as told:
        hub_file("nobody/nothing-here", "config.json")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("source, revision", [("owner/name", None), ("owner/name@0a1b2c", "0a1b2c")])
def test_the_revision_is_the_one_asked_for(monkeypatch, tmp_path, source, revision):
    asked = []

    def download(repository, name, revision):
        asked.append((repository, name, revision))
        return str(tmp_path / "none.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        from_pretrained(source)
    assert asked == [("owner/name", "model.safetensors", revision)]
