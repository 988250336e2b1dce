//! What docs/configuration.md says is so.

use std::path::Path;

use super::Folder;
use super::beeline_file::options;

fn text() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::read_to_string(root.join("docs/configuration.md")).unwrap()
}

#[test]
fn the_example_of_beelines_file_is_taken() {
    let text = text();
    let example = text.split("```yaml\n").nth(1).unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let folder = Folder::new();
    folder.write("own.yaml", example);
    drop(folder.config(&["--beeline-config=own.yaml"]));
}

#[test]
fn every_option_is_in_the_table() {
    let text = text();
    let rows: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("| `--"))
        .collect();
    for option in options(&Folder::new()).keys() {
        let is_named = |row: &str| {
            let (cell, _) = row[2..].split_once(" | ").unwrap();
            // Sizes have a table of their own.
            cell.split(['`', ' ', ','])
                .any(|word| word == format!("--{option}"))
                || option.starts_with("max-")
        };
        assert!(
            rows.iter().any(|row| is_named(row)),
            "no row for --{option}"
        );
    }
}
