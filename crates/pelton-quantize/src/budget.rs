//! How large a model may be, as people write it.

use std::str::FromStr;

/// A size in bytes, or in bits for each weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bytes of all tensors.
    Bytes(u64),
    /// Bits for each weight, all tensors together.
    BitsPerWeight(f64),
}

impl Budget {
    /// In bytes, for a model of so many weights.
    pub fn bytes(self, n_weights: u64) -> u64 {
        match self {
            Budget::Bytes(bytes) => bytes,
            Budget::BitsPerWeight(bits) => (bits * n_weights as f64 / 8.0) as u64,
        }
    }
}

impl FromStr for Budget {
    type Err = String;

    /// `6GiB`, `900MB`, `5000000`, `4.5bpw`.
    fn from_str(text: &str) -> Result<Budget, String> {
        let wrong = || format!("`{text}` is no size; write 6GiB, 900MB, a number of bytes, or 4.5bpw");
        let at = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = text.split_at(at);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let scale = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "kib" | "k" => 1024.0,
            "mib" | "m" => 1024.0 * 1024.0,
            "gib" | "g" => 1024.0 * 1024.0 * 1024.0,
            "bpw" if number > 0.0 && number <= 32.0 => return Ok(Budget::BitsPerWeight(number)),
            _ => return Err(wrong()),
        };
        let bytes = number * scale;
        if !(1.0..1e18).contains(&bytes) {
            return Err(wrong());
        }
        Ok(Budget::Bytes(bytes as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_others_refused() {
        assert_eq!("6GiB".parse(), Ok(Budget::Bytes(6 << 30)));
        assert_eq!("900 MB".parse::<Budget>(), Ok(Budget::Bytes(900_000_000)));
        assert_eq!("4.5bpw".parse(), Ok(Budget::BitsPerWeight(4.5)));
        assert_eq!("12345".parse(), Ok(Budget::Bytes(12_345)));
        assert_eq!(Budget::BitsPerWeight(4.5).bytes(1000), 562);
        for bad in ["", "GiB", "6 apples", "0", "-1GiB", "40bpw", "0bpw", "1e30", "1..2GiB", "9999999999999GiB"] {
            assert!(bad.parse::<Budget>().is_err(), "{bad}");
        }
    }
}
