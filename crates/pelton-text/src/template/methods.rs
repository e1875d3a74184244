//! Python's methods on texts, lists and mappings. Invariant: a method that Python's sandbox forbids, or
//! that is not known, is an error.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::{python, slice, source};

/// Called where a value has no method of its own by that name.
pub(super) fn call(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let method = method.strip_prefix(source::METHOD_PREFIX).unwrap_or(method);
    if let Some(text) = value.as_str()
        && let Some(result) = text_method(text, method, args)
    {
        return result;
    }
    if value.kind() == ValueKind::Seq && method == "index" {
        let (wanted,): (&Value,) = from_args(args)?;
        let found = value.try_iter()?.position(|item| item == *wanted);
        return found.map(Value::from).ok_or_else(|| missing("the list"));
    }
    if method == "_slice" {
        return slice::slice(value, args);
    }
    if method == "copy" && matches!(value.kind(), ValueKind::Seq | ValueKind::Map) {
        let () = from_args(args)?;
        return Ok(value.clone());
    }
    unknown_method_callback(state, value, method, args)
}

fn missing(place: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("the value is not in {place}"))
}

/// What differs from, or is missing in, the library's methods of texts.
fn text_method(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match method {
        "title" => from_args(args).map(|()| Value::from(title(text))),
        "strip" => strip(text, args, true, true),
        "lstrip" => strip(text, args, true, false),
        "rstrip" => strip(text, args, false, true),
        "split" => split(text, args, false),
        "rsplit" => split(text, args, true),
        "splitlines" => split_lines(text, args),
        "partition" | "rpartition" => partition(text, args, method == "rpartition"),
        "removeprefix" => {
            from_args(args).map(|(prefix,): (&str,)| Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            from_args(args).map(|(suffix,): (&str,)| Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "index" => from_args(args).and_then(|(wanted,): (&str,)| {
            let at = text.find(wanted).ok_or_else(|| missing("the text"))?;
            Ok(Value::from(text[..at].chars().count()))
        }),
        "join" => from_args(args).and_then(|(items,): (&Value,)| join(text, items)),
        _ => return None,
    })
}

fn strip(text: &str, args: &[Value], start: bool, end: bool) -> Result<Value, Error> {
    let (chars,): (Option<&str>,) = from_args(args)?;
    let remove = |ch: char| chars.map_or_else(|| python::is_space(ch), |set| set.contains(ch));
    let text = if start { text.trim_start_matches(remove) } else { text };
    Ok(Value::from(if end { text.trim_end_matches(remove) } else { text }))
}

fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (separator, limit): (Option<&str>, Option<i64>) = from_args(args)?;
    // A negative limit means none.
    let limit = limit.and_then(|limit| usize::try_from(limit).ok());
    let parts = match separator {
        Some("") => {
            return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
        }
        Some(separator) => split_at(text, separator, limit, from_right),
        None => split_words(text, limit, from_right),
    };
    Ok(parts.into_iter().map(Value::from).collect::<Vec<Value>>().into())
}

fn split_at<'t>(text: &'t str, separator: &str, limit: Option<usize>, from_right: bool) -> Vec<&'t str> {
    let pieces = limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
    if !from_right {
        return text.splitn(pieces, separator).collect();
    }
    let mut parts: Vec<&str> = text.rsplitn(pieces, separator).collect();
    parts.reverse();
    parts
}

/// Words between runs of whitespace; what is left at the limit keeps its inner whitespace.
fn split_words(text: &str, limit: Option<usize>, from_right: bool) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text;
    loop {
        rest = match from_right {
            true => rest.trim_end_matches(python::is_space),
            false => rest.trim_start_matches(python::is_space),
        };
        if rest.is_empty() {
            break;
        }
        let cut = match from_right {
            true => rest.rfind(python::is_space).map(|at| at + rest[at..].chars().next().map_or(0, char::len_utf8)),
            false => rest.find(python::is_space),
        };
        let Some(cut) = cut.filter(|_| limit.is_none_or(|limit| words.len() < limit)) else {
            words.push(rest);
            break;
        };
        let (before, after) = rest.split_at(cut);
        let (word, left) = if from_right { (after, before) } else { (before, after) };
        words.push(word);
        rest = left;
    }
    if from_right {
        words.reverse();
    }
    words
}

fn split_lines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (keep_ends,): (Option<bool>,) = from_args(args)?;
    let lines = lines_of(text, keep_ends == Some(true));
    Ok(lines.into_iter().map(Value::from).collect::<Vec<Value>>().into())
}

/// The lines of a text, with their ends where `keep_ends`.
pub(super) fn lines_of(text: &str, keep_ends: bool) -> Vec<&str> {
    let breaks = |ch: char| {
        matches!(ch, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(breaks) {
        let end = match rest[at..].starts_with("\r\n") {
            true => at + 2,
            false => at + rest[at..].chars().next().map_or(1, char::len_utf8),
        };
        let keep = if keep_ends { end } else { at };
        lines.push(&rest[..keep]);
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

fn partition(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    let found = match from_right {
        true => text.rsplit_once(separator),
        false => text.split_once(separator),
    };
    let parts = match found {
        Some((before, after)) => [before, separator, after],
        None if from_right => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

/// Python's `str.title`: a letter after something that is no letter begins a word.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut within = false;
    for ch in text.chars() {
        match within {
            true => out.extend(ch.to_lowercase()),
            false => out.extend(ch.to_uppercase()),
        }
        within = ch.is_alphabetic();
    }
    out
}

/// Python's `separator.join(items)`: every item must be a text.
fn join(separator: &str, items: &Value) -> Result<Value, Error> {
    let mut texts = Vec::new();
    for item in items.try_iter()? {
        let text = item.as_str().map(str::to_owned);
        texts.push(text.ok_or_else(|| {
            let detail = format!("join expects texts, found {}", item.kind());
            Error::new(ErrorKind::InvalidOperation, detail)
        })?);
    }
    Ok(Value::from(texts.join(separator)))
}
