//! The twelve bytes in which Q4_K and Q5_K pack eight 6-bit scales and eight 6-bit minima.
//!
//! ```text
//! sub-block s < 4:  scale = bytes[s] & 63            min = bytes[4 + s] & 63
//! sub-block s ≥ 4:  scale = bits 0–3: low nibble of bytes[4 + s],  bits 4–5: bits 6–7 of bytes[s − 4]
//!                   min   = bits 0–3: high nibble of bytes[4 + s], bits 4–5: bits 6–7 of bytes[s]
//! ```

/// Scales and minima, each 0 to 63.
#[inline]
pub(crate) fn unpack(bytes: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for s in 0..4 {
        scales[s] = bytes[s] & 63;
        mins[s] = bytes[4 + s] & 63;
        scales[4 + s] = bytes[8 + s] & 15 | bytes[s] >> 2 & 48;
        mins[4 + s] = bytes[8 + s] >> 4 | bytes[4 + s] >> 2 & 48;
    }
    (scales, mins)
}

/// The inverse of [`unpack`]; all inputs are below 64.
pub(crate) fn pack(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let mut bytes = [0; 12];
    for s in 0..4 {
        bytes[s] = scales[s] | scales[4 + s] >> 4 << 6;
        bytes[4 + s] = mins[s] | mins[4 + s] >> 4 << 6;
        bytes[8 + s] = scales[4 + s] & 15 | mins[4 + s] << 4;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_every_field_survives() {
        for value in 0..64u8 {
            for s in 0..8 {
                let (mut scales, mut mins) = ([63 - value; 8], [value ^ 21; 8]);
                scales[s] = value;
                mins[7 - s] = value;
                assert_eq!(unpack(&pack(&scales, &mins)), (scales, mins));
            }
        }
    }
}
