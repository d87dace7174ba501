// SPDX-License-Identifier: Apache-2.0
#include "tensors.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, ARRAYS = 4 };

static size_t mapping_bytes(const struct tensors *tensors) {
    return 3 * tensors->room + ARRAYS * tensors->channels * sizeof(float);
}

static void set_affine(struct tensors *tensors) {
    for (size_t c = 0; c < tensors->channels; c++) {
        tensors->gamma[c] = 0.75f + (float)(c % 8) / 16;
        tensors->beta[c] = (float)(c % 5) / 4 - 0.5f;
    }
}

bool tensors_open(struct tensors *tensors, const struct rows *rows) {
    *tensors = (struct tensors){.room = PAGE, .channels = PAGE};
    for (size_t i = 0; i < rows->count; i++) {
        const size_t bytes = (row_bytes(&rows->at[i]) + PAGE - 1) / PAGE * PAGE;
        if (bytes > tensors->room) tensors->room = bytes;
        if (rows->at[i].dims[1] > tensors->channels) tensors->channels = rows->at[i].dims[1];
    }
    tensors->fd = memfd_create("bench", 0);
    if (tensors->fd < 0 || ftruncate(tensors->fd, (off_t)mapping_bytes(tensors)) != 0) return false;
    unsigned char *const base = mmap(NULL, mapping_bytes(tensors), PROT_READ | PROT_WRITE, MAP_SHARED, tensors->fd, 0);
    if (base == MAP_FAILED) return false;
    memset(base, 0, mapping_bytes(tensors));
    tensors->x = base;
    tensors->dout = base + tensors->room;
    tensors->y = base + 2 * tensors->room;
    tensors->gamma = (float *)(void *)(base + 3 * tensors->room);
    tensors->beta = tensors->gamma + tensors->channels;
    tensors->mean = tensors->beta + tensors->channels;
    tensors->var = tensors->mean + tensors->channels;
    set_affine(tensors);
    return true;
}

void tensors_close(struct tensors *tensors) {
    munmap(tensors->x, mapping_bytes(tensors));
    close(tensors->fd);
    *tensors = (struct tensors){.fd = -1};
}

// Four bytes of a hash of i (splitmix64) add up to a bell. All values are exact in every type but bf16, which keeps
// the leading 8 bits.
static float number_at(size_t i) {
    uint64_t z = (i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    const uint32_t sum = (uint32_t)((z & 255) + (z >> 8 & 255) + (z >> 16 & 255) + (z >> 24 & 255));
    return ((float)sum - 446.0f) / 128;
}

// Of a multiple of 2^-7 below 8 in magnitude, which is exact.
static uint16_t half_of(float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    if ((bits & 0x7fffffffu) == 0) return 0;
    const uint32_t exponent = (bits >> 23 & 255) - 127 + 15;
    return (uint16_t)((bits >> 16 & 0x8000u) | exponent << 10 | (bits >> 13 & 0x3ffu));
}

static uint16_t upper_half_of(float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static void fill(void *tensor, size_t bytes, enum bn_dtype dtype, size_t seed) {
    const size_t n = bytes / bn_dtype_size(dtype);
    switch (dtype) {
    case BN_F32:
        for (size_t i = 0; i < n; i++) ((float *)tensor)[i] = number_at(seed + i);
        break;
    case BN_F64:
        for (size_t i = 0; i < n; i++) ((double *)tensor)[i] = (double)number_at(seed + i);
        break;
    case BN_F16:
        for (size_t i = 0; i < n; i++) ((uint16_t *)tensor)[i] = half_of(number_at(seed + i));
        break;
    case BN_BF16:
        for (size_t i = 0; i < n; i++) ((uint16_t *)tensor)[i] = upper_half_of(number_at(seed + i));
        break;
    }
}

void tensors_fill(struct tensors *tensors, enum bn_dtype dtype) {
    fill(tensors->x, tensors->room, dtype, 0);
    fill(tensors->dout, tensors->room, dtype, (size_t)1 << 40);
}

static float float_of(uint32_t bits) {
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

// Subnormals are taken as zero.
static float of_half(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = half >> 10 & 31u, fraction = half & 0x3ffu;
    if (exponent == 0) return float_of(sign);
    if (exponent == 31) return float_of(sign | 0x7f800000u | fraction << 13);
    return float_of(sign | (exponent - 15 + 127) << 23 | fraction << 13);
}

double element_at(const void *tensor, enum bn_dtype dtype, size_t i) {
    switch (dtype) {
    case BN_F32: return (double)((const float *)tensor)[i];
    case BN_F64: return ((const double *)tensor)[i];
    case BN_F16: return (double)of_half(((const uint16_t *)tensor)[i]);
    case BN_BF16: return (double)float_of((uint32_t)((const uint16_t *)tensor)[i] << 16);
    }
    return 0;
}
