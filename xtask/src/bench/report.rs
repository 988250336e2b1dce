//! What a benchmark's figures look like: tables for a terminal and for a page of documentation, and
//! a page of charts. All of it is made of [`Figures`] alone, so that an earlier run can be shown
//! again.

mod answer;
mod cards;
mod chart;
mod control;
mod markup;
mod names;
mod number;
mod page;
mod programs;
#[cfg(test)]
mod sample;
mod scaling;
mod select;
mod series;
mod table;
mod tables;
mod text;

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result};
use xtask::figures::Figures;

pub(super) use page::html;
pub(super) use text::text;

/// The form of tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// To be read on a terminal.
    Terminal,
    /// To be pasted into a page.
    Markdown,
}

/// Reads the figures of an earlier run.
///
/// # Errors
/// The file cannot be read, or is not a run's: the error names the field.
pub(super) fn read(path: &Path) -> Result<Figures> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(file));
    serde_path_to_error::deserialize(&mut json)
        .map_err(|error| {
            let field = error.path().to_string();
            anyhow::Error::new(error.into_inner()).context(format!("field {field}"))
        })
        .with_context(|| format!("{}: not the figures of a benchmark", path.display()))
}
