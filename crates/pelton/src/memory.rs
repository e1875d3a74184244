//! What fits: weights, KV pages and activations against the memory that is free.

use std::fs;

use pelton_backend::PAGE_LEN;

use crate::Error;

/// Bytes that this process may still take: the system's available memory, or what its control group leaves of it.
/// `None` where the system does not say.
pub fn available_memory() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let system = parse_meminfo(&info)?;
    let read = |path: &str| fs::read_to_string(path).ok().and_then(|s| s.trim().parse::<u64>().ok());
    let limit = read("/sys/fs/cgroup/memory.max");
    let used = read("/sys/fs/cgroup/memory.current");
    match (limit, used) {
        (Some(limit), Some(used)) => Some(system.min(limit.saturating_sub(used))),
        _ => Some(system),
    }
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn parse_meminfo(info: &str) -> Option<u64> {
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// How the memory is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Pages of the KV pool.
    pub n_pages: usize,
    /// Sequences of the full context that the pool holds at once.
    pub full_sequences: usize,
    /// Bytes of packed weights.
    pub weight_bytes: usize,
    /// Bytes of the KV pool.
    pub kv_bytes: usize,
    /// Bytes of activations.
    pub activation_bytes: usize,
}

/// What a plan has to hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryNeeds {
    pub(crate) weight_bytes: usize,
    pub(crate) kv_bytes_per_token: usize,
    pub(crate) activation_bytes: usize,
    /// Asked for by the caller: then it is this or an error.
    pub(crate) context: Option<usize>,
    /// Used where the caller asked for nothing.
    pub(crate) default_context: usize,
    pub(crate) max_seqs: usize,
}

impl MemoryPlan {
    /// Divides `free` bytes (the weights are loaded after this). A context that the caller asked for must fit whole,
    /// once; a default one shrinks. The pool holds `max_seqs` full sequences where there is room, fewer where not.
    pub(crate) fn new(needs: MemoryNeeds, free: Option<u64>) -> Result<MemoryPlan, Error> {
        let page_bytes = needs.kv_bytes_per_token.saturating_mul(PAGE_LEN).max(1);
        let fixed = needs.weight_bytes.saturating_add(needs.activation_bytes);
        // A tenth stays free for the rest of the process and the rest of the machine.
        let budget = free.map_or(usize::MAX, |f| usize::try_from(f / 10 * 9).unwrap_or(usize::MAX));
        let affordable_pages = budget.saturating_sub(fixed) / page_bytes;
        let wanted = needs.context.unwrap_or(needs.default_context);
        let pages_per_sequence = wanted.div_ceil(PAGE_LEN);
        if affordable_pages < pages_per_sequence.min(if needs.context.is_some() { usize::MAX } else { 8 }) {
            return Err(shortfall(&needs, budget, fixed, affordable_pages, wanted, page_bytes));
        }
        let context = wanted.min(affordable_pages.saturating_mul(PAGE_LEN));
        let pages_per_sequence = context.div_ceil(PAGE_LEN);
        let n_pages = pages_per_sequence.saturating_mul(needs.max_seqs.max(1)).min(affordable_pages);
        Ok(MemoryPlan {
            context,
            n_pages,
            full_sequences: n_pages / pages_per_sequence,
            weight_bytes: needs.weight_bytes,
            kv_bytes: n_pages.saturating_mul(page_bytes),
            activation_bytes: needs.activation_bytes,
        })
    }
}

fn shortfall(
    needs: &MemoryNeeds,
    budget: usize,
    fixed: usize,
    affordable_pages: usize,
    wanted: usize,
    page_bytes: usize,
) -> Error {
    let mib = |bytes: usize| bytes as f64 / (1 << 20) as f64;
    let kv = wanted.div_ceil(PAGE_LEN).saturating_mul(page_bytes);
    let advice = match affordable_pages.saturating_mul(PAGE_LEN) {
        0 => "choose a smaller model or a smaller quantization".to_string(),
        fits => format!("the longest context that fits is --context {fits}"),
    };
    Error::Usage(format!(
        "a context of {wanted} tokens does not fit: weights {:.0} MiB + activations {:.0} MiB + KV {:.0} MiB = {:.0} MiB, \
         of {:.0} MiB that may be used; {advice}",
        mib(needs.weight_bytes),
        mib(needs.activation_bytes),
        mib(kv),
        mib(fixed.saturating_add(kv)),
        mib(budget),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDS: MemoryNeeds = MemoryNeeds {
        weight_bytes: 1000,
        kv_bytes_per_token: 10,
        activation_bytes: 500,
        context: None,
        default_context: 1024,
        max_seqs: 4,
    };

    #[test]
    fn meminfo_is_read_in_bytes() {
        let info = "MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:      42 kB\n";
        assert_eq!(parse_meminfo(info), Some(42 * 1024));
        assert_eq!(parse_meminfo("MemTotal: 1 kB"), None);
    }

    #[test]
    fn all_sequences_fit_where_there_is_room() {
        let plan = MemoryPlan::new(NEEDS, None).unwrap();
        assert_eq!((plan.context, plan.n_pages, plan.full_sequences), (1024, 128, 4));
    }

    #[test]
    fn fewer_sequences_then_a_shorter_default_context() {
        // 2 sequences of 1024 tokens (32 pages of 320 bytes) beside 1500 fixed bytes.
        let free = (1500 + 70 * 320) * 10 / 9 + 10;
        let plan = MemoryPlan::new(NEEDS, Some(free)).unwrap();
        assert_eq!((plan.context, plan.full_sequences), (1024, 2));
        let free = (1500 + 10 * 320) * 10 / 9 + 10;
        let plan = MemoryPlan::new(NEEDS, Some(free)).unwrap();
        assert_eq!((plan.context, plan.full_sequences), (320, 1));
    }

    #[test]
    fn a_context_that_was_asked_for_is_kept_or_refused_with_the_one_that_fits() {
        let free = (1500 + 10 * 320) * 10 / 9 + 10;
        let needs = MemoryNeeds { context: Some(1024), ..NEEDS };
        let error = MemoryPlan::new(needs, Some(free)).unwrap_err().to_string();
        assert!(error.contains("--context 320"), "{error}");
        let error = MemoryPlan::new(needs, Some(1000)).unwrap_err().to_string();
        assert!(error.contains("smaller model"), "{error}");
    }
}
