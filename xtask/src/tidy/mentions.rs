//! What a Rust file mentions: paths, macros and keywords, without comments and strings.

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, Punct, Spacing, TokenStream, TokenTree};

/// A path such as `std::fs::read`, a macro such as `assert!`, or a keyword.
///
/// `use std::{fs, io::Read}` mentions `std::fs` and `std::io::Read`. Attributes mention nothing.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Mention {
    pub(super) path: String,
    pub(super) line: usize,
    /// Whether it is in an item under `#[cfg(test)]`.
    pub(super) is_test: bool,
}

/// All mentions in the text of a file, in order.
///
/// # Errors
/// If the text is not made of Rust tokens.
pub(super) fn of(text: &str) -> Result<Vec<Mention>> {
    let tokens: TokenStream = text.parse().map_err(|error| anyhow!("{error}"))?;
    let mut reader = Reader {
        mentions: Vec::new(),
        current: None,
    };
    reader.read(tokens, "", false);
    Ok(reader.mentions)
}

struct Reader {
    mentions: Vec<Mention>,
    /// The path that is being read.
    current: Option<Mention>,
}

impl Reader {
    /// Reads tokens; paths that start in them start with `prefix`.
    fn read(&mut self, tokens: TokenStream, prefix: &str, is_test: bool) {
        let mut tokens = tokens.into_iter().peekable();
        let mut in_test_item = is_test;
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Punct(hash) if hash.as_char() == '#' => {
                    self.finish();
                    let is_inner = |next: &TokenTree| next.to_string() == "!";
                    let _inner = tokens.next_if(is_inner);
                    if let Some(TokenTree::Group(attribute)) = tokens.peek() {
                        in_test_item |= is_cfg_test(&attribute.stream());
                        let _attribute = tokens.next();
                    }
                }
                TokenTree::Ident(ident) => {
                    let line = ident.span().start().line;
                    self.word(&ident.to_string(), prefix, line, in_test_item);
                }
                TokenTree::Punct(punct) => {
                    self.punct(&punct);
                    if punct.as_char() == ';' {
                        in_test_item = is_test;
                    }
                }
                TokenTree::Group(group) => {
                    let tree = self.current.take_if(|path| path.path.ends_with("::"));
                    let prefix = tree.map(|tree| tree.path).unwrap_or_default();
                    self.finish();
                    self.read(group.stream(), &prefix, in_test_item);
                    if group.delimiter() == Delimiter::Brace {
                        in_test_item = is_test;
                    }
                }
                TokenTree::Literal(_) => self.finish(),
            }
        }
        self.finish();
    }

    fn word(&mut self, word: &str, prefix: &str, line: usize, is_test: bool) {
        match &mut self.current {
            Some(mention) if mention.path.ends_with("::") => mention.path.push_str(word),
            _ => {
                self.finish();
                self.current = Some(Mention {
                    path: format!("{prefix}{word}"),
                    line,
                    is_test,
                });
            }
        }
    }

    fn punct(&mut self, punct: &Punct) {
        match (&mut self.current, punct.as_char()) {
            // `use ::std::fs`
            (Some(mention), ':') if mention.path == "use" => self.finish(),
            (Some(mention), ':') => mention.path.push(':'),
            // Not `a != b`
            (Some(mention), '!') if punct.spacing() == Spacing::Alone => {
                mention.path.push('!');
                self.finish();
            }
            _ => self.finish(),
        }
    }

    fn finish(&mut self) {
        if let Some(mut mention) = self.current.take() {
            // The colon of a type: `fs: Files`.
            mention
                .path
                .truncate(mention.path.trim_end_matches(':').len());
            self.mentions.push(mention);
        }
    }
}

/// Whether an attribute is `cfg(test)` or `cfg(any(test, ...))`.
fn is_cfg_test(attribute: &TokenStream) -> bool {
    let text = attribute.to_string().replace(' ', "");
    text.starts_with("cfg(test") || text.starts_with("cfg(any(test")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        of(text)
            .unwrap()
            .into_iter()
            .map(|mention| mention.path)
            .collect()
    }

    #[test]
    fn use_trees_are_flattened() {
        let expected = [
            "use",
            "std::fs",
            "std::io::Read",
            "std::io::self",
            "kube::Api",
        ];
        assert_eq!(
            paths("use ::std::{fs, io::{Read, self}, }; kube::Api"),
            expected
        );
    }

    #[test]
    fn inline_paths_macros_and_types_are_read() {
        let text = "fn f(fs: Files) -> u8 { std::fs::read(a::<B>::c); assert!(x != y) }";
        let expected = [
            "fn",
            "f",
            "fs",
            "Files",
            "u8",
            "std::fs::read",
            "a",
            "B",
            "c",
            "assert!",
            "x",
            "y",
        ];
        assert_eq!(paths(text), expected);
    }

    #[test]
    fn comments_strings_and_attributes_mention_nothing() {
        let text = "//! std::fs\n/// tokio::x\n#[doc = \"kube::y\"]\n// aya::z\nconst A: &str = \
                    \"unsafe\";";
        assert_eq!(paths(text), ["const", "A", "str"]);
    }

    #[test]
    fn test_items_are_told_apart() {
        let text = "#[cfg(test)]\nuse a::A;\nuse b::B;\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n    \
                    use c::{C, D};\n    use e::E;\n}\nuse f::F;\n#[cfg(not(test))]\nuse g::G;\n";
        let mentions = of(text).unwrap();
        let is_test = |path: &str| {
            let mention = mentions
                .iter()
                .find(|mention| mention.path == path)
                .unwrap();
            (mention.is_test, mention.line)
        };
        assert_eq!(is_test("a::A"), (true, 2));
        assert_eq!(is_test("b::B"), (false, 3));
        assert_eq!(is_test("c::D"), (true, 7));
        assert_eq!(is_test("e::E"), (true, 8));
        assert_eq!(is_test("f::F"), (false, 10));
        assert_eq!(is_test("g::G"), (false, 12));
    }
}
