// The sum of the parts of a weight gradient, always in the same order: a core's share each, or a slice of the pixels.
#include "grid.cuh"

constexpr int BLOCK = 32;

// to[i] = sum over s of parts[s * count + i], added to to[i] if accumulate.   rows = ceil(count / BLOCK)
KERNEL add_parts(long long rows, const float* parts, float* to, long long count, int slices, int accumulate) {
    ROWS(r, rows) {
        const int n = count - r * BLOCK < BLOCK ? (int)(count - r * BLOCK) : BLOCK;
        float* t = to + r * BLOCK;
        lanes(n, [&](auto i) {
            auto sum = accumulate ? load((const float*)t, i) : splat(i, 0.0f);
            for (int s = 0; s < slices; ++s) sum += load(parts + s * count + r * BLOCK, i);
            store(t, i, sum);
        });
    }
}
