//! What every command shares: help, versions, completions, exit codes, plain output.

use std::process::{Command, Stdio};

use crate::pelton::Sandbox;

const COMMANDS: [&[&str]; 27] = [
    &["docs"],
    &["run"],
    &["chat"],
    &["serve"],
    &["route"],
    &["route", "rules"],
    &["route", "learn"],
    &["route", "eval"],
    &["inspect"],
    &["bench"],
    &["bench", "kernels"],
    &["bench", "serve"],
    &["bench", "ladder"],
    &["doctor"],
    &["pull"],
    &["list"],
    &["rm"],
    &["tokenize"],
    &["template"],
    &["eval"],
    &["eval", "logits"],
    &["eval", "perplexity"],
    &["eval", "kl"],
    &["eval", "multiple-choice"],
    &["eval", "qa"],
    &["compare"],
    &["completions"],
];

#[test]
fn every_command_has_help_that_fits_the_terminal() {
    let sandbox = Sandbox::new();
    let main = sandbox.run(&["--help"]).ok().stdout;
    for command in COMMANDS {
        assert!(main.contains(&format!("  {} ", command[0])), "{command:?} is not in the list");
        for flag in ["-h", "--help"] {
            let help = sandbox.run(&[command, &[flag]].concat()).ok().stdout;
            assert!(help.contains("Usage: pelton ") && help.contains("--quiet"), "{help}");
            let widest = help.lines().map(|l| l.chars().count()).max().unwrap();
            assert!(widest <= 100, "{command:?}: {widest} columns");
        }
    }
    assert!(sandbox.run(&["--version"]).ok().stdout.starts_with("pelton 0."));
}

#[test]
fn calls_that_cannot_be_end_with_two() {
    let sandbox = Sandbox::new();
    sandbox.run(&["frobnicate"]).usage(&["frobnicate", "--help"]);
    sandbox.run(&["run"]).usage(&["<PROMPT>"]);
    sandbox.run(&["run", "a", "--frob"]).usage(&["--frob"]);
    sandbox.run(&["run", "a", "-m", "nosuch"]).usage(&["nosuch", "ORG/NAME"]);
    sandbox.run(&["run", "a", "-m", ""]).usage(&["ORG/NAME"]);
    sandbox.run(&["run", "a", "-m", "./none.gguf"]).usage(&["./none.gguf", "no such file"]);
    assert_eq!(sandbox.run(&[]).code, Some(2));
}

#[test]
fn completions_are_scripts_for_their_shells() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = sandbox.run(&["completions", shell]).ok().stdout;
        assert!(script.contains("tokenize") && script.contains("rope-bf16"), "{shell}");
        let file = sandbox.write(shell, &script);
        // The shells that are installed check their own script's syntax.
        let check = Command::new(shell).arg("-n").arg(&file).stderr(Stdio::piped()).output();
        if let (true, Ok(output)) = (["bash", "zsh", "fish"].contains(&shell), check) {
            assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    sandbox.run(&["completions", "tcsh"]).usage(&["tcsh", "bash"]);
}

#[test]
fn a_closed_stdout_and_stderr_end_quietly() {
    let sandbox = Sandbox::new();
    for args in [&["inspect"][..], &["completions", "zsh"], &["run", "x", "-n", "3"], &["inspect", "nosuch"]] {
        let mut command = sandbox.command(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        let expected = if args.contains(&"nosuch") { 2 } else { 0 };
        assert_eq!(child.wait().unwrap().code(), Some(expected), "{args:?}");
    }
}
