// The CPU's stream: plays a recorded list of kernel launches and matrix products on a few threads.
//
// A recording is a sequence of phases; in a phase each thread runs a list of its own, and all meet before the next.
// One call from Python plays the whole recording, so that a busy interpreter cannot hold a step up. Callers take turns,
// and a process that was forked starts threads of its own when it first plays: none but the forking thread came with it.
// POSIX threads and compiler builtins only: a C++ library would take zig most of a minute to build.
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

union Slot { void* p; long long l; int i; unsigned u; float f; double d; };
struct Command {
    void (*run)(const Slot* arguments, long long part, long long parts);
    const Slot* arguments;
    long long part, parts;
};

// Denormals are zero, as -ftz=true makes them on the GPU.
struct FlushToZero {
#if defined(__SSE__)
    unsigned before = _mm_getcsr();
    FlushToZero() { _mm_setcsr(before | 0x8040); }
    ~FlushToZero() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    unsigned long before;
    FlushToZero() { __asm__ volatile("mrs %0, fpcr" : "=r"(before)); __asm__ volatile("msr fpcr, %0" ::"r"(before | (1ul << 24))); }
    ~FlushToZero() { __asm__ volatile("msr fpcr, %0" ::"r"(before)); }
#endif
};

struct Queue {
    int threads;
    pthread_t* workers;
    const Command* commands;
    const long long* starts;
    long long phases;
    double* seconds;
    int closing;
    // Where the threads meet.
    int arrived;
    unsigned round;
    pthread_mutex_t lock;
    pthread_cond_t moved;
    pthread_mutex_t turn;      // of the callers
    int running;               // whether the workers are there
    Queue *next, **link;       // among all of the process
};

struct Worker { Queue* queue; int thread; };

// Waits by spinning for about the length of a short kernel, then sleeps: the cores may be wanted by others.
static void meet(Queue* q) {
    const unsigned mine = __atomic_load_n(&q->round, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&q->arrived, 1, __ATOMIC_ACQ_REL) == q->threads) {
        __atomic_store_n(&q->arrived, 0, __ATOMIC_RELAXED);
        pthread_mutex_lock(&q->lock);
        __atomic_store_n(&q->round, mine + 1, __ATOMIC_RELEASE);
        pthread_mutex_unlock(&q->lock);
        pthread_cond_broadcast(&q->moved);
        return;
    }
    for (int spin = 0; spin < 4000; ++spin) {
        if (__atomic_load_n(&q->round, __ATOMIC_ACQUIRE) != mine) return;
#if defined(__SSE__)
        _mm_pause();
#endif
    }
    pthread_mutex_lock(&q->lock);
    while (__atomic_load_n(&q->round, __ATOMIC_ACQUIRE) == mine) pthread_cond_wait(&q->moved, &q->lock);
    pthread_mutex_unlock(&q->lock);
}

static double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void play(Queue* q, int thread) {
    FlushToZero mode;
    // Copies: once all have met after the last phase, the caller may already be setting up the next recording.
    const Command* commands = q->commands;
    const long long *start = q->starts + thread, phases = q->phases;
    double* seconds = q->seconds;
    for (long long phase = 0; phase < phases; ++phase, start += q->threads) {
        for (long long i = start[0]; i < start[1]; ++i) {
            const Command& command = commands[i];
            const double before = seconds ? now() : 0;
            command.run(command.arguments, command.part, command.parts);
            if (seconds) seconds[i] += now() - before;
        }
        meet(q);
    }
}

static void* work(void* argument) {
    const Worker self = *(Worker*)argument;
    free(argument);
    for (;;) {
        meet(self.queue);
        if (self.queue->closing) return nullptr;
        play(self.queue, self.thread);
    }
}

// Ends the workers, of which there are threads - 1.
static void stop(Queue* q) {
    q->closing = 1;
    meet(q);
    for (int t = 1; t < q->threads; ++t) pthread_join(q->workers[t], nullptr);
    q->closing = q->running = 0;
}

// Starts threads - 1 workers; 0 if the system does not give so many.
static int start(Queue* q) {
    const int threads = q->threads;
    for (int t = 1; t < threads; ++t) {
        Worker* worker = (Worker*)malloc(sizeof(Worker));
        *worker = Worker{q, t};
        if (pthread_create(&q->workers[t], nullptr, work, worker)) {
            free(worker);
            q->threads = t;      // those that are there meet without the others, and go
            stop(q);
            q->threads = threads;
            return 0;
        }
    }
    return q->running = 1;
}

// The queues of this process, for a fork to find.
static pthread_mutex_t listing = PTHREAD_MUTEX_INITIALIZER;
static Queue* queues;

static void before_fork() { pthread_mutex_lock(&listing); }
static void after_fork() { pthread_mutex_unlock(&listing); }

// In the child no worker is left, and a lock may be held by a thread that is not there: all is set up as at the beginning.
static void reset(Queue* q) {
    pthread_mutex_init(&q->lock, nullptr);
    pthread_cond_init(&q->moved, nullptr);
    pthread_mutex_init(&q->turn, nullptr);
    q->arrived = q->running = 0;
}
static void after_fork_in_child() {
    for (Queue* q = queues; q; q = q->next) reset(q);
    pthread_mutex_unlock(&listing);
}
static void watch_forks() { pthread_atfork(before_fork, after_fork, after_fork_in_child); }

// A queue with threads - 1 workers beside the caller; null if the system gives no more threads.
extern "C" Queue* queue_open(int threads) {
    static pthread_once_t watched = PTHREAD_ONCE_INIT;
    pthread_once(&watched, watch_forks);
    Queue* q = (Queue*)calloc(1, sizeof(Queue));
    q->threads = threads;
    q->workers = (pthread_t*)calloc(threads, sizeof(pthread_t));
    reset(q);
    if (!start(q)) {
        free(q->workers);
        free(q);
        return nullptr;
    }
    pthread_mutex_lock(&listing);
    q->next = queues;
    q->link = &queues;
    if (q->next) q->next->link = &q->next;
    queues = q;
    pthread_mutex_unlock(&listing);
    return q;
}

extern "C" void queue_close(Queue* q) {
    pthread_mutex_lock(&listing);
    *q->link = q->next;
    if (q->next) q->next->link = q->link;
    pthread_mutex_unlock(&listing);
    if (q->running) stop(q);
    free(q->workers);
    free(q);
}

// Thread t runs commands starts[phase * threads + t] up to the next start; seconds (or null) gets each command's time.
// -> 0 if the system gives no threads, which only a forked process asks for here
extern "C" int queue_play(Queue* q, const Command* commands, const long long* starts, long long phases, double* seconds) {
    if (!phases) return 1;      // without a phase nothing would hold the caller until all threads have read what follows
    pthread_mutex_lock(&q->turn);
    const int running = q->running || start(q);
    if (running) {
        q->commands = commands;
        q->starts = starts;
        q->phases = phases;
        q->seconds = seconds;
        meet(q);
        play(q, 0);
    }
    pthread_mutex_unlock(&q->turn);
    return running;
}

// c = op(a) op(b) + beta c, row-major, of some matrices; a part of a launch is some of the rows of all of their c.
// arguments: transpose a, transpose b, m, n, k, a, lda, b, ldb, beta, c, ldc, how many, floats from one a, b and c to the next, then what the
// library's function below needs
struct Product {
    bool transpose_a, transpose_b;
    long long m, n, k, lda, ldb, ldc;
    const float *a, *b;
    float beta, *c;
};
template <class Multiply> static void products(const Slot* s, long long part, long long parts, Multiply multiply) {
    const long long rows = s[2].l, lda = s[6].l, ldc = s[11].l, end = rows * s[12].l * (part + 1) / parts;
    for (long long at = rows * s[12].l * part / parts; at < end;) {
        const long long i = at / rows, from = at % rows, m = end - at < rows - from ? end - at : rows - from;
        multiply(Product{s[0].l != 0, s[1].l != 0, m, s[3].l, s[4].l, lda, s[8].l, ldc, (const float*)s[5].p + i * s[13].l + from * (s[0].l ? 1 : lda),
                         (const float*)s[7].p + i * s[14].l, s[9].f, (float*)s[10].p + i * s[15].l + from * ldc});
        at += m;
    }
}

// cblas_sgemm
extern "C" void run_openblas(const Slot* s, long long part, long long parts) {
    typedef void (*Sgemm)(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*, int);
    products(s, part, parts, [s](Product p) {
        ((Sgemm)s[16].p)(101, p.transpose_a ? 112 : 111, p.transpose_b ? 112 : 111, (int)p.m, (int)p.n, (int)p.k, 1.0f, p.a, (int)p.lda, p.b,
                         (int)p.ldb, p.beta, p.c, (int)p.ldc);
    });
}

// dnnl_sgemm, omp_get_max_threads, omp_set_num_threads. A refused product (no memory) is NaN, which no training takes for a result.
extern "C" void run_onednn(const Slot* s, long long part, long long parts) {
    typedef int (*Sgemm)(char, char, long long, long long, long long, float, const float*, long long, const float*, long long, float, float*, long long);
    const int threads = ((int (*)())s[17].p)();      // OpenMP's setting belongs to the calling thread, which may be Python's
    ((void (*)(int))s[18].p)(1);
    products(s, part, parts, [s](Product p) {
        if (((Sgemm)s[16].p)(p.transpose_a ? 'T' : 'N', p.transpose_b ? 'T' : 'N', p.m, p.n, p.k, 1.0f, p.a, p.lda, p.b, p.ldb, p.beta, p.c, p.ldc))
            for (long long i = 0; i < p.m; ++i)
                for (long long j = 0; j < p.n; ++j) p.c[i * p.ldc + j] = __builtin_nanf("");
    });
    ((void (*)(int))s[18].p)(threads);
}
