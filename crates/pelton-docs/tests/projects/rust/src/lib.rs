//! A small till: fixture of the documentation job.

use std::fmt;

/// Money in cents.
///
/// Never negative.
#[derive(Clone, Copy)]
pub struct Cents(pub u64);

#[derive(Debug)]
#[non_exhaustive]
pub enum Payment {
    Cash,
    Card { number: String },
}

pub trait Priced {
    type Unit;

    fn price(&self) -> Cents;

    /// The price of `n` pieces.
    fn total(&self, n: u64) -> Cents {
        Cents(self.price().0 * n)
    }
}

impl Cents {
    #[must_use]
    // kept small on purpose
    #[inline]
    pub const fn euros(self) -> u64 {
        self.0 / 100
    }
}

impl fmt::Display for Cents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

pub mod receipt {
    pub type Line = (String, super::Cents);

    pub(crate) async fn print<'a, T>(lines: &'a [Line], out: T) -> usize
    where
        T: Fn(&str),
    {
        fn inner(s: &str) -> usize {
            s.len()
        }
        let add = |n: usize| n + 1;
        for (name, _) in lines {
            out(name);
        }
        add(inner("x"))
    }
}

macro_rules! make {
    ($name:ident) => {
        pub fn $name() {}
    };
}
make!(made);

struct A; struct B;

#[cfg(test)]
mod tests {
    fn helper() {}

    #[test]
    fn works() {
        helper();
    }
}

#[test]
fn loose_test() {}
