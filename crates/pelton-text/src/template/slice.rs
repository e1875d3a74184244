//! `value[start:stop:step]` as in Python. Invariant: every index that is read is inside of the value.
//!
//! Source: the Python language reference, "Built-in Types", on slices of sequences.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, Value};

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

/// The part of a text, list or tuple that `(start, stop, step)` name; each may be none.
pub(super) fn slice(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (start, stop, step): (Value, Value, Option<Value>) = from_args(args)?;
    let number = |bound: &Value| match bound.is_none() {
        true => Ok(None),
        false => bound
            .as_i64()
            .map(Some)
            .ok_or_else(|| invalid(format!("a slice's bounds are numbers, not {}", bound.kind()))),
    };
    let (start, stop) = (number(&start)?, number(&stop)?);
    let step = number(&step.unwrap_or(Value::from(())))?.unwrap_or(1);
    if step == 0 {
        return Err(invalid("a slice's step cannot be zero".to_owned()));
    }
    if let Some(text) = value.as_str() {
        let chars: Vec<char> = text.chars().collect();
        let picked = indices(chars.len(), start, stop, step);
        return Ok(Value::from(picked.map(|index| chars[index]).collect::<String>()));
    }
    if value.kind() != ValueKind::Seq {
        return Err(invalid(format!("a value of type {} cannot be sliced", value.kind())));
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    let picked = indices(items.len(), start, stop, step).map(|index| items[index].clone());
    let picked: Vec<Value> = picked.collect();
    Ok(match value.is_tuple() {
        true => Value::from(Tuple::from(picked)),
        false => Value::from(picked),
    })
}

/// The indices below `len` that a slice picks, in order.
fn indices(len: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl Iterator<Item = usize> {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    let forward = step > 0;
    // Going backward, the end before the first index is -1.
    let (low, high) = if forward { (0, len) } else { (-1, len - 1) };
    let bound = |at: i64| {
        let from_end = if at < 0 { at.saturating_add(len) } else { at };
        from_end.clamp(low, high)
    };
    let first = start.map_or(if forward { low } else { high }, bound);
    let end = stop.map_or(if forward { high } else { low }, bound);
    let inside = move |at: &i64| if forward { *at < end } else { *at > end };
    std::iter::successors(Some(first), move |at| at.checked_add(step))
        .take_while(inside)
        .filter_map(|at| usize::try_from(at).ok())
}

#[cfg(test)]
mod tests {
    use super::indices;

    #[track_caller]
    fn check(len: usize, bounds: (Option<i64>, Option<i64>, i64), expected: &[usize]) {
        let picked: Vec<usize> = indices(len, bounds.0, bounds.1, bounds.2).collect();
        assert_eq!(picked, expected);
    }

    #[test]
    fn as_in_python() {
        check(4, (None, None, 1), &[0, 1, 2, 3]);
        check(4, (Some(-2), None, 1), &[2, 3]);
        check(4, (Some(1), Some(-1), 1), &[1, 2]);
        check(4, (None, None, -1), &[3, 2, 1, 0]);
        check(4, (Some(3), Some(0), -1), &[3, 2, 1]);
        check(4, (Some(9), Some(-9), -2), &[3, 1]);
        check(4, (Some(2), Some(1), 1), &[]);
        check(0, (None, None, -1), &[]);
        check(0, (Some(-1), None, 1), &[]);
        check(2, (None, None, i64::MAX), &[0]);
        check(2, (None, None, i64::MIN), &[1]);
    }
}
