"""How close a set of generated samples is to a set of real ones, and how a tokenizer uses its codes.

Distances between sets are taken between feature vectors, whatever network made them; results mean something only beside
the name of that network and the number of samples.

Shape notation: N, M samples, E features, K scales, n_k tokens of scale k, L tokens in all, V codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from next_scale.errors import UserError
from next_scale.schedule import Schedule


def gaussian_frechet(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians (Dowson and Landau, J. Multivariate Analysis 12, 1982).

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), the last trace from the symmetric S_a^(1/2) S_b S_a^(1/2), so
    that singular covariances need no special care. In float64.

    Shapes: means (E,), covariances (E, E).
    """
    mean_a, covariance_a, mean_b, covariance_b = (x.double() for x in (mean_a, covariance_a, mean_b, covariance_b))
    values, vectors = torch.linalg.eigh(covariance_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp_min(0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * shared
    return max(0.0, float(distance))


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Frechet distance of Gaussians fitted to features (Heusel et al., arXiv 1706.08500); 0 is best.

    It is biased upwards by few samples, the more the smaller N is against E: compare only figures of equal N, and give
    the distance of two sets of real samples beside them.

    Shapes: real (N, E), generated (M, E) float; N, M of at least 2.
    """
    _check(real, generated, 2)
    real, generated = real.double(), generated.double()
    return gaussian_frechet(real.mean(0), torch.cov(real.T), generated.mean(0), torch.cov(generated.T))


def kernel_distance(real: Tensor, generated: Tensor) -> float:
    """Squared maximum mean discrepancy with the kernel (x.y / E + 1)^3 (Binkowski et al., arXiv 1801.01401).

    Unbiased at any N, so it may be slightly negative for equal distributions.

    Shapes: real (N, E), generated (M, E) float; N, M of at least 2.
    """
    _check(real, generated, 2)
    real, generated = real.double(), generated.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        both = kernel(a, a)
        return (both.sum() - both.trace()) / (len(a) * (len(a) - 1))

    return float(within(real) + within(generated) - 2 * kernel(real, generated).mean())


class Manifold(NamedTuple):
    """precision, recall (Kynkaanniemi et al. 2019), density, coverage (Naeem et al. 2020)."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_metrics(real: Tensor, generated: Tensor, neighbours: int = 5) -> Manifold:
    """Do generated samples lie where real ones do, and the other way round, by balls that reach the k-th neighbour.

    precision: share of generated samples inside some real sample's ball; recall: of real samples inside some generated
    one's (arXiv 1904.06991, equation 1). density: how many real balls a generated sample lies in, over k, which may
    pass 1; coverage: share of real balls with a generated sample inside (arXiv 2002.09797, equations 6 and 7). A sample
    is not its own neighbour. For a generator equal to the data, density is 1 and coverage 1 - 2^-k if N = M.

    Args:
        real: (N, E) float. generated: (M, E) float.
        neighbours: k, below N and M.

    Raises:
        UserError: fewer samples than k + 1.
    """
    _check(real, generated, neighbours + 1)
    real, generated = real.double(), generated.double()
    real_radius, generated_radius = (_radius(x, neighbours) for x in (real, generated))
    distance = _distance(real, generated)  # (N, M)
    in_real = distance <= real_radius[:, None]
    in_generated = distance <= generated_radius[None]
    return Manifold(
        precision=float(in_real.any(0).double().mean()),
        recall=float(in_generated.any(1).double().mean()),
        density=float(in_real.double().sum(0).mean() / neighbours),
        coverage=float(in_real.any(1).double().mean()),
    )


def _distance(a: Tensor, b: Tensor) -> Tensor:
    # the short way over a.b loses the digits that tell near duplicates apart
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _radius(x: Tensor, neighbours: int) -> Tensor:
    """Distance to the k-th nearest other sample: (N, E) -> (N,)."""
    return _distance(x, x).fill_diagonal_(0).kthvalue(neighbours + 1, dim=1).values


def _check(real: Tensor, generated: Tensor, least: int) -> None:
    if min(len(real), len(generated)) < least:
        counts = f"{len(real)} and {len(generated)}"
        raise UserError(f"these figures need at least {least} samples of each kind, got {counts}: ask for more")
    if not (real.isfinite().all() and generated.isfinite().all()):
        raise UserError("some features are not finite: the samples or the network that made them are damaged")


@dataclass(frozen=True)
class ScaleUsage:
    """How one scale of a pyramid uses its codebook.

    Attributes:
        tokens: tokens of this scale in a pyramid, n_k.
        bits: bits a pyramid spends on this scale, n_k log2 V.
        entropy: bits a pyramid would spend with an ideal code for this scale's code frequencies.
        perplexity: 2 to the entropy of one token: V if all codes are used alike.
        used: codes that occur.
        expected: codes that would occur in as many tokens if all codes were used alike: few tokens cannot use all.
    """

    tokens: int
    bits: float
    entropy: float
    perplexity: float
    used: int
    expected: float


def codebook_usage(tokens: Tensor, schedule: Schedule, codebook_size: int) -> list[ScaleUsage]:
    """Use of the codes at every scale over a set of pyramids: tokens (N, L) int64 -> K entries."""
    usage = []
    for part in schedule.split(tokens):
        count = torch.bincount(part.flatten().cpu(), minlength=codebook_size).double()
        share = count / count.sum()
        entropy = float(-torch.special.xlogy(share, share).sum()) / math.log(2)
        usage.append(
            ScaleUsage(
                tokens=part.shape[1],
                bits=part.shape[1] * math.log2(codebook_size),
                entropy=part.shape[1] * entropy,
                perplexity=2**entropy,
                used=int((count > 0).sum()),
                expected=codebook_size * (1 - (1 - 1 / codebook_size) ** part.numel()),
            )
        )
    return usage


def bits_per_scale(log_prob: Tensor) -> Tensor:
    """Mean cross-entropy of each scale in bits: natural log-probabilities summed by scale (N, K) -> (K,) float64."""
    return -log_prob.double().mean(0) / math.log(2)
