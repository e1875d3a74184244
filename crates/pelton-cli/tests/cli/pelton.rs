//! Runs the binary. Invariant: a test sees neither the user's home and model cache nor `PELTON_*` of the caller.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A folder to work in, and a home beside it.
pub(crate) struct Sandbox {
    root: TempDir,
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Sandbox {
    pub(crate) fn new() -> Sandbox {
        let root = tempfile::tempdir().unwrap();
        for folder in ["work", "home"] {
            std::fs::create_dir(root.path().join(folder)).unwrap();
        }
        Sandbox { root }
    }

    /// A path below the folder that commands run in.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.path().join("work").join(name)
    }

    /// Writes a file below the folder that commands run in, with the folders above it.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The command, ready to start.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pelton"));
        let home = self.root.path().join("home");
        command.args(args).current_dir(self.path("")).stdin(Stdio::null()).env("HOME", &home);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy().to_ascii_uppercase();
            let foreign = ["PELTON_", "HF_", "XDG_", "CLICOLOR"].iter().any(|start| text.starts_with(start));
            if foreign || text.ends_with("_PROXY") || text == "NO_COLOR" {
                command.env_remove(&name);
            }
        }
        command.env("HF_HUB_CACHE", home.join("hub")).env("XDG_STATE_HOME", home.join("state"));
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Outcome {
        self.run_with(args, &[], "")
    }

    pub(crate) fn pipe(&self, args: &[&str], stdin: impl AsRef<[u8]>) -> Outcome {
        self.run_with(args, &[], stdin)
    }

    pub(crate) fn run_with(&self, args: &[&str], vars: &[(&str, &str)], stdin: impl AsRef<[u8]>) -> Outcome {
        let mut command = self.command(args);
        command.envs(vars.iter().copied());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A command that refuses its arguments may be gone before it read anything.
        let _gone = child.stdin.take().unwrap().write_all(stdin.as_ref());
        let output = child.wait_with_output().unwrap();
        Outcome {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
        }
    }
}

impl Outcome {
    /// The outcome, where it is a success.
    #[track_caller]
    pub(crate) fn ok(self) -> Outcome {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.plain()
    }

    /// The outcome, where it is a usage error that says each of `words`.
    #[track_caller]
    pub(crate) fn usage(self, words: &[&str]) -> Outcome {
        self.refused(2, words)
    }

    /// The outcome, where it is a failure that says each of `words`.
    #[track_caller]
    pub(crate) fn failure(self, words: &[&str]) -> Outcome {
        self.refused(1, words)
    }

    #[track_caller]
    fn refused(self, code: i32, words: &[&str]) -> Outcome {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert!(self.stderr.contains("error: "), "{self:#?}");
        assert_eq!(self.stdout, "", "an error leaves stdout empty");
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is missing: {}", self.stderr);
        }
        self.plain()
    }

    /// Piped output has no escape codes and nothing of a panic.
    #[track_caller]
    fn plain(self) -> Outcome {
        for text in [&self.stdout, &self.stderr] {
            assert!(!text.contains('\u{1b}') && !text.contains("panicked"), "{text}");
        }
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:#?}"))
    }
}

/// Asserts that an object has exactly these keys.
#[track_caller]
pub(crate) fn assert_keys(object: &Value, keys: &[&str]) {
    let mut has: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    let mut wanted = keys.to_vec();
    has.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(has, wanted);
}

/// A path as an argument.
pub(crate) fn arg(path: &impl AsRef<OsStr>) -> &str {
    path.as_ref().to_str().unwrap()
}
