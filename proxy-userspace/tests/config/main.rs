//! Configuration by files and flags, with the real binary.

mod beeline_file;
mod docs;
mod errors;
mod kube_proxy;
mod kubeadm;
mod precedence;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A folder with configuration files, in which the binary runs.
struct Folder(TempDir);

/// The least that kube-proxy's file has.
const KUBE_PROXY: &str =
    "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
/// The least that Beeline's file has.
const BEELINE: &str = "apiVersion: beeline.io/v1alpha1\nkind: BeelineConfiguration\n";

/// A setting's value and where it comes from.
type Shown = (Option<String>, String);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// One with kube-proxy's file, `config.conf`, that says this.
    fn with(text: &str) -> Self {
        let folder = Self::new();
        folder.write("config.conf", &format!("{KUBE_PROXY}{text}"));
        folder
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).unwrap()
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs the binary to its end.
    fn beeline(&self, arguments: &[&str]) -> Output {
        self.run(Path::new(env!("CARGO_BIN_EXE_beeline")), arguments)
    }

    /// The same under the name kube-proxy.
    fn kube_proxy(&self, arguments: &[&str]) -> Output {
        let link = self.path().join("kube-proxy");
        if !link.exists() {
            symlink(env!("CARGO_BIN_EXE_beeline"), &link).unwrap();
        }
        self.run(&link, arguments)
    }

    fn run(&self, binary: &Path, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary);
        let command = command.args(arguments).current_dir(self.path());
        command.env_remove("RUST_BACKTRACE").output().unwrap()
    }

    /// What `beeline config` says with these options.
    fn config(&self, options: &[&str]) -> Value {
        let output = self.beeline(&[&["config", "-o", "json"], options].concat());
        assert!(output.status.success(), "{options:?}: {}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// One setting that `beeline config` shows.
    fn setting(&self, options: &[&str], name: &str) -> Shown {
        setting(&self.config(options), name)
    }

    /// The line by which the binary refuses kube-proxy's file that says `text`.
    fn complaint(text: &str) -> String {
        Self::with(text).refusal(&["--config", "config.conf"])
    }

    /// The line by which the binary refuses these options.
    fn refusal(&self, options: &[&str]) -> String {
        let output = self.beeline(&[&["config"], options].concat());
        let taken = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success(), "{options:?} is taken: {taken}");
        let said = said(&output);
        assert!(!said.contains("panicked"), "{said}");
        said.lines().next().unwrap().to_owned()
    }
}

fn setting(config: &Value, name: &str) -> Shown {
    let settings = config["settings"].as_array().unwrap();
    let setting = settings.iter().find(|it| it["setting"] == name);
    let setting = setting.unwrap_or_else(|| panic!("no setting {name}"));
    let value = setting["value"].as_str().map(str::to_owned);
    (value, setting["from"].as_str().unwrap().to_owned())
}

/// Notes about a configuration.
fn notes(config: &Value) -> Vec<&str> {
    let notes = config["notes"].as_array().unwrap();
    notes.iter().map(|note| note.as_str().unwrap()).collect()
}

fn shown(value: &str, from: &str) -> Shown {
    (Some(value.to_owned()), from.to_owned())
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
