//! The backend on the simulator.

mod choose;
mod codes;
mod conformance;
mod early;
mod graphs;
mod grouped;
mod memory;
mod mutants;
mod products;
