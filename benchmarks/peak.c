/* Fused multiply-adds in registers, as many as the processor can do: what `peak.py` compiles for this machine. */

#ifdef __AVX512F__
enum { BYTES = 64 };
#elif defined(__AVX__)
enum { BYTES = 32 };
#else
enum { BYTES = 16 };
#endif
enum { CHAINS = 12, ROUNDS = 1 << 20 }; /* enough chains that none waits for its last result */

typedef float vec __attribute__((vector_size(BYTES)));

/* Floating point operations of a call. */
double operations(void) { return 2.0 * CHAINS * ROUNDS * (BYTES / sizeof(float)); }

float multiply_and_add(float factor, float term) {
    vec sums[CHAINS], x = factor - (vec){0}, y = term - (vec){0};
    float total = 0;
#pragma GCC unroll 12
    for (int j = 0; j < CHAINS; j++) sums[j] = x + (float)j;
    for (int i = 0; i < ROUNDS; i++)
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; j++) sums[j] = sums[j] * x + y;
    for (int j = 0; j < CHAINS; j++) total += sums[j][0];
    return total;
}
