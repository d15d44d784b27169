/* Transforms of convolutions of images with 3 x 3 weights, by Winograd's minimal filtering
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

/* A transform of n numbers to m. One part of it gives two of the results (or the last one alone),
 * which share sums: OF_PART names them. Vectors from a number to the next: s, and in the result n. */
typedef void (*Transform)(const int part, const vec *from, int64_t s, vec *to, int64_t n);
#define ALWAYS static inline __attribute__((always_inline))
#define OF_PART(m, part, second) ((m) == 6 ? ((part) == 0 ? 5 * (second) : 2 * (part) - 1 + (second)) : (part) + 2 * (second))

ALWAYS void NAME(spread_input)(const int part, const vec *d, int64_t s, vec *to, int64_t n) { /* B': 6 -> 6 */
    if (part == 0) {
        to[0] = 4 * d[0] - 5 * d[2 * s] + d[4 * s];
        to[5 * n] = 4 * d[s] - 5 * d[3 * s] + d[5 * s];
    } else if (part == 1) {
        vec even = d[4 * s] - 4 * d[2 * s], odd = d[3 * s] - 4 * d[s];
        to[n] = even + odd;
        to[2 * n] = even - odd;
    } else {
        vec even = d[4 * s] - d[2 * s], odd = 2 * (d[3 * s] - d[s]);
        to[3 * n] = even + odd;
        to[4 * n] = even - odd;
    }
}

ALWAYS void NAME(gather_output)(const int part, const vec *m, int64_t s, vec *to, int64_t n) { /* A': 6 -> 4 */
    if (part == 0) {
        vec sum = m[s] + m[2 * s], sum2 = m[3 * s] + m[4 * s];
        to[0] = m[0] + sum + sum2;
        to[2 * n] = sum + 4 * sum2;
    } else {
        vec difference = m[s] - m[2 * s], difference2 = m[3 * s] - m[4 * s];
        to[n] = difference + 2 * difference2;
        to[3 * n] = difference + 8 * difference2 + m[5 * s];
    }
}

ALWAYS void NAME(spread_output)(const int part, const vec *y, int64_t s, vec *to, int64_t n) { /* A: 4 -> 6 */
    if (part == 0) {
        to[0] = y[0];
        to[5 * n] = y[3 * s];
    } else {
        vec even = part == 1 ? y[0] + y[2 * s] : y[0] + 4 * y[2 * s], odd = part == 1 ? y[s] + y[3 * s] : 2 * y[s] + 8 * y[3 * s];
        to[(2 * part - 1) * n] = even + odd;
        to[2 * part * n] = even - odd;
    }
}

ALWAYS void NAME(spread_weight)(const int part, const vec *w, int64_t s, vec *to, int64_t n) { /* G: 3 -> 6 */
    if (part == 0) {
        to[0] = w[0] * (T)0.25;
        to[5 * n] = w[2 * s];
    } else if (part == 1) {
        vec even = (w[0] + w[2 * s]) * ((T)-1 / 6), odd = w[s] * ((T)-1 / 6);
        to[n] = even + odd;
        to[2 * n] = even - odd;
    } else {
        vec even = w[0] * ((T)1 / 24) + w[2 * s] * ((T)1 / 6), odd = w[s] * ((T)1 / 12);
        to[3 * n] = even + odd;
        to[4 * n] = even - odd;
    }
}

ALWAYS void NAME(gather_weight)(const int part, const vec *m, int64_t s, vec *to, int64_t n) { /* G': 6 -> 3 */
    if (part == 0) {
        vec sum = (m[s] + m[2 * s]) * ((T)-1 / 6), sum2 = m[3 * s] + m[4 * s];
        to[0] = m[0] * (T)0.25 + sum + sum2 * ((T)1 / 24);
        to[2 * n] = sum + sum2 * ((T)1 / 6) + m[5 * s];
    } else
        to[n] = (m[2 * s] - m[s]) * ((T)1 / 6) + (m[3 * s] - m[4 * s]) * ((T)1 / 12);
}

/* A transform of n numbers to m, along the columns and then the rows of (n, n). Vectors from a row,
 * and a number, to the next: row, pixel; in the result from a number to the next: step. What a part
 * makes of the columns stays in registers. */
ALWAYS void NAME(both_ways)(Transform transform, const int n, const int m, const vec *from, int64_t row, int64_t pixel, vec *to,
                            int64_t step) {
    const int parts = (m + 1) / 2;
#pragma GCC unroll 3
    for (int part = 0; part < parts; part++) {
        vec half[POINTS];
#pragma GCC unroll 6
        for (int j = 0; j < n; j++) transform(part, from + j * pixel, row, half + j, n);
#pragma GCC unroll 2
        for (int second = 0; second < 2; second++) {
            const int i = OF_PART(m, part, second);
            if (i >= m) continue;
#pragma GCC unroll 3
            for (int q = 0; q < parts; q++) transform(q, half + n * i, 1, to + m * i * step, step);
        }
    }
}
