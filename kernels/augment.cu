// The network's input from decoded pictures: an affine warp, sampled bilinearly, and an affine map of the colours.
//   y[n, h, w, k] = sum_j M[k, j] p[j] + o[k],   p = image[n] - mean at (row, column) = (a h + b w + c, d h + e w + f)
// views[n] = (a b c, d e f, M, o), 18 floats. The mean image is sampled as the picture is; without one mean is 0.
#include "grid.cuh"

constexpr int NEAREST = 0, CONSTANT = 1, REFLECT = 2, WRAP = 3;

// The pixel that stands for number i of n: itself if it is inside. CONSTANT has none outside, its mean is the nearest one's.
DEVICE int stand_in(int i, int n, int fill) {
    if (i >= 0 && i < n) return i;
    if (fill == REFLECT) {      // d c b a | a b c d | d c b a
        i = i % (2 * n) + (i % (2 * n) < 0 ? 2 * n : 0);
        return i < n ? i : 2 * n - 1 - i;
    }
    if (fill == WRAP) return i % n + (i % n < 0 ? n : 0);
    return i < 0 ? 0 : n - 1;
}

// Pictures are side x side x 3, the network's input size x size x 3; has_mean 0: mean is not read.   rows = N * size
KERNEL augment(unsigned rows, const unsigned char* images, const float* views, const float* mean, float* y, int side, int size,
               int fill, float constant, int has_mean) {
    ROWS(r, rows) {
        const unsigned n = (unsigned)r / size, h = (unsigned)r % size;
        const float *v = views + 18 * n, *m = v + 6, *o = v + 15;
        const unsigned char* image = images + (long long)n * side * side * 3;
        float* out = y + r * size * 3;
        const float row_from = v[0] * h + v[2], column_from = v[3] * h + v[5], row_step = v[1], column_step = v[4];
        const float row_to = row_from + row_step * (size - 1), column_to = column_from + column_step * (size - 1);
        const bool inside = row_from >= 0 && row_to >= 0 && row_from <= side - 1 && row_to <= side - 1 && column_from >= 0 &&
                            column_to >= 0 && column_from <= side - 1 && column_to <= side - 1;
        const bool pixels = row_step == 0 && floorf(row_from) == row_from && floorf(column_step) == column_step && floorf(column_from) == column_from;
        if (inside && pixels && !has_mean) {      // a crop, flipped or not: no pixel lies between others
            const unsigned char* line = image + ((long long)row_from * side + (long long)column_from) * 3;
            const int step = (int)column_step * 3;
            const float m00 = m[0], m01 = m[1], m02 = m[2], m10 = m[3], m11 = m[4], m12 = m[5], m20 = m[6], m21 = m[7], m22 = m[8];
            const float o0 = o[0], o1 = o[1], o2 = o[2];
            LANES(w, size) {
                const float a = line[w * step], b = line[w * step + 1], c = line[w * step + 2];
                out[w * 3] = m00 * a + m01 * b + m02 * c + o0;
                out[w * 3 + 1] = m10 * a + m11 * b + m12 * c + o1;
                out[w * 3 + 2] = m20 * a + m21 * b + m22 * c + o2;
            }
            continue;
        }
        LANES(w, size) {
            const float row = row_from + row_step * w, column = column_from + column_step * w;
            const float top = floorf(row), left = floorf(column), down = row - top, right = column - left;
            const int i = (int)top, j = (int)left;
            const int i0 = stand_in(i, side, fill) * side, i1 = stand_in(i + 1, side, fill) * side;
            const int j0 = stand_in(j, side, fill), j1 = stand_in(j + 1, side, fill);
            const int at[4] = {(i0 + j0) * 3, (i0 + j1) * 3, (i1 + j0) * 3, (i1 + j1) * 3};
            // A compiler may take 1 - (row - top) for (1 - row) + top, which beyond 2^24 is 0 instead of 1. Rows are whole there.
            const float up = down > 0 ? 1 - down : 1, on = right > 0 ? 1 - right : 1;
            const float weight[4] = {up * on, up * right, down * on, down * right};
            float p[3] = {0, 0, 0};
            for (int tap = 0; tap < 4; ++tap) {
                const int x = i + tap / 2, z = j + tap % 2;
                const bool none = fill == CONSTANT && (x < 0 || x >= side || z < 0 || z >= side);
                for (int k = 0; k < 3; ++k)
                    p[k] += weight[tap] * ((none ? constant : (float)image[at[tap] + k]) - (has_mean ? mean[at[tap] + k] : 0.0f));
            }
            for (int k = 0; k < 3; ++k) out[w * 3 + k] = m[3 * k] * p[0] + m[3 * k + 1] * p[1] + m[3 * k + 2] * p[2] + o[k];
        }
    }
}
