//! Values as Python prints them. Invariant: [`str_of`] is Python's `str`.
//!
//! Source: the Python language reference, "Built-in Types" and `float.__repr__`.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};
use serde_json::Value as Json;

/// A JSON value as a template value, with the order of keys kept.
pub(super) fn value_of(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(value_of).collect::<Vec<Value>>().into(),
        Json::Object(fields) => Value::from_pairs(fields.iter().map(|(key, value)| (key.clone(), value_of(value)))),
        Json::Number(number) => number
            .as_u64()
            .map(Value::from)
            .or_else(|| number.as_i64().map(Value::from))
            .or_else(|| number.as_f64().map(Value::from))
            .unwrap_or_else(|| Value::from(())),
    }
}

/// Nesting that is printed; Python's own limit is its recursion limit.
const MAX_DEPTH: usize = 200;

/// Python's `str(value)`; an undefined value is empty, as in Jinja. Fails on values nested too deep.
pub(super) fn str_of(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(String::new()),
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_owned()),
        _ => repr_of(value, 0),
    }
}

/// Python's `repr(value)`.
fn repr_of(value: &Value, depth: usize) -> Result<String, Error> {
    if depth > MAX_DEPTH {
        let detail = format!("a value nested deeper than {MAX_DEPTH} cannot be printed");
        return Err(Error::new(ErrorKind::InvalidOperation, detail));
    }
    let inner = |value: &Value| repr_of(value, depth + 1);
    Ok(match value.kind() {
        ValueKind::Undefined => "Undefined".to_owned(),
        ValueKind::String => repr_of_text(value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => {
            f64::try_from(value.clone()).map_or_else(|_| value.to_string(), repr_of_float)
        }
        ValueKind::Seq => {
            let items: Result<Vec<String>, Error> = value.try_iter()?.map(|item| inner(&item)).collect();
            let items = items?;
            match (value.is_tuple(), items.as_slice()) {
                (true, [only]) => format!("({only},)"),
                (true, _) => format!("({})", items.join(", ")),
                (false, _) => format!("[{}]", items.join(", ")),
            }
        }
        ValueKind::Map => {
            let pair = |key: Value| -> Result<String, Error> {
                Ok(format!("{}: {}", inner(&key)?, inner(&value.get_item(&key)?)?))
            };
            let pairs: Result<Vec<String>, Error> = value.try_iter()?.map(pair).collect();
            format!("{{{}}}", pairs?.join(", "))
        }
        _ => value.to_string(),
    })
}

/// Python's shortest float: fixed from 1e-4 to below 1e16, else with an exponent.
pub(super) fn repr_of_float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let fixed = number.to_string();
        return if fixed.contains('.') { fixed } else { fixed + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn repr_of_text(text: &str) -> String {
    use std::fmt::Write;
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for ch in text.chars() {
        let code = u32::from(ch);
        let written = match ch {
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            '\\' => write!(out, "\\\\"),
            _ if ch == quote => write!(out, "\\{ch}"),
            _ if is_printable(ch) => write!(out, "{ch}"),
            _ if code < 0x100 => write!(out, "\\x{code:02x}"),
            _ if code < 0x10000 => write!(out, "\\u{code:04x}"),
            _ => write!(out, "\\U{code:08x}"),
        };
        written.expect("a string takes all text");
    }
    out.push(quote);
    out
}

/// Python's `str.isprintable` for one character, without the unassigned ones: no controls, formats,
/// private characters, or separators other than the space.
fn is_printable(ch: char) -> bool {
    let space = ch != ' ' && ch.is_whitespace();
    let format = matches!(ch,
        '\u{AD}' | '\u{600}'..='\u{605}' | '\u{61C}' | '\u{6DD}' | '\u{70F}' | '\u{180E}'
        | '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}'
        | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{E0001}' | '\u{E0020}'..='\u{E007F}');
    let private = matches!(ch,
        '\u{E000}'..='\u{F8FF}' | '\u{F0000}'..='\u{FFFFD}' | '\u{100000}'..='\u{10FFFD}');
    !(ch.is_control() || space || format || private)
}

/// Whether Python's `str.strip` removes this character.
pub(super) fn is_space(ch: char) -> bool {
    ch.is_whitespace() || matches!(ch, '\u{1C}'..='\u{1F}')
}
