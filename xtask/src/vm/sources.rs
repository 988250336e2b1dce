//! The system's apt sources, read for the address of its Debian archive.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A Debian archive: where it is and which keys sign it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Archive {
    uri: String,
    signed_by: Option<String>,
}

impl Archive {
    /// Finds the archive that the system's own packages come from.
    pub(super) fn of_system() -> Result<Self> {
        let codename = fs::read_to_string("/etc/os-release")
            .ok()
            .and_then(|text| codename(&text))
            .context("/etc/os-release: no VERSION_CODENAME; only Debian is supported")?;
        archive_of(&system_entries()?, &codename)
            .with_context(|| format!("apt's sources name no archive with suite {codename}"))
    }

    /// One line of a `sources.list` for another suite of this archive.
    pub(super) fn list_line(&self, suite: &str) -> String {
        let keys = self
            .signed_by
            .as_ref()
            .map(|keys| format!(" signed-by={keys}"));
        format!(
            "deb [arch=amd64{}] {} {suite} main\n",
            keys.unwrap_or_default(),
            self.uri
        )
    }
}

/// One stanza or line of apt's sources.
#[derive(Debug, Default, PartialEq, Eq)]
struct Entry {
    uris: Vec<String>,
    suites: Vec<String>,
    signed_by: Option<String>,
}

fn archive_of(entries: &[Entry], codename: &str) -> Option<Archive> {
    let entry = entries
        .iter()
        .find(|entry| entry.suites.iter().any(|suite| suite == codename))?;
    Some(Archive {
        uri: entry.uris.first()?.clone(),
        signed_by: entry.signed_by.clone(),
    })
}

fn codename(os_release: &str) -> Option<String> {
    let value = os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim_matches('"').to_owned())
}

fn system_entries() -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for path in source_files(Path::new("/etc/apt"))? {
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{}: not readable", path.display()))?;
        let deb822 = path
            .extension()
            .is_some_and(|extension| extension == "sources");
        entries.extend(if deb822 {
            deb822_entries(&text)
        } else {
            one_line_entries(&text)
        });
    }
    Ok(entries)
}

fn source_files(apt: &Path) -> Result<Vec<PathBuf>> {
    let mut parts: Vec<PathBuf> = match fs::read_dir(apt.join("sources.list.d")) {
        Ok(folder) => folder
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?,
        Err(_) => Vec::new(),
    };
    parts.retain(|path| {
        path.extension()
            .is_some_and(|e| e == "list" || e == "sources")
    });
    parts.sort();
    let main = apt.join("sources.list");
    Ok(main
        .exists()
        .then_some(main)
        .into_iter()
        .chain(parts)
        .collect())
}

/// Reads the `deb [options] uri suite component…` form.
fn one_line_entries(text: &str) -> Vec<Entry> {
    text.lines().filter_map(one_line_entry).collect()
}

fn one_line_entry(line: &str) -> Option<Entry> {
    let line = line.split('#').next()?.trim();
    let rest = line
        .strip_prefix("deb")?
        .strip_prefix([' ', '\t'])?
        .trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(bracket) => bracket.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Entry {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        signed_by: options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(str::to_owned),
    })
}

/// Reads the deb822 form: stanzas of fields, a blank line between stanzas.
fn deb822_entries(text: &str) -> Vec<Entry> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines
        .split(|line| line.trim().is_empty())
        .filter_map(deb822_entry)
        .collect()
}

fn deb822_entry(lines: &[&str]) -> Option<Entry> {
    let words = |name| field(lines, name).unwrap_or_default();
    let enabled = !words("Enabled")
        .iter()
        .any(|word| word.eq_ignore_ascii_case("no"));
    let binary = words("Types").iter().any(|word| word == "deb");
    (enabled && binary).then(|| Entry {
        uris: words("URIs"),
        suites: words("Suites"),
        // The field may also hold a key itself, which the one-line form has no place for.
        signed_by: words("Signed-By")
            .into_iter()
            .next()
            .filter(|path| path.starts_with('/')),
    })
}

/// The words of a field, continuation lines included.
fn field(lines: &[&str], name: &str) -> Option<Vec<String>> {
    let is_field = |line: &&str| {
        line.split_once(':')
            .is_some_and(|(key, _)| key.trim_end().eq_ignore_ascii_case(name))
    };
    let start = lines.iter().position(is_field)?;
    let (_, first) = lines[start].split_once(':')?;
    let more = lines[start + 1..]
        .iter()
        .take_while(|line| line.starts_with([' ', '\t']));
    let values = std::iter::once(first).chain(more.copied());
    Some(
        values
            .flat_map(str::split_whitespace)
            .map(str::to_owned)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[Entry], codename: &str) -> Option<String> {
        archive_of(entries, codename).map(|archive| archive.list_line("bullseye"))
    }

    #[test]
    fn deb822_stanzas_give_the_archive_of_the_exact_suite() {
        let entries = deb822_entries(
            "Types: deb\n\
             # URIs: http://commented.example/debian\n\
             URIs: http://security.example/debian-security\n\
             Suites: bookworm-security\n\
             \n\
             types: deb deb-src\n\
             uris: http://one.example/debian\n http://two.example/debian\n\
             Suites: bookworm bookworm-updates\n\
             Signed-By: /keys.gpg\n",
        );
        assert_eq!(
            archive(&entries, "bookworm").as_deref(),
            Some("deb [arch=amd64 signed-by=/keys.gpg] http://one.example/debian bullseye main\n")
        );
        assert_eq!(archive(&entries, "trixie"), None);
    }

    #[test]
    fn deb822_stanzas_that_are_off_or_only_source_are_skipped() {
        let entries = deb822_entries(
            "Types: deb\nEnabled: no\nURIs: http://off.example\nSuites: bookworm\n\n\n\
             Types: deb-src\nURIs: http://src.example\nSuites: bookworm\n",
        );
        assert_eq!(entries, []);
    }

    #[test]
    fn a_key_inside_the_stanza_is_left_to_apts_trusted_keys() {
        let entries = deb822_entries(
            "Types: deb\nURIs: http://a.example\nSuites: s\n\
             Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n",
        );
        assert_eq!(
            archive(&entries, "s").as_deref(),
            Some("deb [arch=amd64] http://a.example bullseye main\n")
        );
    }

    #[test]
    fn one_line_entries_with_and_without_options() {
        let entries = one_line_entries(
            "# deb http://commented.example bookworm main\n\
             deb-src http://src.example bookworm main\n\
             deb [ arch=amd64 signed-by=/k.gpg ] http://a.example/debian bookworm main # why\n\
             deb\thttp://b.example/debian trixie main contrib\n",
        );
        assert_eq!(
            archive(&entries, "bookworm").as_deref(),
            Some("deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian bullseye main\n")
        );
        assert_eq!(
            archive(&entries, "trixie").as_deref(),
            Some("deb [arch=amd64] http://b.example/debian bullseye main\n")
        );
    }

    #[test]
    fn codename_with_and_without_quotes() {
        assert_eq!(
            codename("ID=debian\nVERSION_CODENAME=bookworm\n").as_deref(),
            Some("bookworm")
        );
        assert_eq!(
            codename("VERSION_CODENAME=\"trixie\"\n").as_deref(),
            Some("trixie")
        );
        assert_eq!(codename("ID=arch\n"), None);
    }
}
