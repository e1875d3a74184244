//! What is measured, and how each engine is asked for it: the files of `benches/`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::output::Output;

/// One test.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Test {
    pub(super) name: String,
    /// Many tokens together, or one a step.
    pub(super) prefill: bool,
    pub(super) tokens: usize,
    /// Tokens that are there before.
    pub(super) depth: usize,
    /// Sequences.
    pub(super) batch: usize,
}

/// An engine whose binaries are here.
#[derive(Clone, Debug)]
pub(super) struct Engine {
    pub(super) name: String,
    folder: PathBuf,
    json: Value,
}

/// Both files.
pub(super) struct Definitions {
    pub(super) tests: Vec<Test>,
    engines: Vec<Value>,
}

impl Definitions {
    pub(super) fn read(tests: &Path, engines: &Path) -> Result<Definitions, String> {
        let read = |path: &Path| {
            let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
            serde_json::from_str::<Value>(&text).map_err(|e| format!("{}: {e}", path.display()))
        };
        let list = |value: Value, key: &str, path: &Path| match &value[key] {
            Value::Array(items) => Ok(items.clone()),
            _ => Err(format!("{}: no list `{key}`", path.display())),
        };
        let all = list(read(tests)?, "tests", tests)?;
        let tests = all.iter().map(|t| test(t).map_err(|e| format!("{}: {e}", tests.display())));
        Ok(Definitions { tests: tests.collect::<Result<_, _>>()?, engines: list(read(engines)?, "engines", engines)? })
    }

    /// The engine of that name, with its binaries in `folder`.
    pub(super) fn engine(&self, name: &str, folder: &Path) -> Result<Engine, String> {
        let known = || self.engines.iter().filter_map(|e| e["name"].as_str()).collect::<Vec<_>>().join(", ");
        let json = self.engines.iter().find(|e| e["name"] == name);
        let json = json.ok_or_else(|| format!("no engine `{name}` in benches/rivals.json, which has {}", known()))?;
        Ok(Engine { name: name.into(), folder: folder.into(), json: json.clone() })
    }
}

fn test(json: &Value) -> Result<Test, String> {
    let count = |key: &str| {
        let n = json[key].as_u64().and_then(|n| usize::try_from(n).ok());
        n.ok_or_else(|| format!("test {}: `{key}` is no count", json["name"]))
    };
    let prefill = match json["kind"].as_str() {
        Some("prefill") => true,
        Some("decode") => false,
        _ => return Err(format!("test {}: `kind` is neither prefill nor decode", json["name"])),
    };
    let name = json["name"].as_str().ok_or("a test without a name")?.to_string();
    Ok(Test { name, prefill, tokens: count("tokens")?, depth: count("depth")?, batch: count("batch")? })
}

impl Engine {
    /// Program and arguments for a test; `None` where the engine has no such test.
    pub(super) fn command(&self, test: &Test, model: &Path, threads: usize) -> Option<Vec<String>> {
        let batched = self.is_batched(test);
        let key = match test {
            _ if batched => "batched",
            t if t.prefill => "prefill",
            t if t.depth > 0 && !self.json["decode_at_depth"].is_null() => "decode_at_depth",
            _ => "decode",
        };
        let arguments = self.json[key].as_array()?;
        let context = test.batch * (test.depth + test.tokens);
        let fill = |argument: &Value| {
            let mut text = argument.as_str()?.to_string();
            let counts = [("threads", threads), ("tokens", test.tokens), ("depth", test.depth)];
            for (name, value) in counts.into_iter().chain([("batch", test.batch), ("context", context)]) {
                text = text.replace(&format!("{{{name}}}"), &value.to_string());
            }
            Some(text.replace("{model}", &model.display().to_string()))
        };
        let program = self.json[if batched { "batched_program" } else { "program" }].as_str()?;
        let program = self.folder.join(program).display().to_string();
        std::iter::once(Some(program)).chain(arguments.iter().map(fill)).collect()
    }

    /// Whether a program of its own measures several sequences.
    fn is_batched(&self, test: &Test) -> bool {
        test.batch > 1 && !self.json["batched"].is_null()
    }

    /// Where the figure of a test is in what the engine prints.
    pub(super) fn output(&self, test: &Test) -> Output {
        match self.json["output"].as_str() {
            _ if self.is_batched(test) => Output::BatchedBench,
            Some("pelton") => Output::Pelton,
            _ => Output::LlamaBench,
        }
    }

    /// What the engine says of its version, the first line; empty where it says nothing.
    pub(super) fn version(&self) -> String {
        let Some(arguments) = self.json["version"].as_array() else { return String::new() };
        let Some(program) = self.json["program"].as_str() else { return String::new() };
        let arguments = arguments.iter().filter_map(Value::as_str);
        let Ok(output) = std::process::Command::new(self.folder.join(program)).args(arguments).output() else {
            return String::new();
        };
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).lines().find(|l| !l.trim().is_empty()).unwrap_or_default().trim().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Definitions {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches");
        Definitions::read(&root.join("definitions/cpu.json"), &root.join("rivals.json")).unwrap()
    }

    #[test]
    fn every_engine_has_a_whole_command_for_every_test() {
        let definitions = ours();
        assert!(definitions.tests.len() >= 5 && definitions.engines.len() >= 3);
        for name in ["pelton", "llama.cpp", "ik_llama.cpp"] {
            let engine = definitions.engine(name, Path::new("/bin")).unwrap();
            for test in &definitions.tests {
                let command = engine.command(test, Path::new("m.gguf"), 3).unwrap().join(" ");
                assert!(!command.contains(['{', '}']), "{command}");
                assert!(command.contains("m.gguf") && command.contains(&test.tokens.to_string()), "{command}");
                assert!(test.depth == 0 || command.contains(&test.depth.to_string()), "{command}");
                assert!(test.batch == 1 || command.contains(&format!(" {} ", test.batch)), "{command}");
            }
        }
        assert!(definitions.engine("vllm", Path::new("/")).unwrap_err().contains("llama.cpp"));
    }

    #[test]
    fn a_test_without_its_fields_is_refused() {
        let bad = serde_json::json!({ "name": "x", "kind": "prefill", "tokens": 4, "depth": -1, "batch": 1 });
        assert!(test(&bad).unwrap_err().contains("depth"));
        assert!(test(&serde_json::json!({ "name": "x", "kind": "sing" })).unwrap_err().contains("kind"));
    }
}
