/* Solves by several threads at once, on the kernel's own helpers, under the sanitizer of threads: `make sanitize` builds it
 * together with native.c. Whatever the threads do at the same time, each finds what one thread alone finds, to the last bit.
 */

#include "native.c"

#include <stdio.h>

enum { BATCH = 150, WIDTH = 3, HIDDEN = 24, STEPS = 6, ROUNDS = 5, CALLERS = 4, SIDE = 9, CHANNELS = 5, IMAGES = 6, NUMBERS = SIDE * SIDE * CHANNELS };

/* What a caller reads and writes: nothing of it is shared. */
typedef struct {
    int64_t set, threads;
    float weight1[HIDDEN * WIDTH], weight2[WIDTH * HIDDEN], bias1[HIDDEN], bias2[WIDTH];
    float coupling[HIDDEN], z0[BATCH * (WIDTH + 1)], g1[BATCH * (WIDTH + 1)], image[IMAGES * NUMBERS], filter[9 * CHANNELS * CHANNELS];
    struct { /* results */
        float ends[3][BATCH * WIDTH], start[BATCH * WIDTH];
        float weight1[HIDDEN * WIDTH], weight2[WIDTH * HIDDEN], bias1[HIDDEN], bias2[WIDTH];
        float density[2][BATCH * (WIDTH + 1)], coupling[HIDDEN];
        float image[2][IMAGES * NUMBERS], filter[2][9 * CHANNELS * CHANNELS], bias[2][CHANNELS];
        int64_t accepted[2][BATCH], rejected[2][BATCH];
    } found;
    int failed;
} Caller;

static const double midpoint_a[] = {0, 0, 0.5, 0}, midpoint_b[] = {0, 1}, midpoint_c[] = {0, 0.5};
static const double bosh_a[] = {0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0.75, 0, 0, 2 / 9.0, 1 / 3.0, 4 / 9.0, 0};
static const double bosh_b[] = {2 / 9.0, 1 / 3.0, 4 / 9.0, 0}, bosh_c[] = {0, 0.5, 0.75, 1};
static const double bosh_error[] = {-5 / 72.0, 1 / 12.0, 1 / 9.0, -1 / 8.0};

static void fill(float *to, int64_t n, float size) {
    static const unsigned step = 2654435761u;
    for (int64_t i = 0; i < n; i++) to[i] = size * ((int)((unsigned)(i + 1) * step >> 8) / (float)(1 << 23) - 1);
}

static void prepare(Caller *caller, int64_t set, int64_t threads) {
    memset(caller, 0, sizeof *caller);
    caller->set = set;
    caller->threads = threads;
    fill(caller->weight1, HIDDEN * WIDTH, 2);
    fill(caller->weight2, WIDTH * HIDDEN, 0.5);
    fill(caller->bias1, HIDDEN, 1);
    fill(caller->bias2, WIDTH, 1);
    fill(caller->coupling, HIDDEN, 1);
    fill(caller->z0, BATCH * (WIDTH + 1), 1);
    fill(caller->g1, BATCH * (WIDTH + 1), 1);
    fill(caller->image, IMAGES * NUMBERS, 1);
    fill(caller->filter, 9 * CHANNELS * CHANNELS, 0.1);
}

static void fixed_steps(Caller *caller, const Layer *layers) {
    double grid[STEPS + 1];
    for (int i = 0; i <= STEPS; i++) grid[i] = i / (double)STEPS;
    Solve solve = {.batch = BATCH, .width = WIDTH, .n_layers = 2, .n_steps = STEPS, .n_stages = 2, .keep = KEEP_STAGES, .capacity = STEPS,
                   .threads = caller->threads, .t1 = 1, .layers = layers, .a = midpoint_a, .b = midpoint_b, .c = midpoint_c,
                   .grid = grid, .z0 = caller->z0, .z1 = caller->found.ends[0], .g1 = caller->g1, .g0 = caller->found.start};
    solve.tape = aligned(trueode_tape_size(caller->set, 0, &solve));
    caller->failed |= trueode_forward(caller->set, 0, &solve) || trueode_backward(caller->set, 0, &solve);
    free(solve.tape);
}

static void adaptive_steps(Caller *caller, const Layer *layers, int64_t per_sample) {
    AdaptiveSolve adaptive = {
        .solve = {.batch = BATCH, .width = WIDTH, .n_layers = 2, .n_stages = 3, .keep = KEEP_STATES, .threads = caller->threads,
                  .per_sample = per_sample, .t1 = 1, .layers = layers, .z0 = caller->z0, .z1 = caller->found.ends[1 + per_sample]},
        .n_stages = 4, .fsal = 1, .error_order = 3, .max_steps = 1000, .a = bosh_a, .b = bosh_b, .c = bosh_c,
        .error = bosh_error, .rtol = 1e-3, .atol = 1e-3, .max_step = 0.2, .accepted = caller->found.accepted[per_sample],
        .rejected = caller->found.rejected[per_sample]};
    if ((caller->failed |= trueode_solve_adaptive(caller->set, 0, &adaptive))) return;
    int64_t columns = per_sample ? BATCH : 1;
    double *grid = malloc((adaptive.n_rows + 1) * columns * sizeof(double));
    double *errors = malloc(adaptive.n_rows * columns * sizeof(double));
    caller->failed |= trueode_take(caller->set, 0, &adaptive, grid, errors, NULL);
    free(grid);
    free(errors);
}

static void densities(Caller *caller, const Layer *layers) {
    double grid[STEPS + 1];
    for (int i = 0; i <= STEPS; i++) grid[i] = i / (double)STEPS;
    Solve solve = {.batch = BATCH, .width = WIDTH + 1, .divergence = 1, .n_layers = 2, .n_steps = STEPS, .n_stages = 2,
                   .keep = KEEP_STAGES, .capacity = STEPS, .threads = caller->threads, .t1 = 1, .layers = layers, .a = midpoint_a,
                   .b = midpoint_b, .c = midpoint_c, .grid = grid, .z0 = caller->z0, .z1 = caller->found.density[0],
                   .g1 = caller->g1, .g0 = caller->found.density[1]};
    solve.tape = aligned(trueode_tape_size(caller->set, 0, &solve));
    caller->failed |= trueode_forward(caller->set, 0, &solve) || trueode_backward(caller->set, 0, &solve);
    free(solve.tape);
}

static void images(Caller *caller) {
    double grid[STEPS + 1];
    for (int i = 0; i <= STEPS; i++) grid[i] = i / (double)STEPS;
    Layer layers[2];
    for (int i = 0; i < 2; i++)
        layers[i] = (Layer){.fan_in = CHANNELS, .fan_out = CHANNELS, .taps = 9, .stride_in = 9, .stride_out = 9 * CHANNELS, .tap_stride = 1,
                            .bias_stride = 1, .activation = i ? IDENTITY : TANH, .weight = caller->filter, .bias = caller->bias1,
                            .weight_gradient = caller->found.filter[i], .bias_gradient = caller->found.bias[i]};
    Solve solve = {.batch = IMAGES, .width = NUMBERS, .height = SIDE, .columns = SIDE, .n_layers = 2, .n_steps = STEPS, .n_stages = 2,
                   .keep = KEEP_STATES, .threads = caller->threads, .t1 = 1, .layers = layers, .a = midpoint_a, .b = midpoint_b,
                   .c = midpoint_c, .grid = grid, .z0 = caller->image, .z1 = caller->found.image[0], .g1 = caller->image,
                   .g0 = caller->found.image[1]};
    solve.tape = aligned(trueode_tape_size(caller->set, 0, &solve));
    caller->failed |= trueode_forward(caller->set, 0, &solve) || trueode_backward(caller->set, 0, &solve);
    free(solve.tape);
}

static void *call(void *argument) {
    Caller *caller = argument;
    Layer layers[] = {
        {.fan_in = WIDTH, .fan_out = HIDDEN, .taps = 1, .stride_in = 1, .stride_out = WIDTH, .bias_stride = 1, .activation = TANH,
         .weight = caller->weight1, .bias = caller->bias1, .weight_gradient = caller->found.weight1, .bias_gradient = caller->found.bias1},
        {.fan_in = HIDDEN, .fan_out = WIDTH, .taps = 1, .stride_in = 1, .stride_out = HIDDEN, .bias_stride = 1, .activation = IDENTITY,
         .weight = caller->weight2, .bias = caller->bias2, .weight_gradient = caller->found.weight2, .bias_gradient = caller->found.bias2},
        {.fan_in = HIDDEN, .fan_out = 1, .taps = 1, .stride_in = 1, .stride_out = HIDDEN, .weight = caller->coupling,
         .weight_gradient = caller->found.coupling}};
    for (int round = 0; round < ROUNDS; round++) {
        densities(caller, layers);
        fixed_steps(caller, layers);
        adaptive_steps(caller, layers, 0);
        adaptive_steps(caller, layers, 1);
        images(caller);
        memset(caller->found.rejected, 0, round + 1 < ROUNDS ? sizeof caller->found.rejected : 0); /* they are counted up */
    }
    return NULL;
}

/* Whether callers at the same time find what one finds. */
static int agree(int64_t set, const Caller *alone) {
    static Caller callers[CALLERS];
    pthread_t threads[CALLERS];
    int same = 1;
    for (int i = 0; i < CALLERS; i++) {
        prepare(&callers[i], set, 3);
        if (pthread_create(&threads[i], NULL, call, &callers[i])) abort();
    }
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(threads[i], NULL);
        same = same && !callers[i].failed && !memcmp(&callers[i].found, &alone->found, sizeof alone->found);
    }
    return same;
}

int main(void) {
    static Caller alone;
    for (int64_t set = 0; trueode_has(set) >= 0; set++) {
        if (!trueode_has(set)) continue;
        prepare(&alone, set, 1);
        call(&alone);
        int same = !alone.failed && alone.found.accepted[0][0] > 4 && agree(set, &alone);
        printf("%s: %s\n", trueode_name(set), same ? "all callers find the same" : "FAILED");
        if (!same) return 1;
    }
    return 0;
}
