"""Spaces: what they measure, refuse and print."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import halikit as hk

shapes = st.lists(st.integers(1, 64), max_size=5).map(tuple)


@given(shapes)
def test_rank_and_size_follow_from_the_shape(shape):
    space = hk.Space("z1", shape)
    assert space.rank == len(shape)
    assert space.size == math.prod(shape)
    assert space.is_image == (len(shape) == 3)


@given(shapes, shapes)
def test_spaces_are_equal_when_name_and_shape_agree(first, second):
    assert (hk.Space("x", first) == hk.Space("x", second)) == (first == second)
    assert hk.Space("x", first) != hk.Space("z1", first)
    assert hash(hk.Space("x", first)) == hash(hk.Space("x", first))


@pytest.mark.parametrize(
    ("space", "text"),
    [
        (hk.Space("x", (3, 32, 32)), "x (3×32×32)"),
        (hk.Space("z2", (10,)), "z2 (10)"),
        (hk.Space("y", ()), "y (scalar)"),
    ],
)
def test_a_space_prints_its_name_and_shape(space, text):
    assert str(space) == text


def test_a_list_as_shape_is_taken_as_a_tuple():
    assert hk.Space("x", [2, 3]) == hk.Space("x", (2, 3))


@given(shapes, st.integers(max_value=0))
def test_dimensions_must_be_positive(shape, bad):
    with pytest.raises(ValueError, match="positive"):
        hk.Space("x", (*shape, bad))


@pytest.mark.parametrize("shape", [(1.5,), ("3",), (None,)])
def test_dimensions_must_be_integers(shape):
    with pytest.raises(ValueError, match="positive integer"):
        hk.Space("x", shape)


@pytest.mark.parametrize("name", ["", "z 1", "1z", "z-1", "z.1"])
def test_a_name_must_be_an_identifier(name):
    with pytest.raises(ValueError, match="identifier"):
        hk.Space(name, (3,))


def test_a_space_cannot_change():
    with pytest.raises(AttributeError):
        hk.Space("x", (3,)).shape = (4,)
