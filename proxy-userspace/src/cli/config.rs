//! `beeline config`.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::run::RunArgs;
use super::{print_text, table};
use crate::config::{InForce, Setting};

#[derive(Args, Debug)]
pub(super) struct ConfigArgs {
    #[command(flatten)]
    pub(super) run: RunArgs,
    /// How to show it.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
}

/// How to show the configuration.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum Form {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For programs and people.
    Yaml,
}

/// Shows what is in force.
pub(super) fn config(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let in_force = args.run.in_force();
    let value = json!({
        "settings": in_force.settings,
        "notes": in_force.notes,
        "kubeProxy": in_force.kube_proxy.values(),
    });
    print_text(&match args.output {
        Form::Table => as_table(in_force),
        Form::Json => serde_json::to_string_pretty(&value)? + "\n",
        Form::Yaml => serde_saphyr::to_string(&value)?,
    });
    Ok(ExitCode::SUCCESS)
}

fn as_table(in_force: &InForce) -> String {
    let row = |setting: &Setting| {
        let value = setting.value.clone().map_or_else(|| "-".to_owned(), quoted);
        vec![setting.setting.clone(), value, setting.from.clone()]
    };
    let rows = in_force.settings.iter().map(row).collect();
    let mut text = table::render(&["SETTING", "VALUE", "FROM"], &[], rows);
    for note in &in_force.notes {
        text += &format!("note: {note}\n");
    }
    text
}

/// An empty text would not be seen.
fn quoted(value: String) -> String {
    if value.is_empty() {
        "\"\"".to_owned()
    } else {
        value
    }
}
