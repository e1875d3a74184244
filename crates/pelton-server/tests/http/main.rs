//! The server as its clients meet it: over sockets, with the embedded model. One file for each area.

mod access;
mod anthropic;
mod chat;
mod client;
mod completions;
mod document;
mod hostile;
mod ollama;
mod registry;
mod responses;
mod route;
mod tools;
