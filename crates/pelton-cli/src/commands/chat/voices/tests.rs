//! Conversations of two models, turn by turn.

use std::sync::atomic::Ordering;

use clap::Parser;
use serde_json::json;

use super::*;
use crate::args::{Cli, Command};
use crate::environment::Environment;

const PAIR: [&str; 2] = ["--route", "small=pelton-draft,large=pelton-tiny"];

fn context() -> Context {
    let environment = Environment {
        isa: None,
        cuda_driver: None,
        early_launches: false,
        api_key: None,
        store: pelton::StoreOptions::from_vars(|_| None),
        history: None,
        scratch: std::env::temp_dir(),
    };
    Context::new(environment, true)
}

fn typed(more: &[&str]) -> ChatArgs {
    let args = [&["pelton", "chat", "-n", "12", "--temperature", "0", "--threads", "1"], more].concat();
    match Cli::try_parse_from(args).unwrap().command {
        Command::Chat(args) => args,
        other => panic!("{other:?}"),
    }
}

/// A conversation, and who takes part in it.
struct Talk {
    args: ChatArgs,
    context: Context,
    voices: Voices,
    messages: Vec<Value>,
    interrupted: AtomicBool,
}

impl Talk {
    fn begin(more: &[&str], confidence: Option<f64>) -> Talk {
        let (args, context) = (typed(more), context());
        let mut voices = Voices::load(&args, &context).unwrap();
        if let (Voices::Two(two), Some(least_mean_logprob)) = (&mut voices, confidence) {
            let (learned_from, model) = (1, String::new());
            two.rules.confidence = Some(pelton::route::Confidence { least_mean_logprob, learned_from, model });
        }
        Talk { args, context, voices, messages: Vec::new(), interrupted: AtomicBool::new(false) }
    }

    /// Says something; the answer, after what was shown of it was compared with it.
    fn say(&mut self, text: &str) -> Turn {
        self.messages.push(json!({ "role": "user", "content": text }));
        let asking = Asking { sampling: &self.args.sampling, context: &self.context, interrupted: &self.interrupted };
        let mut shown = String::new();
        let turn = self.voices.answer(&self.messages, &asking, &mut |text| {
            shown.push_str(text);
            Ok(())
        });
        let turn = turn.unwrap();
        assert_eq!(turn.text, shown, "what is shown is the answer, and nothing besides");
        self.messages.push(json!({ "role": "assistant", "content": turn.text }));
        turn
    }
}

#[test]
fn each_turn_is_routed_and_a_switch_keeps_the_conversation() {
    let mut talk = Talk::begin(&PAIR, None);
    let first = talk.say("What is a list?");
    assert_eq!(first.lines.len(), 2, "{first:?}");
    assert_eq!(first.lines[0], "answered by pelton-draft, the small model: no rule asks for the large one");
    let second = talk.say("Why is it slow?");
    let why = "answered by pelton-tiny, the large model: it says \"why\", which asks for thought";
    assert_eq!((second.lines.len(), second.lines[0].as_str()), (3, why), "{second:?}");
    assert!(second.lines[1].starts_with("pelton-draft had answered before: pelton-tiny read "), "{second:?}");
    assert!(second.lines[1].contains("prompt tokens anew, 0 were in its own cache"), "{second:?}");
    assert!(second.lines[2].contains("tokens/s"), "{second:?}");
    // The large model alone says the same to the same conversation, and stays: nothing is said of a switch.
    let third = talk.say("Explain that.");
    assert_eq!(third.lines.len(), 2, "{third:?}");
    let mut alone = Talk::begin(&["-m", "pelton-tiny"], None);
    alone.messages = talk.messages[..2].to_vec();
    assert_eq!(alone.say("Why is it slow?").text, second.text);
    let again = alone.say("Explain that.");
    assert_eq!((&again.text, again.lines.len()), (&third.text, 1));
    // The seventh message is one too many by the rules.
    let fourth = talk.say("And a set?");
    assert_eq!(
        fourth.lines[0],
        "answered by pelton-tiny, the large model: the conversation has 7 messages, more than 6"
    );
    talk.voices.forget();
    talk.messages.clear();
    assert_eq!(talk.say("What is a list?").text, first.text);
}

#[test]
fn an_answer_that_is_not_sure_is_never_shown() {
    // No answer is as sure as that.
    let mut strict = Talk::begin(&PAIR, Some(0.0));
    let turn = strict.say("What is a list?");
    assert!(
        turn.lines[0].starts_with("answered by pelton-tiny, the large model: the small model was not sure"),
        "{turn:?}"
    );
    assert!(turn.lines[0].contains("(pelton-draft had answered in "), "{turn:?}");
    assert!(turn.lines[1].starts_with("pelton-tiny read ") && turn.lines[1].contains(" anew, "), "{turn:?}");
    assert_eq!(turn.text, Talk::begin(&["-m", "pelton-tiny"], None).say("What is a list?").text);
    // Every answer is.
    let mut lenient = Talk::begin(&PAIR, Some(-1e9));
    let turn = lenient.say("What is a list?");
    assert!(turn.lines[0].starts_with("answered by pelton-draft, the small model: "), "{turn:?}");
    assert_eq!(turn.text, Talk::begin(&["-m", "pelton-draft"], None).say("What is a list?").text);
    // Ended before that was known, it leaves nothing.
    lenient.interrupted.store(true, Ordering::Relaxed);
    let turn = lenient.say("What is a list?");
    assert!(turn.taken_back && turn.text.is_empty() && turn.lines.is_empty(), "{turn:?}");
}

#[test]
fn what_is_in_force_is_shown() {
    let mut talk = Talk::begin(&PAIR, Some(-1.25));
    let lines = talk.voices.lines();
    assert!(
        lines[0].starts_with("small: pelton-draft, context ") && lines[1].starts_with("large: pelton-tiny, context ")
    );
    assert!(lines[2].starts_with("1. ") && lines.last().unwrap().contains("-1.250"), "{lines:?}");
    talk.say("Why?");
    assert!(talk.voices.lines().last().unwrap().starts_with("last answer: pelton-tiny, the large model: it says"));
    talk.voices.forget();
    assert_eq!(talk.voices.lines(), lines);
    let alone = Talk::begin(&["-m", "pelton-draft"], None).voices.lines();
    assert!(alone.len() == 1 && alone[0].starts_with("pelton-draft answers everything"), "{alone:?}");
}

#[test]
fn a_conversation_that_outgrew_the_context_says_whose() {
    let mut talk = Talk::begin(&[&PAIR[..], &["--context", "96"]].concat(), None);
    let text = talk.say("What is a list?").text;
    talk.messages.push(json!({ "role": "user", "content": "a list of lists ".repeat(60) }));
    let asking = Asking { sampling: &talk.args.sampling, context: &talk.context, interrupted: &talk.interrupted };
    let error = talk.voices.answer(&talk.messages, &asking, &mut |_| panic!("nothing is said: {text}")).unwrap_err();
    assert!(
        error.is::<Usage>() && error.to_string().contains("the context of pelton-tiny holds 96; /reset"),
        "{error}"
    );
}
