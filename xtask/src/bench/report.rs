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

#[cfg(test)]
mod tests {
    use super::*;

    /// What reading figures comes to after a change of their JSON.
    fn read_changed(change: impl FnOnce(&mut serde_json::Value)) -> Result<Figures> {
        let mut json = serde_json::to_value(sample::full())?;
        change(&mut json);
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("figures.json");
        std::fs::write(&file, json.to_string())?;
        read(&file)
    }

    #[test]
    fn what_was_written_is_read() {
        let figures = [read_changed(|_| ()).unwrap(), sample::full()];
        let said = figures.map(|figures| text(&figures, Form::Markdown));
        assert!(said[0] == said[1] && !said[0].is_empty());
    }

    #[test]
    fn an_error_names_file_and_field() {
        let error = read_changed(|json| json["traffic"][3]["rate"]["median"] = "fast".into());
        let error = format!("{:#}", error.unwrap_err());
        assert!(
            error.contains("figures.json: not the figures of a benchmark"),
            "{error}"
        );
        assert!(error.contains("field traffic[3].rate.median: "), "{error}");
    }
}
