// The CPU's stream: plays a recorded list of kernel launches and matrix products on a few threads.
//
// A recording is a sequence of phases; in a phase each thread runs a list of its own, and all meet before the next.
// One call from Python plays the whole recording, so that a busy interpreter cannot hold a step up.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>
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

// Waits by spinning for about the length of a short kernel, then sleeps: the cores may be wanted by others.
class Meeting {
    const int expected;
    std::atomic<int> arrived{0};
    std::atomic<unsigned> round{0};
    std::mutex lock;
    std::condition_variable moved;

public:
    explicit Meeting(int expected) : expected(expected) {}
    void wait() {
        const unsigned mine = round.load();
        if (arrived.fetch_add(1) + 1 == expected) {
            arrived.store(0);
            { std::lock_guard<std::mutex> hold(lock); round.store(mine + 1); }
            moved.notify_all();
            return;
        }
        for (int spin = 0; spin < 4000; ++spin) {
            if (round.load() != mine) return;
#if defined(__SSE__)
            _mm_pause();
#endif
        }
        std::unique_lock<std::mutex> hold(lock);
        moved.wait(hold, [&] { return round.load() != mine; });
    }
};

struct Queue {
    const int threads;
    Meeting meeting;
    std::vector<std::thread> workers;
    const Command* commands = nullptr;
    const long long* starts = nullptr;
    long long phases = 0;
    double* seconds = nullptr;
    bool closing = false;

    explicit Queue(int threads) : threads(threads), meeting(threads) {
        for (int t = 1; t < threads; ++t)
            workers.emplace_back([this, t] {
                for (;;) {
                    meeting.wait();
                    if (closing) return;
                    play(t);
                }
            });
    }
    ~Queue() {
        closing = true;
        meeting.wait();
        for (auto& worker : workers) worker.join();
    }
    void play(int thread) {
        FlushToZero mode;
        for (long long phase = 0; phase < phases; ++phase) {
            const long long* start = starts + phase * threads + thread;
            for (long long i = start[0]; i < start[1]; ++i) {
                const auto before = std::chrono::steady_clock::now();
                commands[i].run(commands[i].arguments, commands[i].part, commands[i].parts);
                if (seconds) seconds[i] += std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count();
            }
            meeting.wait();
        }
    }
};

extern "C" Queue* queue_open(int threads) { return new Queue(threads); }
extern "C" void queue_close(Queue* queue) { delete queue; }
// Thread t runs commands starts[phase * threads + t] up to the next start; seconds (or null) gets each command's time.
extern "C" void queue_play(Queue* queue, const Command* commands, const long long* starts, long long phases, double* seconds) {
    queue->commands = commands;
    queue->starts = starts;
    queue->phases = phases;
    queue->seconds = seconds;
    queue->meeting.wait();
    queue->play(0);
}

// c = op(a) op(b) (+ c), row-major, cut into parts along the rows of c.
// arguments: cblas_sgemm, transpose a, transpose b, m, n, k, a, lda, b, ldb, beta, c, ldc
extern "C" void run_sgemm(const Slot* s, long long part, long long parts) {
    typedef void (*Sgemm)(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*, int);
    const long long m = s[3].l, from = m * part / parts, to = m * (part + 1) / parts, lda = s[7].l, ldc = s[12].l;
    if (from == to) return;
    const float* a = (const float*)s[6].p + from * (s[1].l ? 1 : lda);
    ((Sgemm)s[0].p)(101, s[1].l ? 112 : 111, s[2].l ? 112 : 111, (int)(to - from), (int)s[4].l, (int)s[5].l, 1.0f, a, (int)lda,
                    (const float*)s[8].p, (int)s[9].l, s[10].f, (float*)s[11].p + from * ldc, (int)ldc);
}
