//! Which Events are to be written, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{Cause, Causes, Object, Reason};

/// How long a problem stands until it is said: many are over sooner.
const GRACE: Duration = Duration::from_secs(3);
/// How many Events may be written at a time, and how often one more.
const BURST: u32 = 10;
const REFILL: Duration = Duration::from_secs(30);
/// How many causes are remembered that are not there any more.
const REMEMBERED: usize = 1000;

/// An Event that is to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Letter {
    pub(super) cause: Cause,
    pub(super) note: String,
    /// Since when it is so.
    pub(super) since: Instant,
    /// Whether this adds to an Event that is there already; if not, one that is there tells of the
    /// same, and is left as it is.
    pub(super) is_again: bool,
}

/// What is to be done.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Next {
    Write(Letter),
    /// Something is to be written, but not yet.
    Wait(Duration),
    Nothing,
}

/// What is to be written yet, and what has been.
#[derive(Debug)]
pub(super) struct Outbox {
    waiting: BTreeMap<Cause, Letter>,
    /// What is wrong and has been said.
    said: BTreeSet<Cause>,
    /// What has been said, and was over then.
    over: BTreeSet<Cause>,
    n_tokens: u32,
    /// When the tokens were counted.
    counted: Instant,
}

impl Outbox {
    /// With one Event to begin with: that this daemon has started.
    pub(super) fn new(now: Instant) -> Self {
        let cause = Cause {
            reason: Reason::Starting,
            object: Object::Node,
        };
        let letter = Letter {
            cause: cause.clone(),
            note: format!("beeline {} has started", env!("CARGO_PKG_VERSION")),
            since: now,
            // Of a daemon before, perhaps.
            is_again: true,
        };
        Self {
            waiting: BTreeMap::from([(cause, letter)]),
            said: BTreeSet::new(),
            over: BTreeSet::new(),
            n_tokens: BURST,
            counted: now,
        }
    }

    /// Takes note of what is wrong at `now`.
    pub(super) fn update(&mut self, causes: &Causes, now: Instant) {
        let is_there =
            |cause: &Cause| cause.reason == Reason::Starting || causes.contains_key(cause);
        self.waiting.retain(|cause, _| is_there(cause));
        let said = std::mem::take(&mut self.said).into_iter();
        let (said, over) = said.partition::<BTreeSet<_>, _>(is_there);
        self.said = said;
        self.over.extend(over);
        while self.over.len() > REMEMBERED {
            self.over.pop_first();
        }
        for (cause, note) in causes {
            if self.said.contains(cause) {
                continue;
            }
            let letter = || Letter {
                cause: cause.clone(),
                note: String::new(),
                since: now,
                is_again: self.over.contains(cause),
            };
            let letter = self.waiting.entry(cause.clone()).or_insert_with(letter);
            letter.note.clone_from(note);
        }
    }

    /// What is due at `now`. It counts as written.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        self.refill(now);
        let due = |letter: &Letter| {
            let is_start = letter.cause.reason == Reason::Starting;
            letter.since + if is_start { Duration::ZERO } else { GRACE }
        };
        let mut letters = self.waiting.values();
        let Some(earliest) = letters.next().map(due) else {
            return Next::Nothing;
        };
        let earliest = letters.map(due).fold(earliest, Instant::min);
        if earliest > now {
            return Next::Wait(earliest - now);
        }
        if self.n_tokens == 0 {
            let refill = self.counted + REFILL;
            return Next::Wait(refill.saturating_duration_since(now));
        }
        let ready = self.waiting.values().filter(|letter| due(letter) <= now);
        // What has not been said before comes first, and then what has waited for longest.
        let first = ready.min_by_key(|letter| (letter.is_again, letter.since));
        let Some(letter) = first.cloned() else {
            return Next::Nothing;
        };
        self.n_tokens -= 1;
        self.waiting.remove(&letter.cause);
        self.said.insert(letter.cause.clone());
        Next::Write(letter)
    }

    /// It could not be written.
    pub(super) fn put_back(&mut self, letter: Letter) {
        self.n_tokens = (self.n_tokens + 1).min(BURST);
        self.said.remove(&letter.cause);
        self.waiting.insert(letter.cause.clone(), letter);
    }

    fn refill(&mut self, now: Instant) {
        while self.n_tokens < BURST && now.saturating_duration_since(self.counted) >= REFILL {
            self.n_tokens += 1;
            self.counted += REFILL;
        }
        if self.n_tokens == BURST {
            self.counted = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    const SECOND: Duration = Duration::from_secs(1);

    fn cause(number: usize) -> Cause {
        Cause {
            reason: Reason::FailedToProgramService,
            object: Object::Service(ObjectName {
                namespace: "shop".into(),
                name: format!("web{number}").into(),
            }),
        }
    }

    fn causes(numbers: impl IntoIterator<Item = usize>, note: &str) -> Causes {
        let each = numbers.into_iter();
        each.map(|number| (cause(number), note.to_owned()))
            .collect()
    }

    /// Past the Event of the start.
    fn started(now: Instant) -> Outbox {
        let mut outbox = Outbox::new(now);
        let Next::Write(letter) = outbox.next(now) else {
            panic!("no start")
        };
        assert_eq!(letter.cause.reason.name(), "Starting");
        assert!(letter.is_again);
        assert_eq!(outbox.next(now), Next::Nothing);
        outbox
    }

    fn written(outbox: &mut Outbox, now: Instant) -> Vec<Letter> {
        let letters = std::iter::from_fn(|| match outbox.next(now) {
            Next::Write(letter) => Some(letter),
            Next::Wait(_) | Next::Nothing => None,
        });
        letters.collect()
    }

    #[test]
    fn a_problem_is_said_once_whatever_its_words() {
        let start = Instant::now();
        let mut outbox = started(start);
        outbox.update(&causes([1], "5 needed"), start);
        assert_eq!(outbox.next(start), Next::Wait(GRACE));
        outbox.update(&causes([1], "6 needed"), start + SECOND);
        let letters = written(&mut outbox, start + GRACE);
        assert_eq!(letters.len(), 1);
        assert_eq!(letters[0].note, "6 needed");
        assert!(!letters[0].is_again);
        outbox.update(&causes([1], "7 needed"), start + 10 * SECOND);
        assert_eq!(outbox.next(start + 3600 * SECOND), Next::Nothing);
    }

    #[test]
    fn what_is_over_soon_is_not_said() {
        let start = Instant::now();
        let mut outbox = started(start);
        outbox.update(&causes([1], "x"), start);
        outbox.update(&causes([], "x"), start + SECOND);
        assert_eq!(outbox.next(start + 10 * SECOND), Next::Nothing);
    }

    #[test]
    fn what_comes_again_is_said_again_after_what_is_new() {
        let start = Instant::now();
        let mut outbox = started(start);
        outbox.update(&causes([1], "x"), start);
        assert_eq!(written(&mut outbox, start + GRACE).len(), 1);
        outbox.update(&causes([], "x"), start + 10 * SECOND);
        outbox.update(&causes([1], "x"), start + 20 * SECOND);
        outbox.update(&causes([1, 2], "x"), start + 21 * SECOND);
        let letters = written(&mut outbox, start + 30 * SECOND);
        let said: Vec<_> = letters.iter().map(|it| (&it.cause, it.is_again)).collect();
        assert_eq!(said, [(&cause(2), false), (&cause(1), true)]);
    }

    #[test]
    fn a_flood_comes_drop_by_drop() {
        let start = Instant::now();
        let mut outbox = started(start);
        outbox.update(&causes(0..5000, "no room"), start);
        let mut n_written = 0;
        for second in 0..3600 {
            let now = start + second * SECOND;
            n_written += written(&mut outbox, now).len();
        }
        // The burst, and one each half a minute.
        assert!((125..=130).contains(&n_written), "{n_written}");
        assert!(matches!(outbox.next(start + 3599 * SECOND), Next::Wait(pause) if pause <= REFILL));
        // What is solved is not said any more.
        outbox.update(&causes([], ""), start + 3600 * SECOND);
        assert_eq!(outbox.next(start + 7200 * SECOND), Next::Nothing);
    }

    #[test]
    fn what_could_not_be_written_is_tried_again() {
        let start = Instant::now();
        let mut outbox = started(start);
        outbox.update(&causes([1], "x"), start);
        let letter = written(&mut outbox, start + GRACE).remove(0);
        outbox.put_back(letter.clone());
        assert_eq!(written(&mut outbox, start + 60 * SECOND), [letter]);
    }

    #[test]
    fn not_everything_is_remembered() {
        let start = Instant::now();
        let mut outbox = started(start);
        for number in 0..1500 {
            let now = start + u32::try_from(number).unwrap() * 60 * SECOND;
            outbox.update(&causes([number], "x"), now);
            assert_eq!(written(&mut outbox, now + GRACE).len(), 1);
        }
        assert!(outbox.over.len() <= REMEMBERED && outbox.said.len() <= 2);
    }
}
