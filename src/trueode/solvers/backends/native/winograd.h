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
