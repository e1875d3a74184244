//! Requests for the routed model: rules choose between a small and a large one, and what the small one was not sure of is
//! asked of the large one.
//!
//! Invariants: the answer names the model that gave it, and `x-pelton-route` says why; nothing of an answer that does not
//! stand reaches the client.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;

use pelton::route::{Decision, Rules, Side, Signals, question_of};

use crate::answer::Answer;
use crate::conversation::Ask;
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
        let prompt_tokens = ask.clone().prepare(&small).await?.ids.len();
        let (question, turns) = question_of(&ask.messages);
        let decision = route.rules.decide(&Signals {
            question: &question,
            turns,
            prompt_tokens,
            // Where the request does not say, the answer may be as long as there is room.
            max_tokens: knobs.max_tokens.map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX)),
            tools: !ask.tools.is_empty(),
            small_context: small.context(),
        });
        let (mut decision, mut held) = (decision, None);
        if decision.to == Side::Small {
            let mut answer = self.answer(visit, &small, ask.clone(), knobs, tokens).await?;
            if route.rules.confidence.is_none() {
                held = Some(answer);
            } else {
                match route.rules.hand_over(answer.hold().await?) {
                    None => held = Some(answer),
                    Some(handed_over) => {
                        self.metrics.handed_over.fetch_add(1, Relaxed);
                        decision = handed_over;
                    }
                }
            }
        }
        let mut answer = match held {
            Some(answer) => answer,
            None => {
                let large = self.registry.get(Some(&route.large)).await?;
                self.answer(visit, &large, ask, knobs, tokens).await?
            }
        };
        self.metrics.routed[usize::from(decision.to == Side::Large)].fetch_add(1, Relaxed);
        *visit.route.lock().unwrap_or_else(PoisonError::into_inner) = Some(header(&decision));
        answer.totals.route = Some(decision);
        Ok(answer)
    }
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
    fn headers_hold_what_headers_may() {
        let decision = Decision { to: Side::Large, why: "it says \"größe\nx\"".into() };
        assert_eq!(header(&decision), "large; it says \"gr??e?x\"");
    }
}
