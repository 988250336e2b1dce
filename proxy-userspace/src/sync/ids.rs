//! Free ids of a map.

use std::collections::VecDeque;

/// The ids that a new entry may get: never used ones first, then the one that is free longest.
#[derive(Debug)]
pub(super) struct Ids {
    capacity: u32,
    /// The smallest id that was never taken.
    fresh: u32,
    /// Fresh ids below this one may be taken; the others rest.
    limit: u32,
    free: VecDeque<u32>,
    /// Freed, but a program that still runs may hold them.
    resting: Vec<u32>,
}

impl Ids {
    /// The ids below `capacity`: those in `free` and all from `fresh` on are free. They rest: who
    /// was here before may have freed them a moment ago.
    pub(super) fn new(capacity: u32, fresh: u32, free: Vec<u32>) -> Self {
        Self {
            capacity,
            fresh,
            limit: fresh,
            free: VecDeque::new(),
            resting: free,
        }
    }

    /// How many can be taken now.
    pub(super) fn available(&self) -> usize {
        self.limit.saturating_sub(self.fresh) as usize + self.free.len()
    }

    /// How many are taken.
    pub(super) fn used(&self) -> u32 {
        let free = self.free.len() + self.resting.len();
        self.fresh
            .saturating_sub(u32::try_from(free).unwrap_or(u32::MAX))
    }

    /// Takes an id.
    pub(super) fn take(&mut self) -> Option<u32> {
        if self.fresh < self.limit {
            self.fresh += 1;
            return Some(self.fresh - 1);
        }
        self.free.pop_front()
    }

    /// Takes an id back that was never written to a map.
    pub(super) fn put_back(&mut self, id: u32) {
        self.free.push_front(id);
    }

    /// Takes an id back that programs may hold until the next grace period.
    pub(super) fn rest(&mut self, id: u32) {
        self.resting.push(id);
    }

    /// Whether a grace period would free any.
    pub(super) fn is_resting(&self) -> bool {
        !self.resting.is_empty() || self.limit < self.capacity
    }

    /// How many more could be taken after a grace period.
    pub(super) fn n_resting(&self) -> usize {
        self.capacity.saturating_sub(self.limit.max(self.fresh)) as usize + self.resting.len()
    }

    /// A grace period has passed.
    pub(super) fn settle(&mut self) {
        self.limit = self.capacity;
        self.free.extend(self.resting.drain(..));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_comes_back_as_late_as_possible() {
        let mut ids = Ids::new(4, 2, vec![1]);
        assert_eq!(
            (ids.available(), ids.take(), ids.is_resting()),
            (0, None, true)
        );
        ids.settle();
        assert_eq!(
            (ids.available(), ids.take(), ids.is_resting()),
            (3, Some(2), false)
        );
        ids.rest(0);
        assert_eq!(
            (ids.take(), ids.take(), ids.take()),
            (Some(3), Some(1), None)
        );
        ids.rest(3);
        ids.settle();
        assert_eq!(
            (ids.available(), ids.take(), ids.take()),
            (2, Some(0), Some(3))
        );
        assert_eq!(ids.used(), 4);
    }

    #[test]
    fn what_was_never_written_is_free_at_once() {
        let mut ids = Ids::new(1, 0, vec![]);
        ids.settle();
        let id = ids.take().unwrap();
        ids.put_back(id);
        assert_eq!((ids.is_resting(), ids.take()), (false, Some(0)));
    }
}
