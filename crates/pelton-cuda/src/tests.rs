//! The backend on the simulator.

mod conformance;
mod graphs;
mod grouped;
mod memory;
mod mutants;
