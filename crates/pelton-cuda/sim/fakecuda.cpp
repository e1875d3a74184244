// A libcuda.so of the simulator: the driver entry points that Pelton uses, over kernels that are linked in.
//
// It is stricter than a driver: copies must lie inside one allocation, fresh memory is full of NaN, a launch must not
// ask for more than the device has, and after a fault every call fails as it does on a card. One lock serialises all
// calls. The functions that begin with sim_ are for tests.
#include <unistd.h>
#include <map>
#include <mutex>
#include <vector>
#include "sim_core.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

using Result = int;
using Pointer = unsigned long long;

static const Result SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NOT_FOUND = 500,
                    LAUNCH_FAILED = 719, UPDATE_FAILED = 910, WRONG_STREAM = 400;
static const int MAX_SHARED = 99 << 10;
static const unsigned MIN_SHARED = 48 << 10;

struct Operation {
  enum Kind { KERNEL, COPY } kind;
  sim::Kernel* kernel;
  dim3 grid, block;
  unsigned dynamic_bytes;
  std::vector<std::vector<char>> args;
  void* to;
  const void* from;
  size_t bytes;
  bool early = false;
};
struct Graph { std::vector<Operation> operations; };
struct Stream { Graph* capture = nullptr; };

static std::recursive_mutex lock;
static std::map<Pointer, size_t> allocations;
static size_t memory_used, memory_limit = 1ull << 30;
static Result sticky;
static unsigned launches, graph_launches, early_launches;
static std::map<void*, unsigned> opted_in;
#define LOCKED std::lock_guard<std::recursive_mutex> guard(lock); if (sticky) return sticky

// What every kernel writes is found out, for those that are launched early.
static bool tracks;
static std::map<Pointer, std::vector<unsigned char>> before;
static std::vector<sim::Written> written;
static void remember() {
  before.clear();
  for (auto& [p, n] : allocations) before[p].assign((unsigned char*)p, (unsigned char*)p + n);
}
// Memory as it was when it was remembered, but for what is hidden; in pieces of 64 bytes.
static std::vector<sim::Written> changes() {
  std::vector<sim::Written> all;
  for (auto& [p, bytes] : before)
    for (size_t i = 0; i < bytes.size(); i += 64) {
      const size_t n = std::min<size_t>(64, bytes.size() - i);
      if (memcmp((void*)(p + i), bytes.data() + i, n)) all.push_back({(unsigned char*)p + i, std::vector<unsigned char>(n)});
    }
  return all;
}
static bool is_first_wait;
static bool is_untouched() {
  // Later blocks may: those before them have waited.
  if (!is_first_wait) return true;
  is_first_wait = false;
  // Both in the order of addresses.
  size_t hidden = 0;
  for (auto& now : changes()) {
    while (hidden < written.size() && written[hidden].at < now.at) hidden++;
    if (hidden == written.size() || written[hidden].at != now.at) return false;
  }
  return true;
}

// The device is lost in so many kernels (0: never), or when the file appears that PELTON_SIM_LOSE names; a new context has it
// back, unless it stays lost, or as long as the file is there that PELTON_SIM_GONE names.
static unsigned lose_in;
static bool stays_lost;
static bool exists(const char* variable) {
  const char* file = getenv(variable);
  return file && !access(file, F_OK);
}
static bool is_lost_now() {
  if (lose_in && !--lose_in) return true;
  return exists("PELTON_SIM_LOSE") && !unlink(getenv("PELTON_SIM_LOSE"));
}

static Result run(Operation& o) {
  if (o.kind == Operation::COPY) {
    memmove(o.to, o.from, o.bytes);
    written.clear();
    return SUCCESS;
  }
  if (is_lost_now()) return sticky = LAUNCH_FAILED;
  std::vector<void*> pointers;
  for (auto& a : o.args) pointers.push_back(a.data());
  if (tracks) remember();
  is_first_wait = tracks;
  const sim::Early early{&written, is_untouched};
  sim::set_early(o.early ? &early : nullptr);
  if (!sim::launch(o.kernel, o.grid, o.block, o.dynamic_bytes, pointers.data())) sticky = LAUNCH_FAILED;
  sim::set_early(nullptr);
  if (tracks) written = changes();
  return sticky;
}
static Result submit(void* stream, Operation o) {
  if (!stream) return INVALID_VALUE;
  auto s = (Stream*)stream;
  if (!s->capture) return run(o);
  s->capture->operations.push_back(std::move(o));
  return SUCCESS;
}
static bool is_inside(Pointer p, size_t bytes) {
  auto i = allocations.upper_bound(p);
  if (i == allocations.begin()) return false;
  --i;
  return p + bytes <= i->first + i->second;
}

#pragma GCC visibility push(default)
extern "C" {
void sim_set_seed(unsigned seed) { std::lock_guard<std::recursive_mutex> g(lock); sim::set_seed(seed); }
void sim_set_memory_limit(size_t bytes) { std::lock_guard<std::recursive_mutex> g(lock); memory_limit = bytes; }
void sim_lose_device() { std::lock_guard<std::recursive_mutex> g(lock); sticky = LAUNCH_FAILED; }
void sim_lose_in(unsigned kernels) { std::lock_guard<std::recursive_mutex> g(lock); lose_in = kernels; }
void sim_stay_lost(unsigned yes) { std::lock_guard<std::recursive_mutex> g(lock); stays_lost = yes; }
void sim_find_device() { std::lock_guard<std::recursive_mutex> g(lock); sticky = SUCCESS; }
void sim_track_writes(unsigned yes) { std::lock_guard<std::recursive_mutex> g(lock); tracks = yes; }
unsigned sim_launches() { std::lock_guard<std::recursive_mutex> g(lock); return launches; }
unsigned sim_early_launches() { std::lock_guard<std::recursive_mutex> g(lock); return early_launches; }
unsigned sim_graph_launches() { std::lock_guard<std::recursive_mutex> g(lock); return graph_launches; }
size_t sim_memory_used() { std::lock_guard<std::recursive_mutex> g(lock); return memory_used; }

Result cuInit(unsigned) { return SUCCESS; }
Result cuDriverGetVersion(int* v) { *v = 12080; return SUCCESS; }
Result cuDeviceGetCount(int* n) { *n = 1; return SUCCESS; }
Result cuDeviceGet(int* d, int ordinal) { *d = ordinal; return ordinal ? INVALID_DEVICE : SUCCESS; }
Result cuDeviceGetName(char* s, int n, int) { snprintf(s, n, "Simulator"); return SUCCESS; }
Result cuDeviceGetAttribute(int* v, int attribute, int) {
  switch (attribute) {
    case 75: *v = 8; break;            // compute capability, major
    case 76: *v = 0; break;            // minor
    case 16: *v = 4; break;            // multiprocessors
    case 97: *v = MAX_SHARED; break;   // shared memory a block may opt in to
    case 13: *v = 1000000; break;      // clock, kHz
    case 36: *v = 1000000; break;      // memory clock, kHz
    case 37: *v = 256; break;          // memory bus, bits
    case 38: *v = 1 << 20; break;      // second cache, bytes
    default: *v = 0;
  }
  return SUCCESS;
}
Result cuDeviceTotalMem_v2(size_t* n, int) { *n = memory_limit; return SUCCESS; }
Result cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
  LOCKED;
  *free_bytes = memory_limit > memory_used ? memory_limit - memory_used : 0;
  *total = memory_limit;
  return SUCCESS;
}
static unsigned n_contexts;
Result cuDevicePrimaryCtxRetain(void** c, int) {
  // The last context ended, and its faults with it.
  if (!n_contexts && !stays_lost && !exists("PELTON_SIM_GONE")) sticky = SUCCESS;
  LOCKED;
  n_contexts++;
  *c = (void*)1;
  return SUCCESS;
}
Result cuDevicePrimaryCtxRelease_v2(int) {
  std::lock_guard<std::recursive_mutex> g(lock);
  if (n_contexts) n_contexts--;
  return SUCCESS;
}
Result cuCtxSetCurrent(void*) { return SUCCESS; }
Result cuGetErrorName(Result r, const char** s) {
  *s = r == LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED" : r == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_INVALID_VALUE";
  return SUCCESS;
}
Result cuGetErrorString(Result r, const char** s) {
  *s = r == LAUNCH_FAILED ? "unspecified launch failure" : r == OUT_OF_MEMORY ? "out of memory" : "invalid argument";
  return SUCCESS;
}

Result cuStreamCreate(void** s, unsigned) { *s = new Stream; return SUCCESS; }
Result cuStreamDestroy_v2(void* s) { delete (Stream*)s; return SUCCESS; }
Result cuStreamSynchronize(void*) { LOCKED; return SUCCESS; }

Result cuMemAlloc_v2(Pointer* p, size_t bytes) {
  LOCKED;
  if (!bytes) return INVALID_VALUE;
  if (memory_used + bytes > memory_limit) return OUT_OF_MEMORY;
  void* q = nullptr;
  if (posix_memalign(&q, 256, bytes)) return OUT_OF_MEMORY;
  memset(q, 0xff, bytes);
  *p = (Pointer)q;
  allocations[*p] = bytes;
  memory_used += bytes;
  return SUCCESS;
}
Result cuMemFree_v2(Pointer p) {
  std::lock_guard<std::recursive_mutex> g(lock);
  auto i = allocations.find(p);
  if (i == allocations.end()) return INVALID_VALUE;
  written.clear();
  memory_used -= i->second;
  allocations.erase(i);
  free((void*)p);
  return SUCCESS;
}
static Operation copy(void* to, const void* from, size_t n) { return {Operation::COPY, nullptr, {}, {}, 0, {}, to, from, n}; }
// Copies from and to the host cannot be captured: a graph would read the host's memory of another step.
Result cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t n, void* s) {
  LOCKED;
  if (s && ((Stream*)s)->capture) return WRONG_STREAM;
  return is_inside(to, n) ? submit(s, copy((void*)to, from, n)) : INVALID_VALUE;
}
Result cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t n, void* s) {
  LOCKED;
  if (s && ((Stream*)s)->capture) return WRONG_STREAM;
  return is_inside(from, n) ? submit(s, copy(to, (void*)from, n)) : INVALID_VALUE;
}

Result cuModuleLoadData(void** m, const void*) { *m = (void*)2; return SUCCESS; }
Result cuModuleUnload(void*) { return SUCCESS; }
Result cuModuleGetFunction(void** f, void*, const char* name) {
  *f = sim::find(name);
  return *f ? SUCCESS : NOT_FOUND;
}
// Attribute 8: the shared memory that launches of a function may ask for beyond what every launch may.
Result cuFuncSetAttribute(void* f, int attribute, int value) {
  LOCKED;
  if (attribute != 8 || value < 0 || value > MAX_SHARED) return INVALID_VALUE;
  opted_in[f] = (unsigned)value;
  return SUCCESS;
}
static Result launch(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                     void* s, void** params, bool early) {
  LOCKED;
  const unsigned threads = bx * by * bz;
  const unsigned most_shared = opted_in.count(f) ? std::max(opted_in[f], MIN_SHARED) : MIN_SHARED;
  if (!gx || !gy || !gz || !threads || threads > 1024 || gy > 65535 || gz > 65535 || shared > most_shared) return INVALID_VALUE;
  auto kernel = (sim::Kernel*)f;
  Operation o{Operation::KERNEL, kernel, {gx, gy, gz}, {bx, by, bz}, shared, {}, nullptr, nullptr, 0};
  for (int i = 0; i < kernel->n_args; i++) o.args.emplace_back((char*)params[i], (char*)params[i] + kernel->sizes[i]);
  if (s && !((Stream*)s)->capture) launches++;
  o.early = early;
  early_launches += early;
  return submit(s, std::move(o));
}
Result cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                      void* s, void** params, void**) {
  return launch(f, gx, gy, gz, bx, by, bz, shared, s, params, false);
}
struct Attribute { int id; char pad[4]; unsigned long long value[8]; };
struct Config { unsigned grid[3], block[3], shared; void* stream; const Attribute* attributes; unsigned n; };
// Attribute 6: the kernel may begin before the one before it has ended.
Result cuLaunchKernelEx(const Config* c, void* f, void** params, void**) {
  bool early = false;
  for (unsigned i = 0; i < c->n; i++) {
    if (c->attributes[i].id != 6) return INVALID_VALUE;
    early = (int)c->attributes[i].value[0];
  }
  return launch(f, c->grid[0], c->grid[1], c->grid[2], c->block[0], c->block[1], c->block[2], c->shared, c->stream, params, early);
}

Result cuStreamBeginCapture_v2(void* s, int) {
  LOCKED;
  auto stream = (Stream*)s;
  if (stream->capture) return INVALID_VALUE;
  stream->capture = new Graph;
  return SUCCESS;
}
Result cuStreamEndCapture(void* s, void** g) {
  LOCKED;
  auto stream = (Stream*)s;
  *g = stream->capture;
  stream->capture = nullptr;
  return *g ? SUCCESS : INVALID_VALUE;
}
Result cuGraphInstantiateWithFlags(void** e, void* g, unsigned long long) { LOCKED; *e = new Graph(*(Graph*)g); return SUCCESS; }
// Only parameters may differ, not which kernels there are.
Result cuGraphExecUpdate_v2(void* e, void* g, void*) {
  LOCKED;
  auto& old = ((Graph*)e)->operations;
  auto& now = ((Graph*)g)->operations;
  if (old.size() != now.size()) return UPDATE_FAILED;
  for (size_t i = 0; i < old.size(); i++)
    if (old[i].kind != now[i].kind || old[i].kernel != now[i].kernel) return UPDATE_FAILED;
  old = now;
  return SUCCESS;
}
Result cuGraphLaunch(void* e, void*) {
  LOCKED;
  graph_launches++;
  for (auto& o : ((Graph*)e)->operations)
    if (Result r = run(o)) return r;
  return SUCCESS;
}
Result cuGraphDestroy(void* g) { delete (Graph*)g; return SUCCESS; }
Result cuGraphExecDestroy(void* g) { delete (Graph*)g; return SUCCESS; }
}
#pragma GCC visibility pop
