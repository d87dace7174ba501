#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints proto/powers.c, computed in exact integers. With a file's name: compares it instead and fails where it differs.

  python3 proto/powers.py > proto/powers.c
  python3 proto/powers.py proto/powers.c
"""
import sys

FIRST = -342  # 10**-343 times any 64-bit integer is less than half of the smallest double
LAST = 324    # the scale of the smallest double when it is written

HEAD = """\
// SPDX-License-Identifier: Apache-2.0
//
// Made by powers.py.
#include "powers.h"

#if POWER_FIRST != %d || POWER_LAST != %d || POWER_EXACT_FIRST != %d || POWER_EXACT_LAST != %d
#error "the bounds in powers.h are not those of this table"
#endif

const struct power number_powers[] = {
"""
TAIL = """};
"""


def floor_log2_pow10(q):
    """The largest e with 2**e <= 10**q."""
    if q >= 0:
        return (10 ** q).bit_length() - 1
    return -((10 ** -q - 1).bit_length())


def floor_log10_ratio(numerator, denominator):
    """The largest k with 10**k <= numerator / denominator."""
    k = len(str(numerator)) - len(str(denominator)) - 1
    while numerator * 10 ** max(-(k + 1), 0) >= denominator * 10 ** max(k + 1, 0):
        k += 1
    return k


def power(q):
    """(the 128 leading bits of 10**q, whether nothing is cut off)"""
    shift = 127 - floor_log2_pow10(q)
    numerator = 10 ** max(q, 0) << max(shift, 0)
    denominator = 10 ** max(-q, 0) << max(-shift, 0)
    return numerator // denominator, numerator % denominator == 0


def check_formulas():
    """The approximations of logarithms in powers.h and number_write.c, over all arguments that occur."""
    for q in range(FIRST, LAST + 1):
        assert q * 217706 >> 16 == floor_log2_pow10(q), q
    for q in range(-1074, 972):
        numerator, denominator = 1 << max(q, 0), 1 << max(-q, 0)
        assert q * 1262611 >> 22 == floor_log10_ratio(numerator, denominator), q
        assert (q * 1262611 - 524031) >> 22 == floor_log10_ratio(3 * numerator, 4 * denominator), q


def text():
    check_formulas()
    entries, exact = [], []
    for q in range(FIRST, LAST + 1):
        bits, is_exact = power(q)
        assert bits >> 127 == 1 and bits & (1 << 64) - 1 != (1 << 64) - 1, q
        if is_exact:
            exact.append(q)
        entries.append('{0x%016x, 0x%016x},' % (bits >> 64, bits & (1 << 64) - 1))
    assert exact == list(range(exact[0], exact[-1] + 1))
    lines = ['    ' + ' '.join(entries[i:i + 2]) + '\n' for i in range(0, len(entries), 2)]
    return HEAD % (FIRST, LAST, exact[0], exact[-1]) + ''.join(lines) + TAIL


def main():
    made = text()
    if len(sys.argv) == 1:
        sys.stdout.write(made)
        return
    with open(sys.argv[1], encoding='ascii') as file:
        if file.read() != made:
            sys.exit(sys.argv[1] + ' is not what powers.py makes')


if __name__ == '__main__':
    main()
