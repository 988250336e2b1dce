//! What runs inside: the kernel tests and the `beeline` command, as static executables.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::image::{self, Stage};
use super::report;
use crate::{build, process};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PACKAGE: &str = "proxy-userspace";
const TESTS: &str = "kernel";
const COMMAND: &str = "beeline";
const NEXT: &str = "beeline-next";

/// An archive with the executables and the script that runs them.
#[derive(Debug)]
pub(super) struct Payload {
    archive: PathBuf,
    nonce: String,
}

impl Payload {
    /// Builds the payload below `work`; `arguments` go to the test binary.
    pub(super) fn build(work: &Path, arguments: &[String]) -> Result<Self> {
        eprintln!("vm: building the {TESTS} tests and {COMMAND} as static executables");
        let messages = cargo_test_no_run(work)?;
        let nonce = fs::read_to_string("/proc/sys/kernel/random/uuid")
            .context("no random nonce from the kernel")?
            .trim()
            .to_owned();

        let stage = Stage::empty(&work.join("payload.root"))?;
        for name in [TESTS, COMMAND] {
            let program = executable(&messages, name)
                .with_context(|| format!("cargo built no executable {name}"))?;
            image::require_static(&program)?;
            stage.add_file(&program, Path::new("usr/bin").join(guest_name(name)))?;
        }
        let next = executable(&cargo_build_next(work)?, COMMAND)
            .with_context(|| format!("cargo built no executable {NEXT}"))?;
        stage.add_file(&next, Path::new("usr/bin").join(NEXT))?;
        stage.add_script("payload", &script(&nonce, arguments))?;

        let archive = work.join("payload");
        stage.pack(&File::create(&archive)?)?;
        Ok(Self { archive, nonce })
    }

    /// The cpio archive.
    pub(super) fn archive(&self) -> &Path {
        &self.archive
    }

    /// What sets this run's markers apart from anything else the machine may print.
    pub(super) fn nonce(&self) -> &str {
        &self.nonce
    }
}

/// Builds the tests and, with them, the package's command; returns cargo's messages.
fn cargo_test_no_run(work: &Path) -> Result<String> {
    let mut cargo = process::cargo();
    cargo.args(["test", "--no-run", "--package", PACKAGE, "--test", TESTS]);
    process::stdout(statically(&mut cargo, work))
}

/// Builds the command whose maps have another layout; returns cargo's messages.
fn cargo_build_next(work: &Path) -> Result<String> {
    let object = build::next_kernel_programs()?;
    let mut cargo = process::cargo();
    cargo
        .args(["build", "--package", PACKAGE, "--bin", COMMAND])
        .args(build::NEXT_LAYOUT)
        .env("BEELINE_BPF_OBJECT", object);
    process::stdout(statically(&mut cargo, work))
}

fn statically<'a>(cargo: &'a mut Command, work: &Path) -> &'a mut Command {
    cargo
        .args(["--message-format", "json-render-diagnostics"])
        // An explicit target keeps build scripts and procedural macros dynamic.
        .args(["--target", TARGET, "--target-dir"])
        .arg(work)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        // The executables live in the machine's memory; most of their size is line tables.
        .env("CARGO_PROFILE_DEV_STRIP", "debuginfo")
}

/// Finds the executable of a target in cargo's JSON messages.
fn executable(messages: &str, target: &str) -> Option<PathBuf> {
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter(|message| message["target"]["name"] == target)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// `kernel` alone would say little in the machine's process list.
fn guest_name(target: &str) -> String {
    if target == TESTS {
        format!("{target}-tests")
    } else {
        target.to_owned()
    }
}

/// The script that runs the tests between two markers.
fn script(nonce: &str, arguments: &[String]) -> String {
    let mut words = vec![
        format!("/bin/{}", guest_name(TESTS)),
        "--color=never".to_owned(),
    ];
    if !arguments
        .iter()
        .any(|argument| argument.starts_with("--test-threads"))
    {
        words.push("--test-threads=1".to_owned());
    }
    words.extend(arguments.iter().map(|argument| quote(argument)));
    format!(
        "#!/bin/sh\n\
         echo '{start}'\n\
         export BEELINE_BIN=/bin/{COMMAND} BEELINE_NEXT=/bin/{NEXT} RUST_BACKTRACE=1\n\
         cd /tmp\n\
         {tests}\n\
         echo \"{end} $?\"\n",
        start = report::start_marker(nonce),
        tests = words.join(" "),
        end = report::end_marker(nonce),
    )
}

/// Quotes a word for the shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_by_target_name() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"kernel"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"kernel"},"executable":"/t/kernel-1"}"#,
            "\nnot json\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(
            executable(messages, "kernel"),
            Some(PathBuf::from("/t/kernel-1"))
        );
        assert_eq!(executable(messages, "beeline"), None);
    }

    #[test]
    fn arguments_reach_the_test_binary_as_they_are() {
        let script = script("n", &["it's".to_owned(), "--exact".to_owned()]);
        assert!(
            script.contains(
                "\n/bin/kernel-tests --color=never --test-threads=1 'it'\\''s' '--exact'\n"
            )
        );
    }

    #[test]
    fn one_test_at_a_time_unless_told_otherwise() {
        assert!(!script("n", &["--test-threads=4".to_owned()]).contains("--test-threads=1"));
    }
}
