// Local response normalisation across channels (Krizhevsky 2012, section 3.3), over the `size` channels around each:
//   s[c] = k + alpha * sum_j x[j]^2,   y[c] = x[c] * s[c]^-beta
//   dx[c] = dy[c] * s[c]^-beta - 2 alpha beta x[c] * sum_j dy[j] x[j] s[j]^(-beta - 1)
// The caller divides alpha by `size` where the convention asks for it. Backward computes s again: reading it costs more.
#include "grid.cuh"

constexpr int BLOCK = 256;     // channels at a time
constexpr int LARGEST = 63;    // size

// rows = N * H * W
KERNEL lrn(long long rows, const float* x, float* y, int channels, int size, float alpha, float beta, float k) {
    ROW_SCRATCH(float, square, BLOCK + LARGEST - 1);
    const int half = size / 2;
    ROWS(r, rows) {
        const float* xr = x + r * channels;
        for (int first = 0; first < channels; first += BLOCK) {
            const int count = channels - first < BLOCK ? channels - first : BLOCK;
            LANES(i, count + 2 * half) {
                const int c = first + i - half;
                const float v = c >= 0 && c < channels ? xr[c] : 0.0f;
                square[i] = v * v;
            }
            row_sync();
            lanes(count, [&](auto i) {
                auto sum = load(square, i);
                for (int d = 1; d < size; ++d) sum += load(square + d, i);
                store(y + r * channels + first, i, load(xr + first, i) * inverse_power(k + alpha * sum, beta));
            });
            row_sync();
        }
    }
}

// rows = N * H * W
KERNEL lrn_backward(long long rows, const float* x, const float* dy, float* dx, int channels, int size, float alpha,
                    float beta, float k) {
    ROW_SCRATCH(float, square, BLOCK + 2 * LARGEST - 2);
    ROW_SCRATCH(float, ratio, BLOCK + LARGEST - 1);     // dy x s^(-beta - 1)
    ROW_SCRATCH(float, direct, BLOCK + LARGEST - 1);    // dy s^-beta
    const int half = size / 2;
    ROWS(r, rows) {
        const float* xr = x + r * channels;
        const float* dyr = dy + r * channels;
        for (int first = 0; first < channels; first += BLOCK) {
            const int count = channels - first < BLOCK ? channels - first : BLOCK;
            LANES(i, count + 4 * half) {
                const int c = first + i - 2 * half;
                const float v = c >= 0 && c < channels ? xr[c] : 0.0f;
                square[i] = v * v;
            }
            LANES(i, count + 2 * half) {
                const int c = first + i - half;
                const bool inside = c >= 0 && c < channels;
                direct[i] = inside ? dyr[c] : 0.0f;
                ratio[i] = inside ? xr[c] : 0.0f;
            }
            row_sync();
            lanes(count + 2 * half, [&](auto i) {
                auto sum = load(square, i);
                for (int d = 1; d < size; ++d) sum += load(square + d, i);
                auto s = k + alpha * sum;
                auto through = load(direct, i) * inverse_power(s, beta);
                store(direct, i, through);
                store(ratio, i, through * load(ratio, i) / s);
            });
            row_sync();
            lanes(count, [&](auto i) {
                auto sum = load(ratio, i);
                for (int d = 1; d < size; ++d) sum += load(ratio + d, i);
                store(dx + r * channels + first, i,
                      load(direct + half, i) - 2.0f * alpha * beta * load(xr + first, i) * sum);
            });
            row_sync();
        }
    }
}
