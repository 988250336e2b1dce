//! Configured by the files of a mounted ConfigMap, under the name and with the command line that
//! kubeadm's DaemonSet of kube-proxy has.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use proxy_common::abi::Family;
use tempfile::TempDir;
use xtask::testbed::{Testbed, in_namespace};

use crate::client::Connection;
use crate::cluster::{Cluster, Plan, beeline};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What kubeadm writes, as far as it matters, with `line`.
fn kube_proxy_file(line: &str) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
         clientConnection: {{kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}}\n{line}\n"
    )
}

/// A ConfigMap as it is mounted: a link leads to the folder of its present version.
struct ConfigMap {
    folder: TempDir,
    n_versions: usize,
}

impl ConfigMap {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, _) in files {
            symlink(Path::new("..data").join(name), folder.path().join(name)).unwrap();
        }
        let mut map = Self {
            folder,
            n_versions: 0,
        };
        map.update(files);
        map
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Has other contents, all at once, as the kubelet does it.
    fn update(&mut self, files: &[(&str, &str)]) {
        self.n_versions += 1;
        let version = format!("..version-{}", self.n_versions);
        std::fs::create_dir(self.path(&version)).unwrap();
        for (name, text) in files {
            std::fs::write(self.path(&version).join(name), text).unwrap();
        }
        let (new, data) = (self.path("..data_tmp"), self.path("..data"));
        symlink(&version, &new).unwrap();
        std::fs::rename(new, data).unwrap();
    }
}

/// A process that ends with the test.
struct KubeProxy {
    child: Child,
    log: PathBuf,
    status: PathBuf,
}

impl KubeProxy {
    /// Starts the binary under the name kube-proxy on the testbed's node.
    fn start(testbed: &Testbed, map: &ConfigMap) -> Self {
        let binary = map.path("kube-proxy");
        if !binary.exists() {
            symlink(beeline(testbed).binary(), &binary).unwrap();
        }
        let log = map.path("log");
        let mut command = Command::new(binary);
        command
            .arg(format!("--config={}", map.path("config.conf").display()))
            .arg("--hostname-override=NODE-1")
            .arg(format!("--bpffs={}", testbed.bpffs().display()))
            .arg(format!("--state-dir={}", testbed.state_folder().display()))
            .stdin(Stdio::null())
            .stderr(File::create(&log).unwrap());
        let child = in_namespace(&testbed.node().namespace, || command.spawn()).unwrap();
        Self {
            child,
            log,
            status: testbed.state_folder().join("status.json"),
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn wait_until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            let end = self.child.try_wait().unwrap();
            assert!(end.is_none(), "{what}: ended, {end:?}: {}", self.log());
            assert!(start.elapsed() < PATIENCE, "{what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it serves.
    fn wait_until_ready(&mut self) {
        self.wait_until("ready", |it| {
            let status = std::fs::read(&it.status).unwrap_or_default();
            let status: serde_json::Value = serde_json::from_slice(&status).unwrap_or_default();
            status["synced"] == true && status["pid"] == it.child.id()
        });
    }

    /// Waits until it ends by itself.
    fn end(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "goes on: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Beeline's file: where manifests take the API server's place.
fn own_file(testbed: &Testbed) -> String {
    format!(
        "apiVersion: beeline.io/v1alpha1\nkind: BeelineConfiguration\nsource: file\n\
         manifests: [{}]\nsocketLb: \"off\"\n",
        testbed.manifests().display()
    )
}

#[test]
fn a_changed_configuration_ends_the_daemon_if_it_can_be_used_and_no_flow() {
    let cluster = Cluster::new(Plan::default());
    assert!(cluster.daemon.stop().is_some());
    let own = own_file(&cluster.testbed);
    let files = |text: &str| {
        [
            ("config.conf", kube_proxy_file(text)),
            ("beeline.yaml", own.clone()),
        ]
    };
    let update = |map: &mut ConfigMap, text: &str| {
        let files = files(text);
        map.update(&files.each_ref().map(|(name, text)| (*name, &**text)));
    };
    let mut map = ConfigMap::new(&[("config.conf", ""), ("beeline.yaml", "")]);
    update(&mut map, "mode: nftables");

    let mut daemon = KubeProxy::start(&cluster.testbed, &map);
    daemon.wait_until_ready();
    let address = cluster.service.address(Family::Ipv4);
    let mut connection = cluster.client.run(|| Connection::open(address)).unwrap();
    connection.echo(b"before").unwrap();

    update(&mut map, "mode: nftables\nclusterCIDRs: 10.0.0.0/8");
    daemon.wait_until("says that it does not count", |it| {
        it.log().contains("clusterCIDRs: unknown field")
    });
    update(&mut map, "mode: nftables\nipvs: {strictARP: true}");
    let end = daemon.end();
    assert_eq!(end.code(), Some(1), "{}", daemon.log());
    let last = daemon.log().lines().last().unwrap_or_default().to_owned();
    let path = map.path("config.conf");
    let expected = format!(
        "error: content of the configuration file {} was updated",
        path.display()
    );
    assert_eq!(last, expected);
    connection.echo(b"without a daemon").unwrap();

    let mut daemon = KubeProxy::start(&cluster.testbed, &map);
    daemon.wait_until_ready();
    assert!(
        daemon
            .log()
            .contains("without meaning here: ipvs.strictARP")
    );
    connection.echo(b"after").unwrap();
    drop(cluster.client.run(|| Connection::open(address)).unwrap());
}
