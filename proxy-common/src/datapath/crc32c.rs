//! CRC32c as SCTP uses it (RFC 9260, appendix A), and its incremental update.
//!
//! A CRC is linear over XOR. If the first four bytes of a packet of `n` bytes change by XOR `D`,
//! its CRC32c changes by XOR `D · x^(8n) mod P`, whatever the other bytes are. Bits are reflected:
//! bit 31 of a word is the coefficient of `x^0`, and `D` is read as a little-endian word.
//! With `x^(8n) mod P` in a table ([`shifts`]) an update is one look-up and one carry-less
//! multiplication ([`multiply`]), independent of the packet's length.

/// The generator polynomial without `x^32`, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// `x^0`, reflected.
const ONE: u32 = 1 << 31;

/// `a · x mod P`.
#[inline(always)]
const fn times_x(a: u32) -> u32 {
    (a >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(a & 1))
}

/// `a · b mod P`.
#[inline(always)]
pub const fn multiply(a: u32, b: u32) -> u32 {
    let mut product = 0;
    let mut shifted = b;
    let mut bit = 0;
    while bit < 32 {
        product ^= shifted & 0_u32.wrapping_sub((a >> (31 - bit)) & 1);
        shifted = times_x(shifted);
        bit += 1;
    }
    product
}

/// `x^(8n) mod P` for n = 0, 1, 2, …
pub fn shifts() -> impl Iterator<Item = u32> {
    core::iter::successors(Some(ONE), |&shift| {
        Some((0..8).fold(shift, |a, _| times_x(a)))
    })
}

/// The XOR by which the checksum field changes when the first four bytes do.
///
/// Both words and the result are as loaded from the packet; `shift` is `x^(8n) mod P` for a
/// packet of `n` bytes. The field holds the CRC in little-endian order (RFC 9260, appendix A).
#[inline(always)]
pub const fn difference(from: u32, to: u32, shift: u32) -> u32 {
    multiply(u32::from_le(from ^ to), shift).to_le()
}

/// Takes one more word, as loaded from the packet, into a running CRC register.
#[inline(always)]
pub const fn update(register: u32, word: u32) -> u32 {
    let mut register = register ^ u32::from_le(word);
    let mut bit = 0;
    while bit < 32 {
        register = times_x(register);
        bit += 1;
    }
    register
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
