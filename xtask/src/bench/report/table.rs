//! Tables, in every form.

use comfy_table::{CellAlignment, LineStyle, TableStyle};

use super::Form;
use super::markup::escape;

/// Rows of cells under a header.
pub(super) struct Table {
    /// What it is about.
    title: String,
    /// What its numbers are; nothing if the title says it.
    note: String,
    header: Vec<String>,
    /// So many of the columns are names, the others numbers.
    left: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Makes a table of those rows and columns that say something. The first `left` columns are
    /// names.
    pub(super) fn new(
        title: impl Into<String>,
        note: impl Into<String>,
        left: usize,
        header: &[&str],
        mut rows: Vec<Vec<String>>,
    ) -> Self {
        rows.retain(|row| row.iter().skip(left).any(|cell| !cell.is_empty()));
        let is_used = |column: usize| {
            let mut cells = rows.iter().filter_map(|row| row.get(column));
            cells.any(|cell| !cell.is_empty())
        };
        let used: Vec<bool> = (0..header.len()).map(is_used).collect();
        let only_used = |cells: Vec<String>| -> Vec<String> {
            let cells = cells.into_iter().zip(&used);
            cells
                .filter_map(|(cell, used)| used.then_some(cell))
                .collect()
        };
        Self {
            title: title.into(),
            note: note.into(),
            header: only_used(header.iter().map(|&name| name.to_owned()).collect()),
            left: used.iter().take(left).filter(|used| **used).count(),
            rows: rows.into_iter().map(only_used).collect(),
        }
    }

    /// What it is about.
    pub(super) fn title(&self) -> &str {
        &self.title
    }

    /// Whether there is nothing to show.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table under its title; nothing if it has no rows.
    pub(super) fn text(&self, form: Form) -> Option<String> {
        let parts = match form {
            Form::Terminal => [
                self.title.to_uppercase(),
                self.note.clone(),
                self.for_terminal(),
            ],
            Form::Markdown => [
                format!("### {}", self.title),
                self.note.clone(),
                self.markdown(),
            ],
        };
        let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let between = match form {
            Form::Terminal => "\n",
            Form::Markdown => "\n\n",
        };
        (!self.is_empty()).then(|| parts.join(between))
    }

    fn for_terminal(&self) -> String {
        const STYLE: TableStyle =
            TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));
        let mut table = comfy_table::Table::new();
        table.load_style(STYLE).set_header(&self.header);
        for row in &self.rows {
            table.add_row(row);
        }
        for (number, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            if number >= self.left {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.trim_fmt()
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
        let rules: Vec<String> = (0..self.header.len())
            .map(|number| if number < self.left { "---" } else { "---:" }.to_owned())
            .collect();
        let mut lines = vec![line(&self.header), line(&rules)];
        lines.extend(self.rows.iter().map(|row| line(row)));
        lines.join("\n")
    }

    /// The table alone, behind a fold. Nothing if it has no rows.
    pub(super) fn folded(&self, summary: &str) -> String {
        if self.is_empty() {
            return String::new();
        }
        format!(
            "<details><summary>{}</summary>{}</details>",
            escape(summary),
            self.html()
        )
    }

    /// The table alone.
    pub(super) fn html(&self) -> String {
        let cells = |cells: &[String], tag: &str| -> String {
            let cell = |(number, cell): (usize, &String)| {
                let class = if number < self.left { "" } else { " class=n" };
                format!("<{tag}{class}>{}</{tag}>", escape(cell))
            };
            cells.iter().enumerate().map(cell).collect()
        };
        let head = cells(&self.header, "th");
        let rows: String = self
            .rows
            .iter()
            .map(|row| format!("<tr>{}</tr>\n", cells(row, "td")))
            .collect();
        format!(
            "<div class=scroll tabindex=0 role=group aria-label=\"{}\"><table><thead><tr>{head}</tr></thead>\
             <tbody>\n{rows}</tbody></table></div>",
            escape(&self.title)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[[&str; 3]]) -> Table {
        let rows = rows
            .iter()
            .map(|row| row.map(str::to_owned).to_vec())
            .collect();
        Table::new("Ways", "In ns.", 1, &["way", "median", "most"], rows)
    }

    #[test]
    fn what_says_nothing_is_left_out() {
        let table = table(&[["direct", "12", ""], ["nobody", "", ""]]);
        let text = table.text(Form::Markdown).unwrap();
        assert_eq!(
            text,
            "### Ways\n\nIn ns.\n\n| way | median |\n| --- | ---: |\n| direct | 12 |"
        );
    }

    #[test]
    fn a_table_without_rows_is_no_text() {
        let table = table(&[["nobody", "", ""]]);
        assert_eq!(table.text(Form::Terminal), None);
        assert_eq!(table.folded("Table"), "");
    }

    #[test]
    fn tables_for_a_terminal_have_no_bars() {
        let text = table(&[["direct", "12", "13"]])
            .text(Form::Terminal)
            .unwrap();
        assert!(text.contains("direct") && !text.contains('|'), "{text}");
    }
}
