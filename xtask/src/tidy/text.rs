//! Rules for files of any kind.

/// Folders of one person's or one machine's; in pieces, or this file would break the rule.
const MACHINE_PATHS: [&str; 5] = [
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
    concat!("/wo", "rk/"),
    concat!("../sha", "red"),
];

/// Package registries and mirrors: which one to use is the machine's business.
const REGISTRIES: [&str; 9] = [
    concat!("deb.deb", "ian.org"),
    concat!("security.deb", "ian.org"),
    concat!("snapshot.deb", "ian.org"),
    concat!("index.cra", "tes.io"),
    concat!("static.cra", "tes.io"),
    concat!("registry.np", "mjs.org"),
    concat!("proxy.gol", "ang.org"),
    concat!("arti", "factory"),
    concat!("pkg", ".dev"),
];

/// The only place that locked crates come from.
const LOCKED_SOURCE: &str = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";

/// What breaks the rules, as line and message.
pub(super) fn check(file: &str, text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    if file.ends_with("/mod.rs") {
        found.push((1, "is called after its module, one folder up".to_owned()));
    }
    for (index, line) in text.lines().enumerate() {
        found.extend(check_line(file, line).map(|message| (index + 1, message)));
    }
    if !text.is_empty() && !text.ends_with('\n') {
        found.push((text.lines().count(), "has no newline at its end".to_owned()));
    }
    found
}

fn check_line(file: &str, line: &str) -> Option<String> {
    if file == "Cargo.lock" && line.starts_with("source = ") && line != LOCKED_SOURCE {
        return Some("a crate is not from crates.io".to_owned());
    }
    if let Some(path) = MACHINE_PATHS.iter().find(|path| starts_a_path(line, path)) {
        return Some(format!("`{path}` is a path of one machine"));
    }
    let registry = REGISTRIES
        .iter()
        .find(|registry| line.contains(**registry))?;
    Some(format!(
        "`{registry}` is a package registry, which the machine chooses"
    ))
}

/// Whether `path` is in the line and not the middle of a longer path.
fn starts_a_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line.get(..at).and_then(|before| before.chars().next_back());
        !before.is_some_and(|c| c.is_alphanumeric() || "._-/$}~*".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_end_in_a_newline() {
        assert_eq!(check("README.md", "a\nb\n"), []);
        assert_eq!(check("README.md", ""), []);
        assert_eq!(check("README.md", "a\nb")[0].0, 2);
    }

    #[test]
    fn modules_are_not_called_mod() {
        assert_eq!(check("xtask/src/tidy/mod.rs", "//! Tidy.\n").len(), 1);
        assert_eq!(check("xtask/src/tidy/model.rs", "//! Tidy.\n"), []);
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        for path in MACHINE_PATHS {
            let text = format!("first\nsee {path}notes\n");
            assert_eq!(
                check("docs/a.md", &text).first().map(|(line, _)| *line),
                Some(2),
                "{path}"
            );
        }
        let inner = format!("https://example.com{}page\n", MACHINE_PATHS[1]);
        assert_eq!(check("docs/a.md", &inner), []);
    }

    #[test]
    fn registries_are_found() {
        for registry in REGISTRIES {
            let text = format!("url = \"https://{registry}/x\"\n");
            assert_eq!(check("deploy/Dockerfile", &text).len(), 1, "{registry}");
        }
    }

    #[test]
    fn locked_crates_come_from_one_place() {
        assert_eq!(check("Cargo.lock", &format!("{LOCKED_SOURCE}\n")), []);
        let mirror = "source = \"registry+https://mirror.example/index\"\n";
        assert_eq!(check("Cargo.lock", mirror).len(), 1);
    }
}
