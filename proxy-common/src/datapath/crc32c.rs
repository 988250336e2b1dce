//! CRC32c as SCTP uses it (RFC 9260, appendix A), and its incremental update.
//!
//! A CRC is linear over XOR. If the first four bytes of a packet of `n` bytes change by XOR `D`,
//! its CRC32c changes by XOR `D · x^(8n) mod P`, whatever the other bytes are. Bits are reflected:
//! bit 31 of a word is the coefficient of `x^0`, and `D` is read as a little-endian word.
//! With `x^(8n) mod P` in a table ([`shifts`]) an update is one look-up and one carry-less
//! multiplication ([`multiply`]), independent of the packet's length.
//!
//! There is no branch on data, and none that the verifier could take for one: a mask made of a
//! single bit (`0 - (a & 1)`) compiles to an arithmetic shift by 63, at which recent verifiers
//! follow both outcomes, and 32 of them in a row are too many.

/// The generator polynomial without `x^32`, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// `x^0`, reflected.
const ONE: u32 = 1 << 31;

/// `a · x^8 mod P` for every `a` that has only its last eight coefficients.
static TIMES_X8: [u32; 256] = times_x8_table();

#[allow(clippy::indexing_slicing, reason = "evaluated when compiled")]
const fn times_x8_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut a = 0;
    while a < 256 {
        let mut product = a as u32;
        let mut bit = 0;
        while bit < 8 {
            product = if product & 1 == 1 {
                (product >> 1) ^ POLYNOMIAL
            } else {
                product >> 1
            };
            bit += 1;
        }
        table[a] = product;
        a += 1;
    }
    table
}

/// `a · x^8 mod P`.
#[inline(always)]
fn times_x8(a: u32) -> u32 {
    let [last, ..] = a.to_le_bytes();
    // The index is a byte and the table has 256 entries: nothing is ever missing.
    (a >> 8) ^ TIMES_X8.get(usize::from(last)).copied().unwrap_or(0)
}

/// `a · x^32 mod P`.
#[inline(always)]
fn times_x32(a: u32) -> u32 {
    times_x8(times_x8(times_x8(times_x8(a))))
}

/// `a · b` without carries, and without reduction: bit 62 is the coefficient of `x^0`.
///
/// Ordinary multiplications of numbers whose bits are four apart: at most eight meet in a place,
/// and their sum does not reach the next bit that counts.
#[inline(always)]
const fn multiply_carryless(a: u32, b: u32) -> u64 {
    const EVERY_FOURTH: u64 = 0x1111_1111_1111_1111;
    const fn strand(word: u32, first: u32) -> u64 {
        word as u64 & (EVERY_FOURTH << first)
    }
    let (a0, a1, a2, a3) = (strand(a, 0), strand(a, 1), strand(a, 2), strand(a, 3));
    let (b0, b1, b2, b3) = (strand(b, 0), strand(b, 1), strand(b, 2), strand(b, 3));
    let p0 = (a0 * b0) ^ (a1 * b3) ^ (a2 * b2) ^ (a3 * b1);
    let p1 = (a0 * b1) ^ (a1 * b0) ^ (a2 * b3) ^ (a3 * b2);
    let p2 = (a0 * b2) ^ (a1 * b1) ^ (a2 * b0) ^ (a3 * b3);
    let p3 = (a0 * b3) ^ (a1 * b2) ^ (a2 * b1) ^ (a3 * b0);
    (p0 & EVERY_FOURTH)
        | (p1 & (EVERY_FOURTH << 1))
        | (p2 & (EVERY_FOURTH << 2))
        | (p3 & (EVERY_FOURTH << 3))
}

/// `a · b mod P`.
#[inline(always)]
pub fn multiply(a: u32, b: u32) -> u32 {
    let product = multiply_carryless(a, b) << 1;
    (product >> 32) as u32 ^ times_x32(product as u32)
}

/// `x^(8n) mod P` for n = 0, 1, 2, …
pub fn shifts() -> impl Iterator<Item = u32> {
    core::iter::successors(Some(ONE), |&shift| Some(times_x8(shift)))
}

/// The XOR by which the checksum field changes when the first four bytes do.
///
/// Both words and the result are as loaded from the packet; `shift` is `x^(8n) mod P` for a
/// packet of `n` bytes. The field holds the CRC in little-endian order (RFC 9260, appendix A).
#[inline(always)]
pub fn difference(from: u32, to: u32, shift: u32) -> u32 {
    multiply(u32::from_le(from ^ to), shift).to_le()
}

/// Takes one more word, as loaded from the packet, into a running CRC register.
#[inline(always)]
pub fn update(register: u32, word: u32) -> u32 {
    times_x32(register ^ u32::from_le(word))
}

/// Start value of the register.
pub const START: u32 = !0;

/// The checksum field for a finished register, as it is stored into the packet.
#[inline(always)]
pub const fn finish(register: u32) -> u32 {
    (!register).to_le()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn times_x(a: u32) -> u32 {
        if a & 1 == 1 {
            (a >> 1) ^ POLYNOMIAL
        } else {
            a >> 1
        }
    }

    /// Bit by bit, straight from the definition.
    fn reference(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |register, &byte| {
            (0..8).fold(register ^ u32::from(byte), |register, _| times_x(register))
        })
    }

    fn word(bytes: &[u8]) -> u32 {
        u32::from_ne_bytes(bytes.try_into().unwrap())
    }

    /// RFC 3720, appendix B.4.
    #[test]
    fn knows_the_examples_of_rfc_3720() {
        assert_eq!(reference(&[0; 32]), 0x8a91_36aa);
        assert_eq!(reference(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(
            reference(&core::array::from_fn::<u8, 32, _>(|i| i as u8)),
            0x46dd_794e
        );
    }

    #[test]
    fn multiplies() {
        assert_eq!(multiply(ONE, 0x1234_5678), 0x1234_5678);
        assert_eq!(multiply(ONE >> 1, ONE), times_x(ONE));
        assert_eq!(
            multiply(0xdead_beef, 0x0bad_cafe),
            multiply(0x0bad_cafe, 0xdead_beef)
        );
    }

    #[test]
    fn shifts_are_successive_powers() {
        let table: Vec<_> = shifts().take(65_536).collect();
        assert_eq!(table[0], ONE);
        assert_eq!(multiply(table[12], table[1_000]), table[1_012]);
        assert_eq!(multiply(table[30_000], table[35_535]), table[65_535]);
    }

    proptest! {
        #[test]
        fn products_are_sums_of_shifted_factors(a: u32, b: u32) {
            let powers = std::iter::successors(Some(b), |&b| Some(times_x(b)));
            let product = powers
                .take(32)
                .enumerate()
                .filter(|(i, _)| (a >> (31 - i)) & 1 == 1)
                .fold(0, |sum, (_, term)| sum ^ term);
            prop_assert_eq!(multiply(a, b), product);
        }

        #[test]
        fn an_update_equals_a_new_checksum(
            mut bytes in prop::collection::vec(any::<u8>(), 12..1500),
            ports: [u8; 4],
        ) {
            let before = reference(&bytes).to_le();
            let shift = shifts().nth(bytes.len()).unwrap();
            let change = difference(word(&bytes[..4]), word(&ports), shift);
            bytes[..4].copy_from_slice(&ports);
            prop_assert_eq!(before ^ change, reference(&bytes).to_le());
        }

        #[test]
        fn words_give_the_same_as_bytes(bytes in prop::collection::vec(any::<[u8; 4]>(), 0..64)) {
            let register =
                bytes.iter().fold(START, |register, bytes| update(register, word(bytes)));
            prop_assert_eq!(finish(register), reference(bytes.as_flattened()).to_le());
        }
    }
}
