//! Leaving early: dropped requests free their places and touch nobody else; a dropped engine ends its thread.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use pelton::{Event, Llm, Options, Request, RequestHandle};

use crate::support::{PATIENCE, ask, collect, embedded, greedy, load, options};

const REQUESTS: u32 = 20;

fn llm() -> Llm {
    load(&embedded(), &Options { max_seqs: 8, context: Some(512), ..options() })
}

fn request(i: u32, tokens: usize) -> Request {
    greedy(&[3 + i, 100 + i, 200, 300 + 7 * i], tokens)
}

fn submit_all(llm: &Llm, tokens: usize) -> Vec<RequestHandle> {
    (0..REQUESTS).map(|i| llm.submit(request(i, tokens)).unwrap()).collect()
}

#[test]
fn dropped_requests_leave_the_others_as_they_are() {
    let llm = llm();
    let alone: Vec<_> = (0..REQUESTS).map(|i| ask(&llm, request(i, 40))).collect();
    let mut handles: Vec<Option<RequestHandle>> = submit_all(&llm, 40).into_iter().map(Some).collect();
    // One that runs, then all odd ones: some run, some wait.
    let first = handles[1].as_ref().unwrap().next_event_timeout(PATIENCE).unwrap();
    assert!(matches!(first, Event::Token { .. }));
    handles.iter_mut().skip(1).step_by(2).for_each(|h| drop(h.take()));
    for (i, (handle, alone)) in handles.iter().zip(&alone).enumerate() {
        if let Some(handle) = handle {
            assert_eq!(collect(handle).bits(), alone.bits(), "request {i}");
        }
    }
    assert_eq!(ask(&llm, request(1, 40)).bits(), alone[1].bits(), "the engine goes on");
}

#[test]
fn a_dropped_request_frees_its_place() {
    // One place: the second request can only run once the first one, which would take hundreds of steps, is gone.
    let llm = load(&embedded(), &Options { max_seqs: 1, context: Some(1000), ..options() });
    let long = llm.submit(request(0, 900)).unwrap();
    assert!(matches!(long.next_event_timeout(PATIENCE), Ok(Event::Token { .. })));
    let next = llm.submit(request(1, 1)).unwrap();
    drop(long);
    let waited = collect(&next).end.timing.total;
    println!("the next request took {waited:?}");
    let whole = Instant::now();
    ask(&llm, request(0, 900));
    assert!(
        waited < whole.elapsed() / 2 + Duration::from_millis(50),
        "{waited:?}, a whole answer {:?}",
        whole.elapsed()
    );
}

#[test]
fn dropping_the_engine_ends_what_runs() {
    let llm = llm();
    let handles = submit_all(&llm, 500);
    assert!(matches!(handles[0].next_event_timeout(PATIENCE), Ok(Event::Token { .. })));
    let (done, dropped) = mpsc::channel();
    let start = Instant::now();
    std::thread::spawn(move || {
        drop(llm);
        done.send(()).unwrap();
    });
    dropped.recv_timeout(PATIENCE).expect("dropping the engine does not hang");
    println!("dropped within {:?}", start.elapsed());
    for handle in &handles {
        // What was sent before is still there; then nothing more, and no waiting.
        let events: Vec<Event> = std::iter::from_fn(|| handle.next_event_timeout(PATIENCE).ok()).collect();
        assert!(events.len() < 500);
    }
    assert!(start.elapsed() < PATIENCE, "handles of a dropped engine end at once");
}
