// Softmax cross-entropy, and where a label ranks among the logits.
#include "grid.cuh"

// loss[r] = w (log(sum_c exp(x[r,c])) - sum_c t[c] x[r,c]);  dx = w (softmax(x) - t) * scale, where w = weight[label[r]] and the
// target is t = (1 - smoothing) onehot(label[r]) + smoothing / classes (Szegedy 2016, section 7).   rows = N
KERNEL cross_entropy_rows(long long rows, const float* x, const int* label, const float* weight, float* loss, float* dx, int classes,
                          float scale, float smoothing) {
    ROWS(r, rows) {
        const float* xr = x + r * classes;
        float* dr = dx + r * classes;
        float top = LOWEST, total = 0, below = 0;
        LANES(c, classes) top = xr[c] > top ? xr[c] : top;
        top = row_max(top);                                    // warp shuffles on a GPU, nothing on a CPU
        LANES(c, classes) {
            const float e = expf(xr[c] - top);                 // at most 1: logits of 1e4 do not overflow
            dr[c] = e;
            total += e;
            below += top - xr[c];
        }
        total = row_sum(total);
        below = smoothing > 0 ? row_sum(below) : 0;
        const int right = label[r];
        const float others = smoothing / classes, w = weight[right];
        LANES(c, classes) dr[c] = (dr[c] / total - (c == right ? 1 - smoothing + others : others)) * (scale * w);
        LANES(c, 1) loss[r] = w * (logf(total) + (1 - smoothing) * (top - xr[right]) + others * below);
    }
}

// Running totals by place in the batch, to be read now and then: totals[0, i] += loss[i], [1, i] += whether label i ranks
// first, [2, i] += whether it is among the first five.
// rows = ceil(n / 32)
KERNEL tally(long long rows, const float* loss, const float* rank, double* totals, int n, int batch) {
    ROWS(r, rows) {
        const int first = (int)r * 32;
        LANES(i, n - first < 32 ? n - first : 32) {
            const int at = first + i;
            totals[at] += loss[at];
            totals[batch + at] += rank[at] < 1.0f ? 1.0 : 0.0;
            totals[2 * batch + at] += rank[at] < 5.0f ? 1.0 : 0.0;
        }
    }
}

// y = softmax(x).   rows = N
KERNEL softmax_rows(long long rows, const float* x, float* y, int classes) {
    ROWS(r, rows) {
        const float* xr = x + r * classes;
        float* yr = y + r * classes;
        float top = LOWEST, total = 0;
        LANES(c, classes) top = xr[c] > top ? xr[c] : top;
        top = row_max(top);
        LANES(c, classes) {
            const float e = expf(xr[c] - top);
            yr[c] = e;
            total += e;
        }
        total = row_sum(total);
        LANES(c, classes) yr[c] /= total;
    }
}

// rank[r] = how many classes come before label[r]: a larger logit, or NaN, or the same logit and a smaller index. rows = N
KERNEL label_rank(long long rows, const float* x, const int* label, float* rank, int classes) {
    ROWS(r, rows) {
        const float* xr = x + r * classes;
        const int right = label[r];
        const float own = xr[right];
        float before = 0;
        LANES(c, classes) before += c != right && (!(xr[c] <= own) || (xr[c] == own && c < right)) ? 1.0f : 0.0f;
        before = row_sum(before);
        LANES(c, 1) rank[r] = before;
    }
}
