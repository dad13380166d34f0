"""The Python interface: its examples run as they are written."""

import doctest

import image_var.api


def test_examples():
    result = doctest.testmod(image_var.api)
    assert result.attempted > 5 and result.failed == 0
