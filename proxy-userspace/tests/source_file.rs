//! The file source with real files.

#[path = "support/events.rs"]
mod events;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use beeline::source::{FileError, FileSource};
use events::Events;
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// A folder of manifests and a source that follows it; paths in events are shown from the folder.
struct Fixture {
    folder: TempDir,
    events: Events,
    source: JoinHandle<Result<(), FileError>>,
}

impl Fixture {
    /// Starts with these files; the source reads `paths` below the folder.
    fn new(paths: &[&str], files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self::start(folder, paths)
    }

    fn start(folder: TempDir, paths: &[&str]) -> Self {
        Self::start_with(folder, paths, false)
    }

    fn start_with(folder: TempDir, paths: &[&str], pods: bool) -> Self {
        let (sender, events) = Events::channel();
        let paths = paths.iter().map(|path| folder.path().join(path)).collect();
        let source = tokio::spawn(
            FileSource {
                paths,
                node: "n1".into(),
                pods,
            }
            .run(sender),
        );
        Self {
            folder,
            events,
            source,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    async fn expect(&mut self, expected: &[&str]) {
        for expected in expected {
            let line = self
                .events
                .next()
                .await
                .replace(&self.path("").display().to_string(), "");
            assert_eq!(&line, expected);
        }
    }
}

fn service(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: {address}\n"
    )
}

#[tokio::test]
async fn the_first_pass_ends_in_synced() {
    let mut it = Fixture::new(
        &["m", "single.json"],
        &[
            ("m/b.yaml", &service("b", "10.0.0.2")),
            ("m/a.yml", &service("a", "10.0.0.1")),
            ("m/.hidden.yaml", &service("hidden", "10.0.0.9")),
            ("m/notes.txt", "not YAML: ["),
            ("m/below/c.yaml", &service("below", "10.0.0.9")),
            (
                "single.json",
                "{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [\n\
                 {\"apiVersion\": \"v1\", \"kind\": \"Node\", \"metadata\": {\"name\": \"n1\"}}]}",
            ),
        ],
    );
    it.expect(&[
        "Service default/a 10.0.0.1",
        "Service default/b 10.0.0.2",
        "Node n1 -",
        "Synced",
    ])
    .await;
}

#[tokio::test]
async fn an_empty_folder_is_fine() {
    let mut it = Fixture::new(&[""], &[]);
    it.expect(&["Synced"]).await;
    it.write("a.yaml", &service("a", "10.0.0.1"));
    it.expect(&["Service default/a 10.0.0.1"]).await;
}

#[tokio::test]
async fn a_missing_path_is_an_error() {
    for (path, what) in [("none", "folder"), ("none.yaml", "file")] {
        let it = Fixture::new(&[path], &[]);
        let error = it.source.await.unwrap().unwrap_err().to_string();
        let path = it.folder.path().join(path);
        let expected = format!(
            "manifests {what} {}: no such file or directory",
            path.display()
        );
        assert_eq!(error, expected);
    }
    let it = Fixture::new(&[], &[]);
    let error = it.source.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "no manifests folder or file given");
}

#[tokio::test]
async fn edits_take_effect_at_once() {
    let mut it = Fixture::new(&[""], &[("a.yaml", &service("a", "10.0.0.1"))]);
    it.expect(&["Service default/a 10.0.0.1", "Synced"]).await;
    let start = Instant::now();
    for n in 2..12 {
        it.write("a.yaml", &service("a", &format!("10.0.0.{n}")));
        it.expect(&[&format!("Service default/a 10.0.0.{n}")]).await;
    }
    // Not by polling.
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    // Nothing new, nothing said.
    it.write(
        "a.yaml",
        &format!("# comment\n{}", service("a", "10.0.0.11")),
    );
    it.write("b.yaml", &service("b", "10.0.0.99"));
    it.expect(&["Service default/b 10.0.0.99"]).await;
}

fn service_cidr(name: &str, range: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {{name: {name}}}, \
          spec: {{cidrs: [{range}]}}}}"
    )
}

#[tokio::test]
async fn service_cidrs_are_told_all_together() {
    let mut it = Fixture::new(&[""], &[("a.yaml", &service_cidr("a", "10.1.0.0/16"))]);
    it.expect(&["ServiceCidrs 10.1.0.0/16", "Synced"]).await;
    it.write("b.yaml", &service_cidr("b", "10.0.0.0/16"));
    it.expect(&["ServiceCidrs 10.0.0.0/16,10.1.0.0/16"]).await;
    fs::remove_file(it.path("a.yaml")).unwrap();
    it.expect(&["ServiceCidrs 10.0.0.0/16"]).await;
    fs::remove_file(it.path("b.yaml")).unwrap();
    it.expect(&["ServiceCidrs "]).await;
}

#[tokio::test]
async fn a_file_renamed_over_another_counts() {
    let mut it = Fixture::new(&["a.yaml"], &[("a.yaml", &service("a", "10.0.0.1"))]);
    it.expect(&["Service default/a 10.0.0.1", "Synced"]).await;
    it.write("a.yaml.new", &service("a", "10.0.0.2"));
    fs::rename(it.path("a.yaml.new"), it.path("a.yaml")).unwrap();
    it.expect(&["Service default/a 10.0.0.2"]).await;
    // Others first move the old file away.
    fs::rename(it.path("a.yaml"), it.path("a.yaml~")).unwrap();
    it.write("a.yaml", &service("a", "10.0.0.3"));
    fs::remove_file(it.path("a.yaml~")).unwrap();
    it.expect(&["Service default/a 10.0.0.3"]).await;
}

/// Puts a new version of a mounted ConfigMap into place as the kubelet does.
fn mount(folder: &Path, version: &str, text: &str) {
    fs::create_dir(folder.join(version)).unwrap();
    fs::write(folder.join(version).join("a.yaml"), text).unwrap();
    symlink(version, folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    if fs::symlink_metadata(folder.join("a.yaml")).is_err() {
        symlink("..data/a.yaml", folder.join("a.yaml")).unwrap();
    }
}

#[tokio::test]
async fn a_mounted_config_map_is_followed() {
    for root in ["", "a.yaml"] {
        let folder = tempfile::tempdir().unwrap();
        mount(folder.path(), "..2026_1", &service("a", "10.0.0.1"));
        let mut it = Fixture::start(folder, &[root]);
        it.expect(&["Service default/a 10.0.0.1", "Synced"]).await;
        let start = Instant::now();
        for n in 2..5 {
            mount(
                it.folder.path(),
                &format!("..2026_{n}"),
                &service("a", &format!("10.0.0.{n}")),
            );
            it.expect(&[&format!("Service default/a 10.0.0.{n}")]).await;
        }
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
    }
}

#[tokio::test]
async fn a_broken_file_keeps_its_last_good_content() {
    let good = service("a", "10.0.0.1") + "---\n" + &service("b", "10.0.0.2");
    let mut it = Fixture::new(&[""], &[("a.yaml", &good)]);
    it.expect(&[
        "Service default/a 10.0.0.1",
        "Service default/b 10.0.0.2",
        "Synced",
    ])
    .await;
    // The first document alone would be fine.
    let broken = service("a", "10.0.0.3") + "---\n" + &service("b", "10.0.0.4") + "  ports: x\n";
    it.write("a.yaml", &broken);
    let message = "a.yaml:14:10: spec.ports: invalid type: string \"x\", expected a sequence";
    it.expect(&[&format!("Problem file a.yaml: {message}")])
        .await;
    it.write("a.yaml", &broken.replace("ports: x", "ports: []"));
    it.expect(&[
        "Service default/a 10.0.0.3",
        "Service default/b 10.0.0.4",
        "Solved file a.yaml",
    ])
    .await;
    // Mended by taking the edit back.
    it.write("a.yaml", "[");
    let message = "a.yaml:1:1: unclosed bracket '['";
    it.expect(&[&format!("Problem file a.yaml: {message}")])
        .await;
    it.write("a.yaml", &broken.replace("ports: x", "ports: []"));
    it.expect(&["Solved file a.yaml"]).await;
    // Broken, then gone.
    it.write("a.yaml", "[");
    it.expect(&[&format!("Problem file a.yaml: {message}")])
        .await;
    fs::remove_file(it.path("a.yaml")).unwrap();
    it.expect(&[
        "ServiceGone default/a",
        "ServiceGone default/b",
        "Solved file a.yaml",
    ])
    .await;
}

#[tokio::test]
async fn a_file_that_is_broken_at_the_start_does_not_stop_the_others() {
    let mut it = Fixture::new(
        &[""],
        &[("a.yaml", "["), ("b.yaml", &service("b", "10.0.0.2"))],
    );
    let message = "a.yaml:1:1: unclosed bracket '['";
    it.expect(&[
        &format!("Problem file a.yaml: {message}"),
        "Service default/b 10.0.0.2",
        "Synced",
    ])
    .await;
}

#[tokio::test]
async fn a_malformed_field_is_reported_and_the_rest_counts() {
    let text = service("a", "10.0.0.1") + "  ports:\n  - port: 80\n    protocol: QUIC\n";
    let mut it = Fixture::new(&[""], &[("a.yaml", &text)]);
    it.expect(&[
        "Service default/a 10.0.0.1",
        "Problem Service default/a: a.yaml:9:15: spec.ports[0].protocol: unknown protocol 'QUIC'",
        "Synced",
    ])
    .await;
    it.write("a.yaml", &text.replace("QUIC", "SCTP"));
    it.expect(&["Service default/a 10.0.0.1", "Solved Service default/a"])
        .await;
}

#[tokio::test]
async fn a_removed_file_removes_its_objects() {
    let mut it = Fixture::new(
        &["", "m/c.yaml"],
        &[
            ("a.yaml", &service("a", "10.0.0.1")),
            ("m/c.yaml", &service("c", "10.0.0.3")),
        ],
    );
    it.expect(&[
        "Service default/a 10.0.0.1",
        "Service default/c 10.0.0.3",
        "Synced",
    ])
    .await;
    fs::remove_file(it.path("a.yaml")).unwrap();
    it.expect(&["ServiceGone default/a"]).await;
    fs::remove_file(it.path("m/c.yaml")).unwrap();
    it.expect(&["ServiceGone default/c"]).await;
    fs::rename(it.path("m"), it.path("away")).unwrap();
    fs::create_dir(it.path("m")).unwrap();
    it.write("m/c.yaml", &service("c", "10.0.0.4"));
    it.expect(&["Service default/c 10.0.0.4"]).await;
}

#[tokio::test]
async fn an_object_in_two_files() {
    let mut it = Fixture::new(
        &[""],
        &[
            ("a.yaml", &service("x", "10.0.0.1")),
            ("b.yaml", &service("x", "10.0.0.2")),
        ],
    );
    it.expect(&[
        "Service default/x 10.0.0.1",
        "Problem Service default/x: defined in a.yaml and in b.yaml; a.yaml counts",
        "Synced",
    ])
    .await;
    fs::remove_file(it.path("a.yaml")).unwrap();
    it.expect(&["Service default/x 10.0.0.2", "Solved Service default/x"])
        .await;
}

#[tokio::test]
async fn a_folder_that_vanishes_keeps_what_it_said() {
    let mut it = Fixture::new(&["m"], &[("m/a.yaml", &service("a", "10.0.0.1"))]);
    it.expect(&["Service default/a 10.0.0.1", "Synced"]).await;
    fs::rename(it.path("m"), it.path("away")).unwrap();
    it.expect(&["Problem folder m: m: no such file or directory"])
        .await;
    fs::write(it.path("away/b.yaml"), service("b", "10.0.0.2")).unwrap();
    fs::rename(it.path("away"), it.path("m")).unwrap();
    it.expect(&["Service default/b 10.0.0.2", "Solved folder m"])
        .await;
    // The folder that came back is watched.
    it.write("m/a.yaml", &service("a", "10.0.0.3"));
    it.expect(&["Service default/a 10.0.0.3"]).await;
}

#[tokio::test]
async fn a_folder_is_replaced_by_a_link() {
    let mut it = Fixture::new(
        &["m"],
        &[
            ("v1/a.yaml", &service("a", "10.0.0.1")),
            ("v2/a.yaml", &service("a", "10.0.0.2")),
        ],
    );
    assert!(it.source.await.unwrap().is_err());
    symlink("v1", it.folder.path().join("m")).unwrap();
    it = Fixture::start(it.folder, &["m"]);
    it.expect(&["Service default/a 10.0.0.1", "Synced"]).await;
    symlink("v2", it.path("new")).unwrap();
    fs::rename(it.path("new"), it.path("m")).unwrap();
    it.expect(&["Service default/a 10.0.0.2"]).await;
    it.write("v2/a.yaml", &service("a", "10.0.0.3"));
    it.expect(&["Service default/a 10.0.0.3"]).await;
}

#[tokio::test]
async fn it_ends_when_nobody_listens() {
    let mut it = Fixture::new(&[""], &[]);
    it.expect(&["Synced"]).await;
    drop(it.events);
    tokio::time::timeout(Duration::from_secs(10), it.source)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn pods_are_told_of_if_they_are_wanted() {
    let pod = |labels: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: a, uid: u-1, labels: {labels}}}}}\n\
             ---\n{{apiVersion: v1, kind: Pod, metadata: {{name: b, uid: u-2}}, \
             spec: {{nodeName: n2}}}}\n"
        )
    };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.yaml"), pod("{app: x}")).unwrap();
    let mut it = Fixture::start_with(folder, &[""], true);
    it.expect(&["Pod default/a u-1 app=x", "PodsKnown", "Synced"])
        .await;
    it.write("a.yaml", &pod("{app: z}"));
    it.expect(&["Pod default/a u-1 app=z"]).await;
    it.write("a.yaml", &pod("{app: 1}"));
    it.expect(&[
        "Problem file a.yaml: a.yaml:1:73: metadata.labels.app: invalid type: integer `1`, \
         expected a string",
    ])
    .await;
    it.write("a.yaml", "");
    it.expect(&["PodGone default/a", "Solved file a.yaml"])
        .await;
}
