/* Activations and their derivatives, vector by vector; a part of kernel.h. */

static inline vec NAME(select)(ivec condition, vec a, vec b) {
    return (vec)(((ivec)a & condition) | ((ivec)b & ~condition));
}

/* exp(x) = scale (1 + p), with p accurate also for small x: x = n ln 2 + r, and a Taylor polynomial
 * of exp(r) - 1. x is clamped to the range of the exponents; NaN stays NaN. */
static inline vec NAME(exp_parts)(vec x, vec *scale) {
    const int single = sizeof(T) == 4;
    const T low = single ? -87 : -708, high = single ? 88 : 709;
    const T magic = single ? 0x1.8p23 : 0x1.8p52; /* adding it rounds to an integer */
    const T high_part = single ? 0x1.62e4p-1 : 0x1.62e42feep-1;
    const T low_part = single ? 1.4286068203094172e-6 : 1.9082149292705877e-10;
    const vec zero = {0};
    x = NAME(select)(x < low, zero + low, x);
    x = NAME(select)(x > high, zero + high, x);
    vec shifted = x * (T)1.4426950408889634 + magic, n = shifted - magic;
    vec r = x - n * high_part - n * low_part;
    ivec exponent = (ivec)shifted - (ivec)(zero + magic) + (single ? 127 : 1023);
    *scale = (vec)(exponent << (single ? 23 : 52));
    vec p = zero;
    if (!single) {
        p = zero + (T)(1 / 6227020800.0);
        p = p * r + (T)(1 / 479001600.0);
        p = p * r + (T)(1 / 39916800.0);
        p = p * r + (T)(1 / 3628800.0);
        p = p * r + (T)(1 / 362880.0);
        p = p * r + (T)(1 / 40320.0);
    }
    p = p * r + (T)(1 / 5040.0);
    p = p * r + (T)(1 / 720.0);
    p = p * r + (T)(1 / 120.0);
    p = p * r + (T)(1 / 24.0);
    p = p * r + (T)(1 / 6.0);
    p = p * r + (T)0.5;
    return p * r * r + r;
}

static inline vec NAME(sigmoid)(vec x) {
    vec scale, p = NAME(exp_parts)(-x, &scale);
    return 1 / (1 + (scale * p + scale));
}

/* expm1(2 x) / (expm1(2 x) + 2) */
static inline vec NAME(tanh)(vec x) {
    const vec zero = {0};
    x = NAME(select)(x > 20, zero + 20, x);
    vec scale, p = NAME(exp_parts)(2 * x, &scale), e = scale * p + (scale - 1);
    return e / (e + 2);
}

/* log(1 + exp(x)) = max(x, 0) + log(1 + u), u = exp(-|x|); log(1 + u) = 2 artanh(u / (2 + u)), with
 * half of 1 + u if it is above the square root of 2. Beyond 20 the result is x, as in PyTorch. */
static inline vec NAME(softplus)(vec x) {
    const vec zero = {0};
    vec positive = NAME(select)(x < 0, zero, x), size = NAME(select)(x < 0, -x, x);
    vec scale, p = NAME(exp_parts)(-size, &scale), u = scale * p + scale;
    ivec large = u > (T)0.41421356237309503;
    vec s = NAME(select)(large, (u - 1) / (u + 3), u / (u + 2)), q = s * s;
    vec sum = zero;
    if (sizeof(T) == 8) {
        sum = zero + (T)(1 / 21.0);
        sum = sum * q + (T)(1 / 19.0);
        sum = sum * q + (T)(1 / 17.0);
        sum = sum * q + (T)(1 / 15.0);
        sum = sum * q + (T)(1 / 13.0);
        sum = sum * q + (T)(1 / 11.0);
    }
    sum = sum * q + (T)(1 / 9.0);
    sum = sum * q + (T)(1 / 7.0);
    sum = sum * q + (T)(1 / 5.0);
    sum = sum * q + (T)(1 / 3.0);
    vec found = positive + (2 * (s * q * sum + s) + NAME(select)(large, zero + (T)0.69314718055994531, zero));
    return NAME(select)(x > 20, x, found);
}

/* y = act(x) for n vectors; x and y may be the same. */
static void NAME(activate)(int64_t activation, const vec *x, vec *y, int64_t n) {
    const vec zero = {0};
    switch (activation) {
        case RELU:
            for (int64_t i = 0; i < n; i++) y[i] = NAME(select)(x[i] < 0, zero, x[i]);
            break;
        case LEAKY_RELU:
            for (int64_t i = 0; i < n; i++) y[i] = NAME(select)(x[i] > 0, x[i], x[i] * (T)0.01);
            break;
        case SIGMOID:
            for (int64_t i = 0; i < n; i++) y[i] = NAME(sigmoid)(x[i]);
            break;
        case TANH:
            for (int64_t i = 0; i < n; i++) y[i] = NAME(tanh)(x[i]);
            break;
        case SILU:
            for (int64_t i = 0; i < n; i++) y[i] = x[i] * NAME(sigmoid)(x[i]);
            break;
        case SOFTPLUS:
            for (int64_t i = 0; i < n; i++) y[i] = NAME(softplus)(x[i]);
            break;
        default:
            if (x != y) memcpy(y, x, n * sizeof(vec));
    }
}

/* g *= act'; known: the value of the activation, for silu and softplus its input. */
static void NAME(pull_activation)(int64_t activation, const vec *known, vec *g, int64_t n) {
    const vec zero = {0};
    switch (activation) {
        case RELU:
            for (int64_t i = 0; i < n; i++) g[i] = NAME(select)(known[i] <= 0, zero, g[i]);
            break;
        case LEAKY_RELU:
            for (int64_t i = 0; i < n; i++) g[i] = NAME(select)(known[i] > 0, g[i], g[i] * (T)0.01);
            break;
        case SIGMOID:
            for (int64_t i = 0; i < n; i++) g[i] *= known[i] * (1 - known[i]);
            break;
        case TANH:
            for (int64_t i = 0; i < n; i++) g[i] *= 1 - known[i] * known[i];
            break;
        case SILU:
            for (int64_t i = 0; i < n; i++) {
                vec s = NAME(sigmoid)(known[i]);
                g[i] *= s * (1 + known[i] * (1 - s));
            }
            break;
        case SOFTPLUS:
            for (int64_t i = 0; i < n; i++)
                g[i] = NAME(select)(known[i] > 20, g[i], g[i] * NAME(sigmoid)(known[i]));
            break;
        default:
            break;
    }
}
