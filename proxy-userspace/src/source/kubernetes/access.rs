//! How the API server is reached: addresses, credentials, connections.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Request, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::{Body, ConfigExt as _};
use kube::config::{Config, InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use tower::{BoxError, Layer as _, ServiceExt};

use super::KubernetesError;

/// Where a pod finds its credentials.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// A connection that says nothing is asked for a sign of life after this time, and at this pace.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(5));
/// A connection whose other end acknowledges nothing for so long is dead.
const DEAD: Duration = Duration::from_secs(30);

/// How the API server is reached.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Access {
    /// The kubeconfig; `None`: that of `$KUBECONFIG`, of `~/.kube/config`, or what a pod has.
    pub kubeconfig: Option<PathBuf>,
    /// API servers of one cluster, which are tried in turn, in place of the one that the
    /// configuration names. Its certificates and credentials are for all of them.
    pub servers: Vec<Uri>,
    /// What is waited for, and how long.
    pub timing: Timing,
}

/// What is waited for, and how long.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Timing {
    /// Until a connection is there.
    pub connect: Duration,
    /// Until there is an answer: the whole of a list, or the beginning of a watch.
    pub answer: Duration,
    /// Until the want of an answer is reported.
    pub slow: Duration,
    /// How long a watch may say nothing, bookmarks included, until it is taken for dead. API
    /// servers send a bookmark a minute.
    pub idle: Duration,
    /// From one opening of a watch to the next at least: one that ends as soon as it has begun is
    /// opened again without end.
    pub pace: Duration,
    /// Before something is tried again: at first, and at most. Jitter comes on top.
    pub pause: (Duration, Duration),
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(60),
            slow: Duration::from_secs(10),
            idle: Duration::from_secs(150),
            pace: Duration::from_secs(1),
            // As client-go does it.
            pause: (Duration::from_millis(800), Duration::from_secs(30)),
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the Kubernetes API")?;
        for (index, server) in self.servers.iter().enumerate() {
            write!(f, "{}{server}", if index == 0 { " at " } else { ", " })?;
        }
        match &self.kubeconfig {
            Some(path) => write!(f, " by {}", path.display()),
            None => Ok(()),
        }
    }
}

/// What a configuration was made of, so that a change of it is noticed. Contents count and not
/// times: these files are swapped by links, and clocks jump.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    hasher: RandomState,
    files: Vec<(PathBuf, Option<u64>)>,
}

impl Sources {
    fn of(paths: Vec<PathBuf>) -> Self {
        let hasher = RandomState::new();
        let files = paths.into_iter().map(|path| {
            let fingerprint = fingerprint(&hasher, &path);
            (path, fingerprint)
        });
        Self {
            files: files.collect(),
            hasher,
        }
    }

    /// Whether a file is there again, is not there any more, or says something else.
    pub(super) fn have_changed(&self) -> bool {
        let mut files = self.files.iter();
        files.any(|(path, seen)| fingerprint(&self.hasher, path) != *seen)
    }
}

fn fingerprint(hasher: &RandomState, path: &Path) -> Option<u64> {
    Some(hasher.hash_one(std::fs::read(path).ok()?))
}

impl Access {
    /// What the configuration says now, and the files that say it.
    ///
    /// # Errors
    /// There is no usable configuration.
    pub(super) async fn read(&self) -> Result<(Config, Sources), KubernetesError> {
        let kubeconfig = match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        // Before the files are read for good: what changes meanwhile is noticed later.
        let sources = Sources::of(self.paths(kubeconfig.as_ref().ok()));
        let options = KubeConfigOptions::default();
        let config = match kubeconfig {
            Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options).await,
            Err(error) => Err(error),
        };
        let mut config = match (config, &self.kubeconfig) {
            (Ok(config), _) => config,
            (Err(error), Some(path)) => {
                return Err(KubernetesError::Kubeconfig {
                    path: path.clone(),
                    message: complaint(&error),
                });
            }
            (Err(error), None) => {
                self.in_cluster()
                    .map_err(|source| KubernetesError::NoConfiguration {
                        kubeconfig: complaint(&error),
                        source,
                    })?
            }
        };
        // Trouble is reported and retried by the watches; the client's own retries would hide it.
        config.default_retry = false;
        config.connect_timeout = Some(self.timing.connect);
        take_token(&mut config);
        Ok((config, sources))
    }

    /// As a pod is told. If it is told everything but where, the servers that were named do.
    fn in_cluster(&self) -> Result<Config, InClusterError> {
        match Config::incluster_env() {
            Err(InClusterError::ReadEnvironmentVariable(_)) if !self.servers.is_empty() => {
                Config::incluster_dns()
            }
            result => result,
        }
    }

    /// All files that have a say.
    fn paths(&self, kubeconfig: Option<&Kubeconfig>) -> Vec<PathBuf> {
        let mut paths = Vec::from_iter(self.kubeconfig.clone());
        if self.kubeconfig.is_none() {
            let named = std::env::var_os("KUBECONFIG").unwrap_or_default();
            paths.extend(std::env::split_paths(&named));
            paths.extend(std::env::home_dir().map(|home| home.join(".kube/config")));
        }
        let Some(kubeconfig) = kubeconfig else {
            let names = ["token", "ca.crt"].map(|name| Path::new(SERVICE_ACCOUNT).join(name));
            paths.extend(names);
            return paths;
        };
        let clusters = kubeconfig.clusters.iter();
        let clusters = clusters.filter_map(|it| it.cluster.as_ref()?.certificate_authority.clone());
        let users = kubeconfig.auth_infos.iter();
        let users = users.filter_map(|it| it.auth_info.as_ref()).flat_map(|it| {
            let files = [&it.token_file, &it.client_certificate, &it.client_key];
            files.into_iter().flatten().cloned()
        });
        paths.extend(clusters.chain(users).map(PathBuf::from));
        paths
    }
}

/// Reads a token from its file now: the client's own reading of it goes by the wall clock, and
/// keeps a token for as long as that clock is set back.
fn take_token(config: &mut Config) {
    let auth = &mut config.auth_info;
    if let (None, Some(path)) = (&auth.token, &auth.token_file)
        && let Ok(token) = std::fs::read_to_string(path)
    {
        auth.token = Some(token.trim().into());
    }
}

/// What is wrong with a kubeconfig whose name has been said already.
fn complaint(error: &KubeconfigError) -> String {
    let text = if let KubeconfigError::ReadConfig(error, _) = error {
        error.to_string().to_lowercase()
    } else {
        error.to_string().replacen(": error: ", ": ", 1)
    };
    // After its first line the parser draws the place.
    let line = text.lines().next().unwrap_or_default();
    let line = line.split(" (os error").next().unwrap_or_default();
    line.to_owned()
}

/// A client for one API server, which notices soon if that is gone without a word.
///
/// # Errors
/// What the configuration says can't be used.
pub(super) fn connect(config: Config) -> Result<Client, kube::Error> {
    if config.proxy_url.is_some() {
        // Says why not.
        return Client::try_from(config);
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(config.connect_timeout);
    tcp.set_keepalive(Some(KEEPALIVE.0));
    tcp.set_keepalive_interval(Some(KEEPALIVE.1));
    tcp.set_tcp_user_timeout(Some(DEAD));
    let tls = config.rustls_https_connector_with_connector(tcp)?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
    let service = ServiceExt::<Request<Body>>::map_err(http.build(tls), BoxError::from);
    let service = config.extra_headers_layer()?.layer(service);
    let service = tower::util::option_layer(config.auth_layer()?).layer(service);
    let service = config.base_uri_layer().layer(service);
    Ok(Client::new(service, config.default_namespace))
}
