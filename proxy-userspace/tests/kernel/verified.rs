//! How many instructions the verifier looks at in each program, against a table: work for the
//! kernel at each start, of which it gives a program only so much.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use xtask::figures::Program;

use crate::loaded;

/// A table as [`render`] writes it.
const TABLE: &str = include_str!("../data/verified-instructions.txt");
const FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/data/verified-instructions.txt"
);
/// A variable of the environment: the table is written anew.
const RENEW: &str = "BEELINE_RENEW";
const COMMAND: &str = "BEELINE_RENEW=1 cargo test -p proxy-userspace --test kernel -- verified::";

/// The series of the kernel that counted, and the numbers by program.
struct Table<'a> {
    kernel: &'a str,
    counts: BTreeMap<&'a str, u32>,
}

/// What a comparison brought to light.
#[derive(Default, PartialEq, Debug)]
struct Findings {
    wrong: Vec<String>,
    /// What is no failure, but had better be in the table.
    less: Vec<String>,
}

#[test]
fn the_verifier_has_no_more_work_than_it_had() {
    let table = parse(TABLE);
    let release = nix::sys::utsname::uname().unwrap();
    let kernel = series(release.release().to_str().unwrap());
    let renews = std::env::var_os(RENEW).is_some();
    if kernel != table.kernel && !renews {
        println!(
            "skipped: verifiers differ, and the table is that of Linux {}",
            table.kernel
        );
        return;
    }
    let bpf = loaded::load().unwrap();
    let programs = loaded::programs(&bpf).unwrap();
    if renews {
        std::fs::write(FILE, render(kernel, &programs)).unwrap();
        println!("{FILE} is written anew");
        return;
    }
    let Findings { wrong, less } = compare(&table, &programs);
    if !less.is_empty() {
        println!(
            "{}\nless than in the table; for a new one: {COMMAND}",
            less.join("\n")
        );
    }
    assert!(
        wrong.is_empty(),
        "{}\nif it has to be so: {COMMAND}",
        wrong.join("\n")
    );
}

fn compare(table: &Table<'_>, programs: &[Program]) -> Findings {
    let mut findings = Findings::default();
    for Program { name, verified, .. } in programs {
        let (Some(&then), &Some(now)) = (table.counts.get(&**name), verified) else {
            let finding =
                format!("program {name}: {verified:?} instructions, and not in the table");
            findings.wrong.push(finding);
            continue;
        };
        let text = format!("program {name}: {now} instructions, {then} in the table");
        let tenths = |times: u64| u64::from(then) * times;
        if u64::from(now) * 10 > tenths(11) {
            findings.wrong.push(text);
        } else if u64::from(now) * 10 < tenths(9) {
            findings.less.push(text);
        }
    }
    for name in table.counts.keys() {
        if !programs.iter().any(|program| program.name == *name) {
            let finding = format!("program {name}: in the table, and not in the object");
            findings.wrong.push(finding);
        }
    }
    findings
}

/// The first two numbers of a kernel's release.
fn series(release: &str) -> &str {
    match release.match_indices('.').nth(1) {
        Some((end, _)) => &release[..end],
        None => release,
    }
}

fn parse(text: &str) -> Table<'_> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let mut fields = lines.filter_map(|line| line.split_once(' '));
    let (_, kernel) = fields.next().expect("the kernel's series");
    let counts = fields.map(|(name, count)| (name, count.parse().expect("a number")));
    Table {
        kernel,
        counts: counts.collect(),
    }
}

fn render(kernel: &str, programs: &[Program]) -> String {
    let mut text = format!(
        "# How many instructions of each program the verifier looks at. Written by\n\
         #     {COMMAND}\n\
         kernel {kernel}\n"
    );
    for program in programs {
        let count = program.verified.expect("a kernel that counts (Linux 5.16)");
        writeln!(text, "{} {count}", program.name).expect("room");
    }
    text
}

mod tests {
    use super::*;

    fn program(name: &str, verified: u32) -> Program {
        Program {
            name: name.to_owned(),
            verified: Some(verified),
            bytes: None,
        }
    }

    #[test]
    fn a_tenth_more_is_let_pass_and_no_more() {
        let text = render("6.18", &[program("a", 100), program("b", 1_000)]);
        let compare = |programs: &[Program]| {
            let Findings { wrong, less } = compare(&parse(&text), programs);
            (wrong.len(), less.len())
        };
        for (count, expected) in [(89, (0, 1)), (90, (0, 0)), (110, (0, 0)), (111, (1, 0))] {
            let programs = [program("a", count), program("b", 1_000)];
            assert_eq!(compare(&programs), expected, "{count}");
        }
        assert_eq!(compare(&[program("a", 100)]), (1, 0), "b is missing");
        let with_new = [program("a", 100), program("b", 1_000), program("c", 1)];
        assert_eq!(compare(&with_new), (1, 0), "c is new");
    }

    #[test]
    fn kernels_are_told_apart_by_series() {
        assert_eq!(series("6.18.44-cloud-amd64"), "6.18");
        assert_eq!(series("6.1.0-18-cloud-amd64"), "6.1");
        assert_eq!(parse(&render("6.18", &[])).kernel, "6.18");
    }
}
