"""What the pages of samples share: plain HTML and CSS in one file, no scripts, nothing from the network."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from html import escape
from pathlib import Path

from next_scale.errors import UserError
from next_scale.model import Generator, fingerprint

STYLE = """
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
pre { background: var(--code); border-radius: .35rem; padding: .5rem .6rem; margin: .7rem 0 0; white-space: pre-wrap;
  overflow-wrap: anywhere; font: .78rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
.pair pre span { white-space: nowrap }
p code { background: var(--code); border-radius: .25rem; padding: .05rem .25rem; font-size: .86em }
.scroll { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; font-size: .88rem; white-space: nowrap }
th, td { text-align: right; padding: .3rem .7rem; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left; padding-left: 0 } th { font-weight: 600 }
@media (max-width: 30rem) { article { padding: .6rem } .two, .steps { gap: .4rem } }
"""


def document(title: str, style: str, body: str) -> str:
    """A whole page: `style` comes after the shared one, `body` is HTML."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""


def command(text: str) -> str:
    """A command as HTML: lines break between options, never within one."""
    parts = escape(text, quote=False).replace(" --", "\n--").split("\n")
    return f"<pre>{' '.join(f'<span>{part}</span>' for part in parts)}</pre>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def model_size(parameters: int, megabytes: float | None) -> str:
    """``2.6 million parameters in 5.3 MB``."""
    size = f"{parameters / 1e6:.1f} million parameters"
    return size if megabytes is None else f"{size} in {megabytes:.1f} MB"


def megabytes_of(checkpoint: str) -> float | None:
    """Size of the weights of a checkpoint, a folder or a file; None where it is neither."""
    weights = Path(checkpoint)
    weights = weights / "model.safetensors" if weights.is_dir() else weights
    return weights.stat().st_size / 1e6 if weights.is_file() else None


def read_report(path: str | None, model: Generator, program: str) -> dict | None:
    """The figures of a report of `program`. Raises UserError where it is not one, or one of another model."""
    if path is None:
        return None
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        mine = report["fingerprint"] == fingerprint(model.tokenizer)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a report of {program} evaluate: {error!r}") from error
    if not mine:
        raise UserError(f"{path} is about tokenizer {report['fingerprint']}, not this one; evaluate this model first")
    return report


def link_to(out: Path, page: str, text: str) -> str:
    """A link to another page of the folder, where it is there."""
    return f'<a href="{escape(page)}">{escape(text)}</a>' if (out / page).is_file() else ""


def publish(scratch: Path, out: Path, page: str, files: str) -> None:
    """Move a page and the folder of its files from `scratch` to `out`, in the place of what was there."""
    if (out / files).is_dir():
        shutil.rmtree(out / files)
    os.replace(scratch / files, out / files)
    os.replace(scratch / page, out / page)
