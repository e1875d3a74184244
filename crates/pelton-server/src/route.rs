//! Requests for the routed model: rules choose between a small and a large one, and what the small one was not sure of is
//! asked of the large one.
//!
//! Invariants: the answer names the model that gave it, and `x-pelton-route` says why; nothing of an answer that does not
//! stand reaches the client.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use pelton::route::{Decision, Rules, Side, Signals, question_of};

use crate::answer::Answer;
use crate::conversation::{Ask, ToolChoice};
use crate::engine::Loaded;
use crate::error::ApiError;
use crate::knobs::Knobs;
use crate::{App, Visit};

/// A name behind which two models answer.
#[derive(Clone, Debug)]
pub struct RouteSource {
    /// What clients call it; requests that name no model are for it.
    pub id: String,
    /// The name of the small model, one of the sources'.
    pub small: String,
    /// The name of the large one.
    pub large: String,
    /// Which request goes where.
    pub rules: Rules,
}

impl App {
    /// From a conversation to an answer that runs, on the model of that name or on the one that the rules choose.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        visit: &Visit,
        name: Option<&str>,
        ask: Ask,
        knobs: &Knobs,
        tokens: bool,
    ) -> Result<Answer, ApiError> {
        let Some(route) = self.registry.route(name) else {
            let model = self.registry.get(name).await?;
            return self.answer(visit, &model, ask, knobs, tokens).await;
        };
        let small = self.registry.get(Some(&route.small)).await?;
        let mut decision = decide(&route.rules, &small, &ask, knobs).await;
        let (mut stands, mut waited) = (None, None);
        if decision.to == Side::Small {
            let begun = Instant::now();
            let mut answer = self.answer(visit, &small, ask.clone(), knobs, tokens).await?;
            let handed_over = match route.rules.confidence {
                None => None,
                Some(_) => route.rules.hand_over(&answer.hold().await?),
            };
            match handed_over {
                None => stands = Some(answer),
                Some(handed_over) => {
                    self.metrics.handed_over.fetch_add(1, Relaxed);
                    (decision, waited) = (handed_over, Some(begun.elapsed()));
                }
            }
        }
        // The large one may need its memory.
        drop(small);
        let mut answer = match stands {
            Some(answer) => answer,
            None => {
                let large = self.registry.get(Some(&route.large)).await?;
                let knobs = match waited {
                    Some(waited) => &after(knobs, waited, self.options.deadline),
                    None => knobs,
                };
                self.answer(visit, &large, ask, knobs, tokens).await?
            }
        };
        answer.totals.handed_over_after = waited;
        self.metrics.routed[usize::from(decision.to == Side::Large)].fetch_add(1, Relaxed);
        *visit.route.lock().unwrap_or_else(PoisonError::into_inner) = Some(header(&decision));
        answer.totals.route = Some(decision);
        Ok(answer)
    }
}

/// What the rules say. A conversation that the small model cannot even read is the large one's.
async fn decide(rules: &Rules, small: &Arc<Loaded>, ask: &Ask, knobs: &Knobs) -> Decision {
    let prompt = match ask.clone().prepare(small).await {
        Ok(prompt) => prompt,
        // Where the request is at fault, the large one says so in its turn.
        Err(error) => return Decision::unreadable(error.message),
    };
    let (question, turns) = question_of(&ask.messages);
    rules.decide(&Signals {
        question: &question,
        turns,
        prompt_tokens: prompt.ids.len(),
        max_tokens: knobs.max_tokens.map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX)),
        tools: !ask.tools.is_empty() && ask.choice != ToolChoice::None,
        small_context: small.context(),
    })
}

/// The same request after an answer that took so long and does not stand: both answers together have the time of one.
fn after(knobs: &Knobs, waited: Duration, deadline: Option<Duration>) -> Knobs {
    let server = deadline.map(|limit| limit.as_secs_f64());
    let limit = [knobs.timeout, server].into_iter().flatten().reduce(f64::min);
    // More than nothing, since that is what a limit has to be: the engine ends it at once.
    let timeout = limit.map(|limit| (limit - waited.as_secs_f64()).max(1e-3));
    Knobs { timeout, ..knobs.clone() }
}

/// What the header says: visible ASCII alone, as headers want it.
fn header(decision: &Decision) -> String {
    let text = format!("{}; {}", decision.to, decision.why);
    text.chars().map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_answers_together_have_the_time_of_one() {
        let left = |timeout: Option<f64>, deadline: Option<u64>| {
            let knobs = Knobs { timeout, n: Some(2), ..Knobs::default() };
            let after = after(&knobs, Duration::from_secs(3), deadline.map(Duration::from_secs));
            assert_eq!(after.n, Some(2));
            after.timeout
        };
        assert_eq!(left(None, None), None);
        assert_eq!((left(Some(10.0), None), left(None, Some(8))), (Some(7.0), Some(5.0)));
        assert_eq!((left(Some(10.0), Some(4)), left(Some(4.0), Some(10))), (Some(1.0), Some(1.0)));
        assert_eq!(left(Some(2.0), None), Some(1e-3), "a limit is more than nothing");
    }

    #[test]
    fn headers_hold_what_headers_may() {
        let decision = Decision { to: Side::Large, why: "it says \"größe\nx\"".into() };
        assert_eq!(header(&decision), "large; it says \"gr??e?x\"");
    }
}
