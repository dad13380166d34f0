"""Lines visit every place of a grid once, and Hilbert's stays together."""

import pytest
import torch

from next_scale.errors import UserError
from next_scale.line import hilbert_line, line_of


@pytest.mark.parametrize("side", [1, 2, 4, 8, 32])
def test_hilbert_moves_by_one_and_visits_all(side):
    line = hilbert_line(side, side)
    assert torch.equal(line.sort().values, torch.arange(side * side)) and line[0] == 0
    rows, columns = line // side, line % side
    assert ((rows.diff().abs() + columns.diff().abs()) == 1).all()


def test_hilbert_keeps_quarters_together():
    line = hilbert_line(8, 8).view(4, 16)
    for quarter in line:
        assert (quarter // 8).max() - (quarter // 8).min() == 3 and (quarter % 8).max() - (quarter % 8).min() == 3


def test_raster_and_bad_orders():
    assert torch.equal(line_of("raster", 3, 5), torch.arange(15))
    with pytest.raises(UserError, match="power of two, not 6 x 6"):
        line_of("hilbert", 6, 6)
    with pytest.raises(UserError, match="unknown order 'spiral': choose one of raster, hilbert"):
        line_of("spiral", 4, 4)
