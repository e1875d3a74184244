//! Patches: `git apply` takes them, and afterwards every item has its comment and nothing else has changed.

use std::fs;
use std::path::Path;
use std::process::Command;

use pelton_docs::{Format, Item, Scan, SkipReason};

use crate::support::{always, fake, folder, options, outline, output, project, put};

/// Applies a patch with git; true where git is there and takes it.
fn git_apply(root: &Path, patch: &str) -> bool {
    let file = root.join("all.patch");
    fs::write(&file, patch).expect("the patch can be written");
    let ran = Command::new("git").args(["apply", "--whitespace=nowarn", "all.patch"]).current_dir(root).output();
    let ran = ran.expect("these tests need git");
    fs::remove_file(&file).expect("the patch can be removed");
    assert!(ran.status.success(), "git apply: {}\n{patch}", String::from_utf8_lossy(&ran.stderr));
    ran.status.success()
}

fn git_init(root: &Path) {
    let ran = Command::new("git").args(["init", "-q"]).current_dir(root).status().expect("these tests need git");
    assert!(ran.success());
}

/// Copies a fixture project to a folder of its own.
fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let mut open = vec![project(name)];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).expect("the fixture is there").flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
            } else {
                let path = entry.path();
                let relative = path.strip_prefix(project(name)).expect("it lies in the project");
                put(dir.path(), &relative.to_string_lossy(), &fs::read(entry.path()).expect("readable"));
            }
        }
    }
    dir
}

/// Names, kinds, and the words of signatures and of functions' code; a one-line body moves to its own line.
fn identities(scan: &Scan) -> Vec<(String, String, String)> {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let code = |item: &Item| if item.kind.is_function() { words(&item.code) } else { words(&item.signature) };
    scan.items().map(|item| (item.qualified_name.clone(), item.kind.words().into(), code(item))).collect()
}

/// Patches `root` and checks the round trip; returns the reasons for items without a comment.
fn round_trip(root: &Path, answer: &str) -> Vec<SkipReason> {
    let before = Scan::of(root).expect("the project scans");
    let (summary, patch) = output(&options(root, Format::Patch), &mut always(answer));
    assert!(summary.written > 0);
    git_apply(root, &patch);
    let after = Scan::of(root).expect("the patched project scans");
    assert_eq!(identities(&before), identities(&after), "{patch}");
    let skipped: Vec<_> = summary.skips.iter().filter(|skip| skip.name.is_some()).collect();
    for item in after.items() {
        let left_out = skipped.iter().any(|skip| skip.name.as_ref() == Some(&item.name));
        assert!(item.doc.is_some() || left_out, "{} has no doc after:\n{patch}", item.qualified_name);
    }
    let (again, empty) = output(&options(root, Format::Patch), &mut always(answer));
    assert_eq!((again.written, empty.as_str()), (0, ""), "a second run finds nothing to do");
    skipped.iter().map(|skip| skip.reason).collect()
}

const ANSWER: &str = "Returns the value of the thing that was asked for, in a sentence long enough to be wrapped at the width.\n\nArgs:\n    value: The value.";
const HOSTILE: &str = "Ends */ and \"\"\" and ''' and \\ and \\u002a\\u002f /* and // and ``` and \"";

#[test]
fn every_language_makes_the_round_trip() {
    use SkipReason::{Defaulted, InheritsDoc, Overload, SharedLine, TestItem};
    let cases: [(&str, &[SkipReason]); 8] = [
        ("rust", &[TestItem, TestItem, InheritsDoc, SharedLine]),
        ("python", &[Overload]),
        ("javascript", &[]),
        ("typescript", &[]),
        ("go", &[]),
        ("java", &[InheritsDoc]),
        ("c", &[]),
        ("cpp", &[Defaulted]),
    ];
    for (name, expected) in cases {
        for answer in [ANSWER, HOSTILE, "Short."] {
            let dir = copy(name);
            assert_eq!(round_trip(dir.path(), answer), expected, "{name}");
        }
    }
}

#[test]
fn windows_lines_and_missing_last_line_breaks_survive() {
    let sources = [
        ("a.py", "def f(a):\n    return a\n\n\nclass A: pass"),
        ("a.rs", "fn f() {}\n\nstruct S {\n    a: u8,\n}\n\nfn last() {}"),
        ("a.js", "function f() {\n\treturn 1;\n}\nclass A {\n\tg() {}\n}"),
        ("a.go", "package a\n\nfunc F() {}\n\ntype T struct{}"),
        ("A.java", "class A {\n  void f() {}\n}"),
        ("a.c", "int f(void) {\n  return 1;\n}"),
    ];
    for (name, source) in sources {
        let windows = source.replace('\n', "\r\n");
        let dir = folder(&[(name, &windows)]);
        round_trip(dir.path(), ANSWER);
        let text = fs::read_to_string(dir.path().join(name)).expect("readable");
        assert_eq!(text.matches('\n').count(), text.matches("\r\n").count(), "{name}: {text:?}");
        assert!(!text.ends_with('\n'), "{name} gained a line break: {text:?}");
        let dir = folder(&[(name, &format!("\u{feff}{source}"))]);
        round_trip(dir.path(), ANSWER);
        let text = fs::read_to_string(dir.path().join(name)).expect("readable");
        assert!(text.starts_with('\u{feff}') && text.matches('\u{feff}').count() == 1, "{name}: {text:?}");
    }
}

#[test]
fn comments_go_where_each_language_wants_them() {
    let cases = [
        (
            "a.rs",
            "mod m {\n    #[inline]\n    fn f() {}\n}\n",
            "mod m {\n    /// Adds.\n    #[inline]\n    fn f() {}\n}\n",
        ),
        (
            "a.py",
            "@d\ndef f(a):  # x\n    # why\n    return a\n",
            "@d\ndef f(a):  # x\n    \"\"\"Adds.\"\"\"\n    # why\n    return a\n",
        ),
        (
            "a.py",
            "class A:\n\tdef f(self): return 1\n",
            "class A:\n\t\"\"\"Adds.\"\"\"\n\tdef f(self):\n\t\t\"\"\"Adds.\"\"\"\n\t\treturn 1\n",
        ),
        (
            "a.ts",
            "// @ts-ignore\nexport const f = () => 1;\n",
            "/** Adds. */\n// @ts-ignore\nexport const f = () => 1;\n",
        ),
        (
            "a.ts",
            "class A {\n  @log()\n  f() {}\n}\n",
            "/** Adds. */\nclass A {\n  /** Adds. */\n  @log()\n  f() {}\n}\n",
        ),
        ("a.go", "package a\n\n//go:noinline\nfunc F() {}\n", "package a\n\n// F adds.\n//go:noinline\nfunc F() {}\n"),
        (
            "A.java",
            "@X\nclass A {\n    @Y\n    int f() { return 1; }\n}\n",
            "/** Adds. */\n@X\nclass A {\n    /** Adds. */\n    @Y\n    int f() { return 1; }\n}\n",
        ),
        (
            "a.cpp",
            "template <class T>\nint f(T t) { return 1; }\n",
            "/** Adds. */\ntemplate <class T>\nint f(T t) { return 1; }\n",
        ),
        (
            "a.c",
            "/* Copyright me */\nint f(void) { return 1; }\n",
            "/* Copyright me */\n/** Adds. */\nint f(void) { return 1; }\n",
        ),
    ];
    for (name, before, after) in cases {
        let dir = folder(&[(name, before)]);
        let (_, patch) = output(&options(dir.path(), Format::Patch), &mut always("Adds."));
        git_apply(dir.path(), &patch);
        assert_eq!(fs::read_to_string(dir.path().join(name)).expect("readable"), after);
    }
}

#[test]
fn regenerate_replaces_comments() {
    let cases = [
        ("a.rs", "/// Old.\n/// More.\nfn f() {}\n", "/// New.\nfn f() {}\n"),
        (
            "a.py",
            "def f():\n    \"\"\"Old.\n\n    More.\n    \"\"\"\n    return 1\n",
            "def f():\n    \"\"\"New.\"\"\"\n    return 1\n",
        ),
        ("a.py", "class E(Exception):\n    \"\"\"Old.\"\"\"", "class E(Exception):\n    \"\"\"New.\"\"\""),
        ("a.js", "/**\n * Old.\n */\nfunction f() {}\n", "/** New. */\nfunction f() {}\n"),
        ("a.go", "package a\n\n// F is old.\nfunc F() {}\n", "package a\n\n// F: New.\nfunc F() {}\n"),
    ];
    for (name, before, after) in cases {
        let dir = folder(&[(name, before)]);
        let mut options = options(dir.path(), Format::Patch);
        options.regenerate = true;
        let mut prompts = Vec::new();
        let mut writer = fake(|prompt: &str| {
            prompts.push(prompt.to_owned());
            Ok("New.".to_owned())
        });
        let (_, patch) = output(&options, &mut writer);
        git_apply(dir.path(), &patch);
        assert_eq!(fs::read_to_string(dir.path().join(name)).expect("readable"), after);
        assert!(prompts.iter().all(|prompt| !prompt.contains("Old.")), "the model must not see the old comment");
    }
    let dir = folder(&[("a.rs", "/// New.\nfn f() {}\n")]);
    let mut same = options(dir.path(), Format::Patch);
    same.regenerate = true;
    assert_eq!(output(&same, &mut always("New.")).1, "", "the same comment is no change");
    let dir = folder(&[("a.rs", "#[doc = \"Old.\"]\nfn f() {}\n")]);
    let mut options = options(dir.path(), Format::Patch);
    options.regenerate = true;
    let (summary, patch) = output(&options, &mut always("New."));
    assert_eq!((summary.skips[0].reason, patch.as_str()), (SkipReason::FixedDoc, ""));
}

#[test]
fn inside_a_repository_paths_start_at_its_top() {
    let dir = folder(&[("sub dir/a.rs", "fn f() {}\n"), ("sub dir/b \"q\".rs", "fn g() {}\n")]);
    git_init(dir.path());
    let (_, patch) = output(&options(&dir.path().join("sub dir"), Format::Patch), &mut always("Adds."));
    assert!(patch.starts_with("diff --git a/sub dir/a.rs b/sub dir/a.rs\n"), "{patch}");
    git_apply(dir.path(), &patch);
    let scan = Scan::of(dir.path()).expect("scans");
    assert!(scan.items().count() == 2 && scan.items().all(|item| item.doc.is_some()), "{}", outline(&scan));
}

#[test]
fn a_file_that_changes_meanwhile_is_left_out() {
    let dir = folder(&[("a.rs", "fn f() {}\n"), ("b.rs", "fn g() {}\n")]);
    let path = dir.path().join("a.rs");
    let mut writer = fake(|_: &str| {
        fs::write(&path, "// new\nfn f() {}\n").expect("writable");
        Ok("Adds.".to_owned())
    });
    let (summary, patch) = output(&options(dir.path(), Format::Patch), &mut writer);
    assert!(!patch.contains("a.rs") && patch.contains("b.rs"), "{patch}");
    assert_eq!(summary.skips[0].reason, SkipReason::FileChanged);
}

#[test]
fn distant_and_close_changes_share_hunks_rightly() {
    let mut source = String::new();
    for n in 0..40 {
        let gap = "// filler\n".repeat(n % 9);
        source += &format!("fn f{n}() {{}}\n\n{gap}\n");
    }
    let dir = folder(&[("a.rs", &source)]);
    round_trip(dir.path(), ANSWER);
}
