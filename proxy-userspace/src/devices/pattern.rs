//! Names of devices, as `--pod-devices` and `--node-devices` give them.

use std::str::FromStr;

use glob::Pattern;

/// Patterns of names; without any, the links decide.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DevicePatterns {
    wanted: Vec<Pattern>,
    unwanted: Vec<Pattern>,
}

/// A list of patterns that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PatternError {
    /// Nothing between two commas, or behind an exclamation mark.
    #[error("an empty pattern")]
    Empty,
    /// Not a glob.
    #[error("pattern {pattern:?}: {message}")]
    Glob {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        message: &'static str,
    },
}

impl DevicePatterns {
    /// Whether a device of this name is meant; `None`: the link decides.
    ///
    /// A name that a pattern with `!` matches does not. Of the others, those do that match a
    /// pattern; if all patterns are with `!`, the links decide.
    pub fn verdict(&self, name: &str) -> Option<bool> {
        if self.unwanted.iter().any(|pattern| pattern.matches(name)) {
            return Some(false);
        }
        let is_wanted = || self.wanted.iter().any(|pattern| pattern.matches(name));
        (!self.wanted.is_empty()).then(is_wanted)
    }
}

impl FromStr for DevicePatterns {
    type Err = PatternError;

    /// Reads a list such as `veth*,cali*,!veth-infra`.
    fn from_str(text: &str) -> Result<Self, PatternError> {
        let mut patterns = Self::default();
        for part in text.split(',').map(str::trim) {
            match part.strip_prefix('!') {
                Some(part) => patterns.unwanted.push(pattern(part)?),
                None => patterns.wanted.push(pattern(part)?),
            }
        }
        Ok(patterns)
    }
}

fn pattern(text: &str) -> Result<Pattern, PatternError> {
    if text.is_empty() {
        return Err(PatternError::Empty);
    }
    Pattern::new(text).map_err(|error| PatternError::Glob {
        pattern: text.to_owned(),
        message: error.msg,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        let pods: DevicePatterns = "veth*, cali?,!veth-infra".parse().unwrap();
        for (name, expected) in [
            ("veth1", true),
            ("veth-infra", false),
            ("cali1", true),
            ("cali12", false),
            ("myveth1", false),
        ] {
            assert_eq!(pods.verdict(name), Some(expected), "{name}");
        }
    }

    #[test]
    fn without_a_wanted_pattern_the_link_decides() {
        assert_eq!(DevicePatterns::default().verdict("veth1"), None);
        let pods: DevicePatterns = "!eth0".parse().unwrap();
        assert_eq!(pods.verdict("veth1"), None);
        assert_eq!(pods.verdict("eth0"), Some(false));
    }

    #[test]
    fn what_is_no_pattern_is_said() {
        assert_eq!("veth*,".parse::<DevicePatterns>(), Err(PatternError::Empty));
        assert_eq!("!".parse::<DevicePatterns>(), Err(PatternError::Empty));
        let error = "veth[".parse::<DevicePatterns>().unwrap_err().to_string();
        assert!(error.contains("veth["), "{error}");
    }
}
