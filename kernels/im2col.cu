// im2col lays the window under each output pixel out as one row, so that a convolution is a matrix product:
//   columns[g, (n, oh, ow), (kh, kw, c)] = x[n, oh * stride_h - pad_top + kh, ow * stride_w - pad_left + kw, g * C/groups + c]
// and 0 outside the image. A column row is `pitch` floats long, its tail beyond KH * KW * C/groups is never read.
// col2im is its transpose, as a gather: each input element sums the column entries that were copied from it.
#define BLOCKS 8      // a thread holds four floats of each value
#include "grid.cuh"

constexpr int STAGED = 1024;   // floats of the image that a row keeps

DEVICE int clamp(int v, int low, int high) { return v < low ? low : v > high ? high : v; }

// A row lays out `strip` output pixels side by side. With more than one it has few channels, in short lines that start anywhere: on a GPU it
// stages the part of the image under its windows, which share it, with zeros around the image.
// rows = groups * N * OH * ceil(OW / strip)
KERNEL im2col(unsigned rows, const float* x, float* columns, int height, int width, int channels, int out_height,
              int out_width, int kernel_height, int kernel_width, int stride_h, int stride_w, int pad_top, int pad_left,
              int groups, int pitch, int strip) {
    ROW_SCRATCH(float, scratch, STAGED);
    const unsigned strips = strip > 1 ? divide(out_width + strip - 1, strip) : out_width;
    const unsigned images = groups > 1 ? divide(rows, groups * out_height * strips) : 0;
    const int own = groups > 1 ? divide(channels, groups) : channels, line = width * channels;
    const bool wide = fours(own | pitch, x, columns), wide_columns = fours(pitch, columns);
    ROWS(r, rows) {
        const unsigned out_line = divide((unsigned)r, strips), image = divide(out_line, (unsigned)out_height);
        const unsigned g = groups > 1 ? divide(image, images) : 0, n = image - g * images;
        const int first = (int)((unsigned)r - out_line * strips) * strip, count = first + strip < out_width ? strip : out_width - first;
        // Under the strip: lines from `top` and pixels from `left` on, `covered` of them, of which those from..end-1 are inside the image.
        const int top = (int)(out_line - image * out_height) * stride_h - pad_top, left = first * stride_w - pad_left;
        const int covered = (count - 1) * stride_w + kernel_width;
        const int from = clamp(-left, 0, covered), end = clamp(width - left, from, covered);
        const float* corner = x + (((long long)n * height + top) * width + left) * channels + g * own;
        float* to = columns + ((long long)out_line * out_width + first) * pitch;
        if (strip == 1) {
            for (int kh = 0; kh < kernel_height; ++kh, corner += line, to += kernel_width * own) {
                const bool inside = (unsigned)(top + kh) < (unsigned)height;
                const int a = inside ? from : kernel_width, b = inside ? end : kernel_width;
                if (a > 0) clear(wide, to, a * own);
                if (groups > 1) copy_runs(wide, to + a * own, corner + a * channels, channels, b - a, own);
                else copy(wide, to + a * own, corner + a * channels, (b - a) * own);      // they lie side by side
                if (b < kernel_width) clear(wide, to + b * own, (kernel_width - b) * own);
            }
            continue;
        }
        const int n_staged = (covered - 1) * channels + own;
        const bool hangs_over = from > 0 || end < covered || top < 0 || top + kernel_height > height;
        if (!CACHED || hangs_over) {
            row_sync();
            for (int kh = 0; kh < kernel_height; ++kh) {
                const bool inside = (unsigned)(top + kh) < (unsigned)height && from < end;
                const int a = inside ? from * channels : n_staged, b = inside ? (end - 1) * channels + own : n_staged;
                float* const staged = scratch + kh * n_staged;
                clear(false, staged, a);
                copy(false, staged + a, corner + (long long)kh * line + a, b - a);
                clear(false, staged + b, n_staged - b);
            }
            row_sync();
        }
        const float* windows = !CACHED || hangs_over ? scratch : corner;
        const int windows_pitch = !CACHED || hangs_over ? n_staged : line;
        if (groups > 1)
            copy_windows(wide_columns, to, pitch, windows, stride_w * channels, count, kernel_height * kernel_width, own,
                         [&](int i) { return i / kernel_width * windows_pitch + i % kernel_width * channels; });
        else copy_windows(wide_columns, to, pitch, windows, stride_w * channels, count, kernel_height, kernel_width * own,
                          [&](int i) { return i * windows_pitch; });
    }
}

// rows = groups * N * H * W
KERNEL col2im(unsigned rows, const float* columns, float* dx, int height, int width, int channels, int out_height,
              int out_width, int kernel_height, int kernel_width, int stride_h, int stride_w, int pad_top, int pad_left,
              int groups, int pitch) {
    const int own = groups > 1 ? divide(channels, groups) : channels;
    const unsigned images = groups > 1 ? divide(divide(rows, (unsigned)groups), (unsigned)(height * width)) : 0;
    const bool wide = fours(own | pitch, columns, dx);
    ROWS(r, rows) {
        const unsigned p = groups > 1 ? divide((unsigned)r, (unsigned)groups) : (unsigned)r, g = (unsigned)r - p * groups;
        const unsigned line = divide(p, (unsigned)width), n = divide(line, (unsigned)height);
        const int h = (int)(line - n * height) + pad_top, w = (int)(p - line * width) + pad_left;
        // The windows that cover this pixel: oh * stride_h <= h < oh * stride_h + kernel_height.
        const int oh_from = h < kernel_height ? 0 : divide(h - kernel_height, stride_h) + 1, oh_last = divide(h, stride_h);
        const int ow_from = w < kernel_width ? 0 : divide(w - kernel_width, stride_w) + 1, ow_last = divide(w, stride_w);
        const int oh_to = oh_last < out_height ? oh_last + 1 : out_height, ow_to = ow_last < out_width ? ow_last + 1 : out_width;
        const int first_tap = (h - oh_from * stride_h) * kernel_width + w - ow_from * stride_w;
        const float* first = columns + ((((long long)g * images + n) * out_height + oh_from) * out_width + ow_from) * pitch + first_tap * own;
        // From a window to the next: its column is a pitch further, and the pixel a stride nearer to its start.
        const int right = pitch - stride_w * own;
        const long long down = (long long)out_width * pitch - stride_h * kernel_width * own;
        lanes(wide, own, [&](auto c) {
            auto sum = splat(c, 0.0f);
            const float* from = first;
            for (int oh = oh_from; oh < oh_to; ++oh, from += down)
                ROLLED for (int i = 0, at = 0; i < ow_to - ow_from; ++i, at += right) sum += load(from + at, c);
            store(dx + r * own, c, sum);
        });
    }
}
