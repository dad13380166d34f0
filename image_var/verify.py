"""Comparison with what the published VAR code computed, quantity by quantity."""

from __future__ import annotations

from image_var.published import PHI_RATIO, VAE, VAR, build_generator, build_tokenizer, square_schedule
from next_scale import parity
from next_scale.errors import UserError
from next_scale.model import Generator
from next_scale.parity import Case, Difference
from next_scale.published import Weights
from next_scale.tokenizer import Tokenizer
from next_scale.transformer import EPS


def model_of(case: Case) -> Tokenizer | Generator:
    """The model that a case describes, with its regenerated weights; a tokenizer where it has no transformer.

    Raises:
        UserError: it describes another system, or sizes that do not fit together.
    """
    config = case.config
    prefixes = sorted({key.split(".")[0] for key in case.shapes})
    if "vae" not in prefixes:
        raise UserError(f"the case has weights of {', '.join(prefixes) or 'nothing'}, but of no VAR autoencoder")
    if config.get("norm_eps", EPS) != EPS:
        raise UserError(f"the case normalises with norm_eps {config['norm_eps']}; published models have {EPS}")
    vae = Weights(VAE, "the case", case.weights("vae."))
    sides, ratio, cosine = (
        config.get("patch_nums"),
        config.get("quant_resi", PHI_RATIO),
        config.get("using_znorm", False),
    )
    if "var" not in prefixes:
        if sides is None:
            raise UserError("the case tells no schedule: its config lacks patch_nums")
        return build_tokenizer(vae, square_schedule(sides), ratio, cosine)
    var = Weights(VAR, "the case", case.transformer("var."))
    return build_generator(vae, var, sides, ratio, cosine, config.get("num_heads"))


def compare(case: Case) -> tuple[list[Difference], list[str]]:
    """See :func:`next_scale.parity.compare`; generated images are from 0 to 1."""
    return parity.compare(case, model_of(case), "image", "labels", "label", lambda made: (made + 1) / 2)
