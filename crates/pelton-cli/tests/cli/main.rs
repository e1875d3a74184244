//! The `pelton` command as its users meet it: the built binary, run in a folder of its own with an environment of its
//! own. One file for each area.

mod bad_input;
mod bench;
mod bench_serve;
mod compare;
mod docs;
mod eval;
mod eval_text;
mod gpu;
mod hub;
mod inspect;
mod ladder;
mod logits_file;
mod lost_card;
mod mock_server;
mod models;
mod packed;
mod pelton;
mod quantize;
mod quantized;
mod route;
mod run;
mod serve;
mod speculation;
mod store;
mod surface;
mod template;
mod tokenize;
