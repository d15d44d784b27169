/* Threads: those of PyTorch, where OpenMP has them; others would compete with them, which wait actively for a while after each
 * operation. Otherwise helpers that sleep until the next call. A part of native.c. */

typedef struct {
    int (*work)(void *context, int64_t part);
    void *context;
    int64_t parts;
    atomic_llong next; /* the next part to be done */
    atomic_int failed;
    pthread_t caller;
    int64_t own, own_parts, end; /* of the caller: nanoseconds of work, parts, when it found no more */
} Job;

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static int64_t do_parts(Job *job) {
    for (int64_t done = 0;; done++) {
        int64_t part = atomic_fetch_add(&job->next, 1);
        if (part >= job->parts) return done;
        int code = job->work(job->context, part);
        if (code) atomic_store(&job->failed, code);
    }
}

static void take_part(void *context) {
    Job *job = context;
    if (!pthread_equal(pthread_self(), job->caller)) {
        do_parts(job);
        return;
    }
    int64_t begin = now();
    job->own_parts = do_parts(job);
    job->end = now();
    job->own = job->end - begin;
}

/* ---- helpers of our own ---- */

typedef struct {
    Job *_Atomic job; /* what is to be done; NULL: nothing */
    pthread_mutex_t mutex;
    pthread_cond_t wake;
} Helper;

enum { MOST_HELPERS = 255 };

static Helper helpers[MOST_HELPERS];
static int64_t n_helpers;                     /* theirs who hold in_use */
static atomic_flag in_use = ATOMIC_FLAG_INIT; /* by a call; other threads that call meanwhile work alone */
static Job begun;                             /* stands for a job that a helper has taken */

/* GOMP_parallel: `work` by as many threads. */
typedef void (*Parallel)(void (*work)(void *), void *context, unsigned threads, unsigned flags);
static Parallel _Atomic pool;

/* A fork has none of the threads, and would wait for them. */
static void after_fork(void) {
    n_helpers = 0;
    atomic_flag_clear(&in_use);
    atomic_store(&pool, NULL);
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork); }

static void breathe(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void *help(void *argument) {
    Helper *self = argument;
    for (;;) {
        Job *job;
        pthread_mutex_lock(&self->mutex);
        while (!(job = atomic_load(&self->job))) pthread_cond_wait(&self->wake, &self->mutex);
        pthread_mutex_unlock(&self->mutex);
        if (!atomic_compare_exchange_strong(&self->job, &job, &begun)) continue; /* taken back */
        do_parts(job);
        atomic_store(&self->job, NULL);
    }
    return NULL;
}

static void start_helpers(int64_t wanted) {
    pthread_attr_t detached;
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all); /* signals are for the caller's threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (; n_helpers < wanted; n_helpers++) {
        Helper *helper = &helpers[n_helpers];
        atomic_store(&helper->job, NULL);
        pthread_mutex_init(&helper->mutex, NULL);
        pthread_cond_init(&helper->wake, NULL);
        if (pthread_create(&thread, &detached, help, helper)) break;
    }
    pthread_attr_destroy(&detached);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void with_helpers(Job *job, int64_t wanted) {
    start_helpers(wanted);
    wanted = smaller(wanted, n_helpers);
    for (int64_t i = 0; i < wanted; i++) {
        pthread_mutex_lock(&helpers[i].mutex);
        atomic_store(&helpers[i].job, job);
        pthread_cond_signal(&helpers[i].wake);
        pthread_mutex_unlock(&helpers[i].mutex);
    }
    take_part(job);
    for (int64_t i = 0; i < wanted; i++) {
        Job *offered = job; /* a helper that has not begun need not be waited for */
        if (atomic_compare_exchange_strong(&helpers[i].job, &offered, NULL)) continue;
        for (int turn = 1; atomic_load(&helpers[i].job); turn++) turn % 1024 ? breathe() : (void)sched_yield();
    }
}

/* ---- where other processes have the processor, a thread may have to wait for it, for milliseconds, and all others for that
 * thread. After each such loss the callers work alone for some multiple of it, a larger one if what was won by several threads
 * since the loss before does not outweigh that. So little time is lost, however often it happens. ---- */

enum { LEAST_LOSS = 50000, LEAST_MULTIPLE = 8, MOST_MULTIPLE = 256 }; /* nanoseconds; times the loss */

static const double OPERATIONS_EACH = 2e6;
static const int64_t LONGEST_PAUSE = 2000000000; /* nanoseconds */
static atomic_llong alone_until, won, lost;      /* times; since the last loss; then */
static atomic_llong multiple = LEAST_MULTIPLE;

static void learn(const Job *job, int64_t end) {
    if (!job->own_parts) return;
    int64_t others = (double)job->own * (job->parts - job->own_parts) / job->own_parts; /* work of theirs, that is */
    int64_t loss = end - job->end - others;
    if (loss < LEAST_LOSS) {
        if (loss < 0) atomic_fetch_sub(&won, loss);
        return;
    }
    int64_t times = atomic_load(&won) >= atomic_load(&lost) ? LEAST_MULTIPLE : smaller(2 * atomic_load(&multiple), MOST_MULTIPLE);
    atomic_store(&multiple, times);
    atomic_store(&won, 0);
    atomic_store(&lost, loss);
    atomic_store(&alone_until, end + smaller(times * loss, LONGEST_PAUSE));
}

/* As many threads as have enough to do to be worth their waking: OPERATIONS_EACH or more, some tens of microseconds. */
static int64_t worth(int64_t threads, double operations) {
    return operations < 2 * OPERATIONS_EACH ? 1 : operations < threads * OPERATIONS_EACH ? (int64_t)(operations / OPERATIONS_EACH) : threads;
}

/* Does all parts; which thread does which makes no difference to the results. Returns 0, or what a part returned. */
static int in_parallel(int (*work)(void *, int64_t), void *context, int64_t parts, int64_t threads) {
    Job job = {.work = work, .context = context, .parts = parts, .caller = pthread_self()};
    int64_t others = smaller(smaller(threads, parts) - 1, MOST_HELPERS);
    Parallel its = atomic_load(&pool);
    if (others <= 0 || now() < atomic_load(&alone_until) || (!its && atomic_flag_test_and_set(&in_use)))
        do_parts(&job);
    else {
        if (its)
            its(take_part, &job, others + 1, 0);
        else {
            with_helpers(&job, others);
            atomic_flag_clear(&in_use);
        }
        learn(&job, now());
    }
    return atomic_load(&job.failed);
}
