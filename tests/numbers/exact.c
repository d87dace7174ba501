// SPDX-License-Identifier: Apache-2.0
#include "exact.h"

#include <assert.h>

typedef unsigned __int128 uint128;

// 5^400 has 929 bits.
#define LIMBS 15

struct power {
    int count;
    uint64_t limbs[LIMBS]; // lowest first
};

static struct power fives[EXACT_LAST + 1];

// product = a * factor, one limb longer at most.
static int multiply(uint64_t product[static LIMBS + 1], const struct power *a, uint64_t factor) {
    uint64_t carry = 0;
    for (int i = 0; i < a->count; i++) {
        const uint128 sum = (uint128)a->limbs[i] * factor + carry;
        product[i] = (uint64_t)sum;
        carry = (uint64_t)(sum >> 64);
    }
    product[a->count] = carry;
    return a->count + (carry != 0);
}

void exact_start(void) {
    fives[0] = (struct power){1, {1}};
    for (int n = 1; n <= EXACT_LAST; n++) {
        uint64_t product[LIMBS + 1];
        fives[n].count = multiply(product, &fives[n - 1], 5);
        assert(fives[n].count <= LIMBS);
        for (int i = 0; i < fives[n].count; i++) fives[n].limbs[i] = product[i];
    }
}

static int bit_length(uint64_t x) {
    return 64 - __builtin_clzll(x);
}

// The sign of product / 2^shift - c, where both have as many bits before the point and shift >= 0.
static int compare_top(const uint64_t *product, uint64_t c, int shift) {
    const int limb = shift / 64;
    const int rest = shift % 64;
    uint64_t top = product[limb] >> rest;
    if (rest > 0) top |= product[limb + 1] << (64 - rest);
    if (top != c) return top > c ? 1 : -1;
    uint64_t below = rest > 0 ? product[limb] << (64 - rest) : 0;
    for (int i = 0; i < limb; i++) below |= product[i];
    return below != 0;
}

// The sign of a * 5^n - c * 2^shift; a and c are not zero.
static int compare_scaled(uint64_t a, int n, uint64_t c, int shift) {
    // On the stack it would be cleared each time, by the compiler's hardening.
    static _Thread_local uint64_t product[LIMBS + 2];
    const int count = multiply(product, &fives[n], a);
    product[count] = 0;
    const int bits = 64 * (count - 1) + bit_length(product[count - 1]);
    const int bits_of_c = bit_length(c) + shift;
    if (bits != bits_of_c) return bits > bits_of_c ? 1 : -1;
    if (shift >= 0) return compare_top(product, c, shift);
    const uint64_t scaled = product[0] << -shift;
    return (scaled > c) - (scaled < c);
}

// The sign of d - x * 2^exponent.
static int compare(struct decimal d, uint64_t x, int exponent) {
    if (d.digits == 0 || x == 0) return (d.digits != 0) - (x != 0);
    assert(-EXACT_LAST <= d.exponent && d.exponent <= EXACT_LAST);
    if (d.exponent >= 0) return compare_scaled(d.digits, d.exponent, x, exponent - d.exponent);
    return -compare_scaled(x, -d.exponent, d.digits, d.exponent - exponent);
}

static struct binary binary_of(uint64_t bits, int fraction_bits, int last_field, int lowest) {
    const uint64_t hidden = (uint64_t)1 << fraction_bits;
    const int field = (int)(bits >> fraction_bits);
    const uint64_t fraction = bits & (hidden - 1);
    if (field == 0) return (struct binary){fraction, lowest, false, false};
    return (struct binary){hidden + fraction, lowest + field - 1, fraction == 0 && field > 1, field == last_field};
}

struct binary binary_of_f32(uint32_t bits) {
    return binary_of(bits, 23, 0xff, -149);
}

struct binary binary_of_f64(uint64_t bits) {
    return binary_of(bits, 52, 0x7ff, -1074);
}

// Values are compared with the middles to their neighbours, which belong to the one with the even significand.
static bool above_lower_bound(struct decimal d, struct binary value) {
    if (value.significand == 0) return true;
    const int sign = compare(d, 4 * value.significand - 2 + value.closer_below, value.exponent - 2);
    return value.significand % 2 == 0 ? sign >= 0 : sign > 0;
}

static bool below_upper_bound(struct decimal d, struct binary value) {
    if (value.infinite) return true;
    const int sign = compare(d, 4 * value.significand + 2, value.exponent - 2);
    return value.significand % 2 == 0 ? sign <= 0 : sign < 0;
}

bool rounds_to(struct decimal decimal, struct binary value) {
    return above_lower_bound(decimal, value) && below_upper_bound(decimal, value);
}

// If one with fewer digits rounds to the value, then one of the two multiples of ten times the last digit's unit around
// `d` does: all between it and `d` do, and where it is in the decade below, the power of ten between them has one
// digit.
static bool has_fewest_digits(struct decimal d, struct binary value) {
    if (d.digits < 10) return true;
    const struct decimal down = {d.digits / 10, d.exponent + 1};
    const struct decimal up = {d.digits / 10 + 1, d.exponent + 1};
    return !above_lower_bound(down, value) && !below_upper_bound(up, value);
}

// The neighbours of as many digits do not round to the value or are as far or farther: it is not on their side of the
// middle to them, which is (digits +- 1/2) * 10^exponent.
static bool is_closest(struct decimal d, struct binary value) {
    const bool decade = d.digits == 1;
    const struct decimal below = {decade ? 9 : d.digits - 1, d.exponent - decade};
    const struct decimal above = {d.digits + 1, d.exponent};
    const struct decimal twice_middle_below = {decade ? 19 : 2 * d.digits - 1, d.exponent - decade};
    const struct decimal twice_middle_above = {2 * d.digits + 1, d.exponent};
    const bool up = compare(twice_middle_above, value.significand, value.exponent + 1) < 0;
    const bool down = compare(twice_middle_below, value.significand, value.exponent + 1) > 0;
    return !(up && below_upper_bound(above, value)) && !(down && above_lower_bound(below, value));
}

bool is_shortest(struct decimal decimal, struct binary value) {
    return rounds_to(decimal, value) && has_fewest_digits(decimal, value) && is_closest(decimal, value);
}
