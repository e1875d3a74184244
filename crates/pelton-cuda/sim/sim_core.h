// What the fake driver needs of the simulator.
#pragma once
#include "sim.h"
namespace sim {
Kernel* find(const char* name);
// False where the kernel did something that cannot be right; stderr says what.
bool launch(Kernel* kernel, dim3 grid, dim3 threads, unsigned dynamic_bytes, void** args);
// 0: lanes and warps in order; otherwise in an order that the number decides.
void set_seed(unsigned seed);
}  // namespace sim
