#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the hardest cases of conversion between decimal and binary, found in exact integers, for test_numbers --hard.

    read64 TEXT BITS    the decimal lies as close as can be to the middle of two f64; BITS is what it rounds to
    read32 TEXT BITS    the same for f32
    write64 BITS        a bound of the f64's interval, or its middle, lies as close as can be to a decimal of the length
                        that is tried when it is written

"As close as can be" is meant among all integers of one length in bits as digits, for one power of ten (reading), and
among all f64 of one binade (writing): the cases that Paxson, "A Program for Testing IEEE Decimal-Binary Conversion"
(1991), searches for. They are minima of a line modulo a number, which Euclid's algorithm finds.

usage: hard.py [STRIDE]     of the exponents, one in so many
"""
import random
import sys

FORMATS = {"64": (53, -1022, 1023), "32": (24, -126, 127)}  # precision, exponents of the smallest and largest normal
LENGTHS = [*range(4, 52, 4), *range(52, 65)]  # of the digits as an integer, in bits


def least(a, b, m, n):
    """The minimum of (a*t + b) % m over 0 <= t <= n."""
    best = m
    while True:
        a, b = a % m, b % m
        best = min(best, b)
        if a == 0 or n == 0:
            return best
        if 2 * a <= m:
            # The first value behind each wrap is the least of its run: (b - j*m) mod a, j from 1.
            wraps = (a * n + b) // m
            if wraps == 0:
                return best
            a, b, m, n = -m % a, (b - m) % a, a, wraps - 1
        else:
            # It goes down by m - a; the last value before each wrap is the least of its run: (b + j*m) mod (m - a).
            down = m - a
            best = min(best, (b + a * n) % m)
            wraps = -((b - down * n) // m) if down * n > b else 0
            if wraps == 0:
                return best
            a, b, m, n = m % down, b % down, down, wraps - 1


def argument_of_least(a, b, m, n):
    """The first t in 0..n at which (a*t + b) % m is least; a and m have no common factor but for a power of two."""
    value = least(a, b, m, n)
    difference, common = value - b, 1
    while a % 2 == 0 and m % 2 == 0:
        a, m, common = a // 2, m // 2, common * 2
    assert difference % common == 0
    return difference // common * pow(a, -1, m) % m if m > 1 else 0


def nearest(a, m, low, high, target):
    """The x in low..high for which the fractional part of a*x/m is closest to target/2: above, and below it."""
    for sign in (1, -1):
        # 2*a*x - target*m, modulo 2*m, going up from zero.
        t = argument_of_least(sign * 2 * a % (2 * m), sign * (2 * a * low - target * m) % (2 * m), 2 * m, high - low)
        yield low + t


def ratio(power_of_10, power_of_2):
    """10**p * 2**q in lowest terms."""
    twos = power_of_10 + power_of_2
    a, m = (5 ** power_of_10, 1) if power_of_10 >= 0 else (1, 5 ** -power_of_10)
    return (a << max(twos, 0), m << max(-twos, 0))


def floor_log2(a, m):
    e = a.bit_length() - m.bit_length()
    return e if (a << max(-e, 0)) >= (m << max(e, 0)) else e - 1


def unit_exponent(e, name):
    """The exponent of the last bit of the values from 2**e up."""
    precision, smallest, _ = FORMATS[name]
    return max(e, smallest) - precision + 1


def rounded(digits, exponent, name):
    """The bits of digits * 10**exponent, to nearest, ties to even."""
    precision, smallest, largest = FORMATS[name]
    a, m = ratio(exponent, 0)
    a *= digits
    e = floor_log2(a, m)
    unit = unit_exponent(e, name)
    a, m = a << max(-unit, 0), m << max(unit, 0)
    whole, rest = divmod(a, m)
    whole += 2 * rest > m or (2 * rest == m and whole % 2 == 1)
    # The hidden bit adds one to the exponent's field, and so does a carry.
    bits = whole + (max(e - smallest, 0) << (precision - 1))
    return min(bits, (largest - smallest + 2) << (precision - 1))


def read_cases(name, stride):
    """For each power of ten and length of the digits."""
    precision, smallest, largest = FORMATS[name]
    first = -(-(smallest - precision - 64) * 30103 // 100000) - 1
    last = (largest + 1) * 30103 // 100000 + 1
    for q in range(first, last + 1, stride):
        for length in LENGTHS:
            # Of the numbers of this length and the next, those that 10**q takes into one binade.
            e = floor_log2(*ratio(q, length - 1)) + 1
            a, m = ratio(q, -e)
            low, high = -(-m // a), -(-2 * m // a) - 1
            if high >= 1 << 64 or not smallest - precision <= e <= largest:
                continue
            a, m = ratio(q, -unit_exponent(e, name))
            if m == 1:
                continue  # every product is a value
            for digits in nearest(a, m, low, high, 1):
                yield digits, q
                tail = random.randrange(1, 10 ** 20)
                yield digits * 10 ** 20 + tail, q - 20


def write_cases(stride):
    """The significands of each binade. Middles between two values are odd multiples of half the last bit."""
    precision, smallest, largest = FORMATS["64"]
    for e in range(smallest - precision + 1, largest + 1, stride):
        unit = unit_exponent(e, "64")
        low, high = 1 << (e - unit), (2 << (e - unit)) - 1
        k = unit * 30103 // 100000
        for power in (k, k + 1):
            # (2*s + 1) * 2**(unit-1) near a multiple of 10**power: as an integer of that many halves, it is odd.
            a, m = ratio(-power, unit)
            for significand in middles_near(a, m, low, high):
                yield significand, unit
                yield significand + 1, unit
        a, m = ratio(-k, unit)
        if m > 1:
            for significand in nearest(a, m, low, high, 1):
                yield significand, unit


def middles_near(a, m, low, high):
    """The s in low..high for which (2*s + 1)*a/(2*m) is closest to an integer: above, and below it."""
    if m == 1:
        return
    for sign in (1, -1):
        t = argument_of_least(sign * 2 * a % (2 * m), sign * (2 * low + 1) * a % (2 * m), 2 * m, high - low)
        yield low + t


def bits_of(significand, unit):
    precision, smallest, _ = FORMATS["64"]
    return significand + (unit - (smallest - precision + 1) << (precision - 1))


def main():
    stride = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    random.seed(1)
    for name in FORMATS:
        for digits, q in read_cases(name, stride):
            print(f"read{name} {digits}e{q} {rounded(digits, q, name):x}")
    for significand, unit in write_cases(stride):
        bits = bits_of(significand, unit)
        if bits < 0x7ff << 52:
            print(f"write64 {bits:x}")


if __name__ == "__main__":
    main()
