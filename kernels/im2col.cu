// im2col lays the window under each output pixel out as one row, so that a convolution is a matrix product:
//   columns[g, (n, oh, ow), (kh, kw, c)] = x[n, oh * stride_h - pad_top + kh, ow * stride_w - pad_left + kw, g * C/groups + c]
// and 0 outside the image. A column row is `pitch` floats long, its tail beyond KH * KW * C/groups is never read.
// col2im is its transpose, as a gather: each input element sums the column entries that were copied from it.
#include "grid.cuh"

// rows = groups * N * OH * OW
KERNEL im2col(long long rows, const float* x, float* columns, int height, int width, int channels, int out_height,
              int out_width, int kernel_height, int kernel_width, int stride_h, int stride_w, int pad_top, int pad_left,
              int groups, int pitch) {
    const unsigned pixels = (unsigned)(rows / groups), plane = out_height * out_width;
    // Without groups the kernel_width * channels floats of a window's line lie side by side: one run.
    const int per_line = groups > 1 ? kernel_width : 1;
    const int run = kernel_width * channels / (per_line * groups), runs = kernel_height * per_line;
    ROWS(r, rows) {
        const unsigned g = (unsigned)r / pixels, p = (unsigned)r % pixels;
        const unsigned n = p / plane, q = p % plane;
        const int top = (int)(q / out_width) * stride_h - pad_top, left = (int)(q % out_width) * stride_w - pad_left;
        const int line = width * channels, from = -left * channels, to = (width - left) * channels;
        const long long corner = (((long long)n * height + top) * width + left) * channels + g * (channels / groups);
        float* out = columns + r * pitch;
        if (top >= 0 && left >= 0 && top + kernel_height <= height && left + kernel_width <= width) {
            RUNS(i, j, runs, run)
                out[i * run + j] = x[corner + (long long)(i / per_line) * line + i % per_line * channels + j];
        } else {
            RUNS(i, j, runs, run) {
                const int h = top + i / per_line, k = i % per_line * channels + j;
                const bool inside = h >= 0 && h < height && k >= from && k < to;
                out[i * run + j] = inside ? x[corner + (long long)(i / per_line) * line + k] : 0.0f;
            }
        }
    }
}

// rows = groups * N * H * W
KERNEL col2im(long long rows, const float* columns, float* dx, int height, int width, int channels, int out_height,
              int out_width, int kernel_height, int kernel_width, int stride_h, int stride_w, int pad_top, int pad_left,
              int groups, int pitch) {
    const unsigned pixels = (unsigned)(rows / groups), plane = height * width;
    const int own = channels / groups;
    ROWS(r, rows) {
        const unsigned g = (unsigned)r % groups, p = (unsigned)r / groups;
        const unsigned n = p / plane, q = p % plane;
        const int h = (int)(q / width) + pad_top, w = (int)(q % width) + pad_left;
        // The windows that cover this pixel: oh * stride_h <= h < oh * stride_h + kernel_height.
        const int oh_from = h < kernel_height ? 0 : (h - kernel_height) / stride_h + 1;
        const int ow_from = w < kernel_width ? 0 : (w - kernel_width) / stride_w + 1;
        const int oh_to = h / stride_h + 1 < out_height ? h / stride_h + 1 : out_height;
        const int ow_to = w / stride_w + 1 < out_width ? w / stride_w + 1 : out_width;
        const long long first = (long long)g * (pixels / plane) * out_height * out_width + (long long)n * out_height * out_width;
        lanes(own, [&](auto c) {
            auto sum = splat(c, 0.0f);
            for (int oh = oh_from; oh < oh_to; ++oh)
                for (int ow = ow_from; ow < ow_to; ++ow) {
                    const int tap = (h - oh * stride_h) * kernel_width + (w - ow * stride_w);
                    sum += load(columns + (first + (long long)oh * out_width + ow) * pitch + tap * own, c);
                }
            store(dx + r * own, c, sum);
        });
    }
}
