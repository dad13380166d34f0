"""What the page of samples looks like: plain HTML and CSS in one file, no scripts, nothing from the network."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from next_scale.report import number, percent
from recipes.page import command, document, model_size, table

NAMES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")


@dataclass(frozen=True)
class Clip:
    """Paths of a clip and its spectrogram, relative to the page, and the picture's size."""

    audio: str
    picture: str
    width: int
    height: int


@dataclass(frozen=True)
class Pair:
    """A generated clip, the command that made it, and a real note of the same condition by the preset `instrument`."""

    condition: dict[str, str | int]
    instrument: str
    generated: Clip
    real: Clip
    command: str


@dataclass(frozen=True)
class Step:
    """What the first `scales` scales decode to."""

    scales: int
    tokens: int
    bits: int
    clip: Clip


@dataclass(frozen=True)
class Pyramid:
    """A real note and what its first scales decode to; the last step, all scales, is the tokenizer's reconstruction."""

    condition: dict[str, str | int]
    instrument: str
    real: Clip
    steps: list[Step]
    command: str


@dataclass(frozen=True)
class Page:
    """Everything the page shows.

    `tokenizer` and `generator` are reports of `audio-var evaluate`, or None; `other` is a link to another page.
    """

    pairs: list[Pair]
    pyramids: list[Pyramid]
    facts: dict
    seed: int
    decibels: float
    colours: list[list[int]]
    attribution: str
    tokenizer: dict | None
    generator: dict | None
    other: str = ""


_STYLE = """
img { display: block; width: 100%; height: 8.5rem; border-radius: .35rem .35rem 0 0; background: #000 }
audio { display: block; width: 100%; height: 2.4rem; margin-top: .25rem }
.scale { display: flex; align-items: center; gap: .6rem; max-width: 32rem; margin-top: .8rem }
.bar { flex: 1; height: .7rem; border-radius: .35rem }
"""


def render(page: Page) -> str:
    """The page as HTML."""
    facts = page.facts
    pairs, pyramids = "\n".join(map(_pair, page.pairs)), "\n".join(map(_pyramid, page.pyramids))
    colours = ", ".join(f"rgb({', '.join(map(str, colour))})" for colour in page.colours)
    measured = '<a href="#measured">Measured</a>' if page.tokenizer or page.generator else ""
    body = f"""
<p>A transformer draws a pyramid of tokens from coarse to fine, one whole scale a step, and a codec turns it into sound:
{facts["scales"]} steps and {facts["tokens"]} tokens of {facts["codes"]:,} codes for {facts["seconds"]:.2f} s at
{facts["rate"] / 1000:g} kHz, {facts["kbits"]:.2f} kbit/s. The whole model has
{model_size(facts["parameters"], facts["megabytes"])}.</p>
<nav><a href="#pairs">Generated and real</a> <a href="#pyramid">Scale by scale</a> {measured}
{page.other}</nav>

<h2 id="pairs">Generated and real</h2>
<p>On the left of each card what the model makes of a family, a pitch and a velocity; on the right a real note of the
same condition. Every real note is from the test split, never from the training set: no note of its instrument at its
pitch, at any velocity, was trained on. A family holds many instruments and the model chooses one itself, so a pair need
not sound alike: it shares family, pitch and velocity.</p>
<p>Nothing is picked by ear: all clips are the first draw of seed {page.seed}, for the first notes of each family in a
shuffled order. The command in a card, run
in the folder of this page, makes its clip again, on the same machine bit for bit.</p>
<p class="dim">Spectrograms: frequency from 40 Hz to {facts["rate"] / 2000:g} kHz, logarithmic, upwards; time
{facts["seconds"]:.2f} s. One scale of colours for all pictures of a card, down from its loudest point:</p>
<div class="scale dim"><span>−{page.decibels:g} dB</span>
<div class="bar" style="background: linear-gradient(90deg, {colours})"></div><span>0 dB</span></div>
<div class="pairs">
{pairs}
</div>

<h2 id="pyramid">Scale by scale</h2>
<p>Held-out notes turned into tokens and decoded from the first scales of {escape(facts["schedule"])} only. The first
scales hold one token each, for the whole clip; the last one a token every {1000 * facts["seconds"] / facts["last"]:.0f}
ms. With all scales it is the tokenizer's reconstruction: the best that a generator of its tokens can reach.</p>
{pyramids}
{_measured(page)}
<h2>Source</h2>
<p class="dim">Real notes: {escape(page.attribution)}; the text of the licence is in <code>demo_notes/README.md</code>.
Model: tokenizer <code>{facts["fingerprint"]}</code>. This page is made by
<code>python -m recipes.audio_notes.make_samples</code>.</p>"""
    return document("Instrument notes by next-scale prediction", _STYLE, body)


def _title(condition: dict[str, str | int]) -> str:
    """``flute · C4 · velocity 80``."""
    parts = []
    for name, value in condition.items():
        if name == "label":
            parts.append(str(value).replace("_", " "))
        elif name == "pitch":
            parts.append(f"{NAMES[int(value) % 12]}{int(value) // 12 - 1}")
        else:
            parts.append(f"{name} {value}")
    return escape(" · ".join(parts))


def _figure(clip: Clip, name: str, note: str, alt: str) -> str:
    return f"""<figure>
<figcaption><b>{escape(name)}</b> <span>{escape(note)}</span></figcaption>
<img src="{escape(clip.picture)}" width="{clip.width}" height="{clip.height}" alt="{escape(alt)}" loading="lazy">
<audio controls preload="metadata" src="{escape(clip.audio)}"></audio>
</figure>"""


def _pair(pair: Pair) -> str:
    title = _title(pair.condition)
    return f"""<article class="pair">
<h3>{title}</h3>
<div class="two">
{_figure(pair.generated, "generated", "", f"spectrogram of the generated clip, {title}")}
{_figure(pair.real, "real", pair.instrument, f"spectrogram of the real note, {title}")}
</div>
{command(pair.command)}
</article>"""


def _pyramid(pyramid: Pyramid) -> str:
    title = _title(pyramid.condition)
    figures = [_figure(pyramid.real, "real", pyramid.instrument, f"spectrogram of the real note, {title}")]
    for step in pyramid.steps:
        last = step is pyramid.steps[-1]
        name = "1 scale" if step.scales == 1 else f"all {step.scales} scales" if last else f"{step.scales} scales"
        figures.append(_figure(step.clip, name, f"{step.bits:,} bits", f"spectrogram of {name} of {title}"))
    return f"""<article class="pyramid">
<h3>{title}</h3>
<div class="steps">
{chr(10).join(figures)}
</div>
{command(pyramid.command)}
</article>"""


def _measured(page: Page) -> str:
    parts = []
    if page.tokenizer:
        rows = [
            (
                system["name"], number(system["kbits"], 2), number(q["mel"], 3), number(q["convergence"], 3),
                percent(q["in_tune"]), number(q.get("visqol"), 2),
            )
            for system in page.tokenizer["systems"]
            for q in [system["quality"]]
        ]  # fmt: skip
        header = ("tokenizer", "kbit/s", "log-mel distance", "spectral convergence", "pitch within 20 cents", "ViSQOL")
        parts.append(table(header, rows))
    if page.generator:
        rows = [
            (
                v["name"], f"{v['notes']:,}", percent(v["family"]), percent(v["in_tune"]), number(v["frechet"], 2),
                number(v["frechet_reconstructed"], 2), number(v["precision"], 2), number(v["recall"], 2),
            )
            for v in page.generator["verdicts"]
        ]  # fmt: skip
        header = ("notes", "N", "family found", "pitch within 50 cents", "Fréchet to real", "to reconstructions",
                  "precision", "recall")  # fmt: skip
        features = escape(page.generator["features"])
        parts.append(f'{table(header, rows)}\n<p class="dim">Judged by the shipped evaluator ({features}).</p>')
    if not parts:
        return ""
    return (
        '\n<h2 id="measured">Measured</h2>\n<p>On held-out notes, by <code>audio-var evaluate</code>.</p>\n'
        + "\n".join(parts)
    )
