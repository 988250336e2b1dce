//! Renders as much of a Helm chart as ours has: values, one condition around a whole file, `quote`
//! and `toYaml | nindent`. What it does not know is an error, so the chart cannot come to need
//! more unseen.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A chart's templates and values.
pub(crate) struct Chart {
    templates: Vec<PathBuf>,
    values: Value,
}

impl Chart {
    /// Reads a folder.
    pub(crate) fn read(folder: &Path) -> Self {
        let entries = std::fs::read_dir(folder.join("templates")).unwrap();
        let mut templates: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        templates.sort();
        let values = std::fs::read_to_string(folder.join("values.yaml")).unwrap();
        Self {
            templates,
            values: serde_saphyr::from_str(&values).unwrap(),
        }
    }

    /// The objects, with these values in place of the defaults.
    pub(crate) fn render(&self, namespace: &str, set: &[(&str, Value)]) -> String {
        let mut values = self.values.clone();
        for (path, value) in set {
            let place = values.pointer_mut(&format!("/{}", path.replace('.', "/")));
            *place.unwrap_or_else(|| panic!("{path}: no such value")) = value.clone();
        }
        let mut text = String::new();
        for template in &self.templates {
            let template = std::fs::read_to_string(template).unwrap();
            text += "---\n";
            text += &file(&template, namespace, &values);
        }
        text
    }
}

fn file(template: &str, namespace: &str, values: &Value) -> String {
    let mut rest = template;
    if let Some(conditional) = template.strip_prefix("{{- if ") {
        let (condition, body) = conditional.split_once(" }}\n").unwrap();
        let condition = value(condition, values);
        if [Value::Bool(false), Value::from("")].contains(condition) {
            return String::new();
        }
        rest = body.strip_suffix("{{- end }}\n").unwrap();
    }
    let mut text = String::new();
    while let Some((before, action)) = rest.split_once("{{") {
        text += before;
        let (action, after) = action.split_once("}}").unwrap();
        if let Some(trimming) = action.strip_prefix("- ") {
            text.truncate(text.trim_end().len());
            text += &rendered(trimming.trim(), namespace, values);
        } else {
            text += &rendered(action.trim(), namespace, values);
        }
        rest = after;
    }
    text + rest
}

fn rendered(action: &str, namespace: &str, values: &Value) -> String {
    if action == ".Release.Namespace" {
        return namespace.to_owned();
    }
    let words: Vec<_> = action.split(' ').collect();
    match words[..] {
        [name, "|", "quote"] => {
            let value = value(name, values);
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            format!("{text:?}")
        }
        // JSON is YAML.
        ["toYaml", name, "|", "nindent", depth] => {
            let indent = " ".repeat(depth.parse().unwrap());
            format!("\n{indent}{}", value(name, values))
        }
        _ => panic!("{{{{ {action} }}}}: not known here"),
    }
}

fn value<'a>(name: &str, values: &'a Value) -> &'a Value {
    let path = name.strip_prefix(".Values.").unwrap();
    let found = values.pointer(&format!("/{}", path.replace('.', "/")));
    found.unwrap_or_else(|| panic!("{name}: no such value"))
}
