//! Files into cases.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Case, Expect, Flow, Manifest, ObjectKind, Packet, Verdict};

/// Why there is no list of case files.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// The folder can't be read.
    #[error("{}: {source}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder has no case files.
    #[error("{}: no case files (*.json) there", folder.display())]
    Empty {
        /// The folder.
        folder: PathBuf,
    },
}

/// What is wrong with a case file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{at}: {message}")]
pub struct Wrong {
    /// Path to the field: `flows[2].from.kind`; `.` for the file as a whole.
    pub at: String,
    /// What is wrong there.
    pub message: String,
}

/// A case file that was read.
#[derive(Clone, Debug)]
pub struct Read {
    /// Where it is.
    pub file: PathBuf,
    /// What it says, or why that is not known.
    pub case: Result<Case, Wrong>,
}

impl Read {
    /// The case's id; of one that is broken the file's name without `.json`.
    pub fn id(&self) -> String {
        match &self.case {
            Ok(case) => case.id.clone(),
            Err(_) => {
                let stem = self.file.file_stem().unwrap_or_default();
                stem.to_string_lossy().into_owned()
            }
        }
    }
}

/// Reads the case files of a folder, or of a single file, ordered by name.
///
/// # Errors
/// The folder can't be read, or has no case files. Broken files are no error here.
pub fn folder(folder: &Path) -> Result<Vec<Read>, CaseError> {
    let error = |source| CaseError::Folder {
        folder: folder.to_path_buf(),
        source,
    };
    let mut files = Vec::new();
    if fs::metadata(folder).map_err(error)?.is_dir() {
        for entry in fs::read_dir(folder).map_err(error)? {
            files.push(entry.map_err(error)?.path());
        }
        files.retain(|file| file.extension().is_some_and(|it| it == "json"));
        files.sort();
    } else {
        files.push(folder.to_path_buf());
    }
    if files.is_empty() {
        return Err(CaseError::Empty {
            folder: folder.to_path_buf(),
        });
    }
    Ok(files.into_iter().map(read).collect())
}

fn read(file: PathBuf) -> Read {
    let case = match fs::read_to_string(&file) {
        Ok(text) => Case::from_json(&text),
        Err(error) => Err(wrong(".", error)),
    };
    Read { file, case }
}

impl Case {
    /// Reads a case.
    ///
    /// # Errors
    /// Says where the text is not of the form.
    pub fn from_json(text: &str) -> Result<Self, Wrong> {
        let mut json = serde_json::Deserializer::from_str(text);
        let case: Self = serde_path_to_error::deserialize(&mut json)
            .map_err(|error| wrong(error.path(), error.inner()))?;
        json.end().map_err(|error| wrong(".", error))?;
        case.check()?;
        Ok(case)
    }

    /// All flows with their paths, in order.
    pub fn flows(&self) -> impl Iterator<Item = (String, &Flow)> {
        let of = |prefix: String, flows: &'_ [Flow]| -> Vec<String> {
            (0..flows.len())
                .map(|index| format!("{prefix}flows[{index}]"))
                .collect()
        };
        let first = of(String::new(), &self.flows).into_iter().zip(&self.flows);
        let later = self.steps.iter().enumerate().flat_map(move |(step, it)| {
            of(format!("steps[{step}]."), &it.flows)
                .into_iter()
                .zip(&it.flows)
        });
        first.chain(later)
    }

    /// What the types leave open: references, and fields that exclude each other.
    fn check(&self) -> Result<(), Wrong> {
        self.check_objects()?;
        let mut ids = BTreeSet::new();
        let mut connections = BTreeSet::new();
        for (at, flow) in self.flows() {
            flow.check(&at)?;
            if let Some(conn) = &flow.conn {
                let is_known = !connections.insert(conn);
                if !is_known && flow.packet == Packet::Established {
                    return Err(wrong(
                        format!("{at}.conn"),
                        format!("'{conn}' is not open yet"),
                    ));
                }
            }
            if let Some(id) = &flow.expect.stick_to
                && !ids.contains(id)
            {
                let message = format!("no flow before this one has the id '{id}'");
                return Err(wrong(format!("{at}.expect.stickTo"), message));
            }
            if let Some(id) = &flow.id
                && !ids.insert(id)
            {
                return Err(wrong(format!("{at}.id"), format!("'{id}' is there twice")));
            }
        }
        Ok(())
    }
}

impl Case {
    fn check_objects(&self) -> Result<(), Wrong> {
        let start = [
            ("services", ObjectKind::Service, &self.objects.services),
            (
                "endpointSlices",
                ObjectKind::EndpointSlice,
                &self.objects.endpoint_slices,
            ),
            ("nodes", ObjectKind::Node, &self.objects.nodes),
        ];
        for (list, kind, manifests) in start {
            for (index, manifest) in manifests.iter().enumerate() {
                let at = format!("objects.{list}[{index}]");
                if object_kind(&at, manifest)? != kind {
                    return Err(wrong(format!("{at}.kind"), format!("not a {kind:?}")));
                }
            }
        }
        for (step, it) in self.steps.iter().enumerate() {
            for (index, manifest) in it.apply.iter().enumerate() {
                let _known = object_kind(&format!("steps[{step}].apply[{index}]"), manifest)?;
            }
        }
        Ok(())
    }
}

/// What an object is; it has to say so, and how it is called.
fn object_kind(at: &str, manifest: &Manifest) -> Result<ObjectKind, Wrong> {
    let name = manifest
        .get("metadata")
        .and_then(|it| it.get("name")?.as_str());
    if name.is_none_or(str::is_empty) {
        return Err(wrong(format!("{at}.metadata.name"), "missing"));
    }
    let message = "must be Service, EndpointSlice or Node";
    ObjectKind::of(manifest).ok_or_else(|| wrong(format!("{at}.kind"), message))
}

impl Flow {
    fn check(&self, at: &str) -> Result<(), Wrong> {
        if self.packet == Packet::Established && self.conn.is_none() {
            return Err(wrong(
                format!("{at}.packet"),
                "`established` needs a `conn`",
            ));
        }
        if self.from.ip.is_ipv4() != self.to.ip.is_ipv4() {
            return Err(wrong(
                format!("{at}.to.ip"),
                "of another family than from.ip",
            ));
        }
        self.expect.check(&format!("{at}.expect"))?;
        let iptables = self
            .expect_by_mode
            .as_ref()
            .and_then(|it| it.iptables.as_ref());
        iptables.map_or(Ok(()), |expect| {
            expect.check(&format!("{at}.expectByMode.iptables"))
        })
    }
}

impl Expect {
    fn check(&self, at: &str) -> Result<(), Wrong> {
        let is_forward = self.verdict == Verdict::Forward;
        if is_forward == self.backends.is_empty() {
            let message = if is_forward {
                "`forward` needs at least one"
            } else {
                "only with `forward`"
            };
            return Err(wrong(format!("{at}.backends"), message));
        }
        let others = [
            ("snat", self.snat.is_some()),
            ("snatFor", !self.snat_for.is_empty()),
            ("stickTo", self.stick_to.is_some()),
        ];
        for (field, is_there) in others {
            if is_there && !is_forward {
                return Err(wrong(format!("{at}.{field}"), "only with `forward`"));
            }
        }
        if let Some(other) = self.snat_for.iter().find(|it| !self.backends.contains(it)) {
            let message = format!("{other} is none of the backends");
            return Err(wrong(format!("{at}.snatFor"), message));
        }
        if !self.snat_for.is_empty() && self.snat != Some(false) {
            return Err(wrong(format!("{at}.snat"), "must be false with `snatFor`"));
        }
        Ok(())
    }
}

fn wrong(at: impl ToString, message: impl ToString) -> Wrong {
    Wrong {
        at: at.to_string(),
        message: message.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn example() -> Value {
        let flow = json!({
            "name": "one", "id": "a", "conn": "c",
            "from": {"kind": "pod", "ip": "10.0.0.1"},
            "to": {"ip": "172.30.0.1", "port": 80, "protocol": "TCP"},
            "expect": {"verdict": "forward", "backends": ["10.0.0.2:8080"], "snat": false},
        });
        let http = json!({
            "kind": "http", "name": "alive", "to": {"ip": "192.0.2.1", "port": 1, "path": "/"},
            "expect": {"status": 200},
        });
        json!({
            "formatVersion": 1, "id": "x", "topic": "updates", "title": "t", "rules": [],
            "source": [{"file": "f", "test": "t"}], "basis": "upstream-code",
            "config": {
                "nodeName": "n", "zone": null, "nodeIPs": ["192.0.2.1"],
                "primaryNodeIPs": ["192.0.2.1"],
                "detectLocal": {"mode": "ClusterCIDR", "clusterCIDRs": ["10.0.0.0/8"]},
                "masqueradeAll": false, "nodePortAddresses": ["primary"], "serviceCIDRs": [],
            },
            "objects": {"services": [], "endpointSlices": [], "nodes": []},
            "flows": [flow], "checks": [http],
            "steps": [{"title": "s", "advanceSeconds": 1, "apply": [], "delete": []}],
        })
    }

    /// The error after `value` was put at `pointer`.
    fn error(pointer: &str, value: Value) -> String {
        let mut case = example();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        case.pointer_mut(parent).unwrap()[key] = value;
        Case::from_json(&case.to_string()).unwrap_err().to_string()
    }

    #[test]
    fn a_case_is_read() {
        let case = Case::from_json(&example().to_string()).unwrap();
        assert_eq!(case.flows().count(), 1);
        assert_eq!(case.config.sync_period_seconds, 30);
    }

    #[test]
    fn what_is_not_of_the_form_is_named_with_its_path() {
        let cases = [
            ("/extra", json!(1), "extra: unknown field `extra`"),
            ("/formatVersion", json!(2), "formatVersion: unknown version"),
            (
                "/topic",
                json!("weather"),
                "topic: unknown variant `weather`",
            ),
            (
                "/flows/0/from/kind",
                json!("moon"),
                "flows[0].from.kind: unknown variant",
            ),
            (
                "/flows/0/from/mac",
                json!("x"),
                "flows[0].from.mac: unknown field",
            ),
            (
                "/flows/0/to/port",
                json!("80"),
                "flows[0].to.port: invalid type",
            ),
            (
                "/flows/0/to/port",
                json!(70_000),
                "flows[0].to.port: invalid value",
            ),
            (
                "/flows/0/to/ip",
                json!("::1"),
                "flows[0].to.ip: of another family",
            ),
            (
                "/flows/0/packet",
                json!("old"),
                "flows[0].packet: unknown variant",
            ),
            (
                "/flows/0/packet",
                json!("established"),
                "flows[0].conn: 'c' is not open",
            ),
            ("/flows/0/conn", json!(7), "flows[0].conn: invalid type"),
            (
                "/flows/0/expect/verdict",
                json!("drop"),
                "flows[0].expect.backends: only with",
            ),
            (
                "/flows/0/expect/backends",
                json!([]),
                "flows[0].expect.backends: `forward` needs",
            ),
            (
                "/flows/0/expect/backends",
                json!(["x"]),
                "flows[0].expect.backends[0]: invalid",
            ),
            (
                "/flows/0/expect/stickTo",
                json!("b"),
                "flows[0].expect.stickTo: no flow before",
            ),
            (
                "/flows/0/expect/stickTo",
                json!("a"),
                "flows[0].expect.stickTo: no flow before",
            ),
            (
                "/flows/0/expect/snatFor",
                json!(["10.0.0.9:1"]),
                "flows[0].expect.snatFor: 10.0.0.9:1 is none of",
            ),
            (
                "/config/detectLocal",
                json!({"mode": "BridgeInterface"}),
                "config.detectLocal: missing",
            ),
            (
                "/config/nodePortAddresses",
                json!(["x"]),
                "config.nodePortAddresses: 'x' is neither",
            ),
            (
                "/checks/0/expect",
                json!({}),
                "checks[0]: missing field `expect.status`",
            ),
            (
                "/checks/0/expect/value",
                json!(1),
                "checks[0]: field `expect.value` has no meaning",
            ),
            (
                "/checks/0/to/port",
                json!(-1),
                "checks[0].to.port: invalid value",
            ),
            (
                "/steps/0/simulate",
                json!({"blockSync": ["IPv5"]}),
                "steps[0].simulate.blockSync[0]",
            ),
            (
                "/steps/0/advanceSeconds",
                json!(-1),
                "steps[0].advanceSeconds: invalid value",
            ),
            (
                "/objects/services",
                json!({}),
                "objects.services: invalid type",
            ),
        ];
        for (pointer, value, expected) in cases {
            let found = error(pointer, value);
            assert!(found.starts_with(expected), "{found}, not {expected}");
        }
    }

    #[test]
    fn what_is_no_json_is_an_error() {
        let text = example().to_string();
        for text in [&text[1..], &text[..text.len() - 1], &format!("{text}{{}}")] {
            assert!(Case::from_json(text).is_err(), "{text}");
        }
    }
}
