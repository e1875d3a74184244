//! The models of a server: loaded when first asked for, let go when idle or when another needs the memory.
//!
//! Invariants: one model is loaded at a time, and requests for it wait, also for the memory of a model in use; a model in
//! use is never let go, nor any for the sake of one that could not be loaded anyway.

mod lost;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pelton::{Chat, Inspection, Llm, Model, ModelRef, Options, Store, ToolFormat};
use serde_json::{Value, json};

use crate::engine::Loaded;
use crate::error::ApiError;
use crate::http::ServerError;
use crate::options::LogSink;
use crate::route::RouteSource;
use lost::Loss;
pub(crate) use lost::health;

/// A model that a server may load.
#[derive(Clone, Debug)]
pub struct ModelSource {
    /// What clients call it.
    pub id: String,
    /// What it is.
    pub model: ModelRef,
    /// How it runs.
    pub options: Options,
}

/// Which models a server has, and how long it keeps them.
#[derive(Clone, Default)]
pub struct ModelOptions {
    /// The models; the first is the default, and loaded at the start.
    pub sources: Vec<ModelSource>,
    /// Where hub models lie.
    pub store: Option<Arc<Store>>,
    /// Let a model go that was not used for so long; the first one stays.
    pub idle_unload: Option<Duration>,
    /// Bytes that all loaded models together may take.
    pub memory: Option<u64>,
    /// A name behind which two of them answer.
    pub route: Option<RouteSource>,
}

/// How long a model waits for the memory of others that are in use.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is said where loading panicked.
const BUG: &str = "loading failed: a bug; the log has more";

enum State {
    Unloaded,
    Loading(Arc<LoadedShare>),
    Loaded(Arc<Loaded>),
    Failed(String),
    Lost(Arc<Loss>),
}

/// How much of a model is loaded.
#[derive(Default)]
struct LoadedShare {
    done: AtomicU64,
    total: AtomicU64,
}

struct Entry {
    source: ModelSource,
    state: Mutex<State>,
    last_used: Mutex<Instant>,
}

impl Entry {
    fn loaded(&self) -> Option<Arc<Loaded>> {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Loaded(model) => Some(model.clone()),
            _ => None,
        }
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn touch(&self) {
        *self.last_used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn idle_for(&self) -> Duration {
        self.last_used.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Lets go of the model if nobody uses it; hands it out, for dropping where waiting is allowed.
    fn take_idle(&self) -> Option<Arc<Loaded>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Loaded(model) if Arc::strong_count(model) == 1 => {}
            _ => return None,
        }
        match std::mem::replace(&mut *state, State::Unloaded) {
            State::Loaded(model) => Some(model),
            _ => None,
        }
    }
}

/// All models of a server.
pub(crate) struct Registry {
    entries: Vec<Arc<Entry>>,
    options: ModelOptions,
    /// Held while a model is loaded.
    turn: Arc<tokio::sync::Mutex<()>>,
    log: LogSink,
}

impl Registry {
    pub(crate) fn new(options: ModelOptions, log: LogSink) -> Result<Registry, String> {
        if options.sources.is_empty() {
            return Err("a server needs at least one model".to_string());
        }
        let mut seen = HashMap::new();
        for source in &options.sources {
            if seen.insert(source.id.clone(), ()).is_some() {
                return Err(format!("two models are called `{}`; name one of them NAME=MODEL", source.id));
            }
        }
        if let Some(route) = &options.route {
            if seen.contains_key(&route.id) {
                return Err(format!("a model and the route are both called `{}`; name the model NAME=MODEL", route.id));
            }
            if let Some(absent) = [&route.small, &route.large].into_iter().find(|id| !seen.contains_key(*id)) {
                return Err(format!("the route leads to `{absent}`, and there is no such model"));
            }
        }
        let entry = |source: &ModelSource| {
            let (state, last_used) = (Mutex::new(State::Unloaded), Mutex::new(Instant::now()));
            Arc::new(Entry { source: source.clone(), state, last_used })
        };
        let entries = options.sources.iter().map(entry).collect();
        Ok(Registry { entries, options, turn: Arc::default(), log })
    }

    /// The name of the default model.
    pub(crate) fn default_id(&self) -> &str {
        &self.entries[0].source.id
    }

    /// The route, where a request of that name is for it. No name is.
    pub(crate) fn route(&self, name: Option<&str>) -> Option<&RouteSource> {
        let route = self.options.route.as_ref()?;
        name.is_none_or(|name| name == route.id || name.strip_suffix(":latest") == Some(&route.id)).then_some(route)
    }

    fn find(&self, name: Option<&str>) -> Result<&Arc<Entry>, ApiError> {
        // What rules do not choose for is the large model's.
        let name = self.route(name).map(|route| route.large.as_str()).or(name);
        let Some(name) = name else { return Ok(&self.entries[0]) };
        // Ollama's clients append a tag.
        let plain = name.strip_suffix(":latest").unwrap_or(name);
        let known = |e: &&Arc<Entry>| e.source.id == name || e.source.id == plain;
        let ids = || self.entries.iter().map(|e| e.source.id.clone()).collect::<Vec<_>>();
        self.entries
            .iter()
            .find(known)
            .ok_or_else(|| ApiError::no_model(&name.chars().take(200).collect::<String>(), &ids()))
    }

    /// The model of that name, loaded; waits for it. No name is the default model.
    pub(crate) async fn get(self: &Arc<Self>, name: Option<&str>) -> Result<Arc<Loaded>, ApiError> {
        let entry = self.find(name)?.clone();
        entry.touch();
        self.check(&entry)?;
        if let Some(model) = entry.loaded() {
            return Ok(model);
        }
        // On a task of its own: a client that goes away does not stop what others may wait for.
        let registry = self.clone();
        let loading = tokio::spawn(async move {
            registry.load(&entry).await.map_err(|error| {
                let message = format!("{} cannot be loaded: {error}", entry.source.id);
                (registry.log)(&message);
                ApiError::unavailable(message)
            })
        });
        loading.await.unwrap_or_else(|_| Err(ApiError::internal("loading the model failed: a bug; the log has more")))
    }

    /// Loads the default model, as the server does at its start.
    pub(crate) async fn load_default(self: &Arc<Self>) -> Result<(), ServerError> {
        let entry = &self.entries[0];
        let failed = |error: pelton::Error| {
            let (id, message, kind) = (entry.source.id.clone(), error.to_string(), error.kind());
            ServerError::Model { id, message, kind }
        };
        self.load(entry).await.map(drop).map_err(failed)
    }

    async fn load(&self, entry: &Arc<Entry>) -> Result<Arc<Loaded>, pelton::Error> {
        let _turn = self.turn.clone().lock_owned().await;
        if let Some(model) = entry.loaded() {
            return Ok(model);
        }
        let share = Arc::new(LoadedShare::default());
        entry.set(State::Loading(share.clone()));
        loop {
            let room = self.options.memory.map(|all| all.saturating_sub(self.bytes()));
            let (source, store, share) = (entry.source.clone(), self.options.store.clone(), share.clone());
            let opened = tokio::task::spawn_blocking(move || open(&source, store.as_deref(), room, &share));
            let error = match opened.await.unwrap_or_else(|_| Err(pelton::Error::Failure(BUG.into()))) {
                Ok(model) => {
                    (self.log)(&model.llm.report().line());
                    model.llm.report().memory.lines().iter().for_each(|line| (self.log)(line));
                    model.llm.report().notes.iter().for_each(|note| (self.log)(note));
                    let model = Arc::new(model);
                    entry.touch();
                    entry.set(State::Loaded(model.clone()));
                    return Ok(model);
                }
                Err(error) => error,
            };
            // Another model may be in the way.
            if matches!(error, pelton::Error::Memory(_)) && self.make_room().await {
                continue;
            }
            entry.set(State::Failed(error.to_string()));
            return Err(error);
        }
    }

    /// Bytes of all loaded models.
    fn bytes(&self) -> u64 {
        self.entries.iter().filter_map(|e| e.loaded()).map(|m| m.bytes()).sum()
    }

    /// Lets go of a model, and waits for one where all are in use; `false` where there is none, or none became free.
    async fn make_room(&self) -> bool {
        let begun = Instant::now();
        loop {
            if self.let_go_of_oldest().await {
                return true;
            }
            if self.all_loaded().is_empty() || begun.elapsed() >= PATIENCE {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Lets go of the model that was not used for longest; `false` where all are in use.
    async fn let_go_of_oldest(&self) -> bool {
        let mut candidates: Vec<&Arc<Entry>> = self.entries.iter().filter(|e| e.loaded().is_some()).collect();
        candidates.sort_by_key(|e| std::cmp::Reverse(e.idle_for()));
        for entry in candidates {
            if let Some(model) = entry.take_idle() {
                (self.log)(&format!("{}: let go, to make room", entry.source.id));
                let _ = tokio::task::spawn_blocking(move || drop(model)).await;
                return true;
            }
        }
        false
    }

    /// Lets go of models that were not used for long; called now and then.
    pub(crate) async fn let_go_of_idle(&self) {
        let Some(limit) = self.options.idle_unload else { return };
        for entry in &self.entries[1..] {
            let in_use = entry.loaded().is_some_and(|m| Arc::strong_count(&m) > 2);
            if in_use {
                entry.touch();
            } else if entry.idle_for() >= limit
                && let Some(model) = entry.take_idle()
            {
                (self.log)(&format!("{}: let go after {} s without a request", entry.source.id, limit.as_secs()));
                let _ = tokio::task::spawn_blocking(move || drop(model)).await;
            }
        }
    }

    /// The models in memory.
    pub(crate) fn all_loaded(&self) -> Vec<Arc<Loaded>> {
        self.entries.iter().filter_map(|e| e.loaded()).collect()
    }

    /// Each model's name, and the model where it is in memory.
    pub(crate) fn all(&self) -> Vec<(String, Option<Arc<Loaded>>)> {
        self.entries.iter().map(|e| (e.source.id.clone(), e.loaded())).collect()
    }

    /// Whether the default model is in memory.
    pub(crate) fn is_ready(&self) -> bool {
        self.entries[0].loaded().is_some()
    }

    /// One object for each model, as OpenAI lists them, with what is known of it.
    pub(crate) fn list(&self) -> Vec<Value> {
        let route = self.options.route.iter().map(|r| {
            json!({ "id": r.id, "object": "model", "created": 0, "owned_by": "pelton",
                "route": { "small": r.small, "large": r.large, "rules": r.rules.lines() } })
        });
        self.entries.iter().map(|e| describe(e)).chain(route).collect()
    }

    /// One of [`Registry::list`].
    pub(crate) fn describe(&self, name: &str) -> Result<Value, ApiError> {
        Ok(describe(self.find(Some(name))?))
    }
}

fn describe(entry: &Entry) -> Value {
    let state = entry.state.lock().unwrap_or_else(PoisonError::into_inner);
    let (status, progress, error) = match &*state {
        State::Unloaded => ("unloaded", Value::Null, Value::Null),
        State::Loading(share) => {
            let (done, total) = (share.done.load(Relaxed), share.total.load(Relaxed));
            let progress = if total == 0 { 0.0 } else { done as f64 / total as f64 };
            ("loading", json!(progress), Value::Null)
        }
        State::Loaded(_) => ("loaded", json!(1.0), Value::Null),
        State::Failed(message) => ("failed", Value::Null, json!(message)),
        State::Lost(loss) => ("lost", Value::Null, json!(loss.describe().0)),
    };
    let mut object = json!({
        "id": entry.source.id,
        "object": "model",
        "created": 0,
        "owned_by": "pelton",
        "status": status,
        "progress": progress,
    });
    if !error.is_null() {
        object["error"] = error;
    }
    if let State::Loaded(model) = &*state {
        object["created"] = json!(model.created);
        object["max_context"] = json!(model.context());
        object["max_sequences"] = json!(model.llm.report().memory.max_seqs);
        object["bytes"] = json!(model.bytes());
        object["tools"] = json!(model.tool_format.is_some());
        object["thinking"] = json!(model.thinks);
    }
    object
}

/// Opens and loads a model.
fn open(
    source: &ModelSource,
    store: Option<&Store>,
    room: Option<u64>,
    share: &LoadedShare,
) -> Result<Loaded, pelton::Error> {
    let model = Model::open(&source.model, store)?;
    let mut options = source.options.clone();
    options.memory = match (options.memory, room) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let inspection = Inspection::new(&model, None, 1, options.kv_type)?;
    let llm = Llm::load(&model, &options, &mut |p| {
        share.done.store(p.done as u64, Relaxed);
        share.total.store(p.total as u64, Relaxed);
    })?;
    let text = model.text()?;
    let templates = [false, true].map(|tools| text.template_source(tools).unwrap_or_default());
    let tool_format = templates.iter().find_map(|t| ToolFormat::of_template(t));
    let thinks = templates.iter().any(|t| t.contains("</think>"));
    let chat = if text.templates.is_some() { Some(Chat::new(model.text()?)?) } else { None };
    let mut marks = HashMap::new();
    let names = tool_format.unwrap_or(ToolFormat::Hermes).marks().iter().chain(&["<think>", "</think>"]);
    for mark in names {
        if let Some(id) = text.tokenizer.id_of(mark).filter(|&id| text.tokenizer.is_special(id)) {
            marks.insert(id, *mark);
        }
    }
    Ok(Loaded {
        id: source.id.clone(),
        llm,
        chat,
        generation: text.generation.clone(),
        text,
        inspection,
        tool_format,
        thinks,
        marks,
        created: unix_now(),
    })
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
