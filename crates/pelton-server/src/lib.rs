//! HTTP: the OpenAI, Anthropic and Ollama dialects over a running engine.
//!
//! A request passes the gate (origin, key, limits: `gate.rs`, `access.rs`), is read and checked (`body.rs`, a dialect's
//! own file, `knobs.rs`), waits for its model (`registry.rs`, `route.rs`), becomes a prompt (`conversation.rs`), runs (`engine.rs`),
//! and its answer goes out as its dialect writes it (`answer.rs` and the dialect's file). A new dialect is one file and
//! its lines in `routes.rs`.
//!
//! Invariants: only this crate knows HTTP, and only `engine.rs` submits requests; whatever a client sends, it gets an
//! answer in its dialect's shape and the server goes on; a client that goes away costs nothing from the next step on;
//! without keys only this machine is let in.
//!
//! ```no_run
//! use pelton_server::{ModelOptions, ModelSource, Server, ServerOptions};
//! let source = ModelSource { id: "tiny".into(), model: pelton::ModelRef::Embedded, options: pelton::Options::default() };
//! let models = ModelOptions { sources: vec![source], ..ModelOptions::default() };
//! let server = Server::bind(ServerOptions::default(), models)?;
//! println!("http://{}", server.address());
//! server.run()?; // until SIGTERM or Ctrl-C
//! # Ok::<(), pelton_server::ServerError>(())
//! ```

#![forbid(unsafe_code)]

mod access;
mod answer;
mod anthropic;
mod body;
mod conversation;
mod engine;
mod error;
mod gate;
mod http;
mod knobs;
mod metrics;
mod native;
mod ollama;
mod openai;
mod openapi;
mod options;
mod page;
mod registry;
mod route;
mod routes;
mod serial;

pub use access::Keys;
pub use http::{Server, ServerError};
pub use openapi::document as openapi_document;
pub use options::{LogSink, ServerOptions};
pub use registry::{ModelOptions, ModelSource};
pub use route::RouteSource;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::Request;

use crate::access::{Caller, Turnstile};
use crate::answer::{Answer, Note, Reading};
use crate::conversation::Ask;
use crate::engine::Loaded;
use crate::error::ApiError;
use crate::knobs::Knobs;
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::serial::Serial;

/// Parses a request body as the route at `path` does and drops it: what the fuzzers call. `false` where the path has
/// no parser or the body was refused.
#[doc(hidden)]
pub fn parses(path: &str, bytes: &[u8]) -> bool {
    routes::parses(path, bytes)
}

/// What all requests share.
pub(crate) struct App {
    pub(crate) options: ServerOptions,
    pub(crate) registry: Arc<Registry>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stile: Turnstile,
    pub(crate) serial: Serial,
    bodies: body::Reader,
    draining: AtomicBool,
}

/// One request on its way.
#[derive(Clone, Default)]
pub(crate) struct Visit {
    pub(crate) caller: Caller,
    /// The end of its line in the log.
    pub(crate) note: Note,
    /// Which of two models answers and why, where rules chose.
    pub(crate) route: Arc<Mutex<Option<String>>>,
}

impl App {
    pub(crate) fn new(options: ServerOptions, models: ModelOptions) -> Result<App, String> {
        options.check()?;
        let registry = Arc::new(Registry::new(models, options.log.clone())?);
        let (metrics, stile, serial) = (Arc::new(Metrics::new()), Turnstile::default(), Serial::new());
        let bodies = body::Reader::new(options.max_body, options.read_timeout);
        Ok(App { options, registry, metrics, stile, serial, bodies, draining: AtomicBool::new(false) })
    }

    /// Reads a request's body within the limits.
    pub(crate) async fn read(&self, request: Request<Body>) -> Result<body::Held, ApiError> {
        self.bodies.read(request).await
    }

    /// From a conversation to an answer that runs.
    pub(crate) async fn answer(
        self: &Arc<Self>,
        visit: &Visit,
        model: &Arc<Loaded>,
        ask: Ask,
        knobs: &Knobs,
        tokens: bool,
    ) -> Result<Answer, ApiError> {
        let continues = ask.prefill.is_some();
        let prompt = ask.prepare(model).await?;
        let grammar = match prompt.grammar {
            Some(spec) => Some(model.grammar(spec).await?),
            None => None,
        };
        let mut request = knobs.request(model, prompt.ids, grammar, self.options.deadline, visit.caller)?;
        request.continues_text |= continues;
        let reading = Reading { thinking: prompt.thinking, tools: prompt.tools, names: prompt.names, tokens };
        Answer::start(self, visit, model.clone(), vec![request], reading)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }
}
