"""The command `image-var`. Every subcommand is a module here, imported only when it is the one asked for."""

from __future__ import annotations

from collections.abc import Sequence

from next_scale.commands.program import Program

COMMANDS = {
    "generate": ("generate", "make images with a trained model"),
    "reconstruct": ("reconstruct", "pass images through a tokenizer and back"),
    "tokenize": ("tokens", "image file -> compact token file"),
    "detokenize": ("tokens", "token file -> image file"),
    "edit": ("edit", "change an image: paint a part, vary, mix, repair"),
    "morph": ("morph", "turn a picture of words into what they name, scale by scale"),
    "info": ("info", "what a checkpoint is and holds"),
    "import": ("published", "turn published VAR weights into a checkpoint"),
    "verify": ("published", "compare with what the published code computed"),
    "data": ("data", "make and inspect data sets"),
    "fit": ("fit", "train a tokenizer or a next-scale model from a recipe"),
    "evaluate": ("evaluate", "measure a tokenizer or a model on held-out images"),
}

_PROGRAM = Program(
    name="image-var",
    package="image_var.cli",
    commands=COMMANDS,
    description="Images by next-scale prediction: coarse-to-fine token pyramids, drawn one whole scale a step.",
    epilog="""example:
  image-var generate --label sneaker --count 8 --out images --grid

image-var COMMAND --help explains a command, with an example that works""",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` by default) and return the exit code: 2 after a mistake, told in one line."""
    return _PROGRAM(argv)
