//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! A checksum is the complement of the one's-complement sum of all 16-bit words. That sum does
//! not care about byte order, so everything here is in the machine's order, on words as they are
//! loaded from the packet. When a word changes from `m` to `m'`, the checksum `C` becomes
//! `~(~C + ~m + m')` (RFC 1624, equation 3): only the difference `~m + m'` is needed, and
//! differences add up.
//!
//! The awkward zero: one's complement has two of them. The update above never turns a valid
//! checksum into the wrong one for IPv4, ICMP and TCP; UDP forbids a stored 0, for which
//! 0xffff, the other zero, is stored instead (RFC 768).

use super::parse::Headers;
use crate::abi::{Family, Tuple};

/// A one's-complement sum of 16-bit words, not yet folded.
///
/// Kept in 64 bits, so that some billions of words can be added before it overflows.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Sum(u64);

/// What the sum of a packet's words gains by a change.
pub type Difference = Sum;

impl Sum {
    /// The empty sum.
    pub const ZERO: Self = Self(0);

    /// Adds one 16-bit word.
    #[inline(always)]
    #[must_use]
    pub const fn add16(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds two 16-bit words at once.
    #[inline(always)]
    #[must_use]
    pub const fn add32(self, words: u32) -> Self {
        Self(self.0 + words as u64)
    }

    /// Adds all words of an address.
    #[inline(always)]
    #[must_use]
    pub const fn add128(self, [a, b, c, d]: [u32; 4]) -> Self {
        self.add32(a).add32(b).add32(c).add32(d)
    }

    /// Adds the difference of a 16-bit word that changes.
    #[inline(always)]
    #[must_use]
    pub const fn change16(self, from: u16, to: u16) -> Self {
        self.add16(!from).add16(to)
    }

    /// Adds the difference of two 16-bit words that change.
    #[inline(always)]
    #[must_use]
    pub const fn change32(self, from: u32, to: u32) -> Self {
        self.add32(!from).add32(to)
    }

    /// Adds the difference of an address that changes.
    #[inline(always)]
    #[must_use]
    pub const fn change128(self, [a, b, c, d]: [u32; 4], [e, f, g, h]: [u32; 4]) -> Self {
        self.change32(a, e)
            .change32(b, f)
            .change32(c, g)
            .change32(d, h)
    }

    /// Adds another sum.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The sum in 32 bits, as the kernel's checksum helpers take it.
    #[inline(always)]
    pub const fn fold32(self) -> u32 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((once & 0xffff_ffff) + (once >> 32)) as u32
    }

    /// The sum in 16 bits: what stands in a packet whose checksum the device is to complete.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        let sum = self.fold32();
        let once = (sum & 0xffff) + (sum >> 16);
        ((once & 0xffff) + (once >> 16)) as u16
    }

    /// The checksum of all that was added.
    #[inline(always)]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }

    /// `checksum` after this difference.
    #[inline(always)]
    pub const fn applied_to(self, checksum: u16) -> u16 {
        self.add16(!checksum).checksum()
    }
}

/// Whether a transport checksum is complete, told from what the kernel made of it when the
/// addresses changed: `None` where both kinds come out the same.
///
/// The kernel knows and does not say, but treats the two kinds differently: from a complete
/// checksum a difference is subtracted, to the sum of a pseudo-header it is added.
#[inline(always)]
pub const fn was_complete(before: u16, after: u16, difference: Difference) -> Option<bool> {
    let complete = same_zero(difference.applied_to(before));
    let partial = same_zero(difference.add16(before).fold());
    if complete == partial {
        None
    } else {
        Some(same_zero(after) == complete)
    }
}

/// Sum of a packet's pseudo-header for `len` bytes of `protocol` (RFC 9293, 3.1; RFC 8200, 8.1).
/// It is the same for an answer.
#[inline(always)]
pub fn pseudo_header(headers: &Headers, protocol: u8, len: u32) -> Sum {
    let Tuple { src, dst, .. } = &headers.key.tuple;
    let addresses = match headers.family() {
        Family::Ipv4 => Sum::ZERO.add32(src.v4_word()).add32(dst.v4_word()),
        Family::Ipv6 => Sum::ZERO.add128(src.words()).add128(dst.words()),
    };
    addresses
        .add16(u16::from(protocol).to_be())
        .add32(len.to_be())
}

/// A TCP or UDP checksum to repair after changes.
///
/// One that is still to be completed by the device covers the pseudo-header alone, so the two
/// differences are told apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repair {
    /// Offset of the checksum in the packet, bytes.
    pub offset: u32,
    /// Which pseudo-header it covers.
    pub family: Family,
    /// Difference of the addresses.
    pub pseudo: Difference,
    /// Difference of the ports.
    pub body: Difference,
    /// 0 means that there is no checksum (RFC 768).
    pub zero_is_none: bool,
    /// What stands there if the device is to complete it: the sum of the pseudo-header before the
    /// changes (RFC 9293, 3.1; RFC 8200, 8.1).
    pub seed: Sum,
    /// Bytes of options or extensions of the IP header, which may say that the packet is for another
    /// destination than stands in the header, and then the seed is another one.
    pub options: u32,
}

impl Repair {
    /// Whether there is nothing to repair where this stands.
    #[inline(always)]
    pub const fn is_none(&self, checksum: u16) -> bool {
        self.zero_is_none && checksum == 0
    }

    /// Whether this checksum is complete beyond doubt, in a packet of one segment. One of 65,536
    /// that are is in doubt.
    #[inline(always)]
    pub const fn is_complete(&self, checksum: u16) -> bool {
        // The difference of equals is the zero that is not 0, since the seed is not 0.
        self.options == 0 && self.seed.add16(!checksum).fold() != 0xffff
    }

    /// The complete checksum `checksum` after the changes.
    #[inline(always)]
    pub const fn of_complete(&self, checksum: u16) -> u16 {
        self.stored(self.pseudo.plus(self.body).applied_to(checksum))
    }

    /// The checksum to be completed, `checksum`, after the changes.
    #[inline(always)]
    pub const fn of_partial(&self, checksum: u16) -> u16 {
        self.stored(self.pseudo.add16(checksum).fold())
    }

    /// The checksum in the form in which it is stored.
    #[inline(always)]
    pub const fn stored(&self, checksum: u16) -> u16 {
        // Without a branch, which all that comes after would be verified for once more: 0xffff for
        // 0, 0 for anything else.
        let other_zero = (checksum as u32).wrapping_sub(1) >> 16;
        checksum | (other_zero * self.zero_is_none as u32) as u16
    }
}

/// One of one's complement's two zeros for both.
const fn same_zero(sum: u16) -> u16 {
    if sum == 0xffff { 0 } else { sum }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum_of(words: &[u16]) -> Sum {
        words.iter().fold(Sum::ZERO, |sum, &word| sum.add16(word))
    }

    /// RFC 1071, section 3: the sum of 00 01 f2 03 f4 f5 f6 f7 is ddf2.
    #[test]
    fn sums_the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7_u8];
        let words: Vec<_> = bytes
            .chunks(2)
            .map(|pair| u16::from_ne_bytes([pair[0], pair[1]]))
            .collect();
        assert_eq!(sum_of(&words).fold().to_ne_bytes(), [0xdd, 0xf2]);
    }

    /// RFC 1624, section 4: 0x5555 becomes 0x3285 where the checksum is 0xdd2f: 0x0000.
    #[test]
    fn updates_the_example_of_rfc_1624() {
        assert_eq!(
            Sum::ZERO.change16(0x5555, 0x3285).applied_to(0xdd2f),
            0x0000
        );
    }

    proptest! {
        #[test]
        fn an_update_equals_a_new_sum(mut words: Vec<u16>, at: usize, new: u16) {
            // A packet with nothing but zeros has no checksum to speak of.
            prop_assume!(words.iter().any(|&word| word != 0) && new != 0);
            let before = sum_of(&words).checksum();
            let at = at % words.len();
            let old = std::mem::replace(&mut words[at], new);
            prop_assert_eq!(Sum::ZERO.change16(old, new).applied_to(before), sum_of(&words).checksum());
        }

        #[test]
        fn a_complete_checksum_tells(before: u16, from: u32, to: u32) {
            let difference = Sum::ZERO.change32(from, to);
            let complete = was_complete(before, difference.applied_to(before), difference);
            prop_assert_ne!(complete, Some(false));
            let partial = was_complete(before, difference.add16(before).fold(), difference);
            prop_assert_ne!(partial, Some(true));
            // Only a change of nothing tells nothing.
            prop_assert_eq!(complete.is_none(), matches!(difference.fold(), 0 | 0xffff));
            prop_assert_eq!(complete.is_none(), partial.is_none());
        }

        #[test]
        fn what_the_device_is_to_complete_is_not_taken_for_complete(
            from: [u32; 4], to: [u32; 4], ports: [u32; 2], zero_is_none: bool, options: u32,
        ) {
            let [old, new] = [from, to].map(|addresses| Sum::ZERO.add128(addresses).add16(17));
            let repair = Repair {
                offset: 0,
                family: Family::Ipv6,
                pseudo: Sum::ZERO.change128(from, to),
                body: Sum::ZERO.change32(ports[0], ports[1]),
                zero_is_none,
                seed: old,
                options: 0,
            };
            prop_assert!(!repair.is_complete(old.fold()));
            let repaired = repair.of_partial(old.fold());
            prop_assert_eq!(same_zero(repaired), same_zero(new.fold()));
            let next = Repair { seed: new, ..repair };
            prop_assert!(!next.is_complete(repaired));
            // One zero is the other.
            prop_assume!(old.fold() != 0xffff);
            prop_assert_eq!(Repair { options, ..repair }.is_complete(!old.fold()), options == 0);
            prop_assert!(!zero_is_none || repaired != 0);
        }

        #[test]
        fn differences_add_up(from: [u32; 4], to: [u32; 4], checksum: u16) {
            let at_once = Sum::ZERO.change128(from, to);
            let first = Sum::ZERO.change32(from[0], to[0]).change32(from[1], to[1]);
            let second = Sum::ZERO.change32(from[2], to[2]).change32(from[3], to[3]);
            prop_assert_eq!(at_once.applied_to(checksum), first.plus(second).applied_to(checksum));
        }

        #[test]
        fn wide_words_are_two_narrow_ones(word: u32) {
            let [a, b, c, d] = word.to_ne_bytes();
            let narrow = sum_of(&[u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]);
            prop_assert_eq!(Sum::ZERO.add32(word).fold(), narrow.fold());
        }
    }
}
