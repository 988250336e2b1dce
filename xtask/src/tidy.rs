//! Rules of the project that no compiler or linter checks.

mod layers;
mod mentions;
mod text;

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use mentions::Mention;

/// Something that breaks a rule; displayed as `file:line: message`.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Finding {
    file: String,
    line: usize,
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

/// Checks every text file of the project.
///
/// # Errors
/// If a file can't be read, or a Rust file has no tokens.
pub(crate) fn check(root: &Path) -> Result<Vec<Finding>> {
    let mut files = Vec::new();
    collect(root, "", &mut files)?;
    files.sort();
    let mut findings = Vec::new();
    for file in files {
        let path = root.join(&file);
        let bytes = fs::read(&path).with_context(|| format!("{file}: can't be read"))?;
        if let Ok(text) = std::str::from_utf8(&bytes) {
            findings.extend(check_file(&file, text)?);
        }
    }
    Ok(findings)
}

/// Checks a file; `file` is its path from the workspace's root.
fn check_file(file: &str, text: &str) -> Result<Vec<Finding>> {
    let finding = |(line, message): (usize, String)| Finding {
        file: file.to_owned(),
        line,
        message,
    };
    let mut findings: Vec<Finding> = text::check(file, text).into_iter().map(finding).collect();
    if file.ends_with(".rs") {
        let mentions = mentions::of(text).with_context(|| format!("{file}: not Rust"))?;
        findings.extend(layers::check(file, &mentions).into_iter().map(finding));
    }
    Ok(findings)
}

/// Adds the files under `folder`, whose path from the root is `prefix`, to `files`.
fn collect(folder: &Path, prefix: &str, files: &mut Vec<String>) -> Result<()> {
    let unreadable = || format!("{}: can't be read", folder.display());
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let kind = entry.file_type().with_context(unreadable)?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if kind.is_dir() && is_of_the_project(&name) {
            collect(&entry.path(), &format!("{prefix}{name}/"), files)?;
        } else if kind.is_file() && name != ".git" {
            files.push(format!("{prefix}{name}"));
        }
    }
    Ok(())
}

/// Whether a folder of this name belongs to the project: not cargo's, git's or an editor's.
fn is_of_the_project(name: &str) -> bool {
    name != "target" && (!name.starts_with('.') || [".cargo", ".ci", ".github"].contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_name_file_and_line() {
        let findings = check_file(
            "proxy-userspace/src/desired/choose.rs",
            "//! Chooses.\n\nuse std::fs;\n",
        );
        let texts: Vec<String> = findings.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 1);
        assert!(
            texts[0].starts_with("proxy-userspace/src/desired/choose.rs:3: "),
            "{texts:?}"
        );
    }

    #[test]
    fn the_project_is_walked_without_build_output() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut files = Vec::new();
        collect(root, "", &mut files).unwrap();
        assert!(files.iter().any(|file| file == "xtask/src/tidy.rs"));
        assert!(files.iter().any(|file| file == ".cargo/config.toml"));
        assert!(
            !files
                .iter()
                .any(|file| file.starts_with("target/") || file.contains(".git/"))
        );
    }
}
