// Softmax cross-entropy, with where a label ranks among the logits, and softmax.
#include "grid.cuh"

// loss[r] = w (log(sum_c exp(x[r,c])) - sum_c t[c] x[r,c]);  dx = w (softmax(x) - t) * scale, where w = weight[label[r]] and the
// target is t = (1 - smoothing) onehot(label[r]) + smoothing / classes (Szegedy 2016, section 7).
// rank[r] = how many classes come before label[r]: a larger logit, or NaN, or the same logit and a smaller index.
// Where count is set, running totals by place in the batch, to be read now and then: totals[0, r] += loss[r], [1, r] += whether the label ranks first,
// [2, r] += whether it is among the first five.   rows = N
KERNEL cross_entropy_rows(long long rows, const float* x, const int* label, const float* weight, float* loss, float* rank, double* totals, float* dx,
                          int classes, int batch, int count, float scale, float smoothing) {
    ROWS(r, rows) {
        const float* xr = x + r * classes;
        float* dr = dx + r * classes;
        const int right = label[r];
        const float own = xr[right];
        float top = LOWEST, total = 0, below = 0, before = 0;
        LANES(c, classes) top = xr[c] > top ? xr[c] : top;
        top = row_max(top);
        LANES(c, classes) {
            const float e = expf(xr[c] - top);
            dr[c] = e;
            total += e;
            below += top - xr[c];
            before += c != right && (!(xr[c] <= own) || (xr[c] == own && c < right)) ? 1.0f : 0.0f;
        }
        total = row_sum(total);
        before = row_sum(before);
        below = smoothing > 0 ? row_sum(below) : 0;
        const float others = smoothing / classes, w = weight[right];
        LANES(c, classes) dr[c] = (dr[c] / total - (c == right ? 1 - smoothing + others : others)) * (scale * w);
        LANES(c, 1) {
            const float found = w * (logf(total) + (1 - smoothing) * (top - own) + others * below);
            loss[r] = found;
            rank[r] = before;
            if (count) {
                totals[r] += found;
                totals[batch + r] += before < 1.0f ? 1.0 : 0.0;
                totals[2 * batch + r] += before < 5.0f ? 1.0 : 0.0;
            }
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
        top = row_max(top);                                    // warp shuffles on a GPU, nothing on a CPU
        LANES(c, classes) {
            const float e = expf(xr[c] - top);                 // at most 1: logits of 1e4 do not overflow
            yr[c] = e;
            total += e;
        }
        total = row_sum(total);
        LANES(c, classes) yr[c] /= total;
    }
}
