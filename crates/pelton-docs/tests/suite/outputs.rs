//! Pages, records, summary and progress.

use std::fs;

use pelton_docs::{
    Author, DocsError, DocsOptions, Format, Progress, Reply, Request, Scan, Source, Writer, run, run_to,
};

use crate::support::{always, fake, folder, options, output, put};

const SOURCE: &str = "/// Has one.\npub fn documented() {}\n\npub fn bare(a: Vec<u8>) -> u8 {\n    a[0]\n}\n";

#[test]
fn records_hold_every_field_in_order() {
    let dir = folder(&[("src/a.rs", SOURCE), ("b.py", "def f():\n    return 1\n")]);
    let mut writer = always("Returns the *first* byte.");
    writer.backwards = true;
    let (summary, text) = output(&options(dir.path(), Format::Jsonl), &mut writer);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[2],
        r#"{"path":"src/a.rs","language":"rust","kind":"function","name":"bare","qualified_name":"a::bare","line_start":4,"line_end":6,"signature":"pub fn bare(a: Vec<u8>) -> u8","doc":"Returns the *first* byte.","source":"model","flags":[],"prompt_tokens":20,"cached_tokens":2,"tokens":6}"#
    );
    assert!(lines[0].contains(r#""qualified_name":"b.f""#));
    assert!(lines[1].contains(r#""doc":"Has one.","source":"existing","flags":[],"prompt_tokens":0"#));
    assert_eq!((summary.items, summary.files, summary.written, summary.existing), (3, 2, 2, 1));
    assert_eq!((summary.tokens, summary.cached_tokens), (12, 4));
    let only = DocsOptions { only_undocumented: true, ..options(dir.path(), Format::Jsonl) };
    assert_eq!(output(&only, &mut always("x")).1.lines().count(), 2);
    let all = DocsOptions { regenerate: true, ..options(dir.path(), Format::Jsonl) };
    assert_eq!(output(&all, &mut always("x")).0.written, 3);
}

/// Looks at the output between its replies.
struct Watcher<'a>(&'a mut dyn FnMut(usize));

impl Writer for Watcher<'_> {
    fn count_tokens(&self, text: &str) -> usize {
        text.len()
    }
    fn context_len(&self) -> usize {
        10_000
    }
    fn write_all(
        &mut self,
        requests: &[Request],
        done: &mut dyn FnMut(usize, Result<Reply, String>),
    ) -> Result<(), String> {
        for index in 0..requests.len() {
            (self.0)(index);
            if index == 2 {
                return Err("the disk is gone".to_owned());
            }
            done(index, Ok(Reply { text: "Does it.".to_owned(), ..Reply::default() }));
        }
        Ok(())
    }
}

#[test]
fn records_appear_as_replies_come_and_survive_a_stop() {
    let dir = folder(&[("a.rs", "fn a() {}\nfn b() {}\nfn c() {}\n")]);
    let out = dir.path().join("out/all.jsonl");
    let partial = dir.path().join("out/all.jsonl.partial");
    let mut seen = Vec::new();
    let mut look = |_| seen.push(fs::read_to_string(&partial).expect("it is there").lines().count());
    let options = DocsOptions { out: Some(out.clone()), ..options(dir.path(), Format::Jsonl) };
    let error = run(&options, &mut Watcher(&mut look), &mut |_| {}).expect_err("the writer stops");
    assert_eq!(seen, [0, 1, 2]);
    assert!(!out.exists() && partial.exists());
    let text = error.to_string();
    assert!(
        text.starts_with("the model stopped after 2 of 3 items: the disk is gone; what was finished is in "),
        "{text}"
    );
    run(&options, &mut always("Does it."), &mut |_| {}).expect("it runs");
    assert!(out.exists() && !partial.exists());
}

#[test]
fn pages_link_to_their_sources() {
    let dir = folder(&[
        ("proj/src/my file.rs", SOURCE),
        ("proj/tests/t.rs", "fn t() {}"),
        ("proj/b_c.py", "def __f__():\n    return 1\n"),
    ]);
    let out = dir.path().join("site");
    let root = dir.path().join("proj");
    let options =
        DocsOptions { out: Some(out.clone()), model: "small `one`".to_owned(), ..options(&root, Format::Markdown) };
    let mut steps = Vec::new();
    let answer = "Returns a Vec<u8>.\n\n# Panics\n\nArgs:\n    a: The bytes.\n```\nopen";
    let summary = run(&options, &mut always(answer), &mut |step| steps.push(step)).expect("it runs");
    let page = fs::read_to_string(out.join("src/my file.rs.md")).expect("the page is there");
    let expected = "# src/my file.rs\n\n[Source](../../proj/src/my%20file.rs) · [Index](../index.md)\n\n\
        ## function `my file::documented`\n\n[Lines 2 to 2](../../proj/src/my%20file.rs#L2-L2) · *from source*\n\n\
        ```rust\npub fn documented()\n```\n\nHas one.\n\n\
        ## function `my file::bare`\n\n[Lines 4 to 6](../../proj/src/my%20file.rs#L4-L6)\n\n\
        ```rust\npub fn bare(a: Vec<u8>) -> u8\n```\n\n\
        Returns a Vec&lt;u8>.\n\n#### Panics\n\n**Args:**\n\n- a: The bytes.\n```\nopen\n```\n";
    assert_eq!(page, expected);
    let index = fs::read_to_string(out.join("index.md")).expect("the index is there");
    assert!(
        index.starts_with("# proj\n\nDocumented by Pelton with the model `` small `one` ``.\n\n- 3 items in 2 files"),
        "{index}"
    );
    assert!(index.contains("| [b\\_c.py](b_c.py.md) | Python | 1 | 0 | 1 | 0 | 0 |\n"), "{index}");
    assert!(index.contains("| [my file.rs](src/my%20file.rs.md) | Rust | 2 | 0 | 1 | 1 | 0 |\n"), "{index}");
    assert!(index.contains("| 2 files |  | 3 | 0 | 2 | 1 | 0 |\n") && index.contains("- 1 test files or folders\n"));
    assert!(fs::read_to_string(out.join("skipped.md")).expect("the list is there").contains("- tests\n"));
    assert_eq!(steps[0], Progress::Scanned { files: 2, total: 2 });
    assert!(matches!(&steps[2], Progress::Item { done: 2, total: 2, name, .. } if name == "my file::bare"));
    assert_eq!(summary.repetitions_cut, 0);
    assert!(!fs::read_dir(&out).expect("readable").flatten().any(|entry| entry.path().ends_with(".partial")));
}

#[test]
fn failures_and_flags_are_told() {
    let body: String = (0..200).map(|n| format!("    let line_{n} = {n};\n")).collect();
    let dir =
        folder(&[("a.rs", &format!("fn fails() {{}}\nfn silent() {{}}\nfn loops() {{}}\nfn long() {{\n{body}}}\n"))]);
    let mut writer = fake(|prompt: &str| match prompt {
        _ if prompt.contains("fails") => Err("out of memory".to_owned()),
        _ if prompt.contains("silent") => Ok(" ``` ".to_owned()),
        _ if prompt.contains("loops") => Ok("It is what it is. ".repeat(30)),
        _ => Ok("Is long.".to_owned()),
    });
    writer.context = 700;
    let (summary, text) = output(&options(dir.path(), Format::Jsonl), &mut writer);
    for part in [
        r#""doc":null,"source":"model","flags":["failed"],"prompt_tokens":0,"cached_tokens":0,"tokens":0,"error":"out of memory"}"#,
        r#""doc":null,"source":"model","flags":["no_answer"]"#,
        r#""doc":"It is what it is.","source":"model","flags":["repetition_cut"]"#,
        r#""doc":"Is long.","source":"model","flags":["truncated_code"]"#,
    ] {
        assert!(text.contains(part), "{part} missing in\n{text}");
    }
    let figures = (summary.items, summary.written, summary.failed, summary.no_answer, summary.truncated_code);
    assert_eq!(figures, (4, 2, 1, 1, 1));
    assert!(summary.to_string().contains("2 written · 0 from source · 1 failed · 1 without answer · 1 with code cut"));
}

#[test]
fn outputs_that_do_not_suit_the_format_are_refused() {
    let dir = folder(&[("a.rs", "fn f() {}\n")]);
    let file = DocsOptions { out: Some(dir.path().join("a.rs")), ..options(dir.path(), Format::Markdown) };
    let error = run(&file, &mut always("x"), &mut |_| {}).expect_err("a file is no folder");
    assert!(matches!(error, DocsError::Out { .. }) && error.to_string().contains("is a file; pages need a folder"));
    let into = DocsOptions { out: Some(dir.path().to_owned()), ..options(dir.path(), Format::Patch) };
    let error = run(&into, &mut always("x"), &mut |_| {}).expect_err("a folder is no file");
    assert!(error.to_string().contains("is a folder; this format writes one file"));
    assert!("html".parse::<Format>().is_err() && "patch".parse() == Ok(Format::Patch));
}

#[test]
fn an_empty_folder_gives_an_empty_index() {
    let dir = folder(&[]);
    put(dir.path(), "site/.keep", b"");
    let root = folder(&[]);
    let options = DocsOptions { out: Some(dir.path().join("site")), ..options(root.path(), Format::Markdown) };
    let mut out = Vec::new();
    let summary = run_to(&options, &mut always("x"), &mut |_| {}, &mut out).expect("it runs");
    assert_eq!((summary.items, out.len()), (0, 0));
    let index = fs::read_to_string(dir.path().join("site/index.md")).expect("the index is there");
    assert!(index.ends_with("## Left out\n\nNothing.\n"), "{index}");
    assert_eq!(Scan::of(root.path()).expect("scans").files.len(), 0);
    assert_ne!(Source::Model, Source::Existing);
}

/// A project may come with an output folder of its own, full of links to where it must not write.
#[cfg(unix)]
#[test]
fn nothing_is_written_through_a_link_of_the_project() {
    use std::os::unix::fs::symlink;

    let elsewhere = folder(&[("precious", "as it was")]);
    let precious = elsewhere.path().join("precious");
    let dir = folder(&[("a.rs", SOURCE), ("src/b.rs", SOURCE), ("docs-out/.keep", "")]);
    let out = dir.path().join("docs-out");
    for name in ["index.md", "index.md.partial", "a.rs.md.partial", "records.partial"] {
        symlink(&precious, out.join(name)).expect("links");
    }
    let pages = DocsOptions { out: Some(out.clone()), ..options(dir.path(), Format::Markdown) };
    run(&pages, &mut always("x"), &mut |_| {}).expect("it runs");
    let records = DocsOptions { out: Some(out.join("records")), ..options(dir.path(), Format::Jsonl) };
    run(&records, &mut always("x"), &mut |_| {}).expect("it runs");
    assert_eq!(fs::read_to_string(&precious).expect("readable"), "as it was");
    assert!(fs::read_to_string(out.join("index.md")).expect("readable").starts_with("# "));
    fs::remove_dir_all(out.join("src")).expect("its page was there");
    symlink(elsewhere.path(), out.join("src")).expect("links");
    let error = run(&pages, &mut always("x"), &mut |_| {}).expect_err("a link is no folder");
    assert!(error.to_string().contains("symbolic link"), "{error}");
    assert!(!elsewhere.path().join("b.rs.md").exists());
}

/// A writer of two models, of which one wrote what has `sum` in it.
struct Two;

impl Writer for Two {
    fn count_tokens(&self, text: &str) -> usize {
        text.len() / 4
    }

    fn context_len(&self) -> usize {
        100_000
    }

    fn write_all(
        &mut self,
        requests: &[Request],
        done: &mut dyn FnMut(usize, Result<Reply, String>),
    ) -> Result<(), String> {
        for (index, request) in requests.iter().enumerate().rev() {
            let (to, model) = if request.prompt.contains("sum") { ("large", "b") } else { ("small", "a") };
            let author = Author { to: to.into(), model: model.into(), why: "a \"rule\"".into() };
            done(index, Ok(Reply { text: "Is.".into(), author: Some(author), ..Reply::default() }));
        }
        Ok(())
    }
}

#[test]
fn entries_of_several_models_name_their_author() {
    let code = "def one():\n    pass\n\n\ndef sum():\n    pass\n\n\ndef had():\n    \"\"\"Had.\"\"\"\n";
    let dir = folder(&[("m.py", code)]);
    let (summary, text) = output(&options(dir.path(), Format::Jsonl), &mut Two);
    let records: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let author = |to: &str, model: &str| serde_json::json!({ "to": to, "model": model, "why": "a \"rule\"" });
    assert_eq!((&records[0]["author"], &records[1]["author"]), (&author("small", "a"), &author("large", "b")));
    assert!(records[2].get("author").is_none(), "nobody wrote what stood there");
    let told: Vec<_> = summary.authored.iter().map(|a| (a.line, a.name.as_str(), a.author.model.as_str())).collect();
    assert_eq!(told, [(1, "m.one", "a"), (5, "m.sum", "b")], "in the order of the output");
    // One model is no choice.
    let (summary, text) = output(&options(dir.path(), Format::Jsonl), &mut always("Is."));
    assert!(summary.authored.is_empty() && !text.contains("author"), "{text}");
}
