//! Which value of a setting wins: that of the command line, of Beeline's file, of kube-proxy's, or
//! the default (rule R180).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

use super::document::{File, FileError};
use super::fields::Fields;
use super::kube_proxy::{Settings, with_port};
use super::translate::Translated;
use super::{InForce, SAME_NODE_HINTS, Seen, Setting, beeline, dangers, flags, translate};
use crate::conntrack_gc::Timeouts;

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A flag, or what comes of flags together.
    #[error("{flag}: {message}")]
    Flag {
        /// Which, or the field that it stands for.
        flag: String,
        /// What is wrong.
        message: String,
    },
}

/// What a command line asks for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// What its options are.
    pub command: &'a Command,
    /// Which of them were given.
    pub matches: &'a ArgMatches,
    /// Whether kube-proxy's defaults are in force even without its file.
    pub is_kube_proxy: bool,
}

/// What it comes to.
#[derive(Debug)]
pub struct Resolved {
    /// The winning values as arguments of the command.
    pub arguments: Vec<OsString>,
    /// The same for people, with defaults.
    pub in_force: InForce,
}

/// A value, and where it comes from.
#[derive(Clone, Debug)]
struct Given {
    text: OsString,
    from: String,
}

/// By option.
type Layer = BTreeMap<String, Vec<Given>>;

/// The option whose values are of the form `STATE=TIME`: each state has a value of its own.
const TIMEOUT: &str = "timeout";

impl Asked<'_> {
    /// Reads the files and finds what is in force.
    ///
    /// # Errors
    /// If a file cannot be used, or kube-proxy would not take a value.
    pub fn resolve(&self) -> Result<Resolved, ConfigError> {
        if !self.raw(flags::MASTER).is_empty() {
            return Err(ConfigError::Flag {
                flag: format!("--{}", flags::MASTER),
                message: "not possible; name the API server in the kubeconfig".to_owned(),
            });
        }
        let file = self.path("config").map(|path| File::read(&path));
        let file = file.transpose()?;
        let mut not_counted = Vec::new();
        let fields = Fields::read(self, file.as_ref(), &mut not_counted)?;
        let mut kube_proxy = Settings::new(&fields.values);
        if let Err((path, message)) = kube_proxy.validate() {
            return Err(fields.fault(file.as_ref(), path, message));
        }
        let (translated, used) = translate::options(&kube_proxy);
        let mut layer = self.translated(translated, file.as_ref(), &fields)?;
        let own = self.own_file(file.as_ref())?;
        if let Some(own) = &own {
            overlay(&mut layer, self.of_file(own)?);
        }
        overlay(
            &mut layer,
            self.of_command_line(&kube_proxy, &mut not_counted),
        );
        let files = self.seen(file, own);
        let settings = self.settings(&layer);
        put_back(&mut kube_proxy, &settings);
        let mut without_meaning = fields.without_meaning(&used);
        without_meaning.extend(other_gates(&settings));
        let mut notes = Vec::new();
        if !without_meaning.is_empty() {
            notes.push(format!("without meaning here: {}", join(&without_meaning)));
        }
        if !not_counted.is_empty() {
            notes.push(format!(
                "do not count beside --config: {}",
                join(&not_counted)
            ));
        }
        notes.extend(dangers::all(&settings));
        Ok(Resolved {
            arguments: arguments(&layer),
            in_force: InForce {
                settings,
                kube_proxy,
                notes,
                files,
            },
        })
    }

    /// The path that an option names.
    fn path(&self, option: &str) -> Option<PathBuf> {
        let text = self.raw(option).pop()?;
        (!text.is_empty()).then(|| text.into())
    }

    /// What the command line says of an option.
    pub(super) fn raw(&self, option: &str) -> Vec<OsString> {
        let arg = self.arg(option);
        let id = arg.map(|arg| arg.get_id().as_str()).unwrap_or_default();
        if arg.is_none() || self.matches.value_source(id) != Some(ValueSource::CommandLine) {
            return Vec::new();
        }
        let values = self.matches.get_raw(id).into_iter().flatten();
        values.map(OsString::from).collect()
    }

    fn arg(&self, option: &str) -> Option<&Arg> {
        let mut args = self.command.get_arguments();
        args.find(|arg| arg.get_long() == Some(option))
    }

    /// The options that kube-proxy's fields stand for. Its defaults count if it is to be stood in
    /// for.
    fn translated(
        &self,
        translated: Vec<Translated>,
        file: Option<&File>,
        fields: &Fields,
    ) -> Result<Layer, ConfigError> {
        let with_defaults = self.is_kube_proxy || file.is_some();
        let mut layer = Layer::new();
        for Translated {
            option,
            value,
            path,
        } in translated
        {
            let Some(arg) = self.arg(option) else {
                continue;
            };
            let is_default = arg.get_default_values() == [&*value];
            let from = match fields.from.get(&path) {
                Some(from) => from.clone(),
                None if with_defaults && !is_default => "kube-proxy's default".to_owned(),
                None => continue,
            };
            beeline::check(arg, &value).map_err(|message| fields.fault(file, path, message))?;
            let text = value.into();
            layer
                .entry(option.to_owned())
                .or_default()
                .push(Given { text, from });
        }
        Ok(layer)
    }

    /// Beeline's file: the one that is named, else the one beside kube-proxy's, if it is there.
    fn own_file(&self, file: Option<&File>) -> Result<Option<File>, FileError> {
        if let Some(path) = self.path("beeline-config") {
            return File::read(&path).map(Some);
        }
        let folder = file.and_then(|file| file.path.parent());
        let beside = folder.map(|folder| folder.join(beeline::FILE_NAME));
        match beside.filter(|path| path.exists()) {
            Some(path) => File::read(&path).map(Some),
            None => Ok(None),
        }
    }

    /// What is to be looked after.
    fn seen(&self, file: Option<File>, own: Option<File>) -> Vec<Seen> {
        let beside = match (&own, &file) {
            (None, Some(file)) => Some(Seen::missing(file.path.with_file_name(beeline::FILE_NAME))),
            _ => None,
        };
        let files = file.into_iter().chain(own).map(Seen::from);
        files.chain(beside).collect()
    }

    fn of_file(&self, file: &File) -> Result<Layer, FileError> {
        let fields = beeline::fields(file, self.command)?;
        let given = |(path, text): (String, String)| Given {
            text: text.into(),
            from: format!("{}: {path}", file.path.display()),
        };
        let entry = |field: beeline::Field| {
            let values = field.values.into_iter().map(given).collect();
            (field.option, values)
        };
        Ok(fields.into_iter().map(entry).collect())
    }

    fn of_command_line(&self, kube_proxy: &Settings, not_counted: &mut Vec<String>) -> Layer {
        let has_file = self.path("config").is_some();
        let mut layer = Layer::new();
        for option in self.options() {
            let values = self.raw(option);
            if values.is_empty() {
                continue;
            }
            if has_file && flags::SAME.contains(&option) {
                not_counted.push(format!("--{option}"));
                continue;
            }
            let from = format!("--{option}");
            let given = |text| Given {
                text,
                from: from.clone(),
            };
            drop(layer.insert(option.to_owned(), values.into_iter().map(given).collect()));
        }
        if !has_file {
            self.ports(kube_proxy, &mut layer);
        }
        layer
    }

    /// kube-proxy's old flags for ports: 0 leaves a server out, another one is for an address that
    /// has none.
    fn ports(&self, kube_proxy: &Settings, layer: &mut Layer) {
        for (flag, option, path) in [
            ("healthz-port", "healthz-bind-address", "healthzBindAddress"),
            ("metrics-port", "metrics-bind-address", "metricsBindAddress"),
        ] {
            let port = self
                .raw(flag)
                .pop()
                .and_then(|port| port.into_string().ok());
            let Some(port) = port.and_then(|port| port.parse().ok()) else {
                continue;
            };
            let given = layer.get(option).and_then(|values| values.last());
            let given = given.and_then(|given| given.text.to_str());
            let text = match (port, given) {
                (0, _) => String::new(),
                (port, Some(address)) => with_port(address, port),
                (port, None) => {
                    let address = kube_proxy.text(path);
                    let address = address.rsplit_once(':').map_or(address, |(host, _)| host);
                    format!("{address}:{port}")
                }
            };
            let given = Given {
                text: text.into(),
                from: format!("--{flag}"),
            };
            drop(layer.insert(option.to_owned(), vec![given]));
        }
    }

    /// The names of all settings.
    fn options(&self) -> impl Iterator<Item = &str> {
        let settings = self
            .command
            .get_arguments()
            .filter(|arg| beeline::is_setting(arg));
        settings.filter_map(Arg::get_long)
    }

    /// All settings with what is in force.
    fn settings(&self, layer: &Layer) -> Vec<Setting> {
        let mut settings = Vec::new();
        for arg in self
            .command
            .get_arguments()
            .filter(|arg| beeline::is_setting(arg))
        {
            let option = arg.get_long().unwrap_or_default();
            let given = layer.get(option).map(Vec::as_slice).unwrap_or_default();
            if option == TIMEOUT {
                settings.extend(timeouts(given));
                continue;
            }
            settings.push(match given {
                [] => {
                    let defaults = arg.get_default_values().iter();
                    let texts: Vec<_> = defaults.map(|it| it.to_string_lossy()).collect();
                    setting(
                        option,
                        (!texts.is_empty()).then(|| texts.join(",")),
                        "default",
                    )
                }
                [given @ .., last] => {
                    let all = given.iter().chain([last]);
                    let texts: Vec<_> = all.map(|it| it.text.to_string_lossy()).collect();
                    setting(option, Some(texts.join(",")), &last.from)
                }
            });
        }
        settings
    }
}

fn setting(name: &str, value: Option<String>, from: &str) -> Setting {
    Setting {
        setting: name.to_owned(),
        value,
        from: from.to_owned(),
    }
}

/// A setting for each state.
fn timeouts(given: &[Given]) -> Vec<Setting> {
    let texts: Vec<_> = given
        .iter()
        .map(|it| it.text.to_string_lossy().into_owned())
        .collect();
    let seconds = Timeouts::with(&texts).unwrap_or_default().by_name();
    let of_state = |(state, seconds): (String, u32)| {
        let given = given.iter().rev().find(|given| state_of(given) == state);
        let from = given.map_or("default", |given| &given.from);
        setting(
            &format!("{TIMEOUT} {state}"),
            Some(format!("{seconds}s")),
            from,
        )
    };
    seconds.into_iter().map(of_state).collect()
}

fn state_of(given: &Given) -> String {
    let text = given.text.to_string_lossy();
    text.split('=').next().unwrap_or_default().to_owned()
}

/// Puts `upper` on top of `layer`.
fn overlay(layer: &mut Layer, upper: Layer) {
    for (option, values) in upper {
        if values.is_empty() {
            continue;
        }
        let lower = layer.entry(option.clone()).or_default();
        if option == TIMEOUT {
            let states: BTreeSet<_> = values.iter().map(state_of).collect();
            lower.retain(|given| !states.contains(&state_of(given)));
            lower.extend(values);
        } else {
            *lower = values;
        }
    }
}

fn arguments(layer: &Layer) -> Vec<OsString> {
    let values = layer
        .iter()
        .flat_map(|(option, values)| values.iter().map(move |given| (option, given)));
    let argument = |(option, given): (&String, &Given)| {
        let mut argument = OsString::from(format!("--{option}="));
        argument.push(&given.text);
        argument
    };
    values.map(argument).collect()
}

/// Has kube-proxy's settings show what is in force.
fn put_back(kube_proxy: &mut Settings, settings: &[Setting]) {
    let mut seconds = BTreeMap::new();
    for Setting {
        setting,
        value,
        from,
    } in settings
    {
        let Some(value) = value else { continue };
        match setting.strip_prefix(TIMEOUT) {
            Some(state) => {
                let value = value.trim_end_matches('s').parse();
                drop(value.map(|value| seconds.insert(state.trim().to_owned(), value)));
            }
            // The host's name overrides nothing.
            None if setting == "node-name" && from == "default" => {}
            None => translate::put_back(kube_proxy, setting, value),
        }
    }
    translate::put_back_timeouts(kube_proxy, &seconds);
}

/// Feature gates that nothing here goes by.
fn other_gates(settings: &[Setting]) -> Vec<String> {
    let gates = settings.iter().find(|it| it.setting == "feature-gates");
    let gates = gates.and_then(|it| it.value.as_deref()).unwrap_or_default();
    let names = gates.split(',').filter_map(|gate| gate.split_once('='));
    let others = names
        .map(|(name, _)| name.trim())
        .filter(|name| *name != SAME_NODE_HINTS);
    others
        .map(|name| format!("the feature gate {name}"))
        .collect()
}

fn join(names: &[String]) -> String {
    names.join(", ")
}
