//! Numbers of the command line: each parser refuses what no command could use, so that the message names the option.

/// A count from 1 to `MOST`.
pub(crate) fn one_to<const MOST: usize>(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|n| (1..=MOST).contains(n));
    count.ok_or_else(|| match MOST {
        usize::MAX => "expected a whole number of at least 1".to_string(),
        most => format!("expected a whole number from 1 to {most}"),
    })
}

/// How many tokens are proposed at a time.
pub(crate) fn drafts(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|&n| n <= pelton::MAX_DRAFT);
    count.ok_or_else(|| format!("expected a whole number from 0 to {}", pelton::MAX_DRAFT))
}

/// A count of at least 1.
pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    one_to::<{ usize::MAX }>(text)
}

/// 0 or more.
pub(crate) fn not_negative(text: &str) -> Result<f32, String> {
    number(text, |v| v >= 0.0, "a number of at least 0 (0 is greedy)")
}

/// Above 0.
pub(crate) fn positive(text: &str) -> Result<f32, String> {
    number(text, |v| v > 0.0, "a number above 0 (1 is off)")
}

/// A probability mass: above 0, at most 1.
pub(crate) fn mass(text: &str) -> Result<f32, String> {
    number(text, |v| v > 0.0 && v <= 1.0, "a number above 0 and at most 1 (1 is off)")
}

/// A share: 0 to 1.
pub(crate) fn share(text: &str) -> Result<f32, String> {
    number(text, |v| (0.0..=1.0).contains(&v), "a number from 0 to 1 (0 is off)")
}

/// A part of a whole: 0 to 1.
pub(crate) fn part(text: &str) -> Result<f32, String> {
    number(text, |v| (0.0..=1.0).contains(&v), "a number from 0 to 1")
}

/// Requests a second.
pub(crate) fn rate(text: &str) -> Result<f32, String> {
    number(text, |v| (1e-3..=1e5).contains(&v), "a number of requests a second from 0.001 to 100000")
}

/// A wait.
pub(crate) fn seconds(text: &str) -> Result<f32, String> {
    number(text, |v| (0.0..=86_400.0).contains(&v), "a number of seconds from 0 to 86400")
}

/// Any finite number.
pub(crate) fn finite(text: &str) -> Result<f32, String> {
    number(text, |_| true, "a number (0 is off)")
}

/// `ID=BIAS`; a bias of `-inf` forbids the token.
pub(crate) fn bias(text: &str) -> Result<(u32, f32), String> {
    let (id, bias) = text.split_once('=').ok_or("expected ID=BIAS, for example 42=-5")?;
    let id = id.parse().map_err(|_| format!("`{id}` is not a token id"))?;
    let value = bias.parse().ok().filter(|v: &f32| v.is_finite() || *v == f32::NEG_INFINITY);
    Ok((id, value.ok_or_else(|| format!("`{bias}` is not a number"))?))
}

/// A storage type of weights, by the name that GGUF tools use.
pub(crate) fn storage_type(text: &str) -> Result<pelton::DType, String> {
    pelton::DType::from_name(text).filter(|t| t.can_decode()).ok_or_else(|| {
        let known: Vec<_> = pelton::DType::DECODABLE.iter().map(|t| t.name()).collect();
        format!("expected one of {}", known.join(", "))
    })
}

/// A number of layers, `auto` or `all`.
pub(crate) fn gpu_layers(text: &str) -> Result<pelton::GpuLayers, String> {
    pelton::GpuLayers::parse(text).map_err(|_| "expected a number of layers, `auto` or `all`".into())
}

fn number(text: &str, ok: fn(f32) -> bool, expected: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|v: &f32| v.is_finite() && ok(*v));
    value.ok_or_else(|| format!("expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_are_id_and_number() {
        assert_eq!(bias("42=-5.5"), Ok((42, -5.5)));
        assert_eq!(bias("42=-inf"), Ok((42, f32::NEG_INFINITY)));
        for wrong in ["42", "x=1", "-1=1", "1=", "1=nan", "1=inf"] {
            assert!(bias(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ranges_end_where_they_say() {
        assert_eq!(one_to::<4>("4"), Ok(4));
        assert_eq!(one_to::<4>("5").unwrap_err(), "expected a whole number from 1 to 4");
        assert!(at_least_one("0").is_err() && at_least_one("-1").is_err() && at_least_one("").is_err());
        assert!(mass("0").is_err() && mass("1").is_ok() && mass("1.1").is_err());
        assert!(share("0").is_ok() && share("-0.1").is_err());
        assert!(not_negative("nan").is_err() && not_negative("inf").is_err() && not_negative("-1").is_err());
        assert!(positive("0").is_err() && finite("-2.5").is_ok());
        assert!(rate("0").is_err() && rate("2.5").is_ok() && seconds("0").is_ok() && seconds("-1").is_err());
    }
}
