/* Convolutions of images with 3 x 3 weights and zero padding, by Winograd's minimal filtering
 * F(4x4, 3x3); a part of kernel.h.
 *
 * Source: Lavin & Gray, Fast algorithms for convolutional neural networks, 2016, with the points 0,
 * 1, -1, 2, -2 and infinity. Each tile of 4 x 4 outputs depends on 6 x 6 inputs.
 * Y = A' [(G w G') * (B' d B)] A takes a product of matrices for each of the 36 points, a quarter
 * of the multiplications of the sum that defines the convolution. The channels of a pixel are
 * adjacent.
 */

/* numbers of a caller's tensor */
typedef T loose __attribute__((vector_size(VBYTES), aligned(sizeof(T)), may_alias));
typedef void (*Transform)(const vec *from, int64_t step, vec *to, int64_t step_to);
#define ALWAYS static inline __attribute__((always_inline))

ALWAYS void NAME(spread_input)(const vec *d, int64_t s, vec *to, int64_t n) { /* B': 6 -> 6 */
    vec even = d[4 * s] - 4 * d[2 * s], odd = d[3 * s] - 4 * d[s];
    vec even2 = d[4 * s] - d[2 * s], odd2 = 2 * (d[3 * s] - d[s]);
    to[0] = 4 * d[0] - 5 * d[2 * s] + d[4 * s];
    to[n] = even + odd;
    to[2 * n] = even - odd;
    to[3 * n] = even2 + odd2;
    to[4 * n] = even2 - odd2;
    to[5 * n] = 4 * d[s] - 5 * d[3 * s] + d[5 * s];
}

ALWAYS void NAME(gather_output)(const vec *m, int64_t s, vec *to, int64_t n) { /* A': 6 -> 4 */
    vec sum = m[s] + m[2 * s], difference = m[s] - m[2 * s];
    vec sum2 = m[3 * s] + m[4 * s], difference2 = m[3 * s] - m[4 * s];
    to[0] = m[0] + sum + sum2;
    to[n] = difference + 2 * difference2;
    to[2 * n] = sum + 4 * sum2;
    to[3 * n] = difference + 8 * difference2 + m[5 * s];
}

ALWAYS void NAME(spread_output)(const vec *y, int64_t s, vec *to, int64_t n) { /* A: 4 -> 6 */
    vec even = y[0] + y[2 * s], odd = y[s] + y[3 * s];
    vec even2 = y[0] + 4 * y[2 * s], odd2 = 2 * y[s] + 8 * y[3 * s];
    to[0] = y[0];
    to[n] = even + odd;
    to[2 * n] = even - odd;
    to[3 * n] = even2 + odd2;
    to[4 * n] = even2 - odd2;
    to[5 * n] = y[3 * s];
}

ALWAYS void NAME(spread_weight)(const vec *w, int64_t s, vec *to, int64_t n) { /* G: 3 -> 6 */
    vec even = (w[0] + w[2 * s]) * ((T)-1 / 6), odd = w[s] * ((T)-1 / 6);
    vec even2 = w[0] * ((T)1 / 24) + w[2 * s] * ((T)1 / 6), odd2 = w[s] * ((T)1 / 12);
    to[0] = w[0] * (T)0.25;
    to[n] = even + odd;
    to[2 * n] = even - odd;
    to[3 * n] = even2 + odd2;
    to[4 * n] = even2 - odd2;
    to[5 * n] = w[2 * s];
}

ALWAYS void NAME(gather_weight)(const vec *m, int64_t s, vec *to, int64_t n) { /* G': 6 -> 3 */
    vec sum = (m[s] + m[2 * s]) * ((T)-1 / 6), difference = (m[2 * s] - m[s]) * ((T)1 / 6);
    vec sum2 = m[3 * s] + m[4 * s], difference2 = m[3 * s] - m[4 * s];
    to[0] = m[0] * (T)0.25 + sum + sum2 * ((T)1 / 24);
    to[n] = difference + difference2 * ((T)1 / 12);
    to[2 * n] = sum + sum2 * ((T)1 / 6) + m[5 * s];
}

/* A transform of n numbers to m, along the columns and then the rows of (n, n). Vectors from a row,
 * and a number, to the next: row, pixel; in the result from a number to the next: step. */
ALWAYS void NAME(both_ways_at)(Transform transform, const int n, const int m, const vec *from, int64_t row, int64_t pixel, vec *to,
                               int64_t step) {
    vec half[POINTS];
#pragma GCC unroll 6
    for (int j = 0; j < n; j++) transform(from + j * pixel, row, half + j, n);
#pragma GCC unroll 6
    for (int i = 0; i < m; i++) transform(half + n * i, 1, to + m * i * step, step);
}

ALWAYS void NAME(both_ways)(Transform transform, const int n, const int m, const vec *from, vec *to) {
    NAME(both_ways_at)(transform, n, m, from, n, 1, to, 1);
}

/* The tiles of a batch of images. */
typedef struct {
    const Convolution *task;
    int64_t across, each, tiles; /* tiles in a row, in an image, in all images */
    T *weight, *sums;            /* (POINTS, fan_in, fan_out); for each part, the bias last,
                                  * (POINTS fan_in + 1, fan_out) */
    int64_t parts;
} Images;

static Images NAME(tiled)(const Convolution *task) {
    int64_t across = (task->width + 3) / 4, each = (task->height + 3) / 4 * across;
    return (Images){task, across, each, task->batch * each, NULL, NULL, 0};
}

/* size x size pixels of a tile, starting `before` pixels before its first one, for the channels
 * from k on; zeros outside of the image. */
ALWAYS void NAME(read_tile)(const Images *in, int64_t tile, const T *x, int64_t channels, int64_t k, const int size,
                            const int before, vec *to) {
    const vec zero = {0};
    int64_t height = in->task->height, width = in->task->width, place = tile % in->each;
    int64_t top = place / in->across * 4 - before, left = place % in->across * 4 - before;
    const T *image = x + tile / in->each * height * width * channels + k;
    for (int i = 0; i < size; i++)
        for (int j = 0; j < size; j++) {
            int64_t r = top + i, c = left + j;
            int there = r >= 0 && r < height && c >= 0 && c < width;
            to[size * i + j] = there ? (vec) * (const loose *)(image + (r * width + c) * channels) : zero;
        }
}

/* The points of tiles, (POINTS, room, channels): of inputs, or of gradients of outputs. */
ALWAYS void NAME(spread)(const Images *in, int64_t first, int64_t n, int64_t room, const T *x, int64_t channels,
                         Transform transform, const int size, const int before, T *to) {
    for (int64_t t = 0; t < n; t++)
        for (int64_t k = 0; k < channels; k += LANES) {
            vec pixels[POINTS], points[POINTS];
            NAME(read_tile)(in, first + t, x, channels, k, size, before, pixels);
            NAME(both_ways)(transform, size, 6, pixels, points);
            for (int p = 0; p < POINTS; p++) *(vec *)(to + (p * room + t) * channels + k) = points[p];
        }
}

/* Columns of products, four rows at a time: to (rows, m) = a (rows, n) b (n, m), or
 * to (n, m) += a' b with a (rows, n), b (rows, m). */
ALWAYS void NAME(times)(const int wide, int64_t rows, int64_t n, int64_t m, const T *a, const T *b, T *to) {
    for (int64_t r = 0; r < rows; r += 4) {
        vec sums[4][SUMS_WIDE] = {0};
        for (int64_t i = 0; i < n; i++)
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++)
#pragma GCC unroll 4
                for (int j = 0; j < wide; j++) sums[q][j] += a[(r + q) * n + i] * ((const vec *)(b + i * m))[j];
        for (int q = 0; q < 4; q++)
            for (int j = 0; j < wide; j++) ((vec *)(to + (r + q) * m))[j] = sums[q][j];
    }
}

ALWAYS void NAME(add_outer)(const int wide, int64_t rows, int64_t n, int64_t m, const T *a, const T *b, T *to) {
    for (int64_t i = 0; i < n; i += 4) {
        vec sums[4][SUMS_WIDE] = {0};
        for (int64_t r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++)
#pragma GCC unroll 4
                for (int j = 0; j < wide; j++) sums[q][j] += a[r * n + i + q] * ((const vec *)(b + r * m))[j];
        for (int q = 0; q < 4; q++)
            for (int j = 0; j < wide; j++) ((vec *)(to + (i + q) * m))[j] += sums[q][j];
    }
}

#define IN_STRIPS(function, rows, n, m, a, b, to)                                    \
    for (int64_t o = 0; o < m;) {                                                    \
        if (m - o >= SUMS_WIDE * LANES) {                                            \
            function(SUMS_WIDE, rows, n, m, a, (b) + o, (to) + o);                   \
            o += SUMS_WIDE * LANES;                                                  \
        } else {                                                                     \
            function(1, rows, n, m, a, (b) + o, (to) + o);                           \
            o += LANES;                                                              \
        }                                                                            \
    }

/* The points of the weights (3, 3, fan_in, fan_out) of one input channel. */
static int NAME(spread_weights)(void *context, int64_t channel) {
    Images *in = context;
    int64_t n = in->task->fan_in, m = in->task->fan_out;
    const T *weight = (const T *)in->task->weight + channel * m;
    for (int64_t o = 0; o < m; o += LANES) {
        vec taps[9], points[POINTS];
        for (int i = 0; i < 9; i++) taps[i] = (vec) * (const loose *)(weight + i * n * m + o);
        NAME(both_ways)(NAME(spread_weight), 3, 6, taps, points);
        for (int p = 0; p < POINTS; p++) *(vec *)(in->weight + (p * n + channel) * m + o) = points[p];
    }
    return SUCCESS;
}

static int NAME(convolve_tiles)(void *context, int64_t part) {
    const Images *in = context;
    const Convolution *task = in->task;
    int64_t n = task->fan_in, m = task->fan_out, end = smaller(in->tiles, (part + 1) * TILES_EACH);
    T *inputs = aligned(POINTS * TILES_AT_ONCE * (n + m) * sizeof(T)), *outputs = inputs + POINTS * TILES_AT_ONCE * n;
    if (!inputs) return NO_MEMORY;
    for (int64_t first = part * TILES_EACH; first < end; first += TILES_AT_ONCE) {
        int64_t count = smaller(TILES_AT_ONCE, end - first);
        NAME(spread)(in, first, count, TILES_AT_ONCE, task->x, n, NAME(spread_input), 6, 1, inputs);
        for (int64_t p = 0; p < POINTS; p++) {
            const T *a = inputs + p * TILES_AT_ONCE * n, *b = in->weight + p * n * m;
            T *to = outputs + p * TILES_AT_ONCE * m;
            IN_STRIPS(NAME(times), count, n, m, a, b, to)
        }
        for (int64_t t = 0; t < count; t++) {
            int64_t image = (first + t) / in->each, place = (first + t) % in->each;
            int64_t top = place / in->across * 4, left = place % in->across * 4;
            for (int64_t o = 0; o < m; o += LANES) {
                vec points[POINTS], pixels[16], shift = {0};
                if (task->bias) shift = *(const loose *)((const T *)task->bias + o);
                for (int p = 0; p < POINTS; p++) points[p] = *(vec *)(outputs + (p * TILES_AT_ONCE + t) * m + o);
                NAME(both_ways)(NAME(gather_output), 6, 4, points, pixels);
                for (int i = 0; i < smaller(4, task->height - top); i++)
                    for (int j = 0; j < smaller(4, task->width - left); j++) {
                        int64_t pixel = (image * task->height + top + i) * task->width + left + j;
                        *(loose *)((T *)task->y + pixel * m + o) = pixels[4 * i + j] + shift;
                    }
            }
        }
    }
    free(inputs);
    return SUCCESS;
}

static int NAME(convolve_images)(const Convolution *task) {
    Images in = NAME(tiled)(task);
    if (!(in.weight = aligned(POINTS * task->fan_in * task->fan_out * sizeof(T)))) return NO_MEMORY;
    in_parallel(NAME(spread_weights), &in, task->fan_in, task->threads);
    int code = in_parallel(NAME(convolve_tiles), &in, (in.tiles + TILES_EACH - 1) / TILES_EACH, task->threads);
    free(in.weight);
    return code;
}

/* Sums over the tiles of a part: of products of the points of inputs and gradients, and of the
 * gradients themselves. */
static int NAME(sum_tiles)(void *context, int64_t part) {
    const Images *in = context;
    const Convolution *task = in->task;
    int64_t n = task->fan_in, m = task->fan_out, size = (POINTS * n + 1) * m;
    int64_t first = in->tiles * part / in->parts, end = in->tiles * (part + 1) / in->parts;
    T *inputs = aligned(POINTS * TILES_SUMMED * (n + m) * sizeof(T)), *outputs = inputs + POINTS * TILES_SUMMED * n;
    T *sums = in->sums + part * size, *bias = sums + POINTS * n * m;
    if (!inputs) return NO_MEMORY;
    memset(sums, 0, size * sizeof(T));
    for (; first < end; first += TILES_SUMMED) {
        int64_t count = smaller(TILES_SUMMED, end - first);
        NAME(spread)(in, first, count, TILES_SUMMED, task->x, n, NAME(spread_input), 6, 1, inputs);
        NAME(spread)(in, first, count, TILES_SUMMED, task->g, m, NAME(spread_output), 4, 0, outputs);
        for (int64_t p = 0; p < POINTS; p++) {
            const T *a = inputs + p * TILES_SUMMED * n, *b = outputs + p * TILES_SUMMED * m;
            T *to = sums + p * n * m;
            IN_STRIPS(NAME(add_outer), count, n, m, a, b, to)
        }
        const T *whole = outputs + 7 * TILES_SUMMED * m; /* at the point (1, 1): the sum over the tile */
        for (int64_t t = 0; t < count; t++)
            for (int64_t o = 0; o < m; o += LANES) *(vec *)(bias + o) += *(const vec *)(whole + t * m + o);
    }
    free(inputs);
    return SUCCESS;
}

/* Gradients of the weights of one input channel; the last `channel` is the bias. */
static int NAME(gather_weights)(void *context, int64_t channel) {
    const Images *in = context;
    int64_t n = in->task->fan_in, m = in->task->fan_out, size = (POINTS * n + 1) * m;
    for (int64_t o = 0; o < m; o += LANES) {
        vec points[POINTS] = {0}, taps[9];
        int64_t rows = channel < n ? POINTS : 1;
        for (int64_t part = 0; part < in->parts; part++)
            for (int64_t p = 0; p < rows; p++)
                points[p] += *(vec *)(in->sums + part * size + (channel < n ? p * n + channel : POINTS * n) * m + o);
        if (channel == n) {
            *(loose *)((T *)in->task->bias_gradient + o) = points[0];
            continue;
        }
        NAME(both_ways)(NAME(gather_weight), 6, 3, points, taps);
        for (int i = 0; i < 9; i++)
            *(loose *)((T *)in->task->weight_gradient + (i * n + channel) * m + o) = taps[i];
    }
    return SUCCESS;
}

static int NAME(convolution_gradient)(const Convolution *task) {
    Images in = NAME(tiled)(task);
    in.parts = larger(1, smaller(in.tiles / TILES_EACH_SUM, MOST_PARTS));
    in.sums = aligned(in.parts * (POINTS * task->fan_in + 1) * task->fan_out * sizeof(T));
    if (!in.sums) return NO_MEMORY;
    int code = in_parallel(NAME(sum_tiles), &in, in.parts, task->threads);
    if (!code) code = in_parallel(NAME(gather_weights), &in, task->fan_in + 1, task->threads);
    free(in.sums);
    return code;
}
