//! The `pelton` command as its users meet it: the built binary, run in a folder of its own with an environment of its
//! own. One file for each area.

mod bad_input;
mod bench;
mod bench_serve;
mod docs;
mod eval;
mod hub;
mod inspect;
mod logits_file;
mod mock_server;
mod models;
mod packed;
mod pelton;
mod run;
mod store;
mod surface;
mod template;
mod tokenize;
