// The simulator's core: fibers, schedules, barriers, collectives, and the fragment layouts of mma and ldmatrix as the
// PTX manual draws them.
#include "sim.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include <sys/mman.h>
#include <map>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif
#include "sim_core.h"

float h2f(half_t h) { _Float16 f; memcpy(&f, &h, 2); return (float)f; }
half_t f2h(float x) { _Float16 f = (_Float16)x; half_t h; memcpy(&h, &f, 2); return h; }

namespace sim {
Fiber* current;
Block block;
static Kernel* kernels;
void announce(Kernel* k) { k->next = kernels; kernels = k; }
Kernel* find(const char* name) {
  for (Kernel* k = kernels; k; k = k->next)
    if (!strcmp(k->name, name)) return k;
  return nullptr;
}

enum State { READY, AT_WARP, AT_BLOCK, DONE };
struct Copy { void* to; const void* from; int bytes; bool valid; int group; };
struct CopyAsync { std::vector<Copy> pending; int open = 0; };

static const size_t STACK = 128 << 10;
static std::vector<Fiber*> fibers;
static std::vector<Warp*> warps;
static std::map<const void*, std::pair<void*, size_t>> arrays;
static Invoke entry;
static void** arguments;
static bool failed;
static const char* kernel_name;

#ifdef __x86_64__
extern "C" void sim_switch(void** from, void* to);
asm(".text\n.globl sim_switch\n.hidden sim_switch\nsim_switch:\n push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n"
    " push %r15\n mov %rsp,(%rdi)\n mov %rsi,%rsp\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
static void* scheduler_stack;
static void to_scheduler() { sim_switch(&current->stack_pointer, scheduler_stack); }
static void to_fiber(Fiber* f) { sim_switch(&scheduler_stack, f->stack_pointer); }
static void fiber_main() {
  entry(arguments);
  current->state = DONE;
  to_scheduler();
  abort();
}
static void prepare(Fiber* f) {
  void** sp = (void**)(f->stack + STACK - 64);
  *--sp = nullptr;
  *--sp = (void*)fiber_main;
  for (int i = 0; i < 6; i++) *--sp = nullptr;
  f->stack_pointer = sp;
}
#else
static ucontext_t scheduler_context;
static void to_scheduler() { swapcontext((ucontext_t*)current->stack_pointer, &scheduler_context); }
static void to_fiber(Fiber* f) { swapcontext(&scheduler_context, (ucontext_t*)f->stack_pointer); }
static void fiber_main() {
  entry(arguments);
  current->state = DONE;
  to_scheduler();
  abort();
}
static void prepare(Fiber* f) {
  if (!f->stack_pointer) f->stack_pointer = new ucontext_t;
  auto context = (ucontext_t*)f->stack_pointer;
  getcontext(context);
  context->uc_stack.ss_sp = f->stack;
  context->uc_stack.ss_size = STACK;
  context->uc_link = nullptr;
  makecontext(context, fiber_main, 0);
}
#endif

// Reports what a kernel did wrong; its launch fails, and its fibers never run again.
static void fail(const char* problem) {
  fprintf(stderr, "simulator: %s: block (%u,%u,%u) thread %u: %s\n", kernel_name, block.index.x, block.index.y, block.index.z,
          current->thread.x, problem);
  failed = true;
  to_scheduler();
  abort();
}

Exchange& collective(uint32_t mask, const char* what, const void* in, size_t bytes, Finish finish) {
  Warp* w = current->warp;
  if (!(mask >> current->lane & 1)) fail("a lane takes part in a collective whose mask leaves it out");
  if (w->arrived && strcmp(w->what, what)) {
    static char text[128];
    snprintf(text, sizeof text, "%s, where other lanes of the warp are at %s", what, w->what);
    fail(text);
  }
  Exchange& e = w->exchange[w->generation & 1];
  memcpy(e.in[current->lane], in, bytes);
  w->what = what;
  w->arrived |= 1u << current->lane;
  if ((w->arrived & mask) == mask) {
    if (finish) finish(e);
    w->arrived = 0;
    w->generation++;
    for (Fiber* f : w->lanes)
      if (f && f->state == AT_WARP) f->state = READY;
  } else {
    current->state = AT_WARP;
    to_scheduler();
  }
  return e;
}

static void release_block() {
  block.n_arrived = 0;
  for (Warp* w : warps)
    for (Fiber* f : w->lanes)
      if (f && f->state == AT_BLOCK) f->state = READY;
}
void sync_block() {
  if (++block.n_arrived == block.n_live) {
    release_block();
    return;
  }
  current->state = AT_BLOCK;
  to_scheduler();
}

void* shared_array(const void* key, size_t bytes) {
  auto found = arrays.find(key);
  if (found != arrays.end()) return found->second.first;
  void* p = nullptr;
  if (posix_memalign(&p, 128, bytes)) abort();
  memset(p, 0xff, bytes);
  arrays[key] = {p, bytes};
  return p;
}

void copy_issue(void* to, const void* from, int bytes, bool valid) {
  memset(to, 0xff, bytes);
  current->copies->pending.push_back({to, from, bytes, valid, current->copies->open});
}
void copy_commit() { current->copies->open++; }
void copy_wait(int n) {
  CopyAsync& c = *current->copies;
  size_t kept = 0;
  for (Copy& p : c.pending) {
    if (p.group >= c.open - n) c.pending[kept++] = p;
    else if (p.valid) memcpy(p.to, p.from, p.bytes);
    else memset(p.to, 0, p.bytes);
  }
  c.pending.resize(kept);
}

static const Early* early;
static bool is_hidden;
void set_early(const Early* e) { early = e; }
// What the predecessor wrote is not there yet.
static void hide() {
  for (Written& w : *early->predecessor) {
    memcpy(w.bytes.data(), w.at, w.bytes.size());
    memset(w.at, 0xff, w.bytes.size());
  }
  is_hidden = true;
}
static void show() {
  for (Written& w : *early->predecessor) memcpy(w.at, w.bytes.data(), w.bytes.size());
  is_hidden = false;
}
void wait_for_predecessor() {
  current->waited = true;
  if (!early || !is_hidden) return;
  if (!early->is_untouched()) fail("something was written before it waited for the kernel before it");
  show();
}

static unsigned seed, random_state = 1;
static unsigned random_number() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 17;
  return random_state ^= random_state << 5;
}
void set_seed(unsigned s) {
  seed = s;
  random_state = s * 2654435761u + 1;
}

// Runs one block to its end; false where it cannot end.
static bool run_block(int n, int n_warps) {
  for (auto& a : arrays) memset(a.second.first, 0xff, a.second.second);
  for (Warp* w : warps) {
    memset(w->lanes, 0, sizeof w->lanes);
    w->live = w->arrived = 0;
    w->generation = 0;
    memset(w->exchange, 0xff, sizeof w->exchange);
  }
  const dim3 b = block.block;
  for (int i = 0; i < n; i++) {
    Fiber* f = fibers[i];
    f->thread = {i % b.x, i / b.x % b.y, i / (b.x * b.y)};
    f->lane = i & 31;
    f->warp = warps[i >> 5];
    f->warp->lanes[i & 31] = f;
    f->warp->live |= 1u << (i & 31);
    f->state = READY;
    f->waited = false;
    f->copies->pending.clear();
    f->copies->open = 0;
    prepare(f);
  }
  if (early) hide();
  int live = n;
  while (live) {
    bool ran = false;
    const int first_warp = seed ? random_number() % n_warps : 0, first_lane = seed ? random_number() & 31 : 0;
    for (int wi = 0; wi < n_warps; wi++) {
      Warp* w = warps[(wi + first_warp) % n_warps];
      for (bool again = true; again;) {
        again = false;
        for (int li = 0; li < 32; li++) {
          Fiber* f = w->lanes[(li + first_lane) & 31];
          if (!f || f->state != READY) continue;
          current = f;
          ran = again = true;
          to_fiber(f);
          if (failed) return false;
          if (f->state != DONE) continue;
          if (early && !f->waited) {
            fprintf(stderr, "simulator: %s: thread %u of a kernel that is launched early has not waited for the one before it\n", kernel_name, f->thread.x);
            return false;
          }
          live--;
          block.n_live--;
          w->live &= ~(1u << f->lane);
          w->lanes[f->lane] = nullptr;
          if (block.n_live && block.n_arrived == block.n_live) release_block();
        }
        // Another warp's turn in the middle of this one's work.
        if (seed && again && random_number() % 4 == 0) again = false;
      }
    }
    if (!ran) {
      fprintf(stderr, "simulator: %s: block (%u,%u,%u): %d threads wait for ever: a barrier or a collective that others do not reach\n",
              kernel_name, block.index.x, block.index.y, block.index.z, live);
      return false;
    }
  }
  return true;
}

bool launch(Kernel* k, dim3 grid, dim3 threads, unsigned dynamic_bytes, void** args) {
  const int n = threads.x * threads.y * threads.z, n_warps = (n + 31) / 32;
  while ((int)fibers.size() < n) {
    auto f = new Fiber();
    f->stack = (unsigned char*)mmap(0, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    f->copies = new CopyAsync;
    fibers.push_back(f);
  }
  while ((int)warps.size() < n_warps) warps.push_back(new Warp());
  std::vector<Warp*> unused(warps.begin() + n_warps, warps.end());
  warps.resize(n_warps);
  void* dynamic = nullptr;
  if (posix_memalign(&dynamic, 1024, dynamic_bytes ? dynamic_bytes : 1)) abort();
  block.block = threads;
  block.grid = grid;
  block.dynamic = (unsigned char*)dynamic;
  entry = k->invoke;
  arguments = args;
  kernel_name = k->name;
  failed = false;
  bool fine = true;
  for (unsigned z = 0; fine && z < grid.z; z++)
    for (unsigned y = 0; fine && y < grid.y; y++)
      for (unsigned x = 0; fine && x < grid.x; x++) {
        block.index = {x, y, z};
        block.n_live = n;
        block.n_arrived = 0;
        memset(dynamic, 0xff, dynamic_bytes);
        fine = run_block(n, n_warps);
      }
  free(dynamic);
  for (auto& a : arrays) free(a.second.first);
  arrays.clear();
  warps.insert(warps.end(), unused.begin(), unused.end());
  return fine;
}

static uint32_t word(const Exchange& e, int lane, int i) {
  uint32_t w;
  memcpy(&w, e.in[lane] + 4 * i, 4);
  return w;
}

// A: a0 (row g, k 2t..), a1 (row g + 8), a2 (k + 8), a3 (both); B: b0 (k 2t.., col g), b1 (k + 8); lane = 4 g + t.
void finish_mma_bf16(Exchange& e) {
  float a[16][16], b[8][16];
  for (int lane = 0; lane < 32; lane++) {
    const int g = lane >> 2, t = lane & 3;
    for (int i = 0; i < 6; i++)
      for (int half = 0; half < 2; half++) {
        const float v = b2f(bf16_t{(uint16_t)(word(e, lane, i) >> (16 * half))});
        if (i < 4) a[g + (i & 1) * 8][2 * t + half + (i >> 1) * 8] = v;
        else b[g][2 * t + half + (i - 4) * 8] = v;
      }
  }
  for (int lane = 0; lane < 32; lane++) {
    float sums[4];
    for (int i = 0; i < 4; i++) {
      const int row = (lane >> 2) + (i >> 1) * 8, col = (lane & 3) * 2 + (i & 1);
      float sum = 0;
      for (int k = 0; k < 16; k++) sum += a[row][k] * b[col][k];
      sums[i] = sum;
    }
    memcpy(e.out[lane], sums, 16);
  }
}

// A: register i holds 4 bytes of row g + 8 (i % 2), k 4t.. + 16 (i / 2); B: k 4t.. + 16 i, col g.
template <int K>
static void mma_s8(Exchange& e) {
  static_assert(K == 16 || K == 32, "shapes of the instruction");
  constexpr int N_A = K / 8, N_B = K / 16;
  int8_t a[16][K], b[8][K];
  for (int lane = 0; lane < 32; lane++) {
    const int g = lane >> 2, t = lane & 3;
    for (int i = 0; i < N_A + N_B; i++) {
      const uint32_t w = word(e, lane, i);
      if (i < N_A) memcpy(&a[g + (i & 1) * 8][4 * t + (i >> 1) * 16], &w, 4);
      else memcpy(&b[g][4 * t + (i - N_A) * 16], &w, 4);
    }
  }
  for (int lane = 0; lane < 32; lane++) {
    int sums[4];
    for (int i = 0; i < 4; i++) {
      const int row = (lane >> 2) + (i >> 1) * 8, col = (lane & 3) * 2 + (i & 1);
      int sum = 0;
      for (int k = 0; k < K; k++) sum += (int)a[row][k] * b[col][k];
      sums[i] = sum;
    }
    memcpy(e.out[lane], sums, 16);
  }
}
void finish_mma_s8_k32(Exchange& e) { mma_s8<32>(e); }
void finish_mma_s8_k16(Exchange& e) { mma_s8<16>(e); }

template <bool TRANSPOSED>
static void load_matrices(Exchange& e) {
  for (int m = 0; m < 4; m++) {
    uint16_t matrix[8][8];
    for (int r = 0; r < 8; r++) {
      const void* row;
      memcpy(&row, e.in[8 * m + r], 8);
      memcpy(matrix[r], row, 16);
    }
    for (int lane = 0; lane < 32; lane++) {
      const int g = lane >> 2, t = lane & 3;
      const uint16_t pair[2] = {TRANSPOSED ? matrix[2 * t][g] : matrix[g][2 * t], TRANSPOSED ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1]};
      memcpy(e.out[lane] + 4 * m, pair, 4);
    }
  }
}
void finish_ldmatrix(Exchange& e) { load_matrices<false>(e); }
void finish_ldmatrix_trans(Exchange& e) { load_matrices<true>(e); }
}  // namespace sim
