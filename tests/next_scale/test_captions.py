"""Captions: what is held out is never drawn in training, and the same seed gives the same sentence."""

import collections

import pytest
import torch
from torch.utils.data import Dataset

from audio_var.data.captions import NoteCaptions
from audio_var.data.families import FAMILIES
from audio_var.data.notes import PITCHES, VELOCITIES
from image_var.data.captions import FashionCaptions
from image_var.data.fashion import LABELS
from next_scale.conditioning import decode_prompts
from next_scale.conditioning.byte_text import ByteText
from next_scale.conditioning.captions import PHRASINGS, Captioned, Phrases, misspell
from next_scale.conditioning.rendered import RenderedText
from next_scale.errors import UserError
from next_scale.exact import TrainingLoader

FLUTE = {"family": "flute", "register": "low", "loudness": "soft"}


class Notes(Dataset):
    """Every label, pitch and velocity once, as a token set gives them."""

    spec = {"label": list(FAMILIES), "pitch": list(PITCHES), "velocity": list(VELOCITIES)}

    def __len__(self):
        return len(FAMILIES) * len(PITCHES) * len(VELOCITIES)

    def __getitem__(self, index):
        rest, velocity = divmod(index, len(VELOCITIES))
        label, pitch = divmod(rest, len(PITCHES))
        return {"tokens": torch.zeros(2), "condition": {"label": label, "pitch": pitch, "velocity": velocity}}


def every_caption(captions, concepts, phrasing):
    generator = torch.Generator().manual_seed(0)
    return {captions.caption(concepts, phrasing, generator) for _ in range(60)}


def test_the_concepts_of_all_notes_are_known():
    captions, notes = NoteCaptions(), Notes()
    assert list(captions.spec["family"]) == list(FAMILIES)
    found = collections.Counter()
    for pitch in PITCHES:
        for velocity in VELOCITIES:
            concepts = captions.concepts({"label": "flute", "pitch": pitch, "velocity": velocity})
            found[concepts["register"], concepts["loudness"]] += 1
    assert len(found) == 9 and min(found.values()) >= 16
    assert captions.concepts({"label": "flute", "pitch": 36, "velocity": 45}) == FLUTE
    assert list(FashionCaptions().spec["label"]) == list(LABELS) and len(notes) == 12 * 49 * 3


@pytest.mark.parametrize("captions", [NoteCaptions(), FashionCaptions()], ids=["notes", "fashion"])
def test_held_out_phrases_are_never_trained_on(captions):
    phrases = captions.phrases
    held_names = {name for names in phrases.held_words.values() for group in names.values() for name in group}
    for concepts in captions.combinations(held_out=False)[:5]:
        trained, sentences, synonyms = (every_caption(captions, concepts, phrasing) for phrasing in PHRASINGS)
        assert not trained & sentences and not trained & synonyms
        assert not any(f" {name} " in f" {text} " for text in trained | sentences for name in held_names)
        assert len(trained) > 8 and len(sentences) > 5
        for text in trained | sentences | synonyms:  # and all of them fit the models of the recipes
            RenderedText(8).check(text)
            ByteText(8).check(text)


def test_held_out_combinations():
    captions = NoteCaptions(held_out=0.1)
    trained, unseen = captions.combinations(False), captions.combinations(True)
    assert len(trained) + len(unseen) == 12 * 9 and 5 <= len(unseen) <= 16
    for slot, concepts in captions.spec.items():  # all that is unseen is the combination
        assert {combination[slot] for combination in trained} == set(concepts)
    assert NoteCaptions(held_out=0.1).combinations(True) == unseen  # by a hash: the same everywhere
    notes = Notes()
    sets = {split: Captioned(notes, notes.spec, NoteCaptions("labels"), split) for split in ("train", "test")}
    spec = captions.spec
    shown = {
        split: {tuple(item["condition"].items()) for item in (data[i] for i in range(len(data)))}
        for split, data in sets.items()
    }
    never = {tuple((slot, spec[slot].index(concept)) for slot, concept in row.items()) for row in unseen}
    assert not shown["train"] & never and never < shown["test"]
    assert len(sets["test"]) == len(notes) > len(sets["train"])
    assert not FashionCaptions().combinations(held_out=True)


def test_the_same_seed_says_the_same():
    captions = NoteCaptions()
    first, again = (
        [captions.caption(FLUTE, "trained", torch.Generator().manual_seed(seed)) for seed in range(20)]
        for _ in range(2)
    )
    assert first == again and len(set(first)) > 8
    full = {captions.caption(FLUTE, generator=torch.Generator().manual_seed(i), complete=True) for i in range(50)}
    assert all(captions.look_up(text) == FLUTE for text in full)
    assert NoteCaptions(brief=True).caption(FLUTE).split()[0] in ("flute", "pipe")


def test_training_captions_vary_by_epoch_and_repeat_by_seed():
    notes = Notes()

    def epochs():
        data = Captioned(notes, notes.spec, NoteCaptions(typos=0.1), "train")
        loader = TrainingLoader(data, 64, seed=3)
        return [[text for batch in loader for text in decode_prompts(batch["condition"]["prompt"])] for _ in range(2)]

    first, again = epochs(), epochs()
    assert first == again and first[0] != first[1]
    assert all(first[0]) and len(set(first[0])) > 300
    held = Captioned(notes, notes.spec, NoteCaptions(typos=0.1), "validation")
    assert torch.equal(held[5]["condition"]["prompt"], held[5]["condition"]["prompt"])


def test_look_up_is_a_vocabulary():
    captions = NoteCaptions()
    assert captions.look_up("A SOFT, low pipe organ!") == {**FLUTE, "family": "organ"}
    assert captions.look_up("a soft loww flvte") == {"loudness": "soft"}
    assert captions.look_up("") == {}
    assert FashionCaptions().look_up("my ankle boot") == {"label": "ankle-boot"}


def test_typos():
    generator = torch.Generator().manual_seed(0)
    assert misspell("a soft low flute", 0.0, generator) == "a soft low flute"
    text = "abcdefghij " * 300
    changed = misspell(text, 0.3, generator)
    assert abs(len(changed) - len(text)) < 150 and changed != text
    assert changed.count(" ") == text.count(" ") - 1  # words stay words
    assert misspell("a", 1.0, generator)


def test_mistakes():
    with pytest.raises(UserError, match="captions come as one of prompt, labels"):
        NoteCaptions("song")
    with pytest.raises(UserError, match="share"):
        NoteCaptions(typos=2)
    with pytest.raises(UserError, match="phrasings are"):
        NoteCaptions().caption(FLUTE, "verse")
    with pytest.raises(ValueError, match="share a name"):
        Phrases({"a": {"x": ("one",), "y": ("one",)}}, ("{a}",), {}, ())
    with pytest.raises(ValueError, match="template is trained on"):
        Phrases({"a": {"x": ("one",)}}, ("{a}",), {}, ("{a}",))
