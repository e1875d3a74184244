//! Filters that must behave as in Python. Invariant: what they print is [`python::str_of`].

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};

use super::{json, methods, python};

/// The widest indentation, in spaces.
const MAX_INDENT: i64 = 1024;

/// Puts our filters in place of the library's.
pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", python::str_of);
    environment.add_filter("indent", indent);
    environment.add_filter("join", join);
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_function("_iterate", iterate);
    environment.add_filter("trim", trim);
}

fn trim(value: &Value, chars: Option<&str>) -> Result<String, Error> {
    let text = python::str_of(value)?;
    let remove = |ch: char| chars.map_or_else(|| python::is_space(ch), |set| set.contains(ch));
    Ok(text.trim_matches(remove).to_owned())
}

/// What a loop goes over: in Python, `None` cannot be iterated.
fn iterate(value: Value) -> Result<Value, Error> {
    if value.is_none() {
        let detail = "None is not iterable";
        return Err(Error::new(ErrorKind::InvalidOperation, detail));
    }
    Ok(value)
}

/// Jinja's `join(items, d='', attribute=None)`.
fn join(items: Value, separator: Option<Value>, attribute: Option<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let separator = separator.or(kwargs.get("d")?);
    let attribute = attribute.or(kwargs.get("attribute")?);
    kwargs.assert_all_used()?;
    let separator = separator.map_or(Ok(String::new()), |text| python::str_of(&text))?;
    let mut texts = Vec::new();
    for item in iterate(items)?.try_iter()? {
        let item = match &attribute {
            None => item,
            Some(path) if path.is_none() => item,
            Some(path) => python::str_of(path)?.split('.').try_fold(item, |item, key| {
                let index = key.parse::<usize>().map_or_else(|_| Value::from(key), Value::from);
                item.get_item(&index)
            })?,
        };
        texts.push(python::str_of(&item)?);
    }
    Ok(texts.join(&separator))
}

/// Jinja's `indent(text, width=4, first=false, blank=false)`: every line but the first, unless asked,
/// and no empty line, unless asked.
fn indent(
    value: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let width = match width {
        Some(width) => Some(width),
        None => kwargs.get::<Option<Value>>("width")?,
    };
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let margin = match width {
        None => " ".repeat(4),
        Some(text) if text.as_str().is_some() => python::str_of(&text)?,
        Some(number) => {
            let width = number.as_i64().unwrap_or(0).clamp(0, MAX_INDENT);
            " ".repeat(usize::try_from(width).unwrap_or(0))
        }
    };
    // With one more line end, a text that ends a line keeps its end.
    let text = python::str_of(value)? + "\n";
    let mut out = String::new();
    for (index, line) in methods::lines_of(&text, false).into_iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let wanted = if index == 0 { first } else { blank || !line.is_empty() };
        if wanted {
            out.push_str(&margin);
        }
        out.push_str(line);
    }
    Ok(out)
}
