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

/* erfc(x / sqrt(2)) / 2 and exp(-x^2 / 2) of |x|: (1 + 2 u) exp(u^2) erfc(u), u = |x| / sqrt(2), is a
 * polynomial of (u - 3) / (u + 3) up to rounding: the Chebyshev series of that function, as powers. */
static inline vec NAME(normal_tail)(vec x, vec *bell) {
    static const double in_double[] = {
        1.2530080582697296, -0.13562110612458117, -0.047562294353449198, 0.12964515870275939,
        -0.11927366341538638, 0.068308027344009897, -0.023770514917171338, 0.0025293918156939696,
        0.0018886903449991718, -0.0007798322696543306, -0.00010515971958448065, 0.0001250993424583729,
        4.949196649968345e-06, -2.0100542268525612e-05, -7.308281468783614e-07, 3.4723709449771682e-06,
        3.5576086684080595e-07, -6.1660114603987257e-07, -1.4047654315428462e-07, 1.0183620603842736e-07,
        4.1064013667940355e-08, -1.3312919661038687e-08, -8.2175950587114546e-09, 9.8625335103455874e-10,
        8.3937348586908774e-10};
    static const double in_single[] = {
        1.25300806, -0.135621069, -0.0475622927, 0.129644114, -0.119273691,
        0.0683165678, -0.0237703347, 0.00249911687, 0.00188811286, -0.000726453679,
        -0.000104130714, 7.73102422e-05, 3.86184914e-06};
    const double *terms = sizeof(T) == 8 ? in_double : in_single;
    const int n = sizeof(T) == 8 ? 25 : 13;
    const vec zero = {0};
    vec size = NAME(select)(x < 0, -x, x);
    size = NAME(select)(size > 40, zero + 40, size);
    vec u = size * (T)0.70710678118654752, s = (u - 3) / (u + 3), p = zero + (T)terms[n - 1];
    for (int i = n - 2; i >= 0; i--) p = p * s + (T)terms[i];
    vec scale, e = NAME(exp_parts)(-u * u, &scale);
    *bell = scale * e + scale;
    return *bell * p / (2 + 4 * u);
}

/* The distribution function of the normal distribution, and exp(-x^2 / 2). */
static inline vec NAME(normal)(vec x, vec *bell) {
    vec tail = NAME(normal_tail)(x, bell);
    return NAME(select)(x < 0, tail, 1 - tail);
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
        case GELU: {
            vec bell;
            for (int64_t i = 0; i < n; i++) y[i] = x[i] * NAME(normal)(x[i], &bell);
            break;
        }
        case CUBE:
            for (int64_t i = 0; i < n; i++) y[i] = x[i] * x[i] * x[i];
            break;
        default:
            if (x != y) memcpy(y, x, n * sizeof(vec));
    }
}

/* g *= act'; known: the value of the activation, from silu on its input. */
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
        case GELU:
            for (int64_t i = 0; i < n; i++) {
                vec bell, normal = NAME(normal)(known[i], &bell);
                g[i] *= normal + (T)0.39894228040143268 * known[i] * bell;
            }
            break;
        case CUBE:
            for (int64_t i = 0; i < n; i++) g[i] *= 3 * known[i] * known[i];
            break;
        default:
            break;
    }
}

/* g += p act''; known: as above; slope: act'. */
static void NAME(pull_slope)(int64_t activation, const vec *known, const vec *slope, const vec *p, vec *g, int64_t n) {
    const vec zero = {0};
    switch (activation) {
        case SIGMOID:
            for (int64_t i = 0; i < n; i++) g[i] += p[i] * slope[i] * (1 - 2 * known[i]);
            break;
        case TANH:
            for (int64_t i = 0; i < n; i++) g[i] -= p[i] * slope[i] * (2 * known[i]);
            break;
        case SILU:
            for (int64_t i = 0; i < n; i++) {
                vec s = NAME(sigmoid)(known[i]);
                g[i] += p[i] * s * (1 - s) * (2 + known[i] * (1 - 2 * s));
            }
            break;
        case SOFTPLUS:
            for (int64_t i = 0; i < n; i++) g[i] += p[i] * slope[i] * (1 - slope[i]);
            break;
        case GELU:
            for (int64_t i = 0; i < n; i++) {
                vec x = NAME(select)(known[i] < 0, -known[i], known[i]), bell;
                x = NAME(select)(x > 40, zero + 40, x); /* the square of more could overflow */
                NAME(normal_tail)(x, &bell);
                g[i] += p[i] * (T)0.39894228040143268 * bell * (2 - x * x);
            }
            break;
        case CUBE:
            for (int64_t i = 0; i < n; i++) g[i] += p[i] * 6 * known[i];
            break;
        default:
            break;
    }
}
