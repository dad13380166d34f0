"""What is said of Fashion-MNIST's images: their class, in words that vary."""

from __future__ import annotations

from collections.abc import Mapping

from next_scale.conditioning.captions import Captions, Phrases


class FashionCaptions(Captions):
    """Captions of clothes, such as "a photo of an ankle boot"; arguments as of the base class.

    There is one slot, the class, and so no combination to hold out.
    """

    phrases = Phrases(
        words={
            "label": {
                "t-shirt": ("t-shirt", "tee"),
                "trouser": ("trouser", "pants"),
                "pullover": ("pullover", "sweater"),
                "dress": ("dress", "gown"),
                "coat": ("coat", "jacket"),
                "sandal": ("sandal", "open shoe"),
                "shirt": ("shirt", "blouse"),
                "sneaker": ("sneaker", "running shoe"),
                "bag": ("bag", "handbag"),
                "ankle-boot": ("ankle boot", "boot"),
            }
        },
        templates=(
            "{label}",
            "a {label}",
            "one {label}",
            "a picture of a {label}",
            "{label}, gray on black",
            "a photo of the {label}",
            "clothes: {label}",
            "this is a {label}",
        ),
        held_words={
            "label": {
                "t-shirt": ("t-shirts", "tshirt"),
                "trouser": ("trousers", "slacks"),
                "pullover": ("pullovers", "jumper"),
                "dress": ("dresses", "frock"),
                "coat": ("coats", "overcoat"),
                "sandal": ("sandals", "flip-flop"),
                "shirt": ("shirts",),
                "sneaker": ("sneakers", "trainer"),
                "bag": ("bags", "purse"),
                "ankle-boot": ("ankle boots", "bootie"),
            }
        },
        held_templates=(
            "draw me a {label}",
            "show the {label}",
            "an item: {label}",
            "my new {label}",
            "the {label} I wear",
            "{label} on a dark ground",
        ),
    )

    def concepts(self, values: Mapping[str, str | int]) -> dict[str, str]:
        return {"label": str(values["label"])}
