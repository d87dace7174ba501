#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints proto/powers.h, computed in exact integers. With a file's name: compares it instead and fails where it differs.

  python3 proto/powers.py > proto/powers.h
  python3 proto/powers.py proto/powers.h
"""
import sys

FIRST = -342  # 10**-343 times any 64-bit integer is less than half of the smallest double
LAST = 324    # the scale of the smallest double when it is written

HEAD = """\
// SPDX-License-Identifier: Apache-2.0
//
// Made by powers.py; number.c alone includes it.
//
// 10^q = (hi * 2^64 + lo + d) * 2^(floor(log2(10^q)) - 127) with 0 <= d < 1, so hi has its top bit set and the fraction d
// is cut off. d is 0 for q from POWER_EXACT_FIRST to POWER_EXACT_LAST and nowhere else. No lo is UINT64_MAX, so that one can
// be added to round up.
#ifndef NORMD_PROTO_POWERS_H
#define NORMD_PROTO_POWERS_H

#include <stdint.h>

#define POWER_FIRST (%d)
#define POWER_LAST %d
#define POWER_EXACT_FIRST %d
#define POWER_EXACT_LAST %d

struct power {
    uint64_t hi;
    uint64_t lo;
};

// Of q from POWER_FIRST to POWER_LAST.
static const struct power powers[] = {
"""
TAIL = """};

#endif
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
    """The approximations of logarithms in number.c, over all arguments it has for them."""
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
