//! Plain statistics of repeated measurements. Pure.

use xtask::figures::Spread;

/// Median and quartiles of these values; `None` if there is none.
pub(super) fn spread(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    Some(Spread {
        low: quantile(&values, 0.25)?,
        median: quantile(&values, 0.5)?,
        high: quantile(&values, 0.75)?,
    })
}

/// The value below which `share` (0 to 1) of the sorted values are, between two of them if need
/// be; `None` if there is none.
pub(super) fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = sorted.len().checked_sub(1)? as f64 * share;
    let (below, above) = (place.floor(), place.ceil());
    let (low, high) = (sorted.get(below as usize)?, sorted.get(above as usize)?);
    Some(low + (high - low) * (place - below))
}

/// Numbers that follow no pattern, the same ones for the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Puts things into an order that depends on `seed` alone.
pub(super) fn shuffle<T>(things: &mut [T], seed: u64) {
    let mut dice = Dice(seed);
    for last in (1..things.len()).rev() {
        things.swap(last, (dice.roll() % (last as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0], 0.5), Some(2.5));
        assert_eq!(quantile(&[0.0, 100.0], 0.99), Some(99.0));
        assert_eq!(quantile(&[1.0, 5.0], 1.0), Some(5.0));
    }

    #[test]
    fn a_spread_sorts_first() {
        let of_five = spread([5.0, 1.0, 3.0, 2.0, 4.0]).unwrap();
        let expected = Spread {
            low: 2.0,
            median: 3.0,
            high: 4.0,
        };
        assert_eq!(of_five, expected);
        assert_eq!(spread([]), None);
    }

    #[test]
    fn a_shuffle_keeps_everything_and_depends_on_the_seed() {
        let shuffled = |seed| {
            let mut things: Vec<u32> = (0..20).collect();
            shuffle(&mut things, seed);
            things
        };
        assert_eq!(shuffled(1), shuffled(1));
        assert_ne!(shuffled(1), shuffled(2));
        let mut sorted = shuffled(3);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..20).collect::<Vec<u32>>());
    }

    #[test]
    fn every_order_of_three_comes_up() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let mut things = [0, 1, 2];
            shuffle(&mut things, seed);
            seen.insert(things);
        }
        assert_eq!(seen.len(), 6);
    }
}
