// Local response normalisation across channels (Krizhevsky 2012, section 3.3), over the `size` channels around each:
//   s[c] = k + alpha * sum_j x[j]^2,   y[c] = x[c] * s[c]^-beta
//   dx[c] = dy[c] * s[c]^-beta - 2 alpha beta x[c] * sum_j dy[j] x[j] s[j]^(-beta - 1)
// The caller divides alpha by `size` where the convention asks for it. Backward computes s again: reading it costs more.
#include "grid.cuh"

constexpr int BLOCK = 256;     // channels at a time
constexpr int LARGEST = 63;    // size
constexpr int REACH = 32;      // channels on either side of a block of which a window may hold some; a multiple of four

// 0 for as many channels on either side of n as a window may hold
DEVICE void surround(float* p, int n, int half) {
    lanes(half, [&](auto i) {
        store(p - half, i, splat(i, 0.0f));
        store(p + n, i, splat(i, 0.0f));
    });
}

// square[i] = x[i]^2 of n channels, and 0 around them
DEVICE void squares(bool wide, float* square, const float* x, int n, int half) {
    surround(square, n, half);
    lanes(wide, n, [&](auto i) {
        auto v = load(x, i);
        store(square, i, v * v);
    });
}

// rows = N * H * W
KERNEL lrn(long long rows, const float* x, float* y, int channels, int size, float alpha, float beta, float k) {
    ROW_SCRATCH(float, scratch, BLOCK + 4 * REACH);
    float* const square = scratch + REACH;
    const int half = size / 2;
    const bool wide = fours(channels, x, y);
    ROWS(r, rows) {
        const float* xr = x + r * channels;
        float* yr = y + r * channels;
        for (int first = 0; first < channels; first += BLOCK) {
            const int last = first + BLOCK < channels ? first + BLOCK : channels;
            const int from = first ? first - REACH : 0, to = last + REACH < channels ? last + REACH : channels;
            squares(wide, square, xr + from, to - from, half);
            row_sync();
            lanes(wide, last - first, [&](auto i) {
                auto s = k + alpha * sum_around(square + first - from, i, half);
                store(yr + first, i, load(xr + first, i) * inverse_power(s, beta));
            });
            row_sync();
        }
    }
}

// rows = N * H * W
KERNEL lrn_backward(long long rows, const float* x, const float* dy, float* dx, int channels, int size, float alpha,
                    float beta, float k) {
    ROW_SCRATCH(float, scratch, BLOCK + 6 * REACH);
    ROW_SCRATCH(float, ratios, BLOCK + 4 * REACH);
    ROW_SCRATCH(float, direct, BLOCK + 2 * REACH);      // dy s^-beta
    float *const square = scratch + REACH, *const ratio = ratios + REACH;     // ratio: dy x s^(-beta - 1)
    const int half = size / 2;
    const bool wide = fours(channels, x, dy, dx);
    ROWS(r, rows) {
        const float *xr = x + r * channels, *dyr = dy + r * channels;
        float* dxr = dx + r * channels;
        for (int first = 0; first < channels; first += BLOCK) {
            const int last = first + BLOCK < channels ? first + BLOCK : channels;
            const int from = first ? first - REACH : 0, to = last + REACH < channels ? last + REACH : channels;
            const int around = first ? from - REACH : 0, end = to + REACH < channels ? to + REACH : channels;
            squares(wide, square, xr + around, end - around, half);
            surround(ratio, to - from, half);
            row_sync();
            lanes(wide, to - from, [&](auto i) {
                auto s = k + alpha * sum_around(square + from - around, i, half);
                auto through = load(dyr + from, i) * inverse_power(s, beta);
                store(direct, i, through);
                store(ratio, i, divide(through * load(xr + from, i), s));
            });
            row_sync();
            lanes(wide, last - first, [&](auto i) {
                auto sum = sum_around(ratio + first - from, i, half);
                store(dxr + first, i,
                      load(direct + first - from, i) - 2.0f * alpha * beta * load(xr + first, i) * sum);
            });
            row_sync();
        }
    }
}
