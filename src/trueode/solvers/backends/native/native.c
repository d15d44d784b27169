/* Whole solves of fields of matrix layers, forward and backward. A block of samples stays in the
 * cache from the first step to the last. The interface is plain pointers; no header of Python or
 * PyTorch is needed. kernel.h holds the numerics, compiled once for each type of numbers and each
 * instruction set. This file holds the parts that do not depend on these: threads, and the choice
 * of the instruction set at run time.
 */

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

/* Identity and the activations whose derivative follows from their value come first. */
enum { IDENTITY, RELU, LEAKY_RELU, SIGMOID, TANH, SILU, SOFTPLUS, GELU, CUBE };
enum { KEEP_NOTHING, KEEP_STATES, KEEP_STAGES };
enum { PLAIN, RECTIFIED, MASKED }; /* see Finish */
/* Stages in a group, and the fewest of images, which outgrow the cache but save states; most and fewest
 * parts of a batch; most numbers in the sums of all parts; bytes of the cache of a core, of which a group
 * takes as many, and of its first one; rows of weights whose gradients are summed together; vectors that
 * this sum reads beyond the last input; approximate operations of an activation. */
enum { GROUP = 16, LEAST_GROUP_OF_IMAGES = 2, MOST_PARTS = 32, FEWEST_PARTS = 8, MOST_SUMS = 5 << 19, CACHE = 600000, FIRST_CACHE = 100000,
       SUMS_HIGH = 4, SUMS_BEYOND = 2 * SUMS_HIGH, OF_ACTIVATION = 20 };

/* A layer on rows of fan_in numbers: bias + t * time_weight + the sum over taps of
 * row[r + tap - taps / 2] @ weight[tap], over the rows that exist. One tap is a matrix, applied to
 * every row; more taps are a convolution. Strides count numbers. */
typedef struct {
    int64_t fan_in, fan_out, taps, stride_in, stride_out, tap_stride, bias_stride, time_stride;
    int64_t activation;
    const void *weight, *bias, *time_weight; /* time_weight may be NULL */
    void *weight_gradient, *bias_gradient, *time_gradient; /* contiguous (fan_out, fan_in, taps), (fan_out), (fan_out) */
} Layer;

/* A solve for states (batch, width). Steps are fractions of the interval, as everywhere in this
 * package. */
typedef struct {
    int64_t batch, width, n_layers, n_steps, n_stages, n_saved, keep, threads;
    int64_t capacity;      /* the number of steps that fit on a tape of stages */
    int64_t per_sample;    /* whether each sample has its own steps */
    int64_t height, columns; /* of images (height, columns, channels), one sample each; 0 for other states */
    int64_t divergence;    /* 1 if the last number of a sample changes by minus the divergence of the layers' field of
                            * the others; layers[n_layers] is then the coupling in divergence.h; otherwise 0 */
    double t0, t1;
    const Layer *layers;
    const double *a, *b, *c; /* (n_stages, n_stages), (n_stages), (n_stages): the stages that advance the solution */
    const double *grid;    /* (n_steps + 1), or (n_steps + 1, batch); finished samples stay at 1 */
    int64_t *saved;        /* (n_saved): the steps at whose start, or inside which, states are saved, ascending */
    double *inside;        /* (n_saved): the fraction of that step, 0 at its start; NULL if all are 0 */
    int64_t degree;        /* of the weights inside a step */
    const double *dense;   /* (n_stages + 1, degree): the coefficients of x, x^2, … of the weights of
                            * the stages, and of the field at the end, at a fraction x of a step */
    const void *z0;        /* (batch, width) */
    void *z1, *zs;         /* (batch, width); (n_saved, batch, width) */
    void *tape;            /* tape_size bytes, aligned to 64; NULL if nothing is kept */
    const void *g1, *gs;   /* gradients of z1 and zs */
    void *g0;              /* gradient of z0 */
} Solve;

enum { SUCCESS, FAILED, NO_MEMORY, EXHAUSTED };

/* An adaptive solve, and the steps that it took. */
typedef struct {
    Solve solve; /* without n_steps and grid; `keep`: for the backward pass. With KEEP_STAGES and
                  * the same steps for the whole batch, stages go to the tape if it has room for one
                  * step more than are taken; on return, `keep` says what was kept. */
    int64_t n_stages, fsal, error_order, max_steps;
    const double *a, *b, *c, *error; /* of all stages; error: weights of the error estimate */
    double rtol, atol;
    double first_step, max_step;     /* in units of time; 0 or less: to be chosen; no limit */
    const double *points;            /* (n_saved): fractions at which states are saved, ascending; the places `saved` and
                                      * `inside` are results. With the same steps for the whole batch and FSAL only. */
    double slack;                    /* the largest rounding error of a point */
    double next_step;                /* a result: of an EXHAUSTED solve, as a fraction of the interval */
    /* results, for each column: a single one, or one per sample if samples have their own steps */
    int64_t calls, n_rows;         /* calls of the field; the most accepted steps of a column */
    int64_t *accepted, *rejected;  /* (columns), allocated by the caller */
    void *trace;                   /* read and freed by take */
} AdaptiveSolve;

/* Of layers on images: points of a tile; most tiles at once; what divides the rows of sums. Bytes of
 * a line of the cache. */
enum { POINTS = 36, TILES_AT_MOST = 64, ROUND_ROWS = 8, LINE = 64 };

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

#include "threads.h"

/* Asks for large pages, which makes the first use of much memory several times faster. */
static void expect_much(void *memory, size_t bytes) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = (uintptr_t)1 << 21, first = ((uintptr_t)memory + page - 1) / page * page;
    if (bytes > 8 * page) madvise((void *)first, (bytes - (first - (uintptr_t)memory)) / page * page, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

static void *aligned(size_t bytes) {
    void *found = NULL;
    return posix_memalign(&found, 64, bytes ? bytes : 64) ? NULL : found;
}

/* ---- adaptive steps, as in control.py, which names the sources ---- */

enum { START, PROBE, FIRST, TRIAL };

static double ulp(double x) { return nextafter(x, INFINITY) - x; }

static double step_factor(double ratio, int64_t order) {
    if (!isfinite(ratio)) return 0.2;
    if (ratio == 0) return 10;
    double factor = 0.9 * pow(ratio, -1.0 / order);
    factor = factor > 0.2 ? factor : 0.2;
    return factor < 10 ? factor : 10;
}

/* The longest step, as a fraction of the interval. */
static double step_limit(double max_step, double length) { return max_step > 0 ? max_step / length : INFINITY; }

/* The end of a step. The last step absorbs a remainder that is too short for another one, as far as
 * the limit, up to rounding, allows. */
static double step_end(double theta, double dtheta, double limit) {
    double longest = (1 + 1e-9) * limit, reach = 1.0001 * dtheta;
    return theta + (reach < longest ? reach : longest) >= 1 ? 1 : theta + dtheta;
}

static double trial_step(double d0, double d1) { return d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1; }

static double starting_step(double h0, double d1, double d2, int64_t order) {
    double curvature = d1 > d2 ? d1 : d2;
    if (isnan(d2) || !isfinite(curvature)) return h0;
    double h1 = curvature <= 1e-15 ? (1e-3 * h0 > 1e-6 ? 1e-3 * h0 : 1e-6) : pow(0.01 / curvature, 1.0 / order);
    return 100 * h0 < h1 ? 100 * h0 : h1;
}

/* The accepted steps of a sample, or of a batch, and states at the start of every group of them. */
typedef struct {
    double *grid, *errors; /* fractions at the ends of the steps */
    void **states;
    int64_t n, room, kept;
} Column;

typedef struct {
    int64_t n;
    Column columns[];
} Trace;

static Trace *make_trace(int64_t n) {
    Trace *trace = calloc(1, sizeof(Trace) + n * sizeof(Column));
    if (trace) trace->n = n;
    return trace;
}

static void free_trace(Trace *trace) {
    for (int64_t s = 0; s < trace->n; s++) {
        Column *column = &trace->columns[s];
        for (int64_t i = 0; i < column->kept; i++) free(column->states[i]);
        free(column->states);
        free(column->grid);
        free(column->errors);
    }
    free(trace);
}

static int append(Column *column, double theta, double ratio) {
    if (column->n == column->room) {
        int64_t room = 2 * column->room + 16;
        double *grid = realloc(column->grid, room * sizeof(double));
        if (grid) column->grid = grid;
        double *errors = realloc(column->errors, room * sizeof(double));
        if (errors) column->errors = errors;
        if (!grid || !errors) return 0;
        column->room = room;
    }
    column->grid[column->n] = theta;
    column->errors[column->n++] = ratio;
    return 1;
}

static void *add_state(Column *column, size_t bytes) {
    void **states = realloc(column->states, (column->kept + 1) * sizeof(void *)), *state = malloc(bytes);
    if (states) column->states = states;
    if (!states || !state) return free(state), NULL;
    return column->states[column->kept++] = state;
}

static int keep_state(Column *column, int64_t steps, const void *state, size_t bytes) {
    if (column->kept > steps) return 1; /* kept already: the last step was rejected */
    void *to = add_state(column, bytes);
    if (to) memcpy(to, state, bytes);
    return to != NULL;
}

/* ---- the numerics, for each instruction set and each type of numbers ---- */

#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)
#define NAME(x) JOIN(JOIN(x, SET), TYPE)

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define X86_SETS

#define SET avx512
#define VBYTES 64
#define TILE 8
#define SUMS_WIDE 4
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#define TYPE f32
#define T float
#define I int32_t
#include "kernel.h"
#define TYPE f64
#define T double
#define I int64_t
#include "kernel.h"
#pragma GCC pop_options
#undef SET
#undef VBYTES
#undef TILE
#undef SUMS_WIDE

#define SET avx2
#define VBYTES 32
#define TILE 4
#define SUMS_WIDE 2
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define TYPE f32
#define T float
#define I int32_t
#include "kernel.h"
#define TYPE f64
#define T double
#define I int64_t
#include "kernel.h"
#pragma GCC pop_options
#undef SET
#undef VBYTES
#undef TILE
#undef SUMS_WIDE
#endif

#define SET baseline
#define VBYTES 16
#define TILE 4
#define SUMS_WIDE 2
#define TYPE f32
#define T float
#define I int32_t
#include "kernel.h"
#define TYPE f64
#define T double
#define I int64_t
#include "kernel.h"

/* ---- the interface: instruction sets by number, best first; for float (0) and double (1) ---- */

typedef struct {
    const char *name;
    int (*forward[2])(const Solve *), (*backward[2])(const Solve *), (*solve_adaptive[2])(AdaptiveSolve *);
    int (*take[2])(AdaptiveSolve *, double *, double *, void *);
    int64_t (*tape_size[2])(const Solve *);
} Set;

#define FOR(set, function) {function##_##set##_f32, function##_##set##_f64}
#define A_SET(set) \
    {#set, FOR(set, forward), FOR(set, backward), FOR(set, solve_adaptive), FOR(set, take), FOR(set, tape_size)}

static const Set sets[] = {
#ifdef X86_SETS
    A_SET(avx512), A_SET(avx2),
#endif
    A_SET(baseline)};

/* Whether this machine has the instruction set of that number; -1 beyond the last one. */
int trueode_has(int64_t set) {
    if (set < 0 || set >= (int64_t)(sizeof sets / sizeof *sets)) return -1;
#ifdef X86_SETS
    __builtin_cpu_init();
    if (set == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
    if (set == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return 1;
}

/* Choose the threads: those of an OpenMP library, given its GOMP_parallel, or our own helpers if it
 * is NULL. */
void trueode_share(Parallel its) {
    atomic_store(&pool, its);
}

const char *trueode_name(int64_t set) { return sets[set].name; }

/* The sizes that the caller's structures must have. */
void trueode_sizes(int64_t *sizes) {
    sizes[0] = sizeof(Layer);
    sizes[1] = sizeof(Solve);
    sizes[2] = sizeof(AdaptiveSolve);
}

/* All return 0, NO_MEMORY, or FAILED: final states are not finite, or an adaptive solve found no
 * steps (the caller repeats it without the kernel, which gives the reason). */
int trueode_forward(int64_t set, int64_t is_double, const Solve *solve) { return sets[set].forward[is_double](solve); }
int trueode_backward(int64_t set, int64_t is_double, const Solve *solve) { return sets[set].backward[is_double](solve); }
int trueode_solve_adaptive(int64_t set, int64_t is_double, AdaptiveSolve *adaptive) { return sets[set].solve_adaptive[is_double](adaptive); }
int trueode_take(int64_t set, int64_t is_double, AdaptiveSolve *adaptive, double *grid, double *errors, void *tape) {
    return sets[set].take[is_double](adaptive, grid, errors, tape);
}

/* In bytes; -1 if there is not enough memory to compute it. */
int64_t trueode_tape_size(int64_t set, int64_t is_double, const Solve *solve) { return sets[set].tape_size[is_double](solve); }
