//! The simulator's driver library, built with the system's C++ compiler (`CXX`, else `c++`) when it is first asked for and
//! kept beside what cargo builds. It is what a `libcuda.so` is to [`crate::CudaOptions::driver`].
//!
//! Its extra functions are [`Simulator`]'s: the order in which lanes run, memory that is short, a device that is lost.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use libloading::Library;

use crate::kernels::{HEADERS, SOURCES};

/// The simulator's own files.
const FILES: [(&str, &str); 4] = [
    ("sim.h", include_str!("../sim/sim.h")),
    ("sim_core.h", include_str!("../sim/sim_core.h")),
    ("sim.cpp", include_str!("../sim/sim.cpp")),
    ("fakecuda.cpp", include_str!("../sim/fakecuda.cpp")),
];

/// How to build it.
#[derive(Clone, Debug, Default)]
pub struct Build<'a> {
    /// Changes to the sources, `(file, text, instead)`: mistakes that tests must notice.
    pub changes: &'a [(&'a str, &'a str, &'a str)],
    /// With AddressSanitizer (a process that loads it must have it loaded already).
    pub sanitize: bool,
}

/// The library, as the sources are. With `PELTON_SIMULATOR=sanitized` in the environment it is built with
/// AddressSanitizer, with `overrun` there is a read past the end of a matrix in it besides: `cargo xtask cuda-sanitize`
/// wants to see that reported.
///
/// # Panics
/// Where it cannot be built: this is for tests.
pub fn library() -> PathBuf {
    const OVERRUN: (&str, &str, &str) = (
        "norm.cu",
        "to[i] = row[i] * scale * weight[i];\n}\nKERNEL(rms_norm)",
        "to[i] = row[i + 64] * scale * weight[i];\n}\nKERNEL(rms_norm)",
    );
    match std::env::var("PELTON_SIMULATOR").as_deref() {
        Ok("sanitized") => build(&Build { sanitize: true, ..Build::default() }),
        Ok("overrun") => build(&Build { sanitize: true, changes: &[OVERRUN] }),
        _ => build(&Build::default()),
    }
}

/// The library with changes.
///
/// # Panics
/// Where it cannot be built, or a text to change is not there exactly once.
pub fn build(how: &Build<'_>) -> PathBuf {
    let folder = Path::new(env!("OUT_DIR")).join("simulator");
    fs::create_dir_all(&folder).expect("cargo's folder can be written");
    // One process builds at a time; the others find what it built.
    let lock = File::create(folder.join("lock")).expect("cargo's folder can be written");
    lock.lock().expect("a lock");
    let sources = sources(how.changes);
    let headers: Vec<_> = sources.iter().filter(|(n, _)| !is_compiled(n)).collect();
    // What is used once is not worth the compiler's time.
    let level = match (how.sanitize, how.changes.is_empty()) {
        (true, _) => Level::Sanitized,
        (false, true) => Level::Fast,
        (false, false) => Level::Quick,
    };
    // One compiler for each core, and each file by whoever is free.
    let compiled: Vec<_> = sources.iter().filter(|(name, _)| is_compiled(name)).collect();
    let next = AtomicUsize::new(0);
    let compile = || {
        let files = std::iter::from_fn(|| compiled.get(next.fetch_add(1, Ordering::Relaxed)));
        files.map(|(name, text)| object(&folder, name, text, &headers, level)).collect::<Vec<_>>()
    };
    let mut objects: Vec<PathBuf> = std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let compilers: Vec<_> = (0..threads).map(|_| scope.spawn(compile)).collect();
        compilers.into_iter().flat_map(|c| c.join().expect("a compiler that works")).collect()
    });
    objects.sort();
    let path = folder.join(format!("libcuda-{:016x}.so", hash(&objects)));
    if !path.exists() {
        let made = folder.join("linking.so");
        let mut command = compiler(level);
        command.args(["-shared", "-o"]).arg(&made).args(&objects);
        run(command);
        fs::rename(made, &path).expect("the folder is ours");
    }
    path
}

/// How a file is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Level {
    Fast,
    Quick,
    Sanitized,
}

fn is_compiled(name: &str) -> bool {
    name.ends_with(".cu") || name.ends_with(".cpp")
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// All files with their texts, changed.
fn sources(changes: &[(&str, &str, &str)]) -> Vec<(String, String)> {
    let kernels = SOURCES.iter().map(|s| (format!("{}.cu", s.name), s.text.to_string()));
    let others = HEADERS.iter().chain(&FILES).map(|(n, t)| (n.to_string(), t.to_string()));
    let mut all: Vec<(String, String)> = kernels.chain(others).collect();
    for (file, text, instead) in changes {
        let (_, source) = all.iter_mut().find(|(n, _)| n == file).unwrap_or_else(|| panic!("no file {file}"));
        assert_eq!(source.matches(text).count(), 1, "{file} has this once: {text}");
        *source = source.replace(text, instead);
    }
    all
}

/// One compiled file, from the last time where nothing that it is made of has changed.
fn object(folder: &Path, name: &str, text: &str, headers: &[&(String, String)], level: Level) -> PathBuf {
    let used: Vec<_> = headers.iter().filter(|(header, _)| includes(text, header, headers)).collect();
    let path = |level: Level| folder.join(format!("{name}-{:016x}.o", hash(&(name, text, &used, level))));
    if level == Level::Quick && path(Level::Fast).exists() {
        return path(Level::Fast);
    }
    let object = path(level);
    if object.exists() {
        return object;
    }
    let work = folder.join(format!("work-{:016x}", hash(&object)));
    fs::create_dir_all(&work).expect("the folder is ours");
    for (header, text) in headers {
        fs::write(work.join(header), text).expect("the folder is ours");
    }
    fs::write(work.join(name), text).expect("the folder is ours");
    let made = work.join("made.o");
    let mut command = compiler(level);
    command
        .current_dir(&work)
        .args(["-DPELTON_SIM", "-Wall", "-Wno-unknown-pragmas", "-x", "c++", "-c", name, "-o"])
        .arg(&made);
    run(command);
    fs::rename(made, &object).expect("the folder is ours");
    fs::remove_dir_all(work).expect("the folder is ours");
    object
}

/// Whether a text includes a header, itself or through others.
fn includes(text: &str, header: &str, headers: &[&(String, String)]) -> bool {
    let names = |h: &str| text.contains(&format!("#include \"{h}\""));
    names(header)
        || headers.iter().any(|(other, inner)| other != header && names(other) && includes(inner, header, headers))
}

fn compiler(level: Level) -> Command {
    let mut command = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()));
    // A sanitizer that is loaded into this process is not the compiler's affair.
    command.env_remove("LD_PRELOAD");
    // Kernels read bytes as words: the compiler must not assume that they do not.
    command.args(["-std=c++20", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off", "-fvisibility=hidden"]);
    command.args(match level {
        Level::Fast => ["-O2"].as_slice(),
        Level::Quick => &["-O1"],
        Level::Sanitized => &["-O1", "-g", "-fsanitize=address,alignment"],
    });
    command
}

fn run(mut command: Command) {
    let output = command.output().unwrap_or_else(|e| panic!("the simulator needs a C++ compiler: {command:?}: {e}"));
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// The simulator's own functions.
#[derive(Debug)]
pub struct Simulator {
    library: Library,
}

impl Simulator {
    /// Those of a library that [`build`] made; its state is that of all who have it open.
    ///
    /// # Panics
    /// Where it cannot be loaded.
    pub fn of(path: &Path) -> Simulator {
        // SAFETY: it was built from our own sources.
        Simulator { library: unsafe { Library::new(path) }.expect("the simulator loads") }
    }

    fn call<T>(&self, name: &str, value: T) {
        // SAFETY: the functions of sim/fakecuda.cpp that set something take one value and give none.
        unsafe {
            self.library.get::<unsafe extern "C" fn(T)>(name.as_bytes()).expect("a function of the simulator")(value)
        }
    }

    /// Lanes and warps run in the order that this number decides; 0: as they come.
    pub fn set_seed(&self, seed: u32) {
        self.call("sim_set_seed", seed);
    }

    /// Bytes of memory that the device has.
    pub fn set_memory_limit(&self, bytes: usize) {
        self.call("sim_set_memory_limit", bytes);
    }

    /// Finds out what each kernel writes, for those that are launched early: what the kernel before them wrote is hidden
    /// from them until they wait.
    pub fn track_writes(&self) {
        self.call("sim_track_writes", 1u32);
    }

    /// Kernels launched early so far, into graphs too.
    pub fn early_launches(&self) -> u32 {
        // SAFETY: a function of sim/fakecuda.cpp that gives a number.
        unsafe { self.library.get::<unsafe extern "C" fn() -> u32>(b"sim_early_launches\0").expect("a function")() }
    }

    /// From now on every call fails, as after a fault.
    pub fn lose_device(&self) {
        self.call("sim_lose_device", ());
    }

    /// Every call fails from so many kernels on, as after a fault, until a new context is made.
    pub fn lose_device_in(&self, kernels: u32) {
        self.call("sim_lose_in", kernels);
    }

    /// A lost device is not there for a new context either, or is again.
    pub fn stay_lost(&self, yes: bool) {
        self.call("sim_stay_lost", u32::from(yes));
    }

    /// The device is back.
    pub fn find_device(&self) {
        self.call("sim_find_device", ());
    }
}
