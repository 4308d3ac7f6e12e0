from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from ckptdoctor.measure.crc import combine


@given(st.binary(max_size=2000), st.binary(max_size=2000))
def test_combination_equals_crc_of_the_whole(first, second):
    whole = combine(zlib.crc32(first), zlib.crc32(second), len(second))
    assert whole == zlib.crc32(first + second)


def test_combination_over_lengths_beyond_32_bits():
    zeros = bytes(1 << 20)
    crc, length = zlib.crc32(b"head"), 0
    stepwise = crc
    for _ in range(3):
        stepwise = combine(stepwise, zlib.crc32(zeros), len(zeros))
        length += len(zeros)
    assert combine(crc, zlib.crc32(zeros * 3), length) == stepwise
    # x**(8 * n) has period 2**32 - 1 in bits, so that many bytes of zeros change nothing.
    assert combine(crc, 0, 2**32 - 1) == crc
