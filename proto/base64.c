// SPDX-License-Identifier: Apache-2.0
#include "base64.h"

#include <stdint.h>

static const char alphabet[64] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

// The six bits that a byte of text stands for; more than 63 where it is not of the alphabet.
static uint32_t six_bits(char c) {
    // One more than the bits: what is not listed is 0 and becomes UINT32_MAX.
    static const uint8_t values[256] = {
        ['A'] = 1,  ['B'] = 2,  ['C'] = 3,  ['D'] = 4,  ['E'] = 5,  ['F'] = 6,  ['G'] = 7,  ['H'] = 8,
        ['I'] = 9,  ['J'] = 10, ['K'] = 11, ['L'] = 12, ['M'] = 13, ['N'] = 14, ['O'] = 15, ['P'] = 16,
        ['Q'] = 17, ['R'] = 18, ['S'] = 19, ['T'] = 20, ['U'] = 21, ['V'] = 22, ['W'] = 23, ['X'] = 24,
        ['Y'] = 25, ['Z'] = 26, ['a'] = 27, ['b'] = 28, ['c'] = 29, ['d'] = 30, ['e'] = 31, ['f'] = 32,
        ['g'] = 33, ['h'] = 34, ['i'] = 35, ['j'] = 36, ['k'] = 37, ['l'] = 38, ['m'] = 39, ['n'] = 40,
        ['o'] = 41, ['p'] = 42, ['q'] = 43, ['r'] = 44, ['s'] = 45, ['t'] = 46, ['u'] = 47, ['v'] = 48,
        ['w'] = 49, ['x'] = 50, ['y'] = 51, ['z'] = 52, ['0'] = 53, ['1'] = 54, ['2'] = 55, ['3'] = 56,
        ['4'] = 57, ['5'] = 58, ['6'] = 59, ['7'] = 60, ['8'] = 61, ['9'] = 62, ['+'] = 63, ['/'] = 64,
    };
    return (uint32_t)values[(unsigned char)c] - 1;
}

size_t base64_text_size(size_t size) {
    return (size + 2) / 3 * 4;
}

char *base64_encode(char *text, const void *data, size_t size) {
    const unsigned char *in = data;
    for (; size >= 3; size -= 3, in += 3) {
        const uint32_t bits = (uint32_t)in[0] << 16 | (uint32_t)in[1] << 8 | in[2];
        *text++ = alphabet[bits >> 18];
        *text++ = alphabet[bits >> 12 & 63];
        *text++ = alphabet[bits >> 6 & 63];
        *text++ = alphabet[bits & 63];
    }
    if (size == 0) return text;
    const uint32_t bits = (uint32_t)in[0] << 16 | (size > 1 ? (uint32_t)in[1] << 8 : 0);
    *text++ = alphabet[bits >> 18];
    *text++ = alphabet[bits >> 12 & 63];
    *text++ = size > 1 ? alphabet[bits >> 6 & 63] : '=';
    *text++ = '=';
    return text;
}

bool base64_data_size(size_t *size, const char *text, size_t length) {
    if (length % 4 != 0) return false;
    *size = length / 4 * 3;
    if (length == 0 || text[length - 1] != '=') return true;
    *size -= text[length - 2] == '=' ? 2 : 1;
    return true;
}

// Decodes the first `count` bytes, 2 or 3, of the padded last group at text[at].
static bool decode_last(unsigned char *out, const char *text, size_t at, size_t count, size_t *bad) {
    uint32_t bits = 0;
    for (*bad = at; *bad < at + count; ++*bad) {
        const uint32_t six = six_bits(text[*bad]);
        if (six > 63) return false;
        bits = bits << 6 | six;
    }
    --*bad;
    // 12 or 18 bits for 1 or 2 bytes
    const unsigned rest = count == 2 ? 4 : 2;
    if ((bits & ((1u << rest) - 1)) != 0) return false;
    bits >>= rest;
    if (count == 3) *out++ = (unsigned char)(bits >> 8);
    *out = (unsigned char)bits;
    return true;
}

bool base64_decode(void *data, const char *text, size_t length, size_t *bad) {
    unsigned char *out = data;
    size_t size;
    *bad = length;
    if (!base64_data_size(&size, text, length)) return false;
    const size_t whole = size / 3 * 4; // bytes of text in groups without padding
    for (size_t i = 0; i < whole; i += 4) {
        const uint32_t a = six_bits(text[i]);
        const uint32_t b = six_bits(text[i + 1]);
        const uint32_t c = six_bits(text[i + 2]);
        const uint32_t d = six_bits(text[i + 3]);
        if ((a | b | c | d) > 63) {
            *bad = i + (a > 63 ? 0 : b > 63 ? 1 : c > 63 ? 2 : 3);
            return false;
        }
        const uint32_t bits = a << 18 | b << 12 | c << 6 | d;
        *out++ = (unsigned char)(bits >> 16);
        *out++ = (unsigned char)(bits >> 8);
        *out++ = (unsigned char)bits;
    }
    return size % 3 == 0 || decode_last(out, text, whole, size % 3 + 1, bad);
}
