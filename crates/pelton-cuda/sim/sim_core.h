// What the fake driver needs of the simulator.
#pragma once
#include <vector>
#include "sim.h"
namespace sim {
Kernel* find(const char* name);
// False where the kernel did something that cannot be right; stderr says what.
bool launch(Kernel* kernel, dim3 grid, dim3 threads, unsigned dynamic_bytes, void** args);
// What a kernel wrote.
struct Written { unsigned char* at; std::vector<unsigned char> bytes; };
// Whether the next launch is an early one: what its predecessor wrote, and a look at whether memory is as it was.
struct Early { std::vector<Written>* predecessor; bool (*is_untouched)(); };
void set_early(const Early* early);
// 0: lanes and warps in order; otherwise in an order that the number decides.
void set_seed(unsigned seed);
}  // namespace sim
