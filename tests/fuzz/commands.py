"""Command lines as a careless person types them: real options with values of any kind."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Sequence
from functools import cache
from importlib import import_module

from hypothesis import strategies as st

# what would compute for long where its arguments are right, and what starts a training
_PROGRAMS = {
    "audio-var": ("audio_var.cli", ("generate", "play", "reconstruct", "tokenize", "detokenize", "edit", "import",
                                    "verify", "info", "data", "evaluate", "codec-import")),
    "image-var": ("image_var.cli", ("generate", "reconstruct", "tokenize", "detokenize", "edit", "import", "verify",
                                    "info", "data", "evaluate")),
    "next-scale": ("next_scale.compare.cli", ("compare run", "compare report")),
}  # fmt: skip
_FILES = [
    "in.wav", "in.png", "in.mid", "in.nst", "plan.yaml", "weights.pth", "model", "model/config.json", "empty",
    "nothing", ".", "/", "-", "no/such/out.wav", "out.wav", "out.png", "out.nst", "out", "in.wav/x", "\u00e9\u4e00.wav",
]  # fmt: skip
_NUMBERS = [
    "0", "1", "2", "-1", "1e9", "999999999999", "nan", "inf", "-inf", "0.5", "1e-320", "", "1_0", "0x1", "\u0663",
]  # fmt: skip
_WORDS = [
    "a", "b", "60", "61", "a,b", "label=a", "label=", "=", "--", "-h", "--help", "0.1:0.2", "0,0,1,1", "cpu", "tpu",
    "cuda:9", "\u202e", "a" * 300, "%s", "{}", "\n", "@in.wav", "label=a,b", "pitch=60",
]  # fmt: skip


@cache
def options(program: str, command: str) -> tuple[str, ...]:
    """Long options of a command, from its help."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        import_module(_PROGRAMS[program][0]).main([*command.split(), "--help"])
    return tuple(sorted(set(re.findall(r"--[a-z][\w-]*", out.getvalue()))))


@st.composite
def command_lines(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """A program, mostly one of its commands, and a few words. The model, where one is named, is a small one."""
    program = draw(st.sampled_from(list(_PROGRAMS)))
    command = draw(st.sampled_from(_PROGRAMS[program][1]))
    words = [program, *command.split()]
    if draw(st.integers(0, 19)) == 0:
        words = [program, draw(st.sampled_from(_WORDS))]
    values = st.one_of(st.sampled_from(_FILES), st.sampled_from(_NUMBERS), st.sampled_from(_WORDS), st.text(max_size=6))
    known = options(program, command)
    for _ in range(draw(st.integers(0, 5))):
        if known and draw(st.booleans()):
            words.append(draw(st.sampled_from(known)))
        words += [value.replace("\0", "") for value in draw(st.lists(values, max_size=2))]
    if "--checkpoint" in known and "--checkpoint" not in words:
        words += ["--checkpoint", "model"]  # not the one that ships, which would compute for seconds
    return shlex.join(words).encode("utf-8", "replace")
