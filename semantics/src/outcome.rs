//! What came of a case.

use std::fmt;

/// What came of a case at one level.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// All is as expected.
    Passed,
    /// Something is not.
    Failed(Vec<Failure>),
    /// It was left out, for this reason: it asks for what this level can't do.
    NotOnTheWire(String),
}

impl Outcome {
    /// Passed if there are no failures.
    pub fn of(failures: Vec<Failure>) -> Self {
        if failures.is_empty() {
            Self::Passed
        } else {
            Self::Failed(failures)
        }
    }
}

/// One thing that is not as expected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Where in the case.
    pub place: Place,
    /// What was expected, and what was found.
    pub reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

/// A place in a case, with numbers that start at 0 as in paths: `steps[0].flows[2] 'pod to VIP'`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Index of the step; `None`: before the first.
    pub step: Option<usize>,
    /// What in this state.
    pub item: Item,
}

/// What in a state of a case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    /// The change that leads to the state.
    Change,
    /// A flow, with index and name.
    Flow(usize, String),
    /// A check, with index and name.
    Check(usize, String),
}

impl Place {
    /// The failure at this place for `reason`.
    pub fn fails(&self, reason: impl fmt::Display) -> Failure {
        Failure {
            place: self.clone(),
            reason: reason.to_string(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.step, &self.item) {
            (None, Item::Change) => return write!(f, "objects"),
            (None, _) => {}
            (Some(step), Item::Change) => return write!(f, "steps[{step}]"),
            (Some(step), _) => write!(f, "steps[{step}].")?,
        }
        match &self.item {
            Item::Change => Ok(()),
            Item::Flow(index, name) => write!(f, "flows[{index}] '{name}'"),
            Item::Check(index, name) => write!(f, "checks[{index}] '{name}'"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_paths_with_names() {
        let place = |step, item| Place { step, item }.to_string();
        assert_eq!(place(None, Item::Change), "objects");
        assert_eq!(place(Some(1), Item::Change), "steps[1]");
        assert_eq!(place(None, Item::Flow(2, "a b".into())), "flows[2] 'a b'");
        let check = Item::Check(0, "c".into());
        assert_eq!(place(Some(3), check), "steps[3].checks[0] 'c'");
    }
}
