//! How long a flow may be silent.

use std::collections::BTreeMap;

use proxy_common::abi::FlowState;

/// Seconds for each state of each protocol, Linux conntrack's defaults unless told otherwise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Timeouts {
    seconds: [u32; FlowState::ALL.len()],
}

/// A time-out that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TimeoutsError {
    /// Not of the form `STATE=TIME`.
    #[error("{0:?} is not of the form STATE=TIME, such as tcp-established=86400s")]
    Form(String),
    /// No such state.
    #[error("there is no state {state:?}; the states are {}", names().collect::<Vec<_>>().join(", "))]
    State {
        /// What was given.
        state: String,
    },
    /// Not a time.
    #[error("{state}: {time:?} is no time; give whole seconds, or a number with s, m, h or d")]
    Time {
        /// The state.
        state: String,
        /// What was given.
        time: String,
    },
    /// Out of bounds.
    #[error("{state}: {time} is out of bounds; 1 second to 365 days are possible")]
    Bounds {
        /// The state.
        state: String,
        /// What was given.
        time: String,
    },
}

const MAX_SECONDS: u64 = 365 * 86_400;

/// The name of a state in options, and its default in seconds: `nf_conntrack_proto_*.c`.
const fn default(state: FlowState) -> (&'static str, u32) {
    match state {
        FlowState::TcpSynSent => ("tcp-syn-sent", 120),
        FlowState::TcpSynRecv => ("tcp-syn-recv", 60),
        FlowState::TcpEstablished => ("tcp-established", 432_000),
        FlowState::TcpFinWait => ("tcp-fin-wait", 120),
        FlowState::TcpCloseWait => ("tcp-close-wait", 60),
        FlowState::TcpTimeWait => ("tcp-time-wait", 120),
        FlowState::TcpClose => ("tcp-close", 10),
        FlowState::UdpUnreplied => ("udp-unreplied", 30),
        FlowState::UdpReplied => ("udp-replied", 30),
        FlowState::UdpStream => ("udp-stream", 120),
        FlowState::SctpCookieWait => ("sctp-cookie-wait", 3),
        FlowState::SctpCookieEchoed => ("sctp-cookie-echoed", 3),
        FlowState::SctpEstablished => ("sctp-established", 210),
        FlowState::SctpShutdown => ("sctp-shutdown", 3),
        FlowState::SctpClosed => ("sctp-closed", 10),
    }
}

fn names() -> impl Iterator<Item = &'static str> {
    FlowState::ALL.into_iter().map(|state| default(state).0)
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            seconds: FlowState::ALL.map(|state| default(state).1),
        }
    }
}

impl Timeouts {
    /// The defaults, but for those that `options` name: each of the form `STATE=TIME`.
    ///
    /// # Errors
    /// The first option that cannot be read.
    pub fn with(options: &[String]) -> Result<Self, TimeoutsError> {
        let mut timeouts = Self::default();
        for option in options {
            timeouts.set(option)?;
        }
        Ok(timeouts)
    }

    /// Seconds of silence after which a flow in `state` is over.
    pub const fn seconds(&self, state: FlowState) -> u32 {
        self.seconds[state as usize]
    }

    /// All of them by name.
    pub fn by_name(&self) -> BTreeMap<String, u32> {
        names().map(str::to_owned).zip(self.seconds).collect()
    }

    /// The defaults, but for those in `by_name`; names of no state are passed over.
    pub fn from_names(by_name: &BTreeMap<String, u32>) -> Self {
        let seconds = FlowState::ALL.map(|state| {
            let (name, seconds) = default(state);
            by_name.get(name).copied().unwrap_or(seconds)
        });
        Self { seconds }
    }

    fn set(&mut self, option: &str) -> Result<(), TimeoutsError> {
        let (state, time) = option
            .split_once('=')
            .ok_or_else(|| TimeoutsError::Form(option.to_owned()))?;
        let (state, time) = (state.trim().to_owned(), time.trim().to_owned());
        let Some(index) = names().position(|name| name == state) else {
            return Err(TimeoutsError::State { state });
        };
        let Some(seconds) = parse_seconds(&time) else {
            return Err(TimeoutsError::Time { state, time });
        };
        match u32::try_from(seconds) {
            Ok(within) if (1..=MAX_SECONDS).contains(&seconds) => self.seconds[index] = within,
            _ => return Err(TimeoutsError::Bounds { state, time }),
        }
        Ok(())
    }
}

/// A number of seconds, or one with a unit. Absurd ones saturate.
pub(crate) fn parse_seconds(time: &str) -> Option<u64> {
    let digits = time.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &time[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| {
        digits
            .parse::<u64>()
            .unwrap_or(u64::MAX)
            .saturating_mul(unit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(options: &[&str]) -> Result<Timeouts, TimeoutsError> {
        Timeouts::with(
            &options
                .iter()
                .map(|&option| option.to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn options_change_only_what_they_name() {
        let timeouts = with(&["tcp-established=1d", "udp-stream = 90"]).unwrap();
        assert_eq!(timeouts.seconds(FlowState::TcpEstablished), 86_400);
        assert_eq!(timeouts.seconds(FlowState::UdpStream), 90);
        assert_eq!(timeouts.seconds(FlowState::TcpSynSent), 120);
    }

    #[test]
    fn units_are_seconds_minutes_hours_and_days() {
        let cases = [
            ("7", Some(7)),
            ("7s", Some(7)),
            ("2m", Some(120)),
            ("1h", Some(3600)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_seconds(text), expected, "{text}");
        }
        for text in ["", "s", "1.5h", "-1", "1w", "1ms", "m1"] {
            assert_eq!(parse_seconds(text), None, "{text}");
        }
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let message = |option| with(&[option]).unwrap_err().to_string();
        assert!(message("tcp-established").contains("STATE=TIME"));
        assert!(message("tcp-open=3").contains("sctp-cookie-wait"));
        assert!(message("udp-stream=soon").contains("udp-stream: \"soon\""));
        assert!(message("udp-stream=0").contains("out of bounds"));
        assert!(message("udp-stream=99999999999999999999d").contains("out of bounds"));
    }

    #[test]
    fn they_survive_the_status_file() {
        let timeouts = with(&["tcp-close=11"]).unwrap();
        assert_eq!(Timeouts::from_names(&timeouts.by_name()), timeouts);
    }

    #[test]
    fn every_state_has_its_own_name() {
        assert_eq!(
            names().collect::<std::collections::BTreeSet<_>>().len(),
            FlowState::ALL.len()
        );
    }
}
