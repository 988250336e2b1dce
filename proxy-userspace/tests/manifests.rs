//! What is deployed: the kustomize base and the chart made from it. They are what Kubernetes
//! understands to the last field, they say the same, and they agree with the daemon.

mod manifests {
    pub(crate) mod chart;
}

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use beeline::privileges::{NEEDS, Need, Term};
use beeline::source::{Right, rights, rights_for_pods};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, PodSpec, PodTemplateSpec, ServiceAccount, VolumeMount,
};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule};
use serde::de::DeserializeOwned;
use serde_json::Value;

use manifests::chart;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The objects in a text.
fn objects(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The resources that a kustomization names, as kustomize gives them out: as they are.
fn kustomized(folder: &str) -> Vec<Value> {
    let folder = deploy().join(folder);
    let kustomization: Value =
        serde_saphyr::from_str(&read(&folder.join("kustomization.yaml"))).unwrap();
    let known = ["apiVersion", "kind", "resources"];
    let fields = kustomization.as_object().unwrap();
    assert!(
        fields.keys().all(|field| known.contains(&field.as_str())),
        "{kustomization}: changes what it names"
    );
    let files = fields["resources"].as_array().unwrap();
    let text = |file: &Value| objects(&read(&folder.join(file.as_str().unwrap())));
    files.iter().flat_map(text).collect()
}

fn base() -> Vec<Value> {
    kustomized("kubernetes")
}

/// An object of its type. A field that the type does not have is an error.
fn typed<K: DeserializeOwned>(object: &Value) -> K {
    let mut unknown = Vec::new();
    // Fields that may be absent are question marks on the way.
    let note = |path: serde_ignored::Path<'_>| unknown.push(path.to_string().replace(".?", ""));
    let read: K = serde_ignored::deserialize(object, note)
        .unwrap_or_else(|error| panic!("{error}: {object:#}"));
    assert_eq!(unknown, Vec::<String>::new(), "unknown fields: {object:#}");
    read
}

fn only<K: k8s_openapi::Resource + DeserializeOwned>(objects: &[Value]) -> K {
    let mut of_kind = objects.iter().filter(|object| object["kind"] == K::KIND);
    let object = of_kind.next().unwrap_or_else(|| panic!("no {}", K::KIND));
    assert!(of_kind.next().is_none(), "several: {}", K::KIND);
    assert_eq!(object["apiVersion"], K::API_VERSION, "{object:#}");
    typed(object)
}

fn pod() -> PodSpec {
    let daemon_set: DaemonSet = only(&base());
    daemon_set.spec.unwrap().template.spec.unwrap()
}

fn container() -> Container {
    let [container] = <[Container; 1]>::try_from(pod().containers).unwrap();
    container
}

#[test]
fn every_field_is_known_to_kubernetes() {
    for folder in ["kubernetes", "kubernetes/watch-pods"] {
        for object in kustomized(folder) {
            match object["kind"].as_str().unwrap() {
                "ServiceAccount" => drop(typed::<ServiceAccount>(&object)),
                "ClusterRole" => drop(typed::<ClusterRole>(&object)),
                "ClusterRoleBinding" => drop(typed::<ClusterRoleBinding>(&object)),
                "ConfigMap" => drop(typed::<ConfigMap>(&object)),
                "DaemonSet" => drop(typed::<DaemonSet>(&object)),
                other => panic!("{other}: what is that?"),
            }
        }
    }
}

#[test]
#[should_panic(expected = "left: [\"spec.template.spec.hostNetwrok\"]")]
fn a_field_that_is_not_known_is_named() {
    let mut objects = base();
    let daemon_set = objects.iter_mut().find(|it| it["kind"] == "DaemonSet");
    let daemon_set = daemon_set.unwrap();
    daemon_set["spec"]["template"]["spec"]["hostNetwrok"] = true.into();
    drop(typed::<DaemonSet>(daemon_set));
}

#[test]
fn kustomize_makes_of_the_base_what_is_read_here() {
    let Some(said) = output(
        Command::new("kubectl")
            .arg("kustomize")
            .arg(deploy().join("kubernetes")),
    ) else {
        return;
    };
    assert_eq!(by_name(objects(&said)), by_name(base()));
}

/// What a program says; `None` if this machine does not have it.
fn output(command: &mut Command) -> Option<String> {
    match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("not run here: {command:?}");
            None
        }
        output => {
            let output = output.unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?}: {said}");
            Some(String::from_utf8(output.stdout).unwrap())
        }
    }
}

/// Objects by kind and name; files of YAML in ConfigMaps as what they say.
fn by_name(objects: Vec<Value>) -> BTreeMap<(String, String), Value> {
    let named = |mut object: Value| {
        if object["kind"] == "ConfigMap" {
            let files = object["data"].as_object_mut().unwrap();
            for (name, text) in files {
                if name.ends_with(".conf") || name.ends_with(".yaml") {
                    *text = serde_saphyr::from_str(text.as_str().unwrap()).unwrap();
                }
            }
        }
        let word = |value: &Value| value.as_str().unwrap().to_owned();
        let key = (word(&object["kind"]), word(&object["metadata"]["name"]));
        (key, object)
    };
    objects.into_iter().map(named).collect()
}

#[test]
fn the_chart_says_by_default_what_the_base_says() {
    let chart = chart::Chart::read(&deploy().join("chart/beeline"));
    let rendered = chart.render("kube-system", &[]);
    assert_eq!(by_name(objects(&rendered)), by_name(base()));
}

#[test]
fn helm_agrees_where_there_is_one() {
    let rendered = output(
        Command::new("helm")
            .args(["template", "beeline", "--namespace", "kube-system"])
            .arg(deploy().join("chart/beeline")),
    );
    if let Some(rendered) = rendered {
        assert_eq!(by_name(objects(&rendered)), by_name(base()));
    }
}

#[test]
fn the_charts_values_are_where_they_belong() {
    let chart = chart::Chart::read(&deploy().join("chart/beeline"));
    let values = [
        ("apiServer.host", "192.0.2.1".into()),
        ("watchPods", true.into()),
        ("image", "registry.example/beeline:1".into()),
        ("tolerations", serde_json::json!([])),
    ];
    let rendered = objects(&chart.render("beeline-system", &values));
    let object = |kind: &str, name: &str| {
        let mut all = rendered.iter();
        let found = all.find(|it| it["kind"] == kind && it["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("no {kind} {name}"))
    };
    let api_server: ConfigMap = typed(object("ConfigMap", "beeline-api-server"));
    let data = api_server.data.unwrap();
    assert_eq!(data["host"], "192.0.2.1");
    assert_eq!(data["port"], "6443");
    let pods: ClusterRole = typed(object("ClusterRole", "beeline-pods"));
    assert_eq!(granted(&pods), wanted(&rights_for_pods()));
    let daemon_set: DaemonSet = typed(object("DaemonSet", "beeline"));
    let pod = daemon_set.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.tolerations, Some(Vec::new()));
    let image = pod.containers[0].image.as_deref();
    assert_eq!(image, Some("registry.example/beeline:1"));
    for object in &rendered {
        let namespace = &object["metadata"]["namespace"];
        assert!(
            namespace.is_null() || namespace == "beeline-system",
            "{object:#}"
        );
        for subject in object["subjects"].as_array().into_iter().flatten() {
            assert_eq!(subject["namespace"], "beeline-system", "{object:#}");
        }
    }
}

/// Verbs by group and resource.
type Grants = BTreeMap<(String, String), Vec<String>>;

fn granted(role: &ClusterRole) -> Grants {
    let mut grants = Grants::new();
    for rule in role.rules.iter().flatten() {
        let PolicyRule {
            api_groups,
            resources,
            verbs,
            non_resource_urls: None,
            resource_names: None,
        } = rule
        else {
            panic!("{rule:?}: what is that for?");
        };
        for group in api_groups.iter().flatten() {
            for resource in resources.iter().flatten() {
                let key = (group.clone(), resource.clone());
                assert!(
                    grants.insert(key, verbs.clone()).is_none(),
                    "{rule:?}: twice"
                );
            }
        }
    }
    grants
}

fn wanted(rights: &[Right]) -> Grants {
    let grant = |right: &Right| {
        let verbs = right.verbs.iter().map(|verb| (*verb).to_owned()).collect();
        ((right.group.to_owned(), right.resource.to_owned()), verbs)
    };
    rights.iter().map(grant).collect()
}

#[test]
fn the_role_grants_what_the_daemon_asks_for_and_nothing_else() {
    let role: ClusterRole = only(&base());
    assert_eq!(granted(&role), wanted(&rights()));
    let role: ClusterRole = only(&kustomized("kubernetes/watch-pods"));
    assert_eq!(granted(&role), wanted(&rights_for_pods()));
}

#[test]
fn the_account_is_the_pods_and_has_the_role() {
    let account: ServiceAccount = only(&base());
    assert_eq!(pod().service_account_name, account.metadata.name);
    for folder in ["kubernetes", "kubernetes/watch-pods"] {
        let objects = kustomized(folder);
        let (role, binding): (ClusterRole, ClusterRoleBinding) = (only(&objects), only(&objects));
        assert_eq!(Some(binding.role_ref.name), role.metadata.name);
        let [subject] = &binding.subjects.unwrap()[..] else {
            panic!("{folder}: not one subject");
        };
        assert_eq!(Some(&subject.name), account.metadata.name.as_ref());
        assert_eq!(subject.namespace, account.metadata.namespace);
    }
}

#[test]
fn the_container_has_the_capabilities_that_are_needed_and_no_others() {
    let security = container().security_context.unwrap();
    let capabilities = security.capabilities.unwrap();
    assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]));
    let is_asked_for = |need: &&Need| need.term != Term::IfGiven;
    let needs = NEEDS.iter().filter(is_asked_for);
    let names: Vec<_> = needs.map(|need| need.name.to_owned()).collect();
    assert_eq!(capabilities.add, Some(names));
    assert_eq!(security.privileged, Some(false));
    assert_eq!(security.allow_privilege_escalation, Some(false));
    assert_eq!(security.read_only_root_filesystem, Some(true));
}

#[test]
fn probes_ask_where_the_daemon_answers() {
    let container = container();
    let port = &container.ports.unwrap()[0];
    let default = beeline_help("--healthz-bind-address");
    assert_eq!(default, format!("0.0.0.0:{}", port.container_port));
    for (probe, path) in [
        (container.startup_probe, "/livez"),
        (container.liveness_probe, "/livez"),
        (container.readiness_probe, "/readyz"),
    ] {
        let get = probe.unwrap().http_get.unwrap();
        assert_eq!(get.path.as_deref(), Some(path));
        let named = k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String;
        assert_eq!(get.port, named(port.name.clone().unwrap()));
    }
}

/// The default of one of `beeline run`'s options.
fn beeline_help(option: &str) -> String {
    let mut help = Command::new(env!("CARGO_BIN_EXE_beeline"));
    let help = output(help.args(["run", "--help"])).unwrap();
    let (_, rest) = help.split_once(&format!("{option} <")).unwrap();
    let (_, rest) = rest.split_once("[default: ").unwrap();
    rest.split_once(']').unwrap().0.to_owned()
}

#[test]
fn mounts_are_where_the_daemon_looks() {
    let (pod, container) = (pod(), container());
    let paths: BTreeMap<_, _> = container
        .volume_mounts
        .into_iter()
        .flatten()
        .map(|mount| (mount.name, mount.mount_path))
        .collect();
    assert_eq!(paths["bpffs"], beeline_help("--bpffs"));
    assert_eq!(paths["state"], beeline_help("--state-dir"));
    let config = format!("--config={}/config.conf", paths["config"]);
    assert!(container.args.unwrap().contains(&config));
    let volumes: Vec<_> = pod.volumes.into_iter().flatten().collect();
    assert_eq!(volumes.len(), paths.len());
    for volume in volumes {
        assert!(paths.contains_key(&volume.name), "{volume:?}: not mounted");
        if let Some(config_map) = volume.config_map {
            let is_there = |map: &Value| map["metadata"]["name"] == *config_map.name;
            assert!(base().iter().any(is_there), "{config_map:?}");
        }
    }
}

/// `config.conf` and `beeline.yaml` in a folder, as the ConfigMap is mounted.
fn mounted_config() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config: ConfigMap = only(&base());
    for (name, text) in config.data.unwrap() {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[test]
fn the_daemon_understands_its_arguments_and_its_configuration() {
    let folder = mounted_config();
    let place = folder.path().to_str().unwrap();
    let arguments = container().args.unwrap();
    let (run, arguments) = arguments.split_first().unwrap();
    assert_eq!(run, "run");
    let arguments = arguments.iter().map(|argument| {
        let argument = argument.replace("/etc/beeline", place);
        argument.replace("$(NODE_NAME)", "node-1")
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_beeline"));
    let _appended = command.arg("config").args(["-o", "json"]).args(arguments);
    let said: Value = serde_json::from_str(&output(&mut command).unwrap()).unwrap();
    let settings = said["settings"].as_array().unwrap();
    let setting = |name: &str| {
        let found = settings.iter().find(|setting| setting["setting"] == name);
        let found = found.unwrap_or_else(|| panic!("{name}: {said:#}"));
        (
            found["value"].clone(),
            found["from"].as_str().unwrap().to_owned(),
        )
    };
    assert_eq!(setting("node-name").0, "node-1");
    assert_eq!(setting("source").0, "kubernetes");
    for (name, file) in [
        ("healthz-bind-address", "config.conf: healthzBindAddress"),
        ("metrics-bind-address", "config.conf: metricsBindAddress"),
        ("nodeport-addresses", "config.conf: nodePortAddresses"),
        ("socket-lb", "beeline.yaml: socketLb"),
    ] {
        let (value, from) = setting(name);
        assert_eq!(from, format!("{place}/{file}"), "{name}: {value}");
    }
    assert_eq!(said["notes"], serde_json::json!([]), "{said:#}");
}

#[test]
fn versions_are_this_one() {
    let version = env!("CARGO_PKG_VERSION");
    let image = Some(format!("beeline:{version}"));
    assert_eq!(container().image, image);
    let patch: Value = serde_saphyr::from_str(&read(
        &deploy().join("kubernetes/kube-proxy-patch/patch.yaml"),
    ))
    .unwrap();
    let template: PodTemplateSpec = typed(&patch["spec"]["template"]);
    assert_eq!(template.spec.unwrap().containers[0].image, image);
    let dockerfile = read(&deploy().join("../Dockerfile"));
    assert!(dockerfile.contains(&format!("\nARG VERSION={version}\n")));
}

/// What the patch makes of kubeadm's DaemonSet has the pod what ours has, beside what it had.
#[test]
fn the_patch_gives_kube_proxys_daemon_set_what_ours_has() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests/kube-proxy.yaml");
    let before: DaemonSet = typed(&objects(&read(&fixture))[0]);
    let Some(patched) = output(
        Command::new("kubectl")
            .args(["patch", "--local", "--output", "yaml", "--filename"])
            .arg(&fixture)
            .arg("--patch-file")
            .arg(deploy().join("kubernetes/kube-proxy-patch/patch.yaml")),
    ) else {
        return;
    };
    let after: DaemonSet = only(&objects(&patched));
    let [before, after] = [before, after].map(|it| it.spec.unwrap().template.spec.unwrap());
    assert_eq!(after.host_pid, pod().host_pid);
    let [before_container, after_container] =
        [&before, &after].map(|pod| pod.containers[0].clone());
    assert_eq!(after.containers.len(), 1);
    assert_eq!(after_container.image, container().image);
    assert_eq!(after_container.command, before_container.command);
    let is_ours = |name: &str| name != "config";
    let place = |mount: &VolumeMount| {
        let is_read_only = mount.read_only.unwrap_or_default();
        (mount.name.clone(), mount.mount_path.clone(), is_read_only)
    };
    let places = |container: &Container| -> BTreeSet<_> {
        let mounts = container.volume_mounts.iter().flatten();
        mounts.map(place).collect()
    };
    let mut expected = places(&container());
    expected.retain(|(name, ..)| is_ours(name));
    expected.extend(places(&before_container));
    assert_eq!(places(&after_container), expected);
    let has = after.volumes.unwrap();
    for volume in pod().volumes.unwrap().iter().filter(|it| is_ours(&it.name)) {
        assert!(has.contains(volume), "{volume:?}");
    }
    for volume in &before.volumes.unwrap() {
        assert!(has.contains(volume), "{volume:?}");
    }
}

#[test]
fn the_instructions_settings_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("beeline.yaml");
    let examples = examples().into_iter();
    let own = examples.filter(|it| it.starts_with("apiVersion: beeline.io/"));
    let own: Vec<_> = own.collect();
    assert!(!own.is_empty());
    for example in own {
        std::fs::write(&file, example).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_beeline"));
        let _appended = command.args(["config", "--beeline-config"]).arg(&file);
        let said = output(&mut command).unwrap();
        assert!(said.contains(file.to_str().unwrap()), "{said}");
    }
}

/// The blocks of YAML in the instructions.
fn examples() -> Vec<String> {
    let text = read(&deploy().join("../docs/install.md"));
    let blocks = text.split("```yaml\n").skip(1);
    let ends = blocks.map(|block| block.split("```").next().unwrap().to_owned());
    ends.collect()
}

#[test]
fn the_instructions_kustomization_works() {
    let mut examples = examples().into_iter();
    let example = examples
        .find(|it| it.contains("kind: Kustomization"))
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    // In a folder beside the repository, with the commented line in force.
    let place = folder.path().join("mine");
    std::fs::create_dir(&place).unwrap();
    std::os::unix::fs::symlink(deploy().join(".."), folder.path().join("beeline")).unwrap();
    let text = example.replace("\n# components:", "\ncomponents:");
    assert_ne!(text, example);
    std::fs::write(place.join("kustomization.yaml"), text).unwrap();
    let Some(made) = output(Command::new("kubectl").arg("kustomize").arg(&place)) else {
        return;
    };
    let made = by_name(objects(&made));
    let object = |kind: &str, name: &str| &made[&(kind.to_owned(), name.to_owned())];
    let base = by_name(base());
    let (config, own) = (
        object("ConfigMap", "beeline"),
        &base[&("ConfigMap".into(), "beeline".into())],
    );
    assert_eq!(config["data"]["config.conf"], own["data"]["config.conf"]);
    assert_eq!(config["data"]["beeline.yaml"]["goneBackends"], "keep");
    let daemon_set: DaemonSet = typed(object("DaemonSet", "beeline"));
    let pod = daemon_set.spec.unwrap().template.spec.unwrap();
    let image = pod.containers[0].image.as_deref();
    assert_eq!(image, Some("registry.example/beeline:0.1.0"));
    let pods: ClusterRole = typed(object("ClusterRole", "beeline-pods"));
    assert_eq!(granted(&pods), wanted(&rights_for_pods()));
}
