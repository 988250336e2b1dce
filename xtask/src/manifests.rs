//! `cargo xtask manifests`: the Helm chart, made from the kustomize base.
//!
//! The base is the one source. The chart's templates are its files, line by line and with their
//! comments, in which what one may want to set gives way to a value; what stood there is the
//! value's default.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::workspace;

/// Writes the Helm chart in deploy/chart/beeline from the kustomize base in deploy/kubernetes
///
/// A test fails if what is there is something else.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// A field of the base that is a value of the chart.
struct Slot {
    /// The base's file.
    file: &'static str,
    /// The field's key, which the file has once.
    key: &'static str,
    shape: Shape,
    /// The value's name.
    value: &'static str,
    /// What the value is, for its users.
    comment: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// One word behind the key.
    Scalar,
    /// What is indented below the key.
    Block,
    /// The same, but as text that is YAML itself.
    Text,
}

const SLOTS: [Slot; 9] = [
    Slot {
        file: "daemonset.yaml",
        key: "image",
        shape: Shape::Scalar,
        value: "image",
        comment: "The image, in a registry that the nodes can reach.",
    },
    Slot {
        file: "daemonset.yaml",
        key: "imagePullPolicy",
        shape: Shape::Scalar,
        value: "imagePullPolicy",
        comment: "When nodes pull it.",
    },
    Slot {
        file: "config.yaml",
        key: "config.conf",
        shape: Shape::Text,
        value: "kubeProxyConfiguration",
        comment: "kube-proxy's own configuration.",
    },
    Slot {
        file: "config.yaml",
        key: "beeline.yaml",
        shape: Shape::Text,
        value: "beelineConfiguration",
        comment: "Beeline's own settings.",
    },
    Slot {
        file: "daemonset.yaml",
        key: "resources",
        shape: Shape::Block,
        value: "resources",
        comment: "What the container asks for. Maps count as its memory.",
    },
    Slot {
        file: "daemonset.yaml",
        key: "tolerations",
        shape: Shape::Block,
        value: "tolerations",
        comment: "Taints of nodes that are served all the same.",
    },
    Slot {
        file: "daemonset.yaml",
        key: "nodeSelector",
        shape: Shape::Block,
        value: "nodeSelector",
        comment: "Nodes that are served.",
    },
    Slot {
        file: "daemonset.yaml",
        key: "updateStrategy",
        shape: Shape::Block,
        value: "updateStrategy",
        comment: "How pods are replaced.",
    },
    Slot {
        file: "daemonset.yaml",
        key: "priorityClassName",
        shape: Shape::Scalar,
        value: "priorityClassName",
        comment: "Whom the pod goes before.",
    },
];

/// Files of the base that are templates.
const TEMPLATES: [&str; 4] = [
    "service-account.yaml",
    "rbac.yaml",
    "config.yaml",
    "daemonset.yaml",
];

/// What is for a chart alone, where kustomize has components and files of the user's own.
const EXTRA_VALUES: &str = "\
# Where the API server is, by an address that needs no Service. Empty: the ConfigMap
# beeline-api-server with the keys host and port is there already.
apiServer:
  host: \"\"
  port: 6443
# Whether the daemon may watch pods: for socketLbSkipNamespaces and socketLbSkipPods.
watchPods: false
";

const API_SERVER: &str = "\
{{- if .Values.apiServer.host }}
apiVersion: v1
kind: ConfigMap
metadata:
  name: beeline-api-server
  namespace: {{ .Release.Namespace }}
  labels:
    app.kubernetes.io/name: beeline
data:
  host: {{ .Values.apiServer.host | quote }}
  port: {{ .Values.apiServer.port | quote }}
{{- end }}
";

/// Runs the command.
///
/// # Errors
/// If the base cannot be read, is not as the table of values has it, or the chart cannot be
/// written.
pub(crate) fn run(Args {}: &Args) -> Result<ExitCode> {
    let root = workspace::root();
    let folder = chart_folder(&root);
    for (name, text) in chart(&root)? {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("{}", parent.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("{}: write", path.display()))?;
    }
    println!("chart: {}", folder.display());
    Ok(ExitCode::SUCCESS)
}

fn chart_folder(root: &Path) -> PathBuf {
    root.join("deploy/chart/beeline")
}

/// The chart's files by name.
fn chart(root: &Path) -> Result<Vec<(String, String)>> {
    let base = root.join("deploy/kubernetes");
    let read = |name: &str| {
        let path = base.join(name);
        fs::read_to_string(&path).with_context(|| format!("{}: read", path.display()))
    };
    let mut files = vec![("Chart.yaml".to_owned(), chart_file())];
    let mut defaults = Vec::new();
    for name in TEMPLATES {
        let (text, found) = template(name, &read(name)?)?;
        files.push((format!("templates/{name}"), text));
        defaults.extend(found);
    }
    let pods = namespaced(&read("watch-pods/rbac.yaml")?);
    files.push((
        "templates/watch-pods.yaml".to_owned(),
        format!("{{{{- if .Values.watchPods }}}}\n{pods}{{{{- end }}}}\n"),
    ));
    files.push((
        "templates/api-server.yaml".to_owned(),
        API_SERVER.to_owned(),
    ));
    files.push(("values.yaml".to_owned(), values(&defaults)?));
    Ok(files)
}

fn chart_file() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "apiVersion: v2\n\
         name: beeline\n\
         description: Sends traffic for Kubernetes Services straight to pods, in the kernel\n\
         type: application\n\
         version: {version}\n\
         appVersion: {version}\n\
         kubeVersion: \">=1.28.0-0\"\n"
    )
}

/// A file of the base as a template, and what stood in its slots: by the value's name.
fn template(file: &str, base: &str) -> Result<(String, Vec<(&'static str, String)>)> {
    let mut defaults = Vec::new();
    let mut text = String::new();
    let mut lines = base.lines().peekable();
    while let Some(line) = lines.next() {
        let indent = depth(line);
        let Some(slot) = slot(file, line) else {
            text += &format!("{line}\n");
            continue;
        };
        let key = format!("{}{}:", " ".repeat(indent), slot.key);
        let value = slot.value;
        if slot.shape == Shape::Scalar {
            text += &format!("{key} {{{{ .Values.{value} | quote }}}}\n");
            defaults.push((value, line.trim_start()[slot.key.len() + 1..].to_owned()));
            continue;
        }
        let mut block = String::new();
        while let Some(line) = lines.next_if(|line| line.is_empty() || depth(line) > indent) {
            block += &format!("\n{}", line.get(indent..).unwrap_or_default());
        }
        let mark = if slot.shape == Shape::Text { " |" } else { "" };
        let depth = indent + 2;
        text += &format!("{key}{mark}\n{}", " ".repeat(depth));
        text += &format!("{{{{- toYaml .Values.{value} | nindent {depth} }}}}\n");
        defaults.push((value, block));
    }
    let expected = SLOTS.iter().filter(|slot| slot.file == file).count();
    ensure!(
        defaults.len() == expected,
        "{file}: {} of its {expected} values are there once",
        defaults.len()
    );
    Ok((namespaced(&text), defaults))
}

fn depth(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn slot(file: &str, line: &str) -> Option<&'static Slot> {
    let (key, _) = line.trim_start().split_once(':')?;
    SLOTS
        .iter()
        .find(|slot| slot.file == file && slot.key == key)
}

/// A chart goes where its user says.
fn namespaced(text: &str) -> String {
    text.replace(
        "namespace: kube-system\n",
        "namespace: {{ .Release.Namespace }}\n",
    )
}

/// The chart's values with their defaults, in the order of the table.
fn values(defaults: &[(&str, String)]) -> Result<String> {
    let mut text = "# Written by `cargo xtask manifests` from deploy/kubernetes.\n".to_owned();
    for slot in &SLOTS {
        let mut found = defaults.iter().filter(|(value, _)| *value == slot.value);
        let (_, default) = found
            .next()
            .with_context(|| format!("no default for {}", slot.value))?;
        text += &format!("# {}\n{}:{default}\n", slot.comment, slot.value);
        if slot.value == "imagePullPolicy" {
            text += EXTRA_VALUES;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_is_what_the_base_makes() {
        let root = workspace::root();
        let folder = chart_folder(&root);
        let mut expected = Vec::new();
        for (name, text) in chart(&root).unwrap() {
            let found = fs::read_to_string(folder.join(&name)).unwrap_or_default();
            assert_eq!(found, text, "{name}: run `cargo xtask manifests`");
            expected.push(folder.join(name));
        }
        for entry in fs::read_dir(folder.join("templates")).unwrap() {
            let path = entry.unwrap().path();
            assert!(expected.contains(&path), "{}: from nowhere", path.display());
        }
    }

    #[test]
    fn what_can_be_set_gives_way_to_a_value() {
        let base = "  labels: {}\n  resources:\n    # Why.\n    requests:\n      cpu: 1\n  rest: 1\n\
                    image: it\nimagePullPolicy: Never\ntolerations:\n  - a\nnodeSelector:\n  b: c\n\
                    updateStrategy:\n  d: e\npriorityClassName: f\nnamespace: kube-system\n";
        let (text, defaults) = template("daemonset.yaml", base).unwrap();
        assert!(
            text.starts_with(
                "  labels: {}\n  resources:\n    {{- toYaml .Values.resources | nindent 4 }}\n\
                 \x20 rest: 1\nimage: {{ .Values.image | quote }}\n"
            ),
            "{text}"
        );
        assert!(text.ends_with("namespace: {{ .Release.Namespace }}\n"));
        assert_eq!(
            defaults[0],
            (
                "resources",
                "\n  # Why.\n  requests:\n    cpu: 1".to_owned()
            )
        );
        assert_eq!(defaults[1], ("image", " it".to_owned()));
        assert!(template("daemonset.yaml", "image: it\n").is_err());
    }
}
