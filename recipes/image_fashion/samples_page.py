"""What the page of images looks like: plain HTML and CSS in one file, no scripts, nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from next_scale.report import number, percent
from recipes.page import command, document, model_size, table

TITLE = "Images of clothes by next-scale prediction"


@dataclass(frozen=True)
class Card:
    """Generated images of a class, the command that made them, and real ones; paths relative to the page."""

    name: str
    generated: list[str]
    real: list[str]
    command: str


@dataclass(frozen=True)
class Step:
    """What the first `scales` scales decode to."""

    scales: int
    tokens: int
    bits: int
    picture: str


@dataclass(frozen=True)
class Pyramid:
    """An image of a class and what the first scales of its tokens decode to.

    `picture` is a real image, whose last step is the tokenizer's reconstruction; it is None for a generated one, whose
    last step is the image itself.
    """

    name: str
    picture: str | None
    steps: list[Step]
    command: str = ""


@dataclass(frozen=True)
class Page:
    """Everything the page shows.

    `tokenizer` and `generator` are reports of `image-var evaluate`, or None; `commands` are those that made the
    reports and this page; `other` is a link to another page.
    """

    cards: list[Card]
    drawn: list[Pyramid]
    decoded: list[Pyramid]
    facts: dict
    seed: int
    tokenizer: dict | None
    generator: dict | None
    commands: list[str]
    other: str = ""


_STYLE = """
img { display: block; width: 100%; aspect-ratio: 1; background: #000; image-rendering: pixelated;
  border-radius: .2rem }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); gap: 1rem;
  margin-top: 1rem }
.many { display: grid; grid-template-columns: repeat(4, 1fr); gap: .25rem; margin-top: .3rem }
.two { align-items: start } .card pre span, .pyramid pre span { white-space: nowrap }
.steps { grid-template-columns: repeat(auto-fill, minmax(4.2rem, 1fr)); gap: .4rem } .pyramid { margin-top: 0 }
h3 { text-transform: capitalize }
"""


def render(page: Page) -> str:
    """The page as HTML."""
    facts = page.facts
    cards = "\n".join(map(_card, page.cards))
    drawn, decoded = ("\n".join(map(_pyramid, pyramids)) for pyramids in (page.drawn, page.decoded))
    measured = '<a href="#measured">Measured</a>' if page.tokenizer or page.generator else ""
    channels = {1: "gray", 3: "RGB"}[facts["channels"]]
    body = f"""
<p>A transformer draws a pyramid of tokens from coarse to fine, one whole scale a step, and an autoencoder turns it into
an image: {facts["scales"]} steps and {facts["tokens"]} tokens of {facts["codes"]:,} codes for {facts["width"]} x
{facts["height"]} pixels ({channels}), {facts["bits"]:.2f} bits a pixel. The whole model, autoencoder included, has
{model_size(facts["parameters"], facts["megabytes"])}.</p>
<nav><a href="#classes">Generated and real</a> <a href="#drawn">As it is drawn</a> <a href="#pyramid">Scale by scale</a>
{measured} <a href="#commands">Commands</a> {page.other}</nav>

<h2 id="classes">Generated and real</h2>
<p>On the left of each card what the model makes of a class; on the right real images of it from the test split, which
no part of the model was trained on. Nothing is picked by eye: generated are the first {len(page.cards[0].generated)}
draws of seed {page.seed}, and real the first test images of the class in a shuffled order. The command in a card, run
in the folder of this page, makes its images again, on the same machine bit for bit.</p>
<div class="cards">
{cards}
</div>

<h2 id="drawn">As it is drawn</h2>
<p>One generated image after each step of {escape(facts["schedule"])}: every step sees all coarser ones and draws its
whole map of tokens at once. What is decoded are the tokens drawn so far; the last picture is the image as it stands in
its card.</p>
<div class="cards">
{drawn}
</div>

<h2 id="pyramid">Scale by scale</h2>
<p>Real test images turned into tokens and decoded from the first scales only. With all scales it is the tokenizer's
reconstruction: the best that a generator of its tokens can reach.</p>
<div class="cards">
{decoded}
</div>
{_measured(page)}
<h2 id="commands">Commands</h2>
<p>The reports and this page, from the root of the project; <code>recipes/image_fashion/README.md</code> has the
commands that train the model.</p>
{"".join(map(command, page.commands))}

<h2>Source</h2>
<p class="dim">Real images: {escape(facts["source"])}. Model: tokenizer <code>{facts["fingerprint"]}</code>.</p>"""
    return document(TITLE, _STYLE, body)


def _picture(path: str, alt: str) -> str:
    return f'<img src="{escape(path)}" alt="{escape(alt)}" loading="lazy">'


def _many(title: str, paths: Sequence[str], name: str) -> str:
    pictures = "\n".join(_picture(path, f"{title} {name}") for path in paths)
    return f"""<figure>
<figcaption><b>{escape(title)}</b></figcaption>
<div class="many">
{pictures}
</div>
</figure>"""


def _card(card: Card) -> str:
    name = card.name.replace("_", " ")
    return f"""<article class="card">
<h3>{escape(name)}</h3>
<div class="two">
{_many("generated", card.generated, name)}
{_many("real", card.real, name)}
</div>
{command(card.command)}
</article>"""


def _figure(path: str, name: str, note: str, alt: str) -> str:
    return f"""<figure>
<figcaption><b>{escape(name)}</b> <span>{escape(note)}</span></figcaption>
{_picture(path, alt)}
</figure>"""


def _pyramid(pyramid: Pyramid) -> str:
    name = pyramid.name.replace("_", " ")
    figures = [] if pyramid.picture is None else [_figure(pyramid.picture, "real", "", f"real {name}")]
    for step in pyramid.steps:
        last = step is pyramid.steps[-1]
        title = "1 scale" if step.scales == 1 else f"all {step.scales}" if last else f"{step.scales} scales"
        figures.append(_figure(step.picture, title, f"{step.bits:,} bits", f"{name}, {title}"))
    return f"""<article class="pyramid">
<h3>{escape(name)}</h3>
<div class="steps">
{chr(10).join(figures)}
</div>
{command(pyramid.command) if pyramid.command else ""}
</article>"""


def _measured(page: Page) -> str:
    parts = []
    if page.tokenizer:
        rows = [
            (
                system["name"], f"{q['images']:,}", number(system["bits_a_pixel"], 3), number(q["psnr"], 2),
                number(q["ssim"], 3), number(q["frechet"], 2), percent(q["accuracy"]),
            )
            for system in page.tokenizer["systems"]
            for q in [system["quality"]]
        ]  # fmt: skip
        header = ("tokenizer", "N", "bits a pixel", "PSNR, dB", "SSIM", "Fréchet to real", "class found")
        parts.append(table(header, rows))
        rows = [
            (
                f"{step['scale']} ({step['size']})", number(step["bits_a_pixel"], 3), number(q["psnr"], 2),
                number(q["frechet"], 2), percent(q["accuracy"]),
                f"{use['used']} of {page.tokenizer['codebook_size']}", number(use["perplexity"], 0),
            )
            for step in page.tokenizer["profile"]
            for q, use in [(step["quality"], step["usage"])]
        ]  # fmt: skip
        header = ("up to scale", "bits a pixel", "PSNR, dB", "Fréchet to real", "class found", "codes used",
                  "perplexity")  # fmt: skip
        parts.append(table(header, rows))
    if page.generator:
        rows = [
            (
                v["name"], f"{v['images']:,}", percent(v["accuracy"]), number(v["frechet"], 2),
                number(v["frechet_reconstructed"], 2), number(v["precision"], 2), number(v["recall"], 2),
                number(v["density"], 2), number(v["coverage"], 2),
            )
            for v in page.generator["verdicts"]
        ]  # fmt: skip
        header = ("images", "N", "class found", "Fréchet to real", "to reconstructions", "precision", "recall",
                  "density", "coverage")  # fmt: skip
        parts.append(table(header, rows))
        rows = [
            (
                f"{e['scale']} ({e['size']})", number(e["bits_a_token"], 2),
                *(str(pair[kind]["used"]) for kind in ("real", "generated")),
                *(number(pair[kind]["perplexity"], 0) for kind in ("real", "generated")),
            )
            for e, pair in zip(page.generator["entropy"], page.generator["usage"], strict=True)
        ]  # fmt: skip
        header = ("scale", "bits a token", "codes used: real", "generated", "perplexity: real", "generated")
        bits = (page.generator["bits"], page.generator["bits_a_token"], page.generator["bits_a_dimension"])
        parts.append(
            f"<p>The token model needs {bits[0]:,.0f} bits for the tokens of a held-out image: {bits[1]:.2f} a token, "
            f"{bits[2]:.3f} a dimension of the image.</p>\n{table(header, rows)}"
        )
    if not parts:
        return ""
    features = escape((page.generator or page.tokenizer)["features"])
    return (
        '\n<h2 id="measured">Measured</h2>\n<p>On test images, by <code>image-var evaluate</code>; classes and Fréchet '
        f"distances by the shipped evaluator ({features}).</p>\n" + "\n".join(parts)
    )
