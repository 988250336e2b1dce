use super::*;

fn wanted(pods: bool) -> Wanted {
    Wanted {
        node: "n1".into(),
        pods,
    }
}

/// What a file defines, a line an object, or why it is refused.
fn outcome(name: &str, text: &str) -> Vec<String> {
    outcome_with(name, text, false)
}

fn outcome_with(name: &str, text: &str, pods: bool) -> Vec<String> {
    let definitions = match read(
        Path::new(name),
        text.as_bytes(),
        &wanted(pods),
        &mut Strings::default(),
    ) {
        Ok(definitions) => definitions,
        Err(message) => return vec![format!("refused: {message}")],
    };
    let mut lines: Vec<String> = definitions
        .iter()
        .map(|(key, definition)| {
            let mut line = format!("{key}: {}", about(definition.event.as_ref()));
            for error in &definition.errors {
                line += &format!(" ! {error}");
            }
            line
        })
        .collect();
    lines.sort();
    lines
}

fn about(event: Option<&Event>) -> String {
    match event {
        None => "none".into(),
        Some(Event::Service(service)) => format!("{:?}", service.cluster_ips),
        Some(Event::Slice(slice)) => {
            let ports = slice.ports.iter().map(|port| format!("'{}'", port.name));
            format!("{} {}", slice.endpoints.len(), ports.collect::<String>())
        }
        Some(Event::Node(node)) => format!("{:?}", node.zone),
        Some(Event::ServiceCidrs(ranges)) => format!("{ranges:?}"),
        Some(Event::Pod(pod)) => format!("{} {:?}", pod.uid, pod.labels),
        Some(other) => panic!("a file can't say {other:?}"),
    }
}

#[track_caller]
fn yaml_says(text: &str, expected: &[&str]) {
    assert_eq!(outcome("d/web.yaml", text), expected, "{text}");
}

#[test]
fn several_documents_a_file() {
    yaml_says(
        "# the shop\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
         spec: {clusterIP: 10.0.0.1}\n---\n---\napiVersion: discovery.k8s.io/v1\n\
         kind: EndpointSlice\nmetadata: {name: web-1, labels: {kubernetes.io/service-name: web}}\n\
         addressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.1.0.1]}]\n...\n",
        &[
            "EndpointSlice default/web-1: 1 ''",
            "Service shop/web: [10.0.0.1]",
        ],
    );
    yaml_says("", &[]);
    yaml_says("---\n# nothing\n", &[]);
}

#[test]
fn lists() {
    yaml_says(
        "apiVersion: v1\nkind: List\nitems:\n\
         - {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.0.0.1}}\n\
         - {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n\
         - apiVersion: v1\n  kind: List\n  items: [{apiVersion: v1, kind: Node, metadata: {name: n1}}]\n\
         ---\n{apiVersion: v1, kind: ServiceList, items: [{metadata: {name: b}, spec: {clusterIP: None}}]}\n\
         ---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSliceList, items: null}\n",
        &[
            "Node n1: None",
            "Service default/a: [10.0.0.1]",
            "Service default/b: none",
        ],
    );
    yaml_says(
        "apiVersion: v1\nkind: List\nitems:\n- metadata: {name: a}\n",
        &["refused: d/web.yaml:4:3: items[0].apiVersion: missing"],
    );
    yaml_says(
        "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: a}\n  spec:\n    ports:\n\
         \x20   - port: x\n",
        &["refused: d/web.yaml:7:13: items[0].spec.ports[0].port: \
           invalid type: string \"x\", expected i32"],
    );
}

#[test]
fn service_cidrs_of_two_versions() {
    let object = |version: &str, name: &str, range: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/{version}, kind: ServiceCIDR, \
              metadata: {{name: {name}}}, spec: {{cidrs: [{range}]}}}}"
        )
    };
    let text = [
        object("v1", "a", "10.0.0.0/16"),
        object("v1beta1", "b", "10.1.0.0/16"),
    ];
    yaml_says(
        &text.join("\n---\n"),
        &[
            "ServiceCIDR a: [10.0.0.0/16]",
            "ServiceCIDR b: [10.1.0.0/16]",
        ],
    );
    let list = format!(
        "{{apiVersion: networking.k8s.io/v1, kind: ServiceCIDRList, items: [{}]}}",
        "{metadata: {name: a}, spec: {cidrs: [10.0.0.0/16]}}"
    );
    yaml_says(&list, &["ServiceCIDR a: [10.0.0.0/16]"]);
    yaml_says(&object("v1alpha1", "a", "x").replace("cidrs", "ipv4"), &[]);
    yaml_says(
        &object("v1", "a", "x"),
        &["ServiceCIDR a: [] ! d/web.yaml:1:91: spec.cidrs[0]: 'x' is not an address range"],
    );
}

#[test]
fn other_nodes_and_kinds_are_passed_over() {
    yaml_says(
        "{apiVersion: v1, kind: Node, metadata: {name: n2}}\n---\n\
         {apiVersion: apps/v1, kind: Deployment, metadata: {}, x: .nan}\n---\n\
         {apiVersion: serving.knative.dev/v1, kind: Service}\n---\n\
         {apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: z}}}\n",
        &["Node n1: Some(\"z\")"],
    );
}

#[test]
fn what_an_api_server_fills_in() {
    for (spec, expected) in [
        ("clusterIP: 10.0.0.1", "[10.0.0.1]"),
        ("clusterIPs: [10.0.0.1, 'fd00::1']", "[10.0.0.1, fd00::1]"),
        (
            "clusterIP: 'fd00::1', clusterIPs: ['fd00::1', 10.0.0.1]",
            "[fd00::1, 10.0.0.1]",
        ),
        ("clusterIP: 10.0.0.1, ipFamilies: [IPv4]", "[10.0.0.1]"),
        ("clusterIP: None", "none"),
        ("type: ExternalName", "none"),
        (
            "ports: [{port: 80}]",
            "none ! d/web.yaml:1:62: spec.clusterIP: missing, \
             and no API server is there to allocate one",
        ),
    ] {
        let text =
            format!("{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{{spec}}}}}");
        yaml_says(&text, &[&format!("Service default/web: {expected}")]);
    }
}

#[test]
fn errors_of_type_refuse_the_file() {
    yaml_says(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  ports:\n  - port: http\n",
        &["refused: d/web.yaml:6:11: spec.ports[0].port: \
           invalid type: string \"http\", expected i32"],
    );
    // In the second document, and behind a good one.
    yaml_says(
        "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.0.0.1}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: a-1\n\
         endpoints:\n- addresses: 10.1.0.1\n",
        &["refused: d/web.yaml:8:14: endpoints[0].addresses: \
           invalid type: string \"10.1.0.1\", expected a sequence"],
    );
    yaml_says(
        "apiVersion: v1\nkind: Service\nmetadata:\n  labels:\n    app.kubernetes.io/version: 1\n",
        &[
            "refused: d/web.yaml:5:32: metadata.labels.app.kubernetes.io/version: \
           invalid type: integer `1`, expected a string",
        ],
    );
    yaml_says(
        "apiVersion: v1\nkind: Service\nmetadata:\n  namespace: x\n",
        &["refused: d/web.yaml:4:3: metadata.name: missing"],
    );
    yaml_says(
        "kind: Service\n",
        &["refused: d/web.yaml:1:1: apiVersion: missing"],
    );
    yaml_says(
        "apiVersion: v1\nkind: [Service]\n",
        &["refused: d/web.yaml:2:7: kind: not a string"],
    );
    yaml_says(
        "- a\n",
        &["refused: d/web.yaml:1:1: not a Kubernetes object"],
    );
    yaml_says(
        "apiVersion: v1\nkind: List\nitems: 1\n",
        &["refused: d/web.yaml:3:8: items: not a list"],
    );
    yaml_says(
        "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\n",
        &[
            "refused: d/web.yaml:1:13: apiVersion: 'discovery.k8s.io/v1beta1' is not served any \
           more, expected discovery.k8s.io/v1",
        ],
    );
}

#[test]
fn errors_of_syntax_refuse_the_file() {
    yaml_says(
        "a: 1\n---\n\nb: [1,\nc: 2\n",
        &["refused: d/web.yaml:1:1: apiVersion: missing"],
    );
    yaml_says(
        "# x\n---\nkind: a\nkind: b\n",
        &["refused: d/web.yaml:4:1: duplicate mapping key: kind not allowed here"],
    );
    yaml_says(
        "kind: {{ .Values.kind }}\n",
        &["refused: d/web.yaml:1:8: expected string scalar"],
    );
    yaml_says(
        "kind: a\n  b: c\n",
        &["refused: d/web.yaml:2:4: mapping values are not allowed in this context"],
    );
    let text = b"a: 1\n\xff".as_slice();
    let refused = read(
        Path::new("a.yaml"),
        text,
        &wanted(false),
        &mut Strings::default(),
    )
    .unwrap_err();
    assert_eq!(refused, "a.yaml:2: not UTF-8 text");
}

#[test]
fn errors_of_meaning_name_the_line_and_leave_the_rest() {
    yaml_says(
        "{apiVersion: v1, kind: Node, metadata: {name: n2}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n\
         \x20 clusterIP: 10.0.0.1\n  ports:\n  - port: 80\n  - port: 81\n    protocol: QUIC\n",
        &["Service shop/web: [10.0.0.1] \
           ! d/web.yaml:11:15: spec.ports[1].protocol: unknown protocol 'QUIC'"],
    );
    yaml_says(
        "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.0.0.1}}\n---\n\
         {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.0.0.2}}\n",
        &["Service default/a: [10.0.0.1] \
           ! d/web.yaml:3:1: defined a second time; the first counts"],
    );
}

#[test]
fn json() {
    let service = "{\"apiVersion\": \"v1\", \"kind\": \"Service\",\n\t\"metadata\": {\"name\": \"a\"},\n\
                   \t\"spec\": {\"clusterIP\": \"10.0.0.1\",\n\t\t\"ports\": [{\"port\": 80}]}}\n";
    assert_eq!(
        outcome("a.json", service),
        ["Service default/a: [10.0.0.1]"]
    );
    assert_eq!(
        outcome("a.yaml", service),
        ["Service default/a: [10.0.0.1]"]
    );
    let two = format!("{service}{}", service.replace("\"a\"", "\"b\""));
    assert_eq!(
        outcome("a.json", &two),
        [
            "Service default/a: [10.0.0.1]",
            "Service default/b: [10.0.0.1]"
        ]
    );
    assert_eq!(
        outcome("a.json", &service.replace("80", "\"x\"")),
        ["refused: a.json:4:22: spec.ports[0].port: invalid type: string \"x\", expected i32"]
    );
    assert_eq!(
        outcome("a.json", &service.replace("{\"port\"", "{,\"port\"")),
        ["refused: a.json:4:14: key must be a string"]
    );
    assert_eq!(outcome("a.json", "null"), [""; 0]);
    let list = "{\"items\": [\n{\"metadata\": {\"name\": \"a\"}, \"spec\": {\"clusterIP\": \"None\"}},\n\
                {\"metadata\": {\"name\": \"b\"}, \"spec\": 1}], \"apiVersion\": \"v1\", \
                \"kind\": \"ServiceList\"}";
    assert_eq!(
        outcome("a.json", list),
        ["refused: a.json:3:37: items[1].spec: invalid type: integer `1`, expected ServiceSpec"]
    );
    let list = list.replace("\"spec\": 1", "\"spec\": {\"clusterIP\": \"10.0.0.1\"}");
    assert_eq!(
        outcome("a.json", &list),
        ["Service default/a: none", "Service default/b: [10.0.0.1]"]
    );
    assert_eq!(
        outcome("a.json", &list.replace("ServiceList", "PodList")),
        [""; 0]
    );
}

/// Pods are read only if they are wanted, and of them only what matters.
#[test]
fn pods() {
    let text = "{apiVersion: v1, kind: Pod, metadata: {name: a, uid: u-1, labels: {app: x}}, \
                spec: {nodeName: n1, containers: 7}}\n---\n\
                {apiVersion: v1, kind: Pod, metadata: {name: b, namespace: s, uid: u-2}}\n---\n\
                {apiVersion: v1, kind: Pod, metadata: {name: c, uid: u-3}, spec: {nodeName: n2}}\n\
                ---\n{apiVersion: v1, kind: PodList, items: [{metadata: {name: d}}]}\n";
    assert_eq!(
        outcome_with("a.yaml", text, true),
        [
            "Pod default/a: u-1 {\"app\": \"x\"}",
            "Pod default/d: none ! a.yaml:7:52: items[0].metadata.uid: missing",
            "Pod s/b: u-2 {}",
        ]
    );
    yaml_says(text, &[]);
    yaml_says("{apiVersion: v1, kind: PodList, items: 7}", &[]);
    assert_eq!(
        outcome_with(
            "a.yaml",
            "{apiVersion: v1, kind: Pod, metadata: {name: [a]}}",
            true
        ),
        ["refused: a.yaml:1:46: metadata.name: invalid type: sequence, expected a string"]
    );
}
