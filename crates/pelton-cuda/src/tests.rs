//! The backend on the simulator.

mod conformance;
mod graphs;
mod memory;
mod mutants;
