"""Codebooks: look-up, k-means start, moving averages, revival."""

import pytest
import torch

from next_scale.codebook import Codebook, kmeans
from next_scale.kernels.nearest_code import nearest_code


def clusters(codes=8, per=50, channels=4, spread=0.05, seed=0):
    """Well-separated clusters: vectors (N, C) and their centres (codes, C)."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(codes, channels, generator=generator) * 3
    vectors = centres.repeat_interleave(per, 0)
    return vectors + spread * torch.randn(vectors.shape, generator=generator), centres


def distortion(vectors, weight, cosine=False):
    return (vectors - weight[nearest_code(vectors, weight, cosine)]).square().mean().item()


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("count, codes, channels", [(1, 1, 1), (5, 7, 3), (123, 33, 5), (1030, 64, 8), (0, 4, 2)])
def test_nearest_code_against_the_definition(count, codes, channels, cosine):
    torch.manual_seed(0)
    vectors, weight = torch.randn(count, channels), torch.randn(codes, channels)
    a, b = vectors.double(), weight.double()
    if cosine:
        a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    distance = (a[:, None] - b[None]).square().sum(-1)
    got = nearest_code(vectors, weight, cosine)
    assert got.shape == (count,) and got.dtype == torch.int64
    if count:
        chosen = distance.gather(1, got[:, None])[:, 0]
        torch.testing.assert_close(chosen, distance.min(1).values, atol=1e-5, rtol=1e-5)


def test_nearest_code_ties_go_to_the_lowest_index():
    weight = torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert nearest_code(torch.tensor([[1.0, 0.0], [0.9, 0.0]]), weight).tolist() == [1, 1]


def test_cosine_ignores_length():
    weight = torch.tensor([[10.0, 0.0], [0.0, 0.1]])
    vectors = torch.tensor([[0.01, 0.0], [0.0, 50.0], [1.0, 2.0]])
    assert nearest_code(vectors, weight, cosine=True).tolist() == [0, 1, 1]


@pytest.mark.parametrize("cosine", [False, True])
def test_kmeans_lowers_distortion(cosine):
    vectors, _ = clusters()
    torch.manual_seed(0)
    start = vectors[torch.randperm(len(vectors))[:8]]
    torch.manual_seed(0)
    centroids = kmeans(vectors, 8, 10, cosine)
    assert centroids.shape == (8, 4) and centroids.isfinite().all()
    assert distortion(vectors, centroids, cosine) <= distortion(vectors, start, cosine)


def test_kmeans_with_fewer_vectors_than_codes():
    vectors = torch.randn(3, 4)
    centroids = kmeans(vectors, 10, 5)
    assert centroids.isfinite().all() and len(centroids.unique(dim=0)) == 10
    assert distortion(vectors, centroids) < 0.01


@pytest.mark.parametrize("vectors", [torch.ones(20, 3), torch.zeros(1, 3)])
def test_kmeans_of_equal_vectors(vectors):
    centroids = kmeans(vectors, 4, 5)
    assert centroids.isfinite().all() and (centroids - vectors[0]).abs().max() < 0.1


def test_moving_averages_find_the_clusters():
    vectors, centres = clusters()
    torch.manual_seed(1)
    book = Codebook(8, 4, decay=0.8, revive=0.0)
    with torch.no_grad():
        book.weight.copy_(centres + 0.5 * torch.randn_like(centres))
    before = distortion(vectors, book.weight)
    for _ in range(60):
        book.learn(vectors, book.nearest(vectors))
    assert distortion(vectors, book.weight) < 0.05 * before
    torch.testing.assert_close(book.usage, torch.ones(8), atol=0.02, rtol=0)


def test_moving_average_is_the_definition():
    """One step from usage 1: weight = (decay w + (1 - decay) sum / n) / (decay + (1 - decay) count / n)."""
    torch.manual_seed(0)
    book = Codebook(2, 3, decay=0.9, horizon=1e-6, revive=0.0)
    old, vectors = book.weight.clone(), torch.randn(4, 3)
    book.learn(vectors, torch.tensor([0, 0, 0, 1]))  # 2 vectors a code on average
    want = torch.stack(
        [
            (0.9 * old[0] + 0.1 * vectors[:3].sum(0) / 2) / (0.9 + 0.1 * 1.5),
            (0.9 * old[1] + 0.1 * vectors[3] / 2) / (0.9 + 0.1 * 0.5),
        ]
    )
    torch.testing.assert_close(book.weight, want)
    torch.testing.assert_close(book.usage, torch.tensor([1.05, 0.95]))


def test_few_vectors_a_step_decay_slower():
    """One vector a step for 100 codes must not wash out what the codebook knows."""
    book = Codebook(100, 2, decay=0.5, horizon=20, revive=0.0)
    before = book.weight.clone()
    book.learn(torch.full((1, 2), 9.0), torch.tensor([0]))
    assert torch.equal(book.weight[1:], before[1:])
    assert book.usage[1:].min() > 0.999


def test_gradient_codebook_is_a_parameter_that_learn_leaves_alone():
    book = Codebook(4, 2, update="gradient", revive=0.0)
    assert [name for name, _ in book.named_parameters()] == ["weight"]
    before = book.weight.clone()
    book.learn(torch.randn(16, 2), torch.randint(4, (16,)))
    assert torch.equal(book.weight, before)
    ema = Codebook(4, 2)
    assert not list(ema.parameters()) and list(ema.state_dict()) == list(book.state_dict()) == ["weight"]


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_dead_codes_are_revived(update):
    """All codes but one lie far away: without revival one is used for ever, with it nearly all."""
    used = {}
    for revive in (0.0, 0.05):
        torch.manual_seed(0)
        book = Codebook(16, 4, update=update, decay=0.8, revive=revive)
        with torch.no_grad():
            book.weight[1:] += 1000
        for _ in range(100):
            vectors = torch.randn(256, 4)
            book.learn(vectors, book.nearest(vectors))
        used[revive] = len(book.nearest(torch.randn(1000, 4)).unique())
    assert used[0.0] == 1 and used[0.05] >= 14


def test_revival_moves_an_eighth_of_the_batch_at_most():
    torch.manual_seed(0)
    book = Codebook(64, 2, decay=0.5, revive=0.5)
    book.usage.zero_()
    before = book.weight.clone()
    vectors = torch.randn(16, 2)
    book.learn(vectors, torch.zeros(16, dtype=torch.int64))
    assert 1 <= (book.weight[1:] != before[1:]).any(1).sum() <= 2
