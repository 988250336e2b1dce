//! Label selectors as Kubernetes writes them: `app=web,tier in (a,b),!canary`.
//!
//! What they mean is kube's ([`Selector`]); it has no way to read them.

use std::collections::BTreeSet;
use std::str::FromStr;

use kube::core::{Expression, Selector, SelectorExt as _};

use crate::model::Pod;

/// Pods, by their labels: those that meet all its requirements.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodSelector(Selector);

/// A text is no label selector.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SelectorError {
    /// There is no requirement in it.
    #[error("it has no requirement, so every pod would be left out: --socket-lb host does that")]
    Empty,
    /// Something else should be there.
    #[error("expected {expected}, found {}", quoted(found))]
    Unexpected {
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// No label has this key.
    #[error("'{0}' is not the key of a label")]
    Key(String),
    /// No label has this value.
    #[error("'{0}' is not the value of a label")]
    Value(String),
}

fn quoted(found: &str) -> String {
    if found.is_empty() {
        "the end".to_owned()
    } else {
        format!("'{found}'")
    }
}

impl PodSelector {
    /// Whether the Pod meets all requirements.
    pub fn matches(&self, pod: &Pod) -> bool {
        self.0.matches(&pod.labels)
    }
}

impl std::fmt::Display for PodSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for PodSelector {
    type Err = SelectorError;

    /// # Errors
    /// If the text is no selector, or one without requirements.
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let mut words = Words(text);
        if words.peek().is_empty() {
            return Err(SelectorError::Empty);
        }
        let mut expressions = vec![words.expression()?];
        while !words.peek().is_empty() {
            words.expect(",", "',' or an operator")?;
            expressions.push(words.expression()?);
        }
        Ok(Self(expressions.into_iter().collect()))
    }
}

/// What is left to read, word by word: an operator, a parenthesis, a comma, or a name.
struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    /// The next word, "" at the end.
    fn peek(&self) -> &'a str {
        const SIGNS: [&str; 9] = ["==", "!=", "=", "!", ",", "(", ")", "<", ">"];
        let rest = self.0.trim_start();
        if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            return rest.get(..sign.len()).unwrap_or_default();
        }
        let is_end = |c: char| c.is_whitespace() || SIGN_LETTERS.contains(c);
        rest.split(is_end).next().unwrap_or_default()
    }

    fn next(&mut self) -> &'a str {
        let word = self.peek();
        self.0 = self.0.trim_start().strip_prefix(word).unwrap_or_default();
        word
    }

    /// Takes `word` if it is next.
    fn take(&mut self, word: &str) -> bool {
        let is_next = self.peek() == word;
        if is_next {
            let _same = self.next();
        }
        is_next
    }

    fn expect(&mut self, word: &str, expected: &'static str) -> Result<(), SelectorError> {
        if self.take(word) {
            return Ok(());
        }
        let found = self.peek().to_owned();
        Err(SelectorError::Unexpected { expected, found })
    }

    fn expression(&mut self) -> Result<Expression, SelectorError> {
        if self.take("!") {
            return Ok(Expression::DoesNotExist(self.key()?));
        }
        let key = self.key()?;
        match self.peek() {
            "=" | "==" => self.operand().map(|value| Expression::Equal(key, value)),
            "!=" => self.operand().map(|value| Expression::NotEqual(key, value)),
            "in" => self
                .set("'(' after in")
                .map(|values| Expression::In(key, values)),
            "notin" => self
                .set("'(' after notin")
                .map(|values| Expression::NotIn(key, values)),
            _ => Ok(Expression::Exists(key)),
        }
    }

    fn key(&mut self) -> Result<String, SelectorError> {
        let found = self.next();
        if is_sign(found) {
            return Err(SelectorError::Unexpected {
                expected: "the key of a label",
                found: found.to_owned(),
            });
        }
        let (domain, name) = found.split_once('/').unwrap_or(("none", found));
        if !is_domain(domain) || name.is_empty() || !is_value(name) {
            return Err(SelectorError::Key(found.to_owned()));
        }
        Ok(found.to_owned())
    }

    /// The value after an operator.
    fn operand(&mut self) -> Result<String, SelectorError> {
        let _operator = self.next();
        self.value()
    }

    /// A value; may be empty.
    fn value(&mut self) -> Result<String, SelectorError> {
        if matches!(self.peek(), "," | ")") {
            return Ok(String::new());
        }
        let value = self.next();
        if !is_value(value) {
            return Err(SelectorError::Value(value.to_owned()));
        }
        Ok(value.to_owned())
    }

    /// The values in parentheses after an operator.
    fn set(&mut self, expected: &'static str) -> Result<BTreeSet<String>, SelectorError> {
        let _operator = self.next();
        self.expect("(", expected)?;
        let mut values = BTreeSet::from([self.value()?]);
        while self.take(",") {
            let _is_new = values.insert(self.value()?);
        }
        self.expect(")", "',' or ')'")?;
        Ok(values)
    }
}

const SIGN_LETTERS: &str = "=!,()<>";

/// Whether a word can't be a name: a sign, or the end.
fn is_sign(word: &str) -> bool {
    word.chars().all(|c| SIGN_LETTERS.contains(c))
}

/// Whether a label may have this value, or this for the last part of its key.
fn is_value(text: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_end = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.chars().all(is_inner)
        && is_end(text.chars().next())
        && is_end(text.chars().next_back())
}

/// Whether this may be the first part of a label's key.
fn is_domain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(super::is_dns_label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    fn pod(labels: &str) -> Pod {
        let labels = labels.split(',').filter_map(|label| label.split_once('='));
        Pod {
            name: ObjectName {
                namespace: "s".into(),
                name: "a".into(),
            },
            uid: "u".into(),
            labels: labels
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        }
    }

    #[test]
    fn requirements_of_every_kind() {
        let pods = [
            "-",
            "app=web",
            "app=db",
            "app=web,canary=",
            "x.io/a=in,app=",
        ];
        for (selector, expected) in [
            ("app=web", "app=web app=web,canary="),
            ("app == web", "app=web app=web,canary="),
            (" app = web , canary", "app=web,canary="),
            ("app=web,!canary", "app=web"),
            ("! app", "-"),
            ("app!=web", "- app=db x.io/a=in,app="),
            ("app in (web, db)", "app=web app=db app=web,canary="),
            ("app notin (web,db)", "- x.io/a=in,app="),
            ("app notin(web,db),app", "x.io/a=in,app="),
            ("app=", "x.io/a=in,app="),
            ("app in (,db)", "app=db x.io/a=in,app="),
            ("canary=,app=web", "app=web,canary="),
            ("x.io/a in (in)", "x.io/a=in,app="),
            ("in notin (in),app=db", "app=db"),
        ] {
            let read: PodSelector = selector.parse().unwrap();
            let selected: Vec<_> = pods
                .into_iter()
                .filter(|labels| read.matches(&pod(labels)))
                .collect();
            assert_eq!(selected.join(" "), expected, "{selector}");
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (selector, expected) in [
            (
                " ",
                "it has no requirement, so every pod would be left out: --socket-lb host does that",
            ),
            ("app=web,", "expected the key of a label, found the end"),
            ("=web", "expected the key of a label, found '='"),
            ("app web", "expected ',' or an operator, found 'web'"),
            ("app notin a", "expected '(' after notin, found 'a'"),
            ("app in (a", "expected ',' or ')', found the end"),
            ("app in (a b)", "expected ',' or ')', found 'b'"),
            ("app>1", "expected ',' or an operator, found '>'"),
            ("app=(", "'(' is not the value of a label"),
            ("app=-a", "'-a' is not the value of a label"),
            ("Ex.io/app", "'Ex.io/app' is not the key of a label"),
            ("/app", "'/app' is not the key of a label"),
            ("a/b/c=d", "'a/b/c' is not the key of a label"),
        ] {
            let error = selector.parse::<PodSelector>().unwrap_err();
            assert_eq!(error.to_string(), expected, "{selector}");
        }
    }

    #[test]
    fn a_selector_is_shown_as_kubernetes_writes_it() {
        let selector: PodSelector = "a==b , c  notin ( e,d ),!f".parse().unwrap();
        assert_eq!(selector.to_string(), "a=b,c notin (d,e),!f");
    }
}
