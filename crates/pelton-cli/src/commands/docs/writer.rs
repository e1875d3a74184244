//! The engine as the writer of entries: keeps a window of requests in flight, so that the batch stays full.

use std::collections::HashMap;
use std::sync::mpsc::{Sender, channel};

use pelton::route::Sureness;
use pelton::{CancelGuard, Event, FinishReason, ModelRef, SamplingParams, Special};
use pelton_docs::{Reply, Request, Writer};
use serde_json::{Value, json};

use crate::commands::speaker::Speaker;

/// Small models fall into loops. On the 100 held-out functions of `models/README.md` this ends every answer (91 without
/// it) and raises the answers' word F1 from 0.276 to 0.290.
pub(crate) const EMBEDDED_FREQUENCY_PENALTY: f32 = 0.5;

/// What models other than the built-in one are told; that one brings its own system message.
const SYSTEM: &str = "You are a documentation assistant. Answer with the documentation only.";

/// What one request brought: a reply, and how sure the model was of it.
pub(super) type Brought = Result<(Reply, Sureness), String>;

/// One model as a writer.
pub(super) struct EngineWriter<'a> {
    pub(super) speaker: &'a Speaker,
    system: Option<&'static str>,
    sampling: SamplingParams,
    window: usize,
}

/// A request that runs.
struct Running {
    reply: Reply,
    sure: Sureness,
    _cancel: CancelGuard,
}

impl<'a> EngineWriter<'a> {
    /// `name` is what the model was typed as, and `parallel` how many entries are written at once.
    pub(super) fn new(name: Option<&str>, speaker: &'a Speaker, parallel: usize) -> anyhow::Result<EngineWriter<'a>> {
        let embedded = ModelRef::parse(name)? == ModelRef::Embedded;
        let frequency_penalty = if embedded { EMBEDDED_FREQUENCY_PENALTY } else { 0.0 };
        Ok(EngineWriter {
            speaker,
            system: (!embedded).then_some(SYSTEM),
            sampling: SamplingParams { temperature: 0.0, frequency_penalty, ..SamplingParams::default() },
            window: parallel * 2,
        })
    }

    /// The conversation that asks for an entry.
    pub(super) fn messages(&self, request: &Request) -> Vec<Value> {
        let system = self.system.iter().map(|s| json!({ "role": "system", "content": s }));
        system.chain([json!({ "role": "user", "content": request.prompt })]).collect()
    }

    fn submit(&self, index: usize, request: &Request, events: &Sender<(usize, Event)>) -> Result<CancelGuard, String> {
        let ids = self.speaker.ids(&self.messages(request)).map_err(|e| e.to_string())?;
        let request = pelton::Request::new(ids, self.sampling.clone(), request.max_tokens);
        let events = events.clone();
        let sink = Box::new(move |event| drop(events.send((index, event))));
        self.speaker.llm.submit_to(request, sink).map_err(|e| e.to_string())
    }

    /// Runs requests with their numbers, and reports each as it ends.
    ///
    /// # Errors
    /// Where the engine stopped.
    pub(super) fn write<'r>(
        &self,
        mut waiting: impl Iterator<Item = (usize, &'r Request)>,
        done: &mut dyn FnMut(usize, Brought),
    ) -> Result<(), String> {
        let (sender, events) = channel();
        let mut running: HashMap<usize, Running> = HashMap::new();
        loop {
            while running.len() < self.window {
                let Some((index, request)) = waiting.next() else { break };
                match self.submit(index, request, &sender) {
                    Ok(guard) => {
                        let (reply, sure) = (Reply::default(), Sureness::default());
                        running.insert(index, Running { reply, sure, _cancel: guard });
                    }
                    Err(e) => done(index, Err(e)),
                }
            }
            if running.is_empty() {
                return Ok(());
            }
            // The sender above is alive, so an engine that died shows as silence: its sinks report a failure first.
            let Ok((index, event)) = events.recv() else { return Err("the engine stopped".into()) };
            let Some(run) = running.get_mut(&index) else { continue };
            let brought = match event {
                Event::Token { text, logprob, .. } => {
                    run.reply.text.push_str(&text);
                    run.sure.token(logprob);
                    continue;
                }
                Event::Finished(finished) => {
                    let (mut reply, mut sure) = (std::mem::take(&mut run.reply), run.sure);
                    sure.end(finished.reason);
                    reply.text.push_str(&finished.text);
                    reply.prompt_tokens = finished.timing.prompt_tokens;
                    reply.cached_tokens = finished.timing.cached_tokens;
                    reply.tokens = finished.timing.tokens;
                    reply.truncated = matches!(finished.reason, FinishReason::MaxTokens | FinishReason::Context);
                    Ok((reply, sure))
                }
                Event::Refused(refused) => Err(refused.to_string()),
                Event::Failed(message) => Err(message),
                Event::Embedded(_) => Err("a vector came where an answer was expected".into()),
            };
            running.remove(&index);
            done(index, brought);
        }
    }
}

impl Writer for EngineWriter<'_> {
    fn count_tokens(&self, text: &str) -> usize {
        self.speaker.chat.text().tokenizer.encode(text, Special::AsText).len()
    }

    fn context_len(&self) -> usize {
        self.speaker.context_len()
    }

    fn write_all(
        &mut self,
        requests: &[Request],
        done: &mut dyn FnMut(usize, Result<Reply, String>),
    ) -> Result<(), String> {
        self.write(requests.iter().enumerate(), &mut |index, brought| done(index, brought.map(|(reply, _)| reply)))
    }
}
