//! The fields of kube-proxy's configuration that somebody set, by its file or by flags.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::document::{File, FileError};
use super::layers::{Asked, ConfigError};
use super::{flags, kube_proxy, translate};

/// kube-proxy's fields.
#[derive(Default)]
pub(super) struct Fields {
    pub(super) values: Vec<(String, Value)>,
    pub(super) from: BTreeMap<String, String>,
    /// Flags that stand for no field.
    without_meaning: Vec<String>,
}

impl Fields {
    /// By kube-proxy's file and flags.
    pub(super) fn read(
        asked: &Asked<'_>,
        file: Option<&File>,
        not_counted: &mut Vec<String>,
    ) -> Result<Self, FileError> {
        let mut fields = Self::default();
        if let Some(file) = file {
            for (path, value) in kube_proxy::fields(file)? {
                let from = format!("{}: {path}", file.path.display());
                fields.put(path, value, from);
            }
        }
        let given = flags::FLAGS.iter().filter_map(|flag| {
            let text = asked.raw(flag.name).pop()?.into_string().ok()?;
            Some((flag, flag.read(&text).ok()?))
        });
        let given: Vec<_> = given.collect();
        let mode = given.iter().find(|(flag, _)| flag.path == "mode");
        let is_nftables = mode.is_some_and(|(_, mode)| mode == "nftables");
        for (flag, value) in given {
            let name = format!("--{}", flag.name);
            let path = match flag.path.strip_prefix("iptables.") {
                Some(rest) if is_nftables && rest.ends_with("Period") => format!("nftables.{rest}"),
                Some(_) | None => flag.path.to_owned(),
            };
            if file.is_some() && !flag.is_of_logs {
                not_counted.push(name);
            } else if !path.is_empty() {
                fields.put(path, value, name);
            } else if !flag.name.ends_with("-port") {
                fields.without_meaning.push(name);
            }
        }
        Ok(fields)
    }

    fn put(&mut self, path: String, value: Value, from: String) {
        self.values.retain(|(earlier, _)| *earlier != path);
        self.values.push((path.clone(), value));
        drop(self.from.insert(path, from));
    }

    /// Where the blame for a field lies.
    pub(super) fn fault(&self, file: Option<&File>, path: String, message: String) -> ConfigError {
        let flag = self.from.get(&path).filter(|from| from.starts_with("--"));
        match (file, flag) {
            (Some(file), None) => self.of_file(&file.path, &path, message),
            (_, flag) => ConfigError::Flag {
                flag: flag.cloned().unwrap_or(path),
                message,
            },
        }
    }

    fn of_file(&self, file: &Path, path: &str, message: String) -> ConfigError {
        ConfigError::File(FileError::field(file, path, message))
    }

    pub(super) fn without_meaning(&self, used: &BTreeSet<String>) -> Vec<String> {
        let paths = translate::without_meaning(self.values.iter(), used);
        let named = paths.into_iter().map(|path| match self.from.get(path) {
            Some(flag) if flag.starts_with("--") => flag.clone(),
            Some(_) | None => path.to_owned(),
        });
        named.chain(self.without_meaning.iter().cloned()).collect()
    }
}
