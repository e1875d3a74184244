//! Codes, scales and zero points where Hugging Face files have them.
//!
//! Each layout is described where it is read. Invariant: whoever makes one of these has checked its length against the
//! matrix; reading never fails and never copies more than the rows that were asked for.

use std::ops::Range;

use pelton_quant::GroupedRows;

use super::numbers::Numbers;
use crate::Bytes;

/// How the codes of a matrix `(rows, cols)` lie in its file.
pub(super) enum Codes {
    /// `(rows, cols)` bytes, whose bits `flip` are to be flipped: signed bytes become unsigned.
    Bytes { bytes: Bytes, flip: u8 },
    /// `(rows, cols)` nibbles one after another, the high one of a byte first (bitsandbytes).
    Nibbles { bytes: Bytes },
    /// `(rows, words)` words of `32 / bits` codes, the lowest bits first (compressed-tensors).
    RowWords { bytes: Bytes, bits: usize, words: usize },
    /// For each column of `(cols * bits / 32, rows)` words a stream of bits, the lowest first (GPTQ).
    ColumnStream { bytes: Bytes, bits: usize, rows: usize },
    /// `(cols, rows / 8)` words of eight nibbles, those of rows 0, 2, 4, 6, 1, 3, 5, 7 from the lowest (AWQ).
    Awq { bytes: Bytes, rows: usize },
}

/// The nibble of a word in which AWQ keeps each of eight rows.
const AWQ_NIBBLES: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

fn word(bytes: &[u8], i: usize) -> u32 {
    bytes.as_chunks::<4>().0.get(i).map_or(0, |word| u32::from_le_bytes(*word))
}

/// `bits` bits of a stream of words from bit `at`; a code may lie in two of the words that `get` gives.
fn from_stream(get: impl Fn(usize) -> u32, at: usize, bits: usize) -> u8 {
    let (i, shift) = (at / 32, at % 32);
    let low = get(i) >> shift;
    let code = if shift + bits > 32 { low | get(i + 1) << (32 - shift) } else { low };
    (code & ((1 << bits) - 1)) as u8
}

impl Codes {
    fn read(&self, rows: Range<usize>, cols: usize, out: &mut [u8]) {
        match self {
            Codes::Bytes { bytes, flip } => {
                out.copy_from_slice(&bytes[rows.start * cols..rows.end * cols]);
                if *flip != 0 {
                    out.iter_mut().for_each(|code| *code ^= flip);
                }
            }
            Codes::Nibbles { bytes } => {
                for (i, code) in (rows.start * cols..rows.end * cols).zip(out) {
                    *code = if i % 2 == 0 { bytes[i / 2] >> 4 } else { bytes[i / 2] & 15 };
                }
            }
            Codes::RowWords { bytes, bits, words } => {
                let (per_word, mask) = (32 / bits, ((1u32 << bits) - 1) as u8);
                for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
                    for (w, out) in out.chunks_mut(per_word).enumerate() {
                        let mut word = word(bytes, row * words + w);
                        for code in out {
                            *code = word as u8 & mask;
                            word = word.wrapping_shr(*bits as u32);
                        }
                    }
                }
            }
            Codes::ColumnStream { bytes, bits, rows: stride } => column_stream(bytes, *bits, *stride, rows, cols, out),
            Codes::Awq { bytes, rows: all } => {
                // A line of the file holds one column of many rows.
                for col in 0..cols {
                    for (i, row) in rows.clone().enumerate() {
                        let word = word(bytes, col * (all / 8) + row / 8);
                        out[i * cols + col] = (word >> (4 * AWQ_NIBBLES[row % 8])) as u8 & 15;
                    }
                }
            }
        }
    }
}

fn column_stream(bytes: &[u8], bits: usize, stride: usize, rows: Range<usize>, cols: usize, out: &mut [u8]) {
    if !32usize.is_multiple_of(bits) {
        for (i, row) in rows.enumerate() {
            for col in 0..cols {
                out[i * cols + col] = from_stream(|w| word(bytes, w * stride + row), col * bits, bits);
            }
        }
        return;
    }
    // Whole codes in each word: a line of the file holds the same columns of many rows.
    let (per_word, mask) = (32 / bits, ((1u32 << bits) - 1) as u8);
    for w in 0..cols.div_ceil(per_word) {
        for (i, row) in rows.clone().enumerate() {
            let mut word = word(bytes, w * stride + row);
            let end = cols.min((w + 1) * per_word);
            for code in &mut out[i * cols + w * per_word..i * cols + end] {
                *code = word as u8 & mask;
                word = word.wrapping_shr(bits as u32);
            }
        }
    }
}

/// Where the scale of a row and a group is.
pub(super) struct Scales {
    pub(super) numbers: Numbers,
    pub(super) at: ScaleAt,
}

pub(super) enum ScaleAt {
    /// Number `row / row_block * row_stride + group * group_stride`.
    Strided { row_block: usize, row_stride: usize, group_stride: usize },
    /// The matrix is one row of blocks of `block` weights, which may run across rows of `cols`; a group of `group`
    /// columns lies in one of them.
    Flat { cols: usize, group: usize, block: usize },
}

impl Scales {
    fn get(&self, row: usize, group: usize) -> f32 {
        let i = match self.at {
            ScaleAt::Strided { row_block, row_stride, group_stride } => {
                row / row_block * row_stride + group * group_stride
            }
            ScaleAt::Flat { cols, group: len, block } => (row * cols + group * len) / block,
        };
        self.numbers.get(i)
    }
}

/// How zero points lie in a file, if there are any.
pub(super) enum Zeros {
    None,
    /// `(n_groups, words)` words: of each group a stream of bits, a row after another; `plus` is added (GPTQ).
    Stream {
        bytes: Bytes,
        bits: usize,
        words: usize,
        plus: i16,
    },
    /// `(n_groups, rows / 8)` words, as [`Codes::Awq`].
    Awq {
        bytes: Bytes,
        words: usize,
    },
    /// `(rows / (32 / bits), n_groups)` words: of each group, rows from the lowest bits (compressed-tensors).
    RowWords {
        bytes: Bytes,
        bits: usize,
        n_groups: usize,
    },
    /// Signed bytes, number `row * row_stride + group * group_stride`; `plus` is added.
    Bytes {
        bytes: Bytes,
        row_stride: usize,
        group_stride: usize,
        plus: i16,
    },
}

impl Zeros {
    fn get(&self, row: usize, group: usize) -> i16 {
        match self {
            Zeros::None => 0,
            Zeros::Stream { bytes, bits, words, plus } => {
                plus + i16::from(from_stream(|w| word(bytes, group * words + w), row * bits, *bits))
            }
            Zeros::Awq { bytes, words } => {
                (word(bytes, group * words + row / 8) >> (4 * AWQ_NIBBLES[row % 8]) & 15) as i16
            }
            Zeros::RowWords { bytes, bits, n_groups } => {
                let per_word = 32 / bits;
                let word = word(bytes, row / per_word * n_groups + group);
                (word >> (bits * (row % per_word)) & ((1 << bits) - 1)) as i16
            }
            Zeros::Bytes { bytes, row_stride, group_stride, plus } => {
                i16::from(bytes[row * row_stride + group * group_stride] as i8) + plus
            }
        }
    }
}

/// A matrix in a file.
pub(super) struct FileRows {
    pub(super) cols: usize,
    pub(super) n_groups: usize,
    pub(super) codes: Codes,
    pub(super) scales: Scales,
    pub(super) zeros: Zeros,
    pub(super) row_bytes: usize,
}

impl GroupedRows for FileRows {
    fn codes(&self, rows: Range<usize>, out: &mut [u8]) {
        self.codes.read(rows, self.cols, out);
    }

    fn scales(&self, rows: Range<usize>, out: &mut [f32]) {
        for (row, out) in rows.zip(out.chunks_exact_mut(self.n_groups)) {
            out.iter_mut().enumerate().for_each(|(group, out)| *out = self.scales.get(row, group));
        }
    }

    fn zeros(&self, rows: Range<usize>, out: &mut [i16]) {
        for (row, out) in rows.zip(out.chunks_exact_mut(self.n_groups)) {
            out.iter_mut().enumerate().for_each(|(group, out)| *out = self.zeros.get(row, group));
        }
    }

    fn row_bytes(&self) -> usize {
        self.row_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Bytes {
        words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    #[test]
    fn streams_of_three_bits_cross_words() {
        // 32 codes 0, 1, … 7, 0, … in 96 bits.
        let all = (0..32u128).fold(0, |all, i| all | (i % 8) << (3 * i));
        let bytes = words(&[all as u32, (all >> 32) as u32, (all >> 64) as u32]);
        let mut out = [0; 32];
        Codes::ColumnStream { bytes: bytes.clone(), bits: 3, rows: 1 }.read(0..1, 32, &mut out);
        assert!(out.iter().enumerate().all(|(i, &code)| usize::from(code) == i % 8), "{out:?}");
        let zeros = Zeros::Stream { bytes, bits: 3, words: 3, plus: 1 };
        assert!((0..32).all(|row| zeros.get(row, 0) == row as i16 % 8 + 1));
    }

    #[test]
    fn awq_words_interleave_eight_rows() {
        // Two columns of eight rows: nibble i of a word is row [0, 2, 4, 6, 1, 3, 5, 7][i].
        let bytes = words(&[0x7531_6420, 0xfdb9_eca8]);
        let mut out = [0; 16];
        Codes::Awq { bytes, rows: 8 }.read(0..8, 2, &mut out);
        assert_eq!(out, [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15]);
    }

    #[test]
    fn nibbles_begin_with_the_high_one() {
        let mut out = [0; 3];
        // Rows of three: the second begins in the middle of a byte.
        Codes::Nibbles { bytes: vec![0x12, 0x34, 0x56].into() }.read(1..2, 3, &mut out);
        assert_eq!(out, [4, 5, 6]);
    }

    #[test]
    fn words_of_a_row_may_be_padded() {
        let mut out = [0; 10];
        let codes = Codes::RowWords { bytes: words(&[0x7654_3210, 0x98, 0xffff_ffff, 0xff]), bits: 4, words: 2 };
        codes.read(0..1, 10, &mut out);
        assert_eq!(out, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }
}
