//! `tojson` as transformers defines it: Python's `json.dumps` with `ensure_ascii=False` by default and
//! no HTML escapes. Invariant: the order of keys is kept unless `sort_keys` is set.
//!
//! Source: the Python library reference, `json.dumps`.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::python;

/// Nesting that is written; Python's own limit is its recursion limit.
const MAX_DEPTH: usize = 200;

/// The filter: `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    if args.len() > names.len() {
        return Err(ErrorKind::TooManyArguments.into());
    }
    let mut options = [const { Value::UNDEFINED }; 4];
    for (slot, (name, given)) in
        options.iter_mut().zip(names.iter().zip(args.iter().map(Some).chain(std::iter::repeat(None))))
    {
        *slot = match (given, kwargs.get::<Option<Value>>(name)?) {
            (Some(given), _) => given.clone(),
            (None, named) => named.unwrap_or_default(),
        };
    }
    kwargs.assert_all_used()?;
    let [ensure_ascii, indent, separators, sort_keys] = options;
    let indent = indent_of(&indent)?;
    let (item, key) = separators_of(&separators, indent.is_some())?;
    let mut writer = Writer {
        out: String::new(),
        ensure_ascii: ensure_ascii.is_true(),
        indent,
        item,
        key,
        sort_keys: sort_keys.is_true(),
    };
    writer.value(value, 0)?;
    Ok(writer.out)
}

fn invalid(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail.into())
}

fn absent(value: &Value) -> bool {
    value.is_none() || value.is_undefined()
}

/// Spaces, or a text, per level.
fn indent_of(value: &Value) -> Result<Option<String>, Error> {
    if absent(value) {
        return Ok(None);
    }
    if let Some(text) = value.as_str() {
        return Ok(Some(text.to_owned()));
    }
    let width = value.as_i64().ok_or_else(|| invalid("tojson: indent must be a number or a text"))?;
    let width = usize::try_from(width.clamp(0, 64)).unwrap_or(0);
    Ok(Some(" ".repeat(width)))
}

fn separators_of(value: &Value, indented: bool) -> Result<(String, String), Error> {
    if absent(value) {
        let item = if indented { "," } else { ", " };
        return Ok((item.to_owned(), ": ".to_owned()));
    }
    let parts: Vec<Value> = value.try_iter()?.collect();
    match parts.as_slice() {
        [item, key] => match (item.as_str(), key.as_str()) {
            (Some(item), Some(key)) => Ok((item.to_owned(), key.to_owned())),
            _ => Err(invalid("tojson: separators must be texts")),
        },
        _ => Err(invalid("tojson: separators must be two texts")),
    }
}

struct Writer {
    out: String,
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid(format!("tojson: nested deeper than {MAX_DEPTH}")));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(bool_of(value)),
            ValueKind::Number => self.out.push_str(&number_of(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container(('[', ']'), &items, depth, |this, item| this.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.container(('{', '}'), &keys, depth, |this, key| {
                    this.text(&key_of(key)?);
                    this.out.push_str(&this.key.clone());
                    this.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            other => return Err(invalid(format!("tojson: a value of type {other} is not JSON"))),
        }
        Ok(())
    }

    fn container(
        &mut self,
        (open, close): (char, char),
        items: &[Value],
        depth: usize,
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.out.push_str(&self.item.clone());
            }
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for ch in text.chars() {
            match ch {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '\0'..='\u{1f}' => self.unit(ch as u16),
                _ if self.ensure_ascii && !ch.is_ascii() => {
                    let mut units = [0; 2];
                    for unit in ch.encode_utf16(&mut units) {
                        self.unit(*unit);
                    }
                }
                _ => self.out.push(ch),
            }
        }
        self.out.push('"');
    }

    fn unit(&mut self, unit: u16) {
        write!(self.out, "\\u{unit:04x}").expect("a string takes all text");
    }
}

fn bool_of(value: &Value) -> &'static str {
    if value.is_true() { "true" } else { "false" }
}

fn number_of(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() && number.is_nan() => "NaN".to_owned(),
        Ok(number) if !value.is_integer() && number.is_infinite() => {
            if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
        }
        Ok(number) if !value.is_integer() => python::repr_of_float(number),
        _ => value.to_string(),
    }
}

/// An object's key: a text, or what Python turns into one.
fn key_of(key: &Value) -> Result<String, Error> {
    Ok(match key.kind() {
        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => bool_of(key).to_owned(),
        ValueKind::Number => number_of(key),
        other => return Err(invalid(format!("tojson: a key of type {other} is not JSON"))),
    })
}
