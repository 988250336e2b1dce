//! A strict reader of Prometheus' text formats.

use std::collections::{BTreeMap, BTreeSet};

/// Which format a text is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Text {
    OpenMetrics,
    Plain,
}

/// What is told under one name.
#[derive(Clone, Debug)]
pub(crate) struct Family {
    /// In the plain format with `_total`.
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) help: String,
    pub(crate) samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// Reads a text.
///
/// # Panics
/// Where it is not valid.
pub(crate) fn read(text: &str, format: Text) -> BTreeMap<String, Family> {
    let body = match format {
        Text::OpenMetrics => text.strip_suffix("# EOF\n").expect("no end"),
        Text::Plain => text,
    };
    assert!(body.ends_with('\n'), "the last line has no end");
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current: Option<Family> = None;
    for line in body.lines() {
        assert!(!line.is_empty() && line == line.trim(), "{line:?}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect(line);
            check_help(help);
            finish(&mut families, current.take(), format);
            current = Some(Family {
                name: name.to_owned(),
                kind: String::new(),
                help: help.to_owned(),
                samples: Vec::new(),
            });
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let family = current.as_mut().expect("TYPE without HELP");
            let (name, kind) = rest.split_once(' ').expect(line);
            assert!(family.name == name && family.kind.is_empty(), "{line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            family.kind = kind.to_owned();
        } else {
            assert!(!line.starts_with('#'), "{line}");
            let family = current.as_mut().expect("a sample of nothing");
            family.samples.push(sample(line));
        }
    }
    finish(&mut families, current.take(), format);
    families
}

/// The value of a sample of a family with one name.
pub(crate) fn value(
    families: &BTreeMap<String, Family>,
    name: &str,
    labels: &[(&str, &str)],
) -> Option<f64> {
    let samples = families.values().flat_map(|family| &family.samples);
    let mut found = samples.filter(|it| {
        let has = |&(key, value): &(&str, &str)| it.labels.get(key).is_some_and(|v| v == value);
        it.name == name && labels.iter().all(has)
    });
    let first = found.next()?;
    assert_eq!(found.next(), None, "several of {name} {labels:?}");
    Some(first.value)
}

fn check_help(help: &str) {
    assert!(help.ends_with('.'), "{help}");
    assert!(!help.contains('\\'), "{help}");
}

fn finish(families: &mut BTreeMap<String, Family>, family: Option<Family>, format: Text) {
    let Some(family) = family else { return };
    check_name(&family.name);
    assert!(!family.help.is_empty(), "{}: no help", family.name);
    let base = match (format, &*family.kind) {
        (Text::Plain, "counter") => family.name.strip_suffix("_total").expect(&family.name),
        _ => &family.name,
    };
    let suffixes: &[&str] = match &*family.kind {
        "counter" => &["_total"],
        "histogram" => &["_sum", "_count", "_bucket"],
        "gauge" => &[""],
        kind => panic!("{}: {kind:?}", family.name),
    };
    for sample in &family.samples {
        let suffix = sample.name.strip_prefix(base).expect(&sample.name);
        assert!(suffixes.contains(&suffix), "{}", sample.name);
        let is_bucket = suffix == "_bucket";
        assert_eq!(sample.labels.contains_key("le"), is_bucket, "{sample:?}");
        if family.kind != "gauge" {
            assert!(sample.value >= 0.0, "{sample:?}");
        }
    }
    let all: BTreeSet<_> = family
        .samples
        .iter()
        .map(|it| (&it.name, &it.labels))
        .collect();
    assert_eq!(all.len(), family.samples.len(), "{}: twice", family.name);
    if family.kind == "histogram" {
        check_histogram(&family, format);
    }
    let name = family.name.clone();
    assert!(
        families.insert(name.clone(), family).is_none(),
        "{name}: twice"
    );
}

fn check_histogram(family: &Family, format: Text) {
    let mut rows: BTreeMap<_, Vec<&Sample>> = BTreeMap::new();
    for sample in &family.samples {
        let mut labels = sample.labels.clone();
        let _bound = labels.remove("le");
        rows.entry(labels).or_default().push(sample);
    }
    for samples in rows.values() {
        let of = |suffix: &'static str| samples.iter().filter(move |it| it.name.ends_with(suffix));
        let count = of("_count").map(|it| it.value).collect::<Vec<_>>();
        assert_eq!((count.len(), of("_sum").count()), (1, 1), "{samples:?}");
        let (mut last_bound, mut last_value) = (f64::NEG_INFINITY, 0.0);
        for bucket in of("_bucket") {
            let text = &bucket.labels["le"];
            let bound = number(text);
            if format == Text::OpenMetrics {
                assert!(text.contains('.') || text == "+Inf", "{bucket:?}");
            }
            assert!(
                bound > last_bound && bucket.value >= last_value,
                "{bucket:?}"
            );
            (last_bound, last_value) = (bound, bucket.value);
        }
        assert_eq!(
            (last_bound, last_value),
            (f64::INFINITY, count[0]),
            "{samples:?}"
        );
    }
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).expect(line);
    let (name, rest) = line.split_at(end);
    check_name(name);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest),
        None => (BTreeMap::new(), rest),
    };
    let value = rest.strip_prefix(' ').expect(line);
    Sample {
        name: name.to_owned(),
        labels,
        value: number(value),
    }
}

/// Labels, and what follows their brace.
fn labels(mut rest: &str) -> (BTreeMap<String, String>, &str) {
    let mut labels = BTreeMap::new();
    loop {
        let (name, after) = rest.split_once("=\"").expect(rest);
        check_name(name);
        assert!(!name.starts_with("__") && !name.contains(':'), "{name}");
        let (value, after) = text(after);
        assert!(
            labels.insert(name.to_owned(), value).is_none(),
            "{name} twice"
        );
        if let Some(after) = after.strip_prefix('}') {
            return (labels, after);
        }
        rest = after.strip_prefix(',').expect(after);
    }
}

/// A text, and what follows its quote.
fn text(rest: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = rest.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &rest[at + 1..]),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, c @ ('\\' | '"'))) => value.push(c),
                other => panic!("escaped: {other:?}"),
            },
            c => value.push(c),
        }
    }
    panic!("no end: {rest}")
}

fn check_name(name: &str) {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let is_good = name.chars().all(is_word) && !name.starts_with(|c: char| c.is_ascii_digit());
    assert!(is_good && !name.is_empty(), "{name:?} is no name");
}

fn number(text: &str) -> f64 {
    match text {
        "+Inf" => f64::INFINITY,
        _ => {
            assert!(
                text.starts_with(|c: char| c.is_ascii_digit() || c == '-'),
                "{text}"
            );
            text.parse().expect(text)
        }
    }
}
