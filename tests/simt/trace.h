// Counts what a kernel asks of memory: this text goes between simt.h and a .cu file that is compiled with -fsanitize=thread.
//
// That flag puts a call of a __tsan_ function in front of every access, and the ones below stand in for its library's.
// Counted is what touches an array of the launch; other memory (stacks, shared memory, simt.h's own) passes unseen.
//
// A warp instruction is what the lanes of a warp do at one place of the program (the call's return address) in the same
// turn of each loop around it. Lanes that skip a turn, or leave a loop a turn early, must not shift against the others:
// so the word `for`, redefined below, counts turns. (A while loop has no turns; a place's visits then count instead.)
// Sectors are 32 bytes, as a GPU moves them. Compilers of GPUs may merge or hoist loads that are counted one by one here.
#include <stdlib.h>

#define UNTRACED __attribute__((no_sanitize("thread")))

namespace trace {

constexpr int THREADS = 1024, SECTOR = 32;

// The structures that trace.py shares; an index of 2 is read or written.
struct Traffic { long long bytes, instructions, instruction_bytes, instruction_sectors; };
struct Range {
    const char* first;
    long long size;
    uint32_t* touched[2];      // per sector, a bit for each byte
    uint32_t* writer;          // per byte, 1 + the row that wrote it; null where nothing may be written
    Traffic traffic[2];
};
enum Fault { NONE, TWO_ROWS, CONST_WRITTEN };
struct Record {
    Range** ranges;
    long long count, chain;                            // chain: the most loads that one lane made
    long long fault, argument, offset, row, other;     // the first fault
};

// Of a hash table: the bytes of a sector that an instruction has asked for. Two more kinds share the table: with SEEN for
// the sector, an instruction; with LANE + t, how often lane t was at that place in the same turns (as `bytes`).
struct Entry { uint64_t instruction, sector; uint32_t bytes, block; };
constexpr uint64_t SEEN = ~0ull, LANE = 1ull << 63;

static Record* record;
static unsigned block;                             // whose counts these are
static uint32_t blocks;                            // so far, of all launches: what has another number here is stale
static uint64_t turns[THREADS];                    // of the loops that each lane is in, mixed into one number
static uint32_t loads[THREADS];
static Entry* entry;
static size_t entries, used;

UNTRACED static uint64_t mix(uint64_t a, uint64_t b) {
    a = (a ^ b) * 0x9e3779b97f4a7c15u;
    return a ^ a >> 29;
}

// Of loops that run, not of a compiler's own, which reckon constants.
struct Loop {
    uint64_t outside = 0, turn = 0;
    UNTRACED constexpr Loop() { if (!__builtin_is_constant_evaluated()) outside = turns[simt::current]; }
    UNTRACED constexpr ~Loop() { if (!__builtin_is_constant_evaluated()) turns[simt::current] = outside; }
};
struct Turn { UNTRACED constexpr Turn(Loop& loop) { if (!__builtin_is_constant_evaluated()) turns[simt::current] = mix(loop.outside, ++loop.turn); } };

UNTRACED static void start_block() {
    memset(loads, 0, sizeof loads);
    block = blockIdx.x, used = 0, ++blocks;
}

UNTRACED static void fail(Fault fault, long long argument, long long offset, long long row, long long other) {
    if (record->fault) return;
    record->fault = fault, record->argument = argument, record->offset = offset, record->row = row, record->other = other;
}

UNTRACED static Entry& find(uint64_t instruction, uint64_t sector) {
    for (size_t i = mix(instruction, sector) >> 32;; ++i) {
        Entry& e = entry[i & (entries - 1)];
        if (e.block != blocks || (e.instruction == instruction && e.sector == sector)) return e;
    }
}

UNTRACED static void grow() {
    Entry* old = entry;
    const size_t count = entries;
    entries = count ? 2 * count : 1 << 12;
    entry = (Entry*)calloc(entries, sizeof *entry);
    for (size_t i = 0; i < count; ++i)
        if (old[i].block == blocks) find(old[i].instruction, old[i].sector) = old[i];
    free(old);
}

// The entry; `added` counts the new ones.
UNTRACED static Entry& entry_of(uint64_t instruction, uint64_t sector, long long& added) {
    if (2 * used >= entries) grow();
    Entry& e = find(instruction, sector);
    if (e.block != blocks) e = {instruction, sector, 0, blocks}, ++used, ++added;
    return e;
}

// The array that an access falls into, -1 if none; of two that overlap, the one that may be written, if it is a write.
UNTRACED static int argument_of(const char* at, size_t size, bool write) {
    int found = -1;
    for (int i = 0; i < record->count; ++i) {
        const Range& range = *record->ranges[i];
        if ((size_t)(at - range.first) >= (size_t)range.size || at + size > range.first + range.size) continue;
        if (!write || range.writer) return i;
        found = i;
    }
    return found;
}

UNTRACED static void access(const void* address, size_t size, bool write, const void* from) {
    if (!record) return;
    const char* at = (const char*)address;
    const int argument = argument_of(at, size, write);
    if (argument < 0) return;
    if (blockIdx.x != block) start_block();
    Range& range = *record->ranges[argument];
    const int t = simt::current, warp = t / 32;
    const long long row = ((long long)blockIdx.x * blockDim.x + t) / 32, offset = at - range.first;
    Traffic& traffic = range.traffic[write];
    traffic.bytes += size;
    if (!write && ++loads[t] > record->chain) record->chain = loads[t];

    long long ignored = 0;
    const uint64_t place = mix(mix(turns[t], (uintptr_t)from), warp);
    const uint64_t instruction = mix(place, entry_of(place, LANE + t, ignored).bytes++);
    entry_of(instruction, SEEN, traffic.instructions);
    for (size_t done = 0; done < size;) {
        const uintptr_t next = (uintptr_t)at + done;
        const size_t left = size - done, to_end = SECTOR - next % SECTOR, count = left < to_end ? left : to_end;
        const uint32_t bytes = (uint32_t)((1ull << count) - 1) << next % SECTOR;
        Entry& sector = entry_of(instruction, next / SECTOR, traffic.instruction_sectors);
        traffic.instruction_bytes += __builtin_popcount(bytes & ~sector.bytes);
        sector.bytes |= bytes;
        range.touched[write][next / SECTOR - (uintptr_t)range.first / SECTOR] |= bytes;
        done += count;
    }
    if (!write) return;
    if (!range.writer) return fail(CONST_WRITTEN, argument, offset, row, row);
    for (size_t i = 0; i < size; ++i) {
        uint32_t& writer = range.writer[offset + i];
        if (writer && writer != row + 1) fail(TWO_ROWS, argument, offset + i, row, writer - 1ll);
        writer = (uint32_t)(row + 1);
    }
}

}  // namespace trace

// From here on into `record`; null ends it.
extern "C" UNTRACED void trace_into(trace::Record* record) {
    trace::record = record;
    memset(trace::turns, 0, sizeof trace::turns);      // an abandoned launch leaves its loops open
    trace::start_block();
    trace::block = ~0u;
}

#define TSAN(name, ...) extern "C" UNTRACED __attribute__((visibility("hidden"))) void __tsan_##name(__VA_ARGS__)
#define TRACED(size) \
    TSAN(read##size, void* at) { trace::access(at, size, false, __builtin_return_address(0)); } \
    TSAN(write##size, void* at) { trace::access(at, size, true, __builtin_return_address(0)); }
TRACED(1) TRACED(2) TRACED(4) TRACED(8) TRACED(16)
TSAN(read_range, void* at, size_t size) { trace::access(at, size, false, __builtin_return_address(0)); }
TSAN(write_range, void* at, size_t size) { trace::access(at, size, true, __builtin_return_address(0)); }
TSAN(func_entry, void*) {}
TSAN(func_exit, void*) {}
TSAN(init) {}

// In the kernels only: this is the end of what stands in front of them.
#define for(...) \
    if (trace::Loop trace_loop; false) {} \
    else for (__VA_ARGS__) if (trace::Turn trace_turn(trace_loop); false) {} else
