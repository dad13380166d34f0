import pytest
import torch

from next_scale.errors import UserError
from next_scale.predictors.any_length import AnyLength
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import StrideSchedule

STRIDES = (8, 4, 2, 1)
GRIDS = (16, 40, 128)  # the ratios of 0.5, 1.3 and 4 s


def pieces(**options):
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(StrideSchedule(STRIDES), 6, codebook_size=16, phis=0, upsampling="nearest")
    spec = {"label": ["a", "b"]}
    predictor = AnyLength(STRIDES, 16, 6, spec, width=32, depth=2, heads=2, condition_dropout=0.0, **options)
    return quantizer.eval(), predictor.eval()


def batch_at(quantizer, grid: int, count: int = 4):
    tokens = quantizer.encode(torch.randn(count, 6, grid))
    return tokens, quantizer.teacher_forcing(tokens, (grid,)), {"label": torch.arange(count) % 2}


def test_one_model_learns_several_lengths():
    quantizer, predictor = pieces()
    batches = {grid: batch_at(quantizer, grid) for grid in GRIDS}
    optimizer = torch.optim.AdamW(predictor.parameters(), 3e-3)
    before = {grid: predictor.loss(*batches[grid]).loss.item() for grid in GRIDS}
    for _ in range(30):
        for grid in GRIDS:
            optimizer.zero_grad()
            predictor.loss(*batches[grid]).loss.backward()
            optimizer.step()
    assert predictor.place.weight.grad.abs().sum() > 0
    for grid in GRIDS:
        assert predictor.loss(*batches[grid]).loss.item() < 0.8 * before[grid]


@pytest.mark.parametrize("grid", GRIDS)
def test_generation_is_its_own_teacher_forcing(grid):
    quantizer, predictor = pieces()
    condition = {"label": torch.tensor([0, 1])}
    drawn = predictor.generate(quantizer, condition, 2, SamplingOptions(temperature=0.0), grid=(grid,), seeds=3)
    assert drawn.tokens.shape == (2, grid * 15 // 8)
    assert drawn.latent.shape == (2, 6, grid)
    inputs = quantizer.teacher_forcing(drawn.tokens, (grid,))
    logits = predictor(inputs, condition)
    assert torch.equal(logits.argmax(-1), drawn.tokens)
    assert predictor.log_prob(drawn.tokens, inputs, condition).shape == (2, 4)


def test_seeds_repeat_and_the_default_grid_serves():
    quantizer, predictor = pieces(grid=(24,))
    first, again = (predictor.generate(quantizer, {}, 1, seeds=5) for _ in range(2))
    assert torch.equal(first.tokens, again.tokens) and first.latent.shape[2] == 24
    assert predictor.schedule.grid == (24,)


def test_config_and_state_round_trip():
    quantizer, predictor = pieces(codebook_head=True, grid=(16,))
    predictor.start_from(quantizer)
    again = AnyLength.from_config(predictor.to_config()).eval()
    again.load_state_dict(predictor.state_dict())
    tokens, inputs, condition = batch_at(quantizer, 40)
    assert torch.equal(again(inputs, condition), predictor(inputs, condition))
    assert not any("position" in name or "start" in name or "prefix" in name for name in predictor.state_dict())


def test_tokens_of_the_same_frames_share_a_position():
    _, predictor = pieces()
    long, short = (predictor._waves(predictor.strides.at((grid,)), torch.device("cpu")) for grid in (32, 16))
    assert torch.equal(long[:2], short[:2])  # the first codes of the coarsest scale, whatever follows


def test_mistakes():
    with pytest.raises(UserError, match="no multiple of the coarsest stride 8"):
        pieces()[1].at((12,))
    with pytest.raises(UserError, match="16 tokens are no pyramid"):
        StrideSchedule(STRIDES).of_length(16)
    with pytest.raises(UserError, match="one dimension"):
        AnyLength((2, 1), 16, 6, grid=(4, 4))
    with pytest.raises(UserError, match="end at 1"):
        AnyLength((4, 2), 16, 6)
