//! What happened to each request, and the figures that sum it up.
//!
//! Times are seconds since the level began. Invariant: a request that failed enters no latency; it is counted by kind.

use std::collections::BTreeMap;
use std::fmt;

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FaultKind {
    /// No connection, or one that broke before the answer began.
    Connection,
    /// Nothing came for longer than `--timeout`.
    Timeout,
    /// An HTTP status that is not success.
    Status(u16),
    /// Bytes that are not the stream that was asked for.
    Malformed,
    /// The stream ended before the answer did.
    Cut,
    /// The server reported an error in the midst of the stream.
    Reported,
    /// An answer without any text.
    Empty,
    /// Never sent: as many requests as this program allows were under way.
    Overrun,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FaultKind::Connection => f.write_str("connection"),
            FaultKind::Timeout => f.write_str("timeout"),
            FaultKind::Status(status) => write!(f, "HTTP {status}"),
            FaultKind::Malformed => f.write_str("malformed stream"),
            FaultKind::Cut => f.write_str("stream cut off"),
            FaultKind::Reported => f.write_str("error in the stream"),
            FaultKind::Empty => f.write_str("no text"),
            FaultKind::Overrun => f.write_str("not sent"),
        }
    }
}

/// A failure, with the words of whoever noticed it.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) kind: FaultKind,
    pub(super) detail: String,
}

impl Fault {
    pub(super) fn new(kind: FaultKind, detail: impl Into<String>) -> Fault {
        Fault { kind, detail: detail.into() }
    }
}

/// One request.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    /// When it was due: in an open loop the arrival that was drawn, in a closed one when its client was free.
    pub(super) due: f64,
    /// When each piece of text came.
    pub(super) deliveries: Vec<f64>,
    /// When the answer was complete.
    pub(super) end: f64,
    /// As the server counts them.
    pub(super) prompt_tokens: Option<u64>,
    pub(super) cached_tokens: Option<u64>,
    /// As the server counts them, else the number of deliveries.
    pub(super) answer_tokens: u64,
    pub(super) fault: Option<Fault>,
}

impl Record {
    /// Time to first token.
    pub(super) fn ttft(&self) -> Option<f64> {
        self.deliveries.first().map(|first| first - self.due)
    }

    /// Time per output token after the first one.
    pub(super) fn tpot(&self) -> Option<f64> {
        let (first, last) = (self.deliveries.first()?, self.deliveries.last()?);
        (self.answer_tokens > 1 && self.deliveries.len() > 1).then(|| (last - first) / (self.answer_tokens - 1) as f64)
    }

    /// The latencies between deliveries: when each interval began and ended.
    pub(super) fn intervals(&self) -> impl Iterator<Item = (f64, f64)> {
        self.deliveries.windows(2).map(|pair| (pair[0], pair[1]))
    }

    /// From due to complete.
    pub(super) fn e2e(&self) -> f64 {
        self.end - self.due
    }
}

/// The values of one latency, sorted; never empty.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Spread(Vec<f64>);

impl Spread {
    pub(super) fn of(values: impl Iterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        (!values.is_empty()).then_some(Spread(values))
    }

    /// Between the two nearest ranks, linearly (type 7 of Hyndman and Fan, what NumPy does); `q` from 0 to 1.
    pub(super) fn quantile(&self, q: f64) -> f64 {
        let rank = q.clamp(0.0, 1.0) * (self.0.len() - 1) as f64;
        let (below, above) = (self.0[rank.floor() as usize], self.0[rank.ceil() as usize]);
        below + (above - below) * rank.fract()
    }

    pub(super) fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// How a level was driven.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pace {
    /// This many clients, each of which sends its next request when the last one is answered.
    Clients(usize),
    /// This many requests a second on average, sent whether or not others are answered (a Poisson process).
    Rate(f64),
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pace::Clients(1) => f.write_str("1 client"),
            Pace::Clients(n) => write!(f, "{n} clients"),
            Pace::Rate(rate) => write!(f, "{rate} requests/s"),
        }
    }
}

/// All requests of one load.
#[derive(Debug)]
pub(super) struct Level {
    pub(super) pace: Pace,
    pub(super) records: Vec<Record>,
    /// The one long prompt, which is in no other figure.
    pub(super) long: Option<Record>,
}

/// Inter-token latencies of the other streams around the long prompt.
#[derive(Debug)]
pub(super) struct Disturbance {
    /// Intervals that were over before the long prompt was sent.
    pub(super) before: Option<Spread>,
    /// Intervals that overlap the time from sending it to its first token.
    pub(super) during: Option<Spread>,
}

impl Level {
    pub(super) fn good(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|r| r.fault.is_none())
    }

    pub(super) fn n_failed(&self) -> usize {
        self.records.len() - self.good().count()
    }

    /// From the beginning to the end of the last request.
    pub(super) fn seconds(&self) -> f64 {
        self.records.iter().map(|r| r.end).fold(0.0, f64::max)
    }

    pub(super) fn answer_tokens(&self) -> u64 {
        self.good().map(|r| r.answer_tokens).sum()
    }

    /// Of answered requests.
    pub(super) fn tokens_per_second(&self) -> f64 {
        per_second(self.answer_tokens() as f64, self.seconds())
    }

    /// Of answered requests.
    pub(super) fn requests_per_second(&self) -> f64 {
        per_second(self.good().count() as f64, self.seconds())
    }

    pub(super) fn ttft(&self) -> Option<Spread> {
        Spread::of(self.good().filter_map(Record::ttft))
    }

    pub(super) fn tpot(&self) -> Option<Spread> {
        Spread::of(self.good().filter_map(Record::tpot))
    }

    pub(super) fn itl(&self) -> Option<Spread> {
        Spread::of(self.good().flat_map(Record::intervals).map(|(from, to)| to - from))
    }

    pub(super) fn e2e(&self) -> Option<Spread> {
        Spread::of(self.good().map(Record::e2e))
    }

    /// Mean tokens of a prompt, and of those the ones that the server had computed before.
    pub(super) fn prompt_tokens(&self) -> Option<(f64, Option<f64>)> {
        let prompts = Spread::of(self.good().filter_map(|r| r.prompt_tokens).map(|n| n as f64))?;
        let cached = Spread::of(self.good().filter_map(|r| r.cached_tokens).map(|n| n as f64));
        Some((prompts.mean(), cached.map(|c| c.mean())))
    }

    /// Failures by kind: how many, and what the first of them said.
    pub(super) fn faults(&self) -> BTreeMap<FaultKind, (usize, &str)> {
        let mut kinds = BTreeMap::new();
        for fault in self.records.iter().filter_map(|r| r.fault.as_ref()) {
            kinds.entry(fault.kind).or_insert((0, fault.detail.as_str())).0 += 1;
        }
        kinds
    }

    /// What the long prompt did to the others; nothing where there was none or it failed.
    pub(super) fn disturbance(&self) -> Option<Disturbance> {
        let long = self.long.as_ref().filter(|l| l.fault.is_none())?;
        let (sent, first) = (long.due, *long.deliveries.first()?);
        let intervals = || self.good().flat_map(Record::intervals);
        let before = intervals().filter(|&(_, to)| to <= sent).map(|(from, to)| to - from);
        let during = intervals().filter(|&(from, to)| to > sent && from < first).map(|(from, to)| to - from);
        Some(Disturbance { before: Spread::of(before), during: Spread::of(during) })
    }
}

fn per_second(count: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { count / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(due: f64, deliveries: &[f64], answer_tokens: u64) -> Record {
        let end = *deliveries.last().unwrap();
        Record { due, deliveries: deliveries.to_vec(), end, answer_tokens, ..Record::default() }
    }

    #[test]
    fn quantiles_lie_between_ranks() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0].into_iter()).unwrap();
        let got = [0.0, 0.5, 0.9, 0.99, 1.0].map(|q| spread.quantile(q));
        let expected = [1.0, 2.5, 3.7, 3.97, 4.0];
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{got:?}");
        assert_eq!((spread.mean(), spread.len()), (2.5, 4));
        assert_eq!(Spread::of([7.0].into_iter()).unwrap().quantile(0.99), 7.0);
        assert_eq!(Spread::of(std::iter::empty()), None);
    }

    #[test]
    fn latencies_of_a_request() {
        let r = record(1.0, &[1.5, 1.6, 1.8, 2.5], 5);
        assert_eq!((r.ttft(), r.tpot(), r.e2e()), (Some(0.5), Some(0.25), 1.5));
        assert_eq!(r.intervals().map(|(from, _)| from).collect::<Vec<_>>(), [1.5, 1.6, 1.8]);
        assert_eq!(record(0.0, &[1.0], 1).tpot(), None, "one token has no time per further token");
    }

    #[test]
    fn failures_are_counted_and_enter_no_latency() {
        let mut bad = record(0.0, &[9.0, 99.0], 2);
        bad.fault = Some(Fault::new(FaultKind::Cut, "gone"));
        let mut busy = Record { end: 1.0, ..Record::default() };
        busy.fault = Some(Fault::new(FaultKind::Status(429), "full"));
        let records = vec![record(0.0, &[1.0, 2.0], 2), bad.clone(), record(1.0, &[3.0, 4.0], 2), bad, busy];
        let level = Level { pace: Pace::Clients(2), records, long: None };
        assert_eq!((level.n_failed(), level.seconds(), level.answer_tokens()), (3, 99.0, 4));
        assert_eq!(level.tokens_per_second(), 4.0 / 99.0);
        assert_eq!(level.requests_per_second(), 2.0 / 99.0);
        assert_eq!(level.ttft().unwrap(), Spread(vec![1.0, 2.0]));
        assert_eq!(level.itl().unwrap(), Spread(vec![1.0, 1.0]));
        let faults: Vec<_> = level.faults().into_iter().map(|(kind, (n, said))| (kind.to_string(), n, said)).collect();
        assert_eq!(faults, [("HTTP 429".into(), 1, "full"), ("stream cut off".into(), 2, "gone")]);
    }

    #[test]
    fn intervals_are_told_apart_by_the_long_prompt() {
        // Sent at 10, first token at 12: an interval that straddles either end is disturbed.
        let other = record(0.0, &[1.0, 2.0, 9.5, 10.5, 11.0, 13.0, 14.0], 7);
        let long = record(10.0, &[12.0, 12.1], 2);
        let level = Level { pace: Pace::Clients(1), records: vec![other], long: Some(long) };
        let d = level.disturbance().unwrap();
        assert_eq!(d.before.unwrap(), Spread(vec![1.0, 7.5]));
        assert_eq!(d.during.unwrap(), Spread(vec![0.5, 1.0, 2.0]));
    }
}
