"""Schedules: what follows from the sizes, reading them, and what is refused."""

import pytest
import torch

from next_scale.errors import UserError
from next_scale.schedule import Schedule, StrideSchedule

TEXTS = ["1 2 4 8", "1 1 2 2 3", "5", "1x1 2x2 3x3", "1x2 2x2 2x4", "1 2 4 6 9 12 16 20 25 31 37 43 50 58 66 75"]


@pytest.mark.parametrize("text", TEXTS)
def test_what_follows_from_the_sizes(text):
    schedule = Schedule.parse(text)
    assert str(schedule) == text and schedule.scales == len(text.split())
    assert schedule.grid == schedule.sizes[-1] and schedule.dim == len(schedule.grid)
    assert schedule.length == sum(schedule.counts) == len(schedule.level) == len(schedule.visible_end)
    for k, (start, count) in enumerate(zip(schedule.starts, schedule.counts, strict=True)):
        part = slice(start, start + count)
        assert (schedule.level[part] == k).all() and (schedule.visible_end[part] == start + count).all()
    assert schedule.level.dtype == schedule.visible_end.dtype == torch.int64
    tokens = torch.arange(2 * schedule.length).view(2, -1)
    parts = schedule.split(tokens)
    assert [p.shape[1] for p in parts] == list(schedule.counts) and torch.equal(torch.cat(parts, 1), tokens)
    assert schedule.bits(1024) == 10 * schedule.length


def test_published_token_counts():
    var = Schedule(tuple((s, s) for s in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)))
    control = Schedule.parse("1 4 9 16 25 36 64 100 169 256")
    assert var.length == 680 and control.counts == var.counts
    assert torch.equal(control.visible_end, var.visible_end)
    assert Schedule.parse(TEXTS[-1]).length == 455


@pytest.mark.parametrize("text", TEXTS)
def test_round_trips(text):
    schedule = Schedule.parse(text)
    assert Schedule.from_config(schedule.to_config()) == schedule == Schedule.parse(schedule.to_config())
    assert hash(Schedule.parse(text)) == hash(schedule)


@pytest.mark.parametrize(
    "given",
    ["1,2,4", "1, 2, 4", " 1  2 4 ", [1, 2, 4], ["1", "2", "4"], [[1], [2], [4]], ((1,), (2,), (4,))],
)
def test_ways_to_write_one(given):
    assert Schedule.parse(given) == Schedule(((1,), (2,), (4,)))


@pytest.mark.parametrize(
    "given, message",
    [
        ("", "at least one scale"),
        ([], "at least one scale"),
        ([[]], "at least one scale"),
        ("1 2x2", "same number of dimensions"),
        ("0 1", "at least 1"),
        ("-1 1", "at least 1"),
        ("1 4 2", "may not shrink"),
        ("1x4 2x2", "may not shrink"),
        ("one two", "cannot read"),
        ("1.5 2", "cannot read"),
        ("1x 2x2", "cannot read"),
        (7, "cannot read"),
        ([None], "cannot read"),
    ],
)
def test_refused(given, message):
    with pytest.raises(UserError, match=message) as caught:
        Schedule.parse(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [8, 16, 40])
def test_strides(length):
    """SNAC's strides serve any length that the coarsest divides."""
    schedule = StrideSchedule((8, 4, 2, 1)).at((length,))
    assert schedule.sizes == ((length // 8,), (length // 4,), (length // 2,), (length,))
    assert StrideSchedule((2, 1)).at((4, length)).sizes == ((2, length // 2), (4, length))


@pytest.mark.parametrize("strides", [(), (4, 2), (1, 0), (2, 0, 1), (4, 3, 1), (1, 2, 1), (-2, 1)])
def test_refused_strides(strides):
    with pytest.raises(UserError):
        StrideSchedule(strides)


def test_a_length_that_strides_do_not_divide():
    with pytest.raises(UserError, match="coarsest stride 8"):
        StrideSchedule((8, 4, 2, 1)).at((12,))


def test_masks_shrink_by_area():
    line = torch.tensor([[1, 1, 1, 0, 0, 1, 0, 0]], dtype=torch.bool)
    shrunk = Schedule.parse("1 2 4 8").shrink_mask(line)
    assert shrunk.dtype == torch.bool and shrunk.int().tolist() == [[0, 1, 0, 1, 0, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0]]
    grid = torch.zeros(2, 4, 4, dtype=torch.bool)
    grid[0, :, 1:] = True
    grid[1, :3, :2] = True
    schedule = Schedule.parse("1x1 2x2 3x3 4x4")
    scales = [part.int().tolist() for part in schedule.split(schedule.shrink_mask(grid))]
    assert scales[0] == [[1], [0]]
    assert scales[1] == [[0, 1, 0, 1], [1, 0, 0, 0]]  # exactly half is not enough
    assert scales[2] == [[0, 1, 1] * 3, [1, 0, 0, 1, 0, 0, 0, 0, 0]]
    assert scales[3] == grid.flatten(1).int().tolist()
