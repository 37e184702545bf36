// Philox 4x32-10 (Salmon et al., SC 2011): four random words that are a function of a key and a counter.
#pragma once
#include "grid.cuh"

struct Words { unsigned a, b, c, d; };

DEVICE Words philox(unsigned long long key, unsigned c0, unsigned c1, unsigned c2, unsigned c3) {
    unsigned k0 = (unsigned)key, k1 = (unsigned)(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const unsigned long long x = (unsigned long long)c0 * 0xD2511F53u, y = (unsigned long long)c2 * 0xCD9E8D57u;
        c0 = (unsigned)(y >> 32) ^ c1 ^ k0;
        c1 = (unsigned)y;
        c2 = (unsigned)(x >> 32) ^ c3 ^ k1;
        c3 = (unsigned)x;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return Words{c0, c1, c2, c3};
}

// The word of one element of a stream: counter = (element / 4 low, high, layer, step), word = element % 4.
DEVICE unsigned random_word(unsigned long long key, long long element, unsigned layer, unsigned step) {
    const Words w = philox(key, (unsigned)(element >> 2), (unsigned)(element >> 34), layer, step);
    const int i = (int)(element & 3);
    return i == 0 ? w.a : i == 1 ? w.b : i == 2 ? w.c : w.d;
}
