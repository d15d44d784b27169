/* Threads; a part of native.c. PyTorch's threads are used if OpenMP manages them: they wait
 * actively for a while after each operation, and others would compete with them. Otherwise our own
 * helpers are used, which sleep until the next call. */

typedef struct {
    int (*work)(void *context, int64_t part);
    void *context;
    int64_t parts;
    atomic_llong next; /* the next part to do */
    atomic_int failed;
    pthread_t caller;
    int64_t own, own_parts, end; /* of the caller: nanoseconds of work, parts done, end time */
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

/* ---- our own helpers ---- */

typedef struct {
    Job *_Atomic job; /* the job to do, or NULL */
    pthread_mutex_t mutex;
    pthread_cond_t wake;
} Helper;

enum { MOST_HELPERS = 255 };

static Helper helpers[MOST_HELPERS];
static int64_t n_helpers;                     /* changed only by the holder of in_use */
static atomic_flag in_use = ATOMIC_FLAG_INIT; /* held by one call; calls meanwhile use one thread */
static Job begun;                             /* marks a job that a helper has taken */

/* GOMP_parallel: does `work` with that many threads. */
typedef void (*Parallel)(void (*work)(void *), void *context, unsigned threads, unsigned flags);
static Parallel _Atomic pool;

/* A forked process has none of the threads, and would wait for them. */
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
        Job *offered = job; /* do not wait for a helper that has not begun */
        if (atomic_compare_exchange_strong(&helpers[i].job, &offered, NULL)) continue;
        for (int turn = 1; atomic_load(&helpers[i].job); turn++) turn % 1024 ? breathe() : (void)sched_yield();
    }
}

/* ---- losses: if other processes are busy, a thread may wait milliseconds for a processor, and all
 * others for that thread. After each such loss, calls use one thread for a multiple of the lost
 * time. The multiple doubles if several threads have not gained as much time since the last loss as
 * that loss took. This bounds the total loss, however often it happens. ---- */

enum { LEAST_LOSS = 50000, LEAST_MULTIPLE = 8, MOST_MULTIPLE = 256 }; /* nanoseconds; factors */

static const double OPERATIONS_EACH = 2e6;
static const int64_t LONGEST_PAUSE = 2000000000; /* nanoseconds */
static atomic_llong alone_until, won, lost;      /* a time; gain since the last loss; that loss */
static atomic_llong multiple = LEAST_MULTIPLE;

static void learn(const Job *job, int64_t end) {
    if (!job->own_parts) return;
    /* the work of the others */
    int64_t others = (double)job->own * (job->parts - job->own_parts) / job->own_parts;
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

/* The number of threads worth waking: each needs OPERATIONS_EACH or more, some tens of
 * microseconds. */
static int64_t worth(int64_t threads, double operations) {
    return operations < 2 * OPERATIONS_EACH ? 1 : operations < threads * OPERATIONS_EACH ? (int64_t)(operations / OPERATIONS_EACH) : threads;
}

/* Does all parts; the results do not depend on which thread does which. Returns 0, or the code of a
 * part that failed. */
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
