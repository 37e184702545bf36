// Columns of one matrix become, or are added to, columns of another: a half of the channels, between two towers.
#include "grid.cuh"

// to[r, to_at + c] = source[r, from_at + c] for c < count, or with accumulate += it; the rows of `source` are from_width long.   rows = those of both
KERNEL columns(long long rows, const float* source, float* to, int from_width, int from_at, int to_width, int to_at, int count, int accumulate) {
    ROWS(r, rows) {
        const float* f = source + r * from_width + from_at;
        float* t = to + r * to_width + to_at;
        const bool wide = fours(from_width | from_at | to_width | to_at, source, (const float*)to);
        lanes(wide, count, [&](auto c) {
            const auto v = load(f, c);
            store(t, c, accumulate ? load((const float*)t, c) + v : v);
        });
    }
}
