"""The command `audio-var`. Every subcommand is a module here, imported only when it is the one asked for."""

from __future__ import annotations

from collections.abc import Sequence

from next_scale.commands.program import Program

COMMANDS = {
    "generate": ("generate", "make clips with a trained model"),
    "play": ("play", "play a MIDI file with a trained model"),
    "reconstruct": ("reconstruct", "pass audio through a tokenizer and back"),
    "tokenize": ("tokens", "audio file -> compact token file"),
    "detokenize": ("tokens", "token file -> audio file"),
    "tokenize-dataset": ("shards", "a data set of sound as shards of tokens, for training"),
    "edit": ("edit", "change a recording: fill a gap, continue, vary, mix, repair"),
    "import": ("published", "the published weights of AAR and SAT as a checkpoint"),
    "verify": ("published", "compare this program with what the published code computed"),
    "info": ("info", "what a checkpoint is and holds"),
    "data": ("data", "make and inspect data sets"),
    "fit": ("fit", "train a tokenizer or a next-scale model from a recipe"),
    "evaluate": ("evaluate", "measure a tokenizer or a model on held-out audio"),
    "codec-report": ("codec_report", "codecs side by side on recordings: distortion, rate, speed"),
    "codec-import": ("codec_report", "a published codec as a checkpoint, its own codebooks as scales"),
}

_PROGRAM = Program(
    name="audio-var",
    package="audio_var.cli",
    commands=COMMANDS,
    description="Audio by next-scale prediction: coarse-to-fine token pyramids, drawn one whole scale a step.",
    epilog="""example:
  audio-var generate --label flute --pitch 60 --count 4 --out clips

audio-var COMMAND --help explains a command, with an example that works""",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` by default) and return the exit code: 2 after a mistake, told in one line."""
    return _PROGRAM(argv)
