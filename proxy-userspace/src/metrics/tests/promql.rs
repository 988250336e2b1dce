//! Which metrics and labels an expression of PromQL uses. It knows what dashboards and alerts
//! need, and panics at anything else.

use std::collections::BTreeSet;

/// What an expression names.
#[derive(PartialEq, Eq, Default, Debug)]
pub(super) struct Uses {
    /// Metrics, each with the labels that it is selected by.
    pub(super) metrics: BTreeSet<(String, BTreeSet<String>)>,
    /// Labels that rows are put together by.
    pub(super) labels: BTreeSet<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Token {
    Word(String),
    Text,
    Sign(char),
}

const GROUPING: [&str; 6] = [
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
];
const OPERATORS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];
const FUNCTIONS: [&str; 11] = [
    "changes",
    "clamp_min",
    "count",
    "histogram_quantile",
    "increase",
    "max",
    "rate",
    "sum",
    "time",
    "topk",
    "vector",
];

/// Reads an expression.
pub(super) fn uses(expression: &str) -> Uses {
    let tokens = tokens(expression);
    let mut uses = Uses::default();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at += 1;
        let Token::Word(word) = token else { continue };
        let next = tokens.get(at);
        if GROUPING.contains(&&**word) {
            if next == Some(&Token::Sign('(')) {
                let (names, end) = words_until(&tokens, at + 1, ')');
                uses.labels.extend(names);
                at = end;
            }
        } else if next == Some(&Token::Sign('(')) {
            assert!(
                FUNCTIONS.contains(&&**word),
                "function {word} in {expression}"
            );
        } else if word.starts_with(|c: char| c.is_ascii_digit()) || word.starts_with('$') {
            // A number, a time, a variable.
        } else if !OPERATORS.contains(&&**word) && !FUNCTIONS.contains(&&**word) {
            let mut labels = BTreeSet::new();
            if next == Some(&Token::Sign('{')) {
                let (names, end) = words_until(&tokens, at + 1, '}');
                labels.extend(names);
                at = end;
            }
            uses.metrics.insert((word.clone(), labels));
        }
    }
    uses
}

fn words_until(tokens: &[Token], start: usize, end: char) -> (Vec<String>, usize) {
    let rest = tokens.iter().skip(start);
    let inside: Vec<_> = rest.take_while(|it| **it != Token::Sign(end)).collect();
    let words = inside.iter().filter_map(|token| match token {
        Token::Word(word) => Some(word.clone()),
        Token::Text | Token::Sign(_) => None,
    });
    (words.collect(), start + inside.len() + 1)
}

fn tokens(expression: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = expression;
    while let Some(c) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || "_:$.".contains(c);
        let length = if c == '"' {
            tokens.push(Token::Text);
            let end = rest[1..].find('"').expect(expression);
            end + 2
        } else if c == '[' {
            rest.find(']').expect(expression) + 1
        } else if is_word(c) {
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            end
        } else {
            if !c.is_whitespace() {
                tokens.push(Token::Sign(c));
            }
            c.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

#[test]
fn metrics_and_labels_are_found() {
    let found = uses(
        r#"topk(5, sum by (service, le) (rate(a_total{x=~"b|by",y!="z"}[5m]))) / on (node) c > 2e3 or vector(0)"#,
    );
    let set = |names: &[&str]| {
        names
            .iter()
            .map(|it| (*it).to_owned())
            .collect::<BTreeSet<_>>()
    };
    let metrics = [
        ("a_total".to_owned(), set(&["x", "y"])),
        ("c".to_owned(), set(&[])),
    ];
    assert_eq!(found.metrics, BTreeSet::from(metrics));
    assert_eq!(found.labels, set(&["le", "node", "service"]));
}
