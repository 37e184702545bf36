// im2col lays the window under each output pixel out as one row, so that a convolution is a matrix product:
//   columns[g, (n, oh, ow), (kh, kw, c)] = x[n, oh * stride_h - pad_top + kh, ow * stride_w - pad_left + kw, g * C/groups + c]
// and 0 outside the image. A column row is `pitch` floats long, its tail beyond KH * KW * C/groups is never read.
// col2im is its transpose, as a gather: each input element sums the column entries that were copied from it.
#include "grid.cuh"

constexpr int STAGED = 1024;   // floats of the image that a row keeps

// A row lays out `strip` output pixels side by side. With more than one it stages the part of the image under them, which
// their windows share, and whose short lines of few channels would be read in many pieces.
// rows = groups * N * OH * ceil(OW / strip)
KERNEL im2col(unsigned rows, const float* x, float* columns, int height, int width, int channels, int out_height,
              int out_width, int kernel_height, int kernel_width, int stride_h, int stride_w, int pad_top, int pad_left,
              int groups, int pitch, int strip) {
    ROW_SCRATCH(float, scratch, STAGED);
    const unsigned strips = (out_width + strip - 1) / strip, per_image = out_height * strips, images = rows / groups / per_image;
    const int own = channels / groups, line = width * channels;
    // Without groups the kernel_width * channels floats of a window's line lie side by side: one run.
    const int per_line = groups > 1 ? kernel_width : 1;
    const int run = kernel_width * own / per_line, runs = kernel_height * per_line;
    ROWS(r, rows) {
        const unsigned image = (unsigned)r / per_image, q = (unsigned)r % per_image;
        const unsigned g = image / images, n = image % images, oh = q / strips;
        const int ow_from = (int)(q % strips) * strip, ow_to = ow_from + strip < out_width ? ow_from + strip : out_width;
        // The part of the image under the strip: lines h_from .. h_to-1, pixels w_from .. w_to-1.
        const int top = (int)oh * stride_h - pad_top, start = ow_from * stride_w - pad_left;
        const int stop = (ow_to - 1) * stride_w - pad_left + kernel_width;
        const int h_from = top < 0 ? 0 : top, h_to = top + kernel_height < height ? top + kernel_height : height;
        const int w_from = start < 0 ? 0 : start, w_to = stop < width ? stop : width;
        Lines in = {x + (((long long)n * height + h_from) * width + w_from) * channels + g * own, line};
        if (strip > 1) in = stage(scratch, in.first, line, h_to - h_from, (w_to - w_from - 1) * channels + own);
        float* out = columns + ((long long)image * out_height + oh) * out_width * pitch;
        for (int ow = ow_from; ow < ow_to; ++ow) {
            const int left = ow * stride_w - pad_left;
            const float* corner = in.first + (top - h_from) * in.pitch + (long long)(left - w_from) * channels;
            float* to = out + (long long)ow * pitch;
            if (h_to - h_from == kernel_height && left >= 0 && left + kernel_width <= width) {
                RUNS(i, j, runs, run) to[i * run + j] = corner[i / per_line * in.pitch + i % per_line * channels + j];
            } else {
                const int from = -left * channels, end = (width - left) * channels;
                RUNS(i, j, runs, run) {
                    const int h = top + i / per_line, k = i % per_line * channels + j;
                    const bool inside = h >= h_from && h < h_to && k >= from && k < end;
                    to[i * run + j] = inside ? corner[i / per_line * in.pitch + k] : 0.0f;
                }
            }
        }
    }
}

// rows = groups * N * H * W
KERNEL col2im(unsigned rows, const float* columns, float* dx, int height, int width, int channels, int out_height,
              int out_width, int kernel_height, int kernel_width, int stride_h, int stride_w, int pad_top, int pad_left,
              int groups, int pitch) {
    const unsigned pixels = rows / groups, plane = height * width;
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
