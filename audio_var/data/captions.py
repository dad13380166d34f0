"""What is said of notes: instrument family, pitch register and loudness, in words that vary."""

from __future__ import annotations

from collections.abc import Mapping

from next_scale.conditioning.captions import Captions, Phrases

REGISTERS = {"low": range(0, 53), "middle": range(53, 69), "high": range(69, 128)}
"""MIDI pitches of each register: the Notes set, 36 to 84, in three parts of about a third."""
LOUDNESS = {"soft": range(0, 63), "medium": range(63, 98), "loud": range(98, 128)}
"""Velocities of each loudness."""

_FAMILIES = {
    "bass": ("bass", "bass guitar"),
    "brass": ("brass", "brass instrument"),
    "flute": ("flute", "pipe"),
    "guitar": ("guitar", "plucked strings"),
    "keyboard": ("keyboard", "piano"),
    "mallet": ("mallet", "struck bars"),
    "organ": ("organ", "pipe organ"),
    "reed": ("reed", "reed instrument"),
    "string": ("strings", "bowed strings"),
    "synth_lead": ("synth lead", "lead synthesizer"),
    "synth_pad": ("synth pad", "pad synthesizer"),
    "vocal": ("voice", "choir"),
}
_HELD_FAMILIES = {
    "bass": ("bassline",),
    "brass": ("trumpet", "horn"),
    "flute": ("flutes", "recorder"),
    "guitar": ("guitars", "lute"),
    "keyboard": ("keyboards", "clavier"),
    "mallet": ("mallets", "xylophone"),
    "organ": ("organs",),
    "reed": ("reeds", "saxophone"),
    "string": ("string", "violins"),
    "synth_lead": ("synthesizer lead",),
    "synth_pad": ("synthesizer pad",),
    "vocal": ("voices", "singing"),
}


class NoteCaptions(Captions):
    """Captions of notes, such as "a soft low flute"; arguments as of the base class.

    The fields are those of the Notes set: ``label``, ``pitch``, ``velocity``.
    """

    phrases = Phrases(
        words={
            "family": _FAMILIES,
            "register": {
                "low": ("low", "deep"),
                "middle": ("middle", "mid"),
                "high": ("high", "treble"),
            },
            "loudness": {
                "soft": ("soft", "quiet"),
                "medium": ("medium", "moderate"),
                "loud": ("loud", "strong"),
            },
        },
        templates=(
            "{loudness} {register} {family}",
            "{register} {loudness} {family}",
            "a {loudness} {register} {family}",
            "{family}, {loudness} and {register}",
            "a {register} note of {family}, {loudness}",
            "{loudness} {family}, {register} note",
            "{register} {family} played {loudness}",
            "{family}",
            "a {family}",
            "{loudness} {family}",
            "{register} {family}",
        ),
        held_words={
            "family": _HELD_FAMILIES,
            "register": {"low": ("bottom",), "middle": ("central",), "high": ("top",)},
            "loudness": {"soft": ("gentle",), "medium": ("normal",), "loud": ("forceful",)},
        },
        held_templates=(
            "play a {loudness} {register} {family}",
            "{family}: {register}, {loudness}",
            "one {register} {family} note, {loudness}",
            "the {family} is {loudness} and {register}",
            "{loudness}, {register}, {family}",
            "hear the {register} {loudness} {family}",
        ),
    )

    def __init__(self, form: str = "prompt", typos: float = 0.0, held_out: float = 0.1, brief: bool = False) -> None:
        super().__init__(form, typos, held_out, brief)

    def concepts(self, values: Mapping[str, str | int]) -> dict[str, str]:
        return {
            "family": str(values["label"]),
            "register": next(name for name, pitches in REGISTERS.items() if values["pitch"] in pitches),
            "loudness": next(name for name, velocities in LOUDNESS.items() if values["velocity"] in velocities),
        }
