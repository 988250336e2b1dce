//! Figures as text.

use xtask::figures::Figures;

use super::answer::answer;
use super::table::Table;
use super::{Form, control, names, programs, tables};

/// All that figures say, in tables: the answer first.
pub(in super::super) fn text(figures: &Figures, form: Form) -> String {
    let mut parts = Vec::new();
    match form {
        Form::Terminal => {
            parts.extend(answer(figures).map(|answer| answer.sentences.join("\n")));
            parts.extend(tables::connections(figures, form).text(form));
            parts.push(circumstances(figures));
        }
        Form::Markdown => {
            parts.push("## Results".to_owned());
            parts.push(circumstances(figures));
            parts.extend(answer(figures).map(|answer| answer.sentences.join(" ")));
            parts.extend(tables::connections(figures, form).text(form));
        }
    }
    parts.extend(left_out(figures));
    let rest = rest(figures, form);
    parts.extend(rest.iter().filter_map(|table| table.text(form)));
    parts.join("\n\n")
}

/// What comes after the answer.
fn rest(figures: &Figures, form: Form) -> Vec<Table> {
    let mut all = vec![
        tables::rates(figures, form),
        tables::cpu(figures, form),
        tables::latency(figures, form),
        tables::absolute(figures),
        tables::to_pod(figures, form),
        tables::beside(figures, form),
        tables::calls(figures),
        tables::program_calls(figures),
        programs::packets(figures),
        programs::sizes(figures),
    ];
    all.extend(control::tables(figures));
    all.push(tables::nodes(figures));
    all
}

/// When, where and how it was measured.
fn circumstances(figures: &Figures) -> String {
    format!(
        "{}: `{}`. {}. {}.",
        figures.day,
        figures.command,
        names::machine(&figures.machine),
        names::settings(&figures.settings)
    )
}

fn left_out(figures: &Figures) -> Option<String> {
    let lines: Vec<String> = figures
        .left_out
        .iter()
        .map(|what| format!("- {what}"))
        .collect();
    (!lines.is_empty()).then(|| format!("Left out:\n\n{}", lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn a_terminal_shows_the_answer_on_its_first_screen() {
        let text = text(&sample::full(), Form::Terminal);
        let screen: Vec<&str> = text.lines().take(40).collect();
        let screen = screen.join("\n");
        assert!(screen.starts_with("With 30,000 Services"), "{screen}");
        assert_eq!(screen.matches("kube-proxy, iptables-legacy").count(), 4);
        assert!(screen.contains("Fast One"), "{screen}");
    }

    #[test]
    fn markdown_has_every_part_and_says_what_is_missing() {
        let text = text(&sample::full(), Form::Markdown);
        let headings: Vec<&str> = text.lines().filter(|line| line.starts_with("##")).collect();
        assert_eq!(headings.len(), 18, "{headings:#?}");
        assert!(text.contains("- no legacy tables"), "{text}");
    }

    #[test]
    fn what_was_not_measured_leaves_no_trace() {
        let text = text(&sample::empty(), Form::Markdown);
        let expected = "## Results\n\n2026-01-31: `cargo xtask bench`. Linux 6.18.44, Fast One, 2 \
                        processors; load 0.10 before, 0.20 after. IPv4, 40 rounds, turns of 30 ms.";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_busy_machine_is_said_to_be_one() {
        let mut figures = sample::empty();
        assert!(!text(&figures, Form::Terminal).contains("busy"));
        figures.machine.load = [2.5, 1.0];
        assert!(text(&figures, Form::Terminal).contains("(busy: rates mean little"));
    }
}
