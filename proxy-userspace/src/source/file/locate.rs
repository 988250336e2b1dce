//! Where in a text a field is.
//!
//! Objects are decoded by way of a plain value, which knows no lines. Only once something is
//! wrong with one is its text read again, for the place.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A line and a column, from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) line: u64,
    pub(super) column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// The places of all that is in a text.
pub(super) struct Places {
    documents: Vec<Spanned<Tree>>,
}

impl Places {
    /// Those of `text`, as far as it parses. JSON is YAML too.
    pub(super) fn of(text: &str) -> Self {
        let mut bytes = text.as_bytes();
        let documents = serde_saphyr::read_with_options(&mut bytes, super::manifest::yaml());
        Self {
            documents: documents.map_while(Result::ok).collect(),
        }
    }

    /// The place of the field at `path` (`spec.ports[1].port`) in a document, counted from 0; if
    /// it is not there, of what would hold it.
    pub(super) fn find(&self, document: usize, path: &str) -> Option<Place> {
        let mut node = self.documents.get(document)?;
        let mut rest = path;
        while let Some((child, tail)) = node.value.descend(rest) {
            node = child;
            rest = tail;
        }
        Some(Place {
            line: node.referenced.line(),
            column: node.referenced.column(),
        })
    }
}

/// A document reduced to where its parts are.
enum Tree {
    Leaf,
    Sequence(Vec<Spanned<Tree>>),
    Mapping(Vec<(String, Spanned<Tree>)>),
}

impl Tree {
    /// The child that `path` leads to first, and the rest of the path.
    fn descend<'a>(&self, path: &'a str) -> Option<(&Spanned<Self>, &'a str)> {
        let path = path.strip_prefix('.').unwrap_or(path);
        match self {
            Self::Leaf => None,
            Self::Sequence(items) => {
                let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
                Some((items.get(index.parse::<usize>().ok()?)?, rest))
            }
            // Keys may have dots in them, as labels do: the longest that fits is meant.
            Self::Mapping(fields) => fields
                .iter()
                .filter_map(|(key, value)| Some((value, after(path, key)?)))
                .min_by_key(|(_, rest)| rest.len()),
        }
    }
}

/// What follows `key` at the start of `path`.
fn after<'a>(path: &'a str, key: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(key)?;
    (rest.is_empty() || rest.starts_with(['.', '['])).then_some(rest)
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_str<E>(self, _: &str) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Tree::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = access.next_entry()? {
            fields.push(field);
        }
        Ok(Tree::Mapping(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found() {
        let text = "# first\nkind: a\n---\n---\nkind: b\nspec:\n  ports:\n  - port: 1\n    \
                    name: x\n  - {port: 2}\nlabels:\n  a.b/c: 1\n  a: {b/c: 2}\n";
        let places = Places::of(text);
        for (document, path, expected) in [
            (0, "kind", "2:7"),
            (1, "kind", "5:7"),
            (1, "spec.ports[0].port", "8:11"),
            (1, "spec.ports[0].name", "9:11"),
            (1, "spec.ports[1].port", "10:12"),
            // What is not there is looked for as far as it goes.
            (1, "spec.ports[1].protocol", "10:5"),
            (1, "spec.ports[7].port", "8:5"),
            (1, "metadata.name", "5:1"),
            (1, "", "5:1"),
            (1, "labels.a.b/c", "12:10"),
        ] {
            let place = places.find(document, path).unwrap().to_string();
            assert_eq!(place, expected, "{document} {path}");
        }
        assert_eq!(places.find(2, "kind"), None);
        let json = Places::of("{\n\t\"a\":\n\t\t[1, 2]}");
        assert_eq!(json.find(0, "a[1]").unwrap().to_string(), "3:7");
    }
}
