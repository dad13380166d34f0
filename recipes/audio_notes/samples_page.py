"""What the page of samples looks like: plain HTML and CSS in one file, no scripts, nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from audio_var.reports import number, percent

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
    """Everything the page shows. `tokenizer` and `generator` are reports of `audio-var evaluate`, or None."""

    pairs: list[Pair]
    pyramids: list[Pyramid]
    facts: dict
    seed: int
    decibels: float
    colours: list[list[int]]
    attribution: str
    tokenizer: dict | None
    generator: dict | None


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --dim: #5d5d66; --paper: #fbfaf8; --card: #fff; --line: #dedbd5;
  --code: #f1efea; --accent: #8a2a6b }
@media (prefers-color-scheme: dark) { :root { --ink: #e9e7e3; --dim: #a3a1a9; --paper: #141318; --card: #1d1c22;
  --line: #35333c; --code: #29272f; --accent: #f0a3cf } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .6rem } h2 { margin: 2.4rem 0 .4rem; font-size: 1.25rem }
h3 { margin: 0; font-size: 1rem } p, ul { max-width: 46rem; margin: .5rem 0 }
nav a { margin-right: 1rem } a { color: var(--accent) } .dim, figcaption { color: var(--dim); font-size: .84rem }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem;
  margin-top: 1rem }
article { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem; min-width: 0 }
.two, .steps { display: grid; gap: .7rem; margin-top: .5rem; align-items: end } .two { grid-template-columns: 1fr 1fr }
.steps { grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)) } .pyramid { margin-top: 1rem }
.steps span { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
figure { margin: 0; min-width: 0 } figcaption { min-height: 1.5em; overflow-wrap: anywhere }
figcaption b { color: var(--ink) }
img { display: block; width: 100%; height: 8.5rem; border-radius: .35rem .35rem 0 0; background: #000 }
audio { display: block; width: 100%; height: 2.4rem; margin-top: .25rem }
pre { background: var(--code); border-radius: .35rem; padding: .5rem .6rem; margin: .7rem 0 0; white-space: pre-wrap;
  overflow-wrap: anywhere; font: .78rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
.pair pre span { white-space: nowrap }
p code { background: var(--code); border-radius: .25rem; padding: .05rem .25rem; font-size: .86em }
.scroll { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; font-size: .88rem; white-space: nowrap }
th, td { text-align: right; padding: .3rem .7rem; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left; padding-left: 0 } th { font-weight: 600 }
.scale { display: flex; align-items: center; gap: .6rem; max-width: 32rem; margin-top: .8rem }
@media (max-width: 30rem) { article { padding: .6rem } .two, .steps { gap: .4rem } }
.bar { flex: 1; height: .7rem; border-radius: .35rem }
"""


def render(page: Page) -> str:
    """The page as HTML."""
    facts = page.facts
    model = f"{facts['parameters'] / 1e6:.1f} million parameters"
    if facts["megabytes"] is not None:
        model += f" in {facts['megabytes']:.1f} MB"
    pairs, pyramids = "\n".join(map(_pair, page.pairs)), "\n".join(map(_pyramid, page.pyramids))
    colours = ", ".join(f"rgb({', '.join(map(str, colour))})" for colour in page.colours)
    measured = '<a href="#measured">Measured</a>' if page.tokenizer or page.generator else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Instrument notes by next-scale prediction</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Instrument notes by next-scale prediction</h1>
<p>A transformer draws a pyramid of tokens from coarse to fine, one whole scale a step, and a codec turns it into sound:
{facts["scales"]} steps and {facts["tokens"]} tokens of {facts["codes"]:,} codes for {facts["seconds"]:.2f} s at
{facts["rate"] / 1000:g} kHz, {facts["kbits"]:.2f} kbit/s. The whole model has {model}.</p>
<nav><a href="#pairs">Generated and real</a> <a href="#pyramid">Scale by scale</a> {measured}</nav>

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
<code>python -m recipes.audio_notes.make_samples</code>.</p>
</body>
</html>
"""


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


def _command(text: str) -> str:
    """Lines break between options, never within one."""
    parts = escape(text, quote=False).replace(" --", "\n--").split("\n")
    return f"<pre>{' '.join(f'<span>{part}</span>' for part in parts)}</pre>"


def _pair(pair: Pair) -> str:
    title = _title(pair.condition)
    return f"""<article class="pair">
<h3>{title}</h3>
<div class="two">
{_figure(pair.generated, "generated", "", f"spectrogram of the generated clip, {title}")}
{_figure(pair.real, "real", pair.instrument, f"spectrogram of the real note, {title}")}
</div>
{_command(pair.command)}
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
{_command(pyramid.command)}
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
        parts.append(_table(header, rows))
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
        parts.append(f'{_table(header, rows)}\n<p class="dim">Judged by the shipped evaluator ({features}).</p>')
    if not parts:
        return ""
    return (
        '\n<h2 id="measured">Measured</h2>\n<p>On held-out notes, by <code>audio-var evaluate</code>.</p>\n'
        + "\n".join(parts)
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'
