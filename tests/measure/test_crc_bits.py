"""Which flipped bit explains a checksum: found for every bit, and never invented."""

from __future__ import annotations

import itertools
import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.measure.crc import shift
from ckptdoctor.measure.crc_bits import LONGEST, chance, checksum_flipped, flipped_bit


def flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


@given(st.binary(min_size=1, max_size=4000), st.integers(0))
@settings(max_examples=60, deadline=None)
def test_the_flipped_bit_is_found_wherever_it_is(data, place):
    place %= 8 * len(data)
    stated, actual = zlib.crc32(data), zlib.crc32(flipped(data, place))
    assert flipped_bit(stated, actual, len(data)) == place
    assert not checksum_flipped(stated, actual)


@pytest.mark.parametrize("place", [0, 7, 8, 8 * LONGEST - 1], ids=str)
def test_places_in_the_longest_data_are_told_apart(place):
    difference = zlib.crc32(bytes([1 << place % 8])) ^ zlib.crc32(b"\0")
    difference = shift(difference, LONGEST - 1 - place // 8)
    assert flipped_bit(0, difference, LONGEST) == place
    assert flipped_bit(0, difference, LONGEST + 1) is None


def test_longest_data_leave_room_for_the_checksum_of_a_code_word():
    assert 8 * LONGEST + 32 <= 2**32 - 1 < 8 * (LONGEST + 1) + 32


def test_equal_checksums_have_no_flipped_bit():
    assert flipped_bit(7, 7, 100) is None
    assert not checksum_flipped(7, 7)


@pytest.mark.parametrize("bit", range(32))
def test_a_flipped_bit_of_the_checksum_is_no_flipped_bit_of_the_data(bit):
    assert checksum_flipped(0xDEADBEEF, 0xDEADBEEF ^ 1 << bit)
    assert flipped_bit(0xDEADBEEF, 0xDEADBEEF ^ 1 << bit, LONGEST) is None


def test_two_flipped_bits_are_not_one():
    data = random.Random(1).randbytes(64)
    stated = zlib.crc32(data)
    for first, second in itertools.combinations(range(0, 512, 41), 2):
        actual = zlib.crc32(flipped(flipped(data, first), second))
        assert flipped_bit(stated, actual, 64) is None


def test_a_bit_before_the_start_explains_nothing():
    data = random.Random(2).randbytes(65)
    actual = zlib.crc32(flipped(data, 7))
    assert flipped_bit(zlib.crc32(data), actual, 65) == 7
    assert flipped_bit(zlib.crc32(data), actual, 64) is None
    at_start = zlib.crc32(flipped(data, 8))
    assert flipped_bit(zlib.crc32(data), at_start, 64) == 0


def test_damage_at_random_looks_like_one_bit_as_often_as_stated():
    numbers, length, trials = random.Random(3), 1 << 26, 400
    hits = sum(flipped_bit(0, numbers.getrandbits(32), length) is not None for _ in range(trials))
    assert chance(length) == pytest.approx(0.125)
    assert 0.08 < hits / trials < 0.17


@pytest.mark.parametrize(("length", "expected"), [(0, 0.0), (1 << 29, 1.0), (1 << 40, 1.0)])
def test_chance_is_a_probability(length, expected):
    assert chance(length) == pytest.approx(expected)
    assert chance(length) <= 1
