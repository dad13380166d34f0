"""Comparison with what the published SAT and AAR code computed, quantity by quantity."""

from __future__ import annotations

from audio_var.published import (
    AAR,
    FIELD,
    PHI_RATIO,
    SAMPLE_RATE,
    SAT,
    build_generator,
    build_tokenizer,
    schedule_of,
)
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
    if "sat" not in prefixes:
        raise UserError(f"the case has weights of {', '.join(prefixes) or 'nothing'}, but of no SAT tokenizer")
    if config.get("norm_eps", EPS) != EPS:
        raise UserError(f"the case normalises with norm_eps {config['norm_eps']}; published models have {EPS}")
    sat = Weights(SAT, "the case", case.weights("sat."))
    lengths = config.get("multi_scale")
    options = {
        "sample_rate": config.get("sample_rate", SAMPLE_RATE),
        "causal": config.get("causal", False),
        "phi_ratio": config.get("quant_resi", PHI_RATIO),
    }
    if "aar" not in prefixes:
        return build_tokenizer(sat, schedule_of(sat, None, lengths), **options)
    aar = Weights(AAR, "the case", case.transformer("aar."))
    return build_generator(sat, aar, lengths, heads=config.get("num_heads"), **options)


def compare(case: Case) -> tuple[list[Difference], list[str]]:
    """See :func:`next_scale.parity.compare`."""
    return parity.compare(case, model_of(case), "waveform", "clap_embedding", FIELD)
