//! Which processors this process may use, in the order in which threads should take them.
//!
//! Three things limit a process: its affinity mask (which a cgroup's cpuset narrows: the kernel answers with both
//! applied), the CPU quota of its control groups, and the fact that two hardware threads of a core share its
//! arithmetic units and caches. So the order is: one processor of every core, core after core within a NUMA node,
//! node after node; then the second hardware threads in the same order.
//!
//! Invariant: [`Cores::order`] names each allowed processor once and is never empty.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::thread;

/// The processors of this process.
#[derive(Clone, Debug, PartialEq)]
pub struct Cores {
    /// Numbers of the allowed processors, in order of preference.
    order: Vec<usize>,
    /// How many of them, from the first, are alone on their core.
    physical: usize,
    /// Processors' worth of time that the control groups grant.
    quota: Option<f64>,
    /// Whether the numbers are the system's, so that threads can be bound to them.
    can_bind: bool,
}

impl Cores {
    /// What this process may use, asked once.
    pub fn detect() -> &'static Cores {
        static CORES: OnceLock<Cores> = OnceLock::new();
        CORES.get_or_init(|| match affinity() {
            Some(allowed) if !allowed.is_empty() => {
                let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
                let quota = quota(Path::new("/sys/fs/cgroup"), &membership);
                Cores::of(Path::new("/sys/devices/system"), &allowed, quota)
            }
            _ => {
                let n = thread::available_parallelism().map_or(1, usize::from);
                Cores { order: (0..n).collect(), physical: n, quota: None, can_bind: false }
            }
        })
    }

    /// The cores that the processors `allowed` lie on, by the topology under `system` (`/sys/devices/system`). Where
    /// the system tells nothing of a processor, it counts as a core of its own.
    fn of(system: &Path, allowed: &BTreeSet<usize>, quota: Option<f64>) -> Cores {
        let nodes = nodes(system);
        // Cores by node and first hardware thread: the allowed processors of each.
        let mut cores: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for &cpu in allowed {
            let list = |name: &str| {
                let text = fs::read_to_string(system.join(format!("cpu/cpu{cpu}/topology/{name}"))).ok()?;
                parse_list(&text).into_iter().next()
            };
            let core = list("core_cpus_list").or_else(|| list("thread_siblings_list")).unwrap_or(cpu);
            let node = nodes.get(&cpu).copied().unwrap_or(0);
            cores.entry((node, core)).or_default().push(cpu);
        }
        let most = cores.values().map(Vec::len).max().unwrap_or(0);
        let nth = |n: usize| cores.values().filter_map(move |cpus| cpus.get(n).copied());
        let order: Vec<usize> = (0..most).flat_map(nth).collect();
        Cores { order, physical: cores.len(), quota, can_bind: true }
    }

    /// Threads that an op gains from: one for each core, fewer where the control groups grant less time. A quota of
    /// 2.5 processors is 3 threads (the nearest whole number: with fewer, granted time would be left over; with
    /// more, all threads of an op would stand still for most of each period).
    pub fn default_threads(&self) -> usize {
        let granted = self.quota.map_or(usize::MAX, |q| q.round().max(1.0) as usize);
        self.physical.min(granted)
    }

    /// Cores with at least one allowed processor.
    pub fn physical(&self) -> usize {
        self.physical
    }

    /// Allowed processors.
    pub fn logical(&self) -> usize {
        self.order.len()
    }

    /// Threads that may spin for a moment without taking a processor from one that works.
    pub(crate) fn spinnable(&self) -> usize {
        self.quota.map_or(self.logical(), |q| self.logical().min(q.ceil() as usize))
    }

    #[cfg(test)]
    pub(crate) fn can_bind(&self) -> bool {
        self.can_bind
    }

    /// Processors' worth of time that the control groups grant, where they limit it.
    pub fn quota(&self) -> Option<f64> {
        self.quota
    }

    /// Where `threads` threads run; nothing where they cannot or need not be bound.
    ///
    /// As many threads as cores (or as processors) are bound one to each: nothing else is left to choose, and a
    /// thread that the system moves leaves its caches behind. Fewer are kept on different cores (each may run on
    /// the first processor of any core) and the system chooses: bound to the first cores, two programs would share
    /// these while others idle. More threads than processors are left to the system.
    pub(crate) fn places(&self, threads: usize) -> Vec<Vec<usize>> {
        let one_each = |n: usize| -> Vec<Vec<usize>> { self.order[..n].iter().map(|&cpu| vec![cpu]).collect() };
        match threads {
            _ if !self.can_bind => Vec::new(),
            n if n == self.physical || n == self.logical() => one_each(n),
            n if n < self.physical => vec![self.order[..self.physical].to_vec(); n],
            _ => Vec::new(),
        }
    }
}

/// The processors that the calling thread may run on.
#[cfg(target_os = "linux")]
fn affinity() -> Option<BTreeSet<usize>> {
    // SAFETY: a set of processors is plain bits, for which zero is valid; the size that is given is its own.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        (libc::sched_getaffinity(0, size_of_val(&set), &mut set) == 0).then_some(set)
    }?;
    // SAFETY: only reads bits of the set, at numbers below its size.
    Some((0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

#[cfg(not(target_os = "linux"))]
fn affinity() -> Option<BTreeSet<usize>> {
    None
}

/// Lets the calling thread run on these processors alone. A system that refuses costs only speed.
pub(crate) fn bind_thread(cpus: &[usize]) {
    #[cfg(target_os = "linux")]
    if !cpus.is_empty() {
        // SAFETY: as in `affinity`; only bits below the set's size are set.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            cpus.iter().filter(|&&cpu| cpu < libc::CPU_SETSIZE as usize).for_each(|&cpu| libc::CPU_SET(cpu, &mut set));
            libc::sched_setaffinity(0, size_of_val(&set), &set);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = cpus;
}

/// The NUMA node of each processor.
fn nodes(system: &Path) -> BTreeMap<usize, usize> {
    let mut nodes = BTreeMap::new();
    for entry in fs::read_dir(system.join("node")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(node) = name.to_str().and_then(|n| n.strip_prefix("node")?.parse().ok()) else { continue };
        let list = fs::read_to_string(entry.path().join("cpulist")).unwrap_or_default();
        nodes.extend(parse_list(&list).into_iter().map(|cpu| (cpu, node)));
    }
    nodes
}

/// `0-3,8,10-11` as numbers; what is no such list is empty.
fn parse_list(text: &str) -> BTreeSet<usize> {
    /// More processors than any machine has.
    const MOST: usize = 1 << 16;
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse::<usize>().ok()?);
        (last < MOST).then_some(first..=last)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

/// The tightest CPU quota of the groups that `membership` (`/proc/self/cgroup`) names and of all above them, in
/// processors: version 2's `cpu.max`, version 1's `cpu.cfs_quota_us`.
fn quota(root: &Path, membership: &str) -> Option<f64> {
    let mut tightest: Option<f64> = None;
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let bases = match controllers {
            "" => vec![root.to_path_buf(), root.join("unified")],
            c if c.split(',').any(|c| c == "cpu") => vec![root.join("cpu"), root.join("cpu,cpuacct"), root.join(c)],
            _ => continue,
        };
        // A container may see its own group as the root, whatever the path says: the root is always asked.
        for above in Path::new(path.trim_start_matches('/')).ancestors() {
            let here = bases.iter().filter_map(|base| quota_of(&base.join(above)));
            tightest = here.chain(tightest).reduce(f64::min);
        }
    }
    tightest
}

/// The quota of one group.
fn quota_of(folder: &Path) -> Option<f64> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|&n| n > 0.0 && n.is_finite());
    if let Some(max) = read("cpu.max") {
        // "max" is no number: no limit.
        let (quota, period) = max.trim().split_once(' ')?;
        return Some(number(quota)? / number(period)?);
    }
    // -1 is no limit.
    Some(number(&read("cpu.cfs_quota_us")?)? / number(&read("cpu.cfs_period_us")?)?)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A folder that is removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("pelton-cores-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn write(&self, file: &str, text: &str) {
            let path = self.0.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Two nodes of two cores of two threads; numbered as machines do: first all cores, then the second threads.
    fn two_nodes() -> Folder {
        let system = Folder::new("nodes");
        for cpu in 0..8 {
            let core = cpu % 4;
            system.write(&format!("cpu/cpu{cpu}/topology/thread_siblings_list"), &format!("{core},{}\n", core + 4));
        }
        // Cores alternate between the nodes.
        system.write("node/node0/cpulist", "0,2,4,6\n");
        system.write("node/node1/cpulist", "1,3,5,7\n");
        system.write("node/possible", "0-1\n");
        system
    }

    fn set(cpus: &[usize]) -> BTreeSet<usize> {
        cpus.iter().copied().collect()
    }

    #[test]
    fn cores_come_first_node_by_node_and_second_threads_last() {
        let system = two_nodes();
        let cores = Cores::of(&system.0, &(0..8).collect(), None);
        assert_eq!(cores.order, [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!((cores.physical(), cores.logical(), cores.default_threads()), (4, 8, 4));
    }

    #[test]
    fn an_affinity_mask_narrows_cores_and_processors() {
        let system = two_nodes();
        // Both threads of core 0, the second one of core 1.
        let cores = Cores::of(&system.0, &set(&[0, 4, 5]), None);
        assert_eq!((cores.order.as_slice(), cores.physical()), (&[0, 5, 4][..], 2));
        assert_eq!(cores.places(2), [vec![0], vec![5]]);
    }

    #[test]
    fn without_topology_each_processor_is_a_core() {
        let cores = Cores::of(Path::new("/nonexistent"), &set(&[3, 9]), None);
        assert_eq!((cores.order.as_slice(), cores.physical()), (&[3, 9][..], 2));
    }

    #[test]
    fn threads_are_bound_where_there_is_no_choice_and_kept_apart_where_there_is() {
        let system = two_nodes();
        let cores = Cores::of(&system.0, &(0..8).collect(), None);
        assert_eq!(cores.places(4), [vec![0], vec![2], vec![1], vec![3]]);
        assert_eq!(cores.places(8).len(), 8);
        assert_eq!(cores.places(2), [vec![0, 2, 1, 3], vec![0, 2, 1, 3]]);
        assert!(cores.places(5).is_empty() && cores.places(9).is_empty());
        let cores = Cores { can_bind: false, ..cores };
        assert!(cores.places(4).is_empty());
    }

    #[test]
    fn a_quota_is_rounded_to_threads() {
        let cores = |quota| Cores { order: (0..8).collect(), physical: 8, quota, can_bind: true };
        let threads =
            [None, Some(0.1), Some(1.0), Some(1.4), Some(2.5), Some(100.0)].map(|q| cores(q).default_threads());
        assert_eq!(threads, [8, 1, 1, 1, 3, 8]);
    }

    #[test]
    fn the_tightest_quota_of_both_versions_and_all_levels_holds() {
        let root = Folder::new("v2");
        root.write("app/cpu.max", "250000 100000\n");
        root.write("app/job/cpu.max", "max 100000\n");
        assert_eq!(quota(&root.0, "0::/app/job\n"), Some(2.5));
        assert_eq!(quota(&root.0, "0::/elsewhere\n"), None);
        // Inside a container its group lies at the root.
        root.write("cpu.max", "50000 100000\n");
        assert_eq!(quota(&root.0, "0::/not/visible\n"), Some(0.5));

        let root = Folder::new("v1");
        root.write("cpu,cpuacct/box/cpu.cfs_quota_us", "300000\n");
        root.write("cpu,cpuacct/box/cpu.cfs_period_us", "100000\n");
        root.write("cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
        root.write("cpu,cpuacct/cpu.cfs_period_us", "100000\n");
        assert_eq!(quota(&root.0, "4:memory:/box\n2:cpu,cpuacct:/box\n0::/\nnonsense\n"), Some(3.0));
    }

    #[test]
    fn nonsense_is_no_quota_and_no_list() {
        let root = Folder::new("odd");
        for text in ["", "max", "0 100000", "-5 100000", "100000 0", "nan nan", "1e400 x"] {
            root.write("cpu.max", text);
            assert_eq!(quota(&root.0, "0::/\n"), None, "{text:?}");
        }
        for text in ["", "x", "-", "5-3", "1-99999999999"] {
            assert!(parse_list(text).is_empty(), "{text:?}");
        }
        assert_eq!(parse_list("0-2,7, 9-9\n"), set(&[0, 1, 2, 7, 9]));
    }

    #[test]
    fn this_process_has_cores() {
        let cores = Cores::detect();
        assert!(cores.default_threads() >= 1 && cores.physical() <= cores.logical(), "{cores:?}");
        let distinct: BTreeSet<_> = cores.order.iter().collect();
        assert_eq!(distinct.len(), cores.logical());
    }
}
