//! The body of an HTTP request from a stranger. The first byte picks the route.

#![no_main]

use libfuzzer_sys::fuzz_target;

const ROUTES: [&str; 9] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/api/chat",
    "/api/generate",
    "/tokenize",
    "/apply-template",
];

fuzz_target!(|data: &[u8]| {
    let Some((&pick, body)) = data.split_first() else { return };
    pelton_server::parses(ROUTES[usize::from(pick) % ROUTES.len()], body);
});
