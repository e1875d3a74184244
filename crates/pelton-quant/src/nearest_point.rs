//! The point of a grid that is nearest to a few weighted elements.
//!
//! ```text
//! cost(point) = Σᵢ wᵢ · (xᵢ − scale · level(pointᵢ))²  − Σᵢ wᵢxᵢ²
//!             = first[first half of the point] + second(second half)
//!
//! first = the costs of all first halves            81 of four ternary digits, or 64 of two octal digits
//! for each second half that can still win:         second + the least of first < the best so far
//!     for each point that ends with it:  keep the best of first + second
//! ```
//!
//! The result is exact: no table of neighbours, no rounding to the grid first. Of 256 to 2048 points a search looks at
//! some hundred.

/// The points of a grid, ordered by their second half.
pub(crate) struct Grid<const POINTS: usize> {
    words: &'static [u16; POINTS],
    /// Where the points with each second half end in `order`.
    ends: [u16; HALVES],
    /// First halves and indices of the points in that order.
    order: [(u8, u16); POINTS],
    /// Bits of an element in a word: 2 for three levels, 3 for eight.
    bits: u32,
}

/// Room for the costs of halves; a power of two, so that an index needs no check.
const HALVES: usize = 128;

/// A point that was found: its index in the grid, and what least squares needs of its levels `l`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Found {
    pub(crate) index: u16,
    /// `Σwl²`
    pub(crate) ll: f32,
    /// `Σwlx`
    pub(crate) lx: f32,
}

/// Two bits an element: a number of four ternary digits.
const fn ternary(half: u16) -> u16 {
    (half & 3) + 3 * (half >> 2 & 3) + 9 * (half >> 4 & 3) + 27 * (half >> 6 & 3)
}

impl<const POINTS: usize> Grid<POINTS> {
    /// `words` as in `grids.rs`, with `bits` an element.
    pub(crate) const fn new(words: &'static [u16; POINTS], bits: u32) -> Grid<POINTS> {
        let n_halves = if bits == 2 { 81 } else { 64 };
        let half_bits = if bits == 2 { 8 } else { 6 };
        let (mut ends, mut order) = ([0; HALVES], [(0, 0); POINTS]);
        let (mut n, mut second) = (0, 0);
        while second < n_halves {
            let mut i = 0;
            while i < POINTS {
                let halves = [words[i] & ((1 << half_bits) - 1), words[i] >> half_bits];
                let halves = if bits == 2 { [ternary(halves[0]), ternary(halves[1])] } else { halves };
                if halves[1] as usize == second {
                    order[n] = (halves[0] as u8, i as u16);
                    n += 1;
                }
                i += 1;
            }
            ends[second] = n as u16;
            second += 1;
        }
        Grid { words, ends, order, bits }
    }

    /// The nearest point to eight elements on three levels.
    #[inline]
    pub(crate) fn nearest_8(&self, x: &[f32; 8], w: &[f32; 8], scale: f32, levels: &[f32; 3]) -> Found {
        let levels_costs = costs(x, w, scale, levels);
        let [a, b, c, d, e, f, g, h] = levels_costs;
        let index = self.least(&sums(&pairs(&a, &b), &pairs(&c, &d)), &pairs(&e, &f), &pairs(&g, &h));
        self.found(index, x, w, levels)
    }

    /// The nearest point to four elements on eight levels.
    #[inline]
    pub(crate) fn nearest_4(&self, x: &[f32; 4], w: &[f32; 4], scale: f32, levels: &[f32; 8]) -> Found {
        let [a, b, c, d] = costs(x, w, scale, levels);
        let index = self.least(&sums(&a, &b), &c, &d);
        self.found(index, x, w, levels)
    }

    /// The index of the point of least cost; the second half comes in two quarters of `QUARTER` costs each.
    #[inline]
    fn least<const QUARTER: usize>(
        &self,
        first: &[f32; HALVES],
        third: &[f32; QUARTER],
        fourth: &[f32; QUARTER],
    ) -> u16 {
        let least_first = first[..QUARTER * QUARTER].iter().fold(f32::INFINITY, |a, &b| if b < a { b } else { a });
        let ((least_third, at_third), (least_fourth, at_fourth)) = (smallest(third), smallest(fourth));
        let (mut best, mut index) = (f32::INFINITY, 0);
        let mut look = |half: usize, second: f32, mut best: f32| {
            let from = if half == 0 { 0 } else { usize::from(self.ends[half - 1]) };
            for &(low, i) in &self.order[from..usize::from(self.ends[half])] {
                let cost = first[usize::from(low) & (HALVES - 1)] + second;
                if cost < best {
                    (best, index) = (cost, i);
                }
            }
            best
        };
        best = look(at_third + QUARTER * at_fourth, least_third + least_fourth, best);
        for (q, &fourth) in fourth.iter().enumerate() {
            if fourth + least_third + least_first >= best {
                continue;
            }
            for (p, &third) in third.iter().enumerate() {
                if third + fourth + least_first < best {
                    best = look(p + QUARTER * q, third + fourth, best);
                }
            }
        }
        index
    }

    fn found<const LEN: usize>(&self, index: u16, x: &[f32; LEN], w: &[f32; LEN], levels: &[f32]) -> Found {
        let word = self.words[usize::from(index)];
        let (mut ll, mut lx) = (0.0, 0.0);
        for i in 0..LEN {
            let level = levels[usize::from(word >> (self.bits as usize * i) & ((1 << self.bits) - 1))];
            let wl = w[i] * level;
            ll += wl * level;
            lx += wl * x[i];
        }
        Found { index, ll, lx }
    }
}

/// Of each element and level, the cost of that level.
#[inline]
fn costs<const LEN: usize, const LEVELS: usize>(
    x: &[f32; LEN],
    w: &[f32; LEN],
    scale: f32,
    levels: &[f32; LEVELS],
) -> [[f32; LEVELS]; LEN] {
    std::array::from_fn(|i| {
        let wx = 2.0 * w[i] * x[i];
        levels.map(|level| {
            let value = scale * level;
            (w[i] * value - wx) * value
        })
    })
}

/// The costs of two ternary digits.
#[inline]
fn pairs(low: &[f32; 3], high: &[f32; 3]) -> [f32; 9] {
    std::array::from_fn(|i| low[i % 3] + high[i / 3])
}

/// The costs of all combinations, `low` first.
#[inline]
fn sums<const QUARTER: usize>(low: &[f32; QUARTER], high: &[f32; QUARTER]) -> [f32; HALVES] {
    let mut sums = [0.0; HALVES];
    for (high, sums) in high.iter().zip(sums.as_chunks_mut::<QUARTER>().0) {
        for (sum, low) in sums.iter_mut().zip(low) {
            *sum = low + high;
        }
    }
    sums
}

/// The smallest number and its place.
#[inline]
fn smallest(numbers: &[f32]) -> (f32, usize) {
    let mut smallest = (f32::INFINITY, 0);
    for (i, &number) in numbers.iter().enumerate() {
        if number < smallest.0 {
            smallest = (number, i);
        }
    }
    smallest
}
