// Bias and ReLU after a matrix product, in one pass, and their backward pass.
#include "grid.cuh"

constexpr int SPAN = 256;      // channels in a row of bias_relu
constexpr int STRIP = 32;      // channels in a row of bias_backward

// y[p, c] += b[c], then max(y, 0) if relu (NaN stays).   rows = pixels * ceil(channels / SPAN)
KERNEL bias_relu(unsigned rows, float* y, const float* b, int channels, int relu) {
    const unsigned spans = (channels + SPAN - 1) / SPAN;
    ROWS(r, rows) {
        const long long p = spans == 1 ? r : (long long)((unsigned)r / spans);
        const int first = spans == 1 ? 0 : (int)((unsigned)r % spans) * SPAN;
        const int count = channels - first < SPAN ? channels - first : SPAN;
        float* yr = y + p * channels + first;
        const float* br = b + first;
        LANES(c, count) {
            const float v = yr[c] + br[c];
            yr[c] = relu && v <= 0.0f ? 0.0f : v;
        }
    }
}

// partial[s, c] = sum of dy[p, c] over the pixels of slice s; where relu is set dy is first, in place, masked by y > 0.
// rows = ceil(pixels / slice) * ceil(channels / STRIP)
KERNEL bias_backward(unsigned rows, const float* y, float* dy, float* partial, long long pixels, int channels, int slice,
                     int relu) {
    const unsigned strips = (channels + STRIP - 1) / STRIP;
    ROWS(r, rows) {
        const long long s = (unsigned)r / strips;
        const int first = (int)((unsigned)r % strips) * STRIP;
        const int count = channels - first < STRIP ? channels - first : STRIP;
        const long long from = s * slice, to = from + slice < pixels ? from + slice : pixels;
        lanes(count, [&](auto c) {
            auto sum = splat(c, 0.0f);
            for (long long p = from; p < to; ++p) {
                float* at = dy + p * channels + first;
                auto v = load((const float*)at, c);
                if (relu) {
                    v = select(load(y + p * channels + first, c) <= splat(c, 0.0f), splat(c, 0.0f), v);
                    store(at, c, v);
                }
                sum += v;
            }
            store(partial + s * channels + first, c, sum);
        });
    }
}

// db[c] = sum over s of partial[s, c], added to db if accumulate.   rows = channels
KERNEL sum_partials(long long rows, const float* partial, float* db, int count, int accumulate) {
    ROWS(c, rows) {
        float sum = 0;
        LANES(s, count) sum += partial[s * rows + c];
        sum = row_sum(sum);
        LANES(i, 1) db[c] = accumulate ? db[c] + sum : sum;
    }
}
