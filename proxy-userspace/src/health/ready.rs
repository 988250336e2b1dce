//! Whether what is in force follows the cluster. Pure.

use std::time::Instant;

use crate::source::SourceState;

/// Why not, if not: the first lists are not in force, or nothing is heard of the source.
pub fn unready(is_in_force: bool, source: Option<&SourceState>, now: Instant) -> Option<String> {
    let first = (!is_in_force).then(|| "the first lists of Services are not in force".to_owned());
    let away = source.into_iter().flat_map(|source| source.away(now));
    let away = away.map(|(resource, time)| {
        format!(
            "{resource}: nothing has been heard for {} s",
            time.as_secs()
        )
    });
    let reasons: Vec<_> = first.into_iter().chain(away).collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::watch;

    use super::*;

    #[test]
    fn ready_is_what_is_in_force_and_hears_of_changes() {
        let start = Instant::now();
        let source = watch::Sender::new(SourceState::new(["nodes", "services"], start));
        let at = |is_in_force, seconds| {
            let now = start + Duration::from_secs(seconds);
            unready(is_in_force, Some(&source.borrow()), now)
        };
        assert_eq!(
            at(false, 3).unwrap(),
            "the first lists of Services are not in force; nodes: nothing has been heard for 3 s; \
             services: nothing has been heard for 3 s"
        );
        SourceState::connected(&source, "nodes", true);
        assert_eq!(
            at(true, 5).unwrap(),
            "services: nothing has been heard for 5 s"
        );
        SourceState::connected(&source, "services", true);
        assert_eq!(at(true, 5), None);
        assert_eq!(unready(true, None, start), None);
    }
}
