//! How messages name a setting: as an option, and as the field of Beeline's configuration file.

use std::fmt;

/// An option of the command line, such as `--max-flows`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Setting(pub &'static str);

/// `--max-flows (maxFlows)`.
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (", self.0)?;
        let words = self.0.trim_start_matches('-').split('-');
        for (index, word) in words.enumerate() {
            let (first, rest) = word.split_at(word.len().min(1));
            match index {
                0 => write!(f, "{word}")?,
                _ => write!(f, "{}{rest}", first.to_uppercase())?,
            }
        }
        write!(f, ")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_named_as_option_and_as_field() {
        let text = |option| Setting(option).to_string();
        assert_eq!(text("--max-flows"), "--max-flows (maxFlows)");
        assert_eq!(
            text("--max-source-ranges"),
            "--max-source-ranges (maxSourceRanges)"
        );
    }
}
