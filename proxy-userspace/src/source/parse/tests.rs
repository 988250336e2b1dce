use k8s_openapi::api::{
    core::v1 as core, discovery::v1 as discovery, networking::v1 as networking,
};

use super::*;
use crate::model::{Endpoint, EndpointSlice, Node, Service, TrafficPolicy};
use crate::node::GoneBackends;

/// YAML of an object's distinctive part, and one line for what was read of it.
type Case = (&'static str, &'static str);

fn check<K: serde::de::DeserializeOwned, T>(
    cases: &[Case],
    read: impl Fn(&mut Strings, ObjectName, &K) -> Parsed<T>,
    metadata: impl Fn(&K) -> &ObjectMeta,
    line: impl Fn(&T) -> String,
) {
    let mut strings = Strings::default();
    for (yaml, expected) in cases {
        let object: K = serde_saphyr::from_str(yaml).unwrap_or_else(|e| panic!("{yaml}: {e}"));
        let name = object_name(&mut strings, metadata(&object)).unwrap();
        let parsed = read(&mut strings, name, &object);
        let mut actual = parsed.object.as_ref().map_or("none".to_owned(), &line);
        for error in &parsed.errors {
            actual += &format!(" ! {error}");
        }
        assert_eq!(&actual, expected, "{yaml}");
    }
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items
        .into_iter()
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(",")
}

fn service_line(service: &Service) -> String {
    let mut line = format!("{} {}", service.name, list(&service.cluster_ips));
    for port in &service.ports {
        line += &format!(" {}:{}/{}", port.name, port.port, port.protocol);
        line += &port
            .node_port
            .map_or(String::new(), |port| format!("@{port}"));
    }
    for (policy, word) in [
        (service.internal_policy, " iTP=Local"),
        (service.external_policy, " eTP=Local"),
    ] {
        line += if policy == TrafficPolicy::Local {
            word
        } else {
            ""
        };
    }
    let optional = [
        ("external", list(&service.external_ips)),
        ("vip", list(&service.load_balancer_ips)),
        ("from", list(&service.source_ranges)),
        ("affinity", list(service.affinity_seconds)),
        ("gone", list(service.gone_backends.map(GoneBackends::name))),
        ("health", list(service.health_check_node_port)),
    ];
    for (word, value) in optional.iter().filter(|(_, value)| !value.is_empty()) {
        line += &format!(" {word}={value}");
    }
    line
}

fn endpoint_line(endpoint: &Endpoint) -> String {
    let mut line = format!(" {}", endpoint.address);
    for (word, given) in [
        ("/unready", !endpoint.ready),
        ("/unserving", !endpoint.serving),
        ("/terminating", endpoint.terminating),
    ] {
        line += if given { word } else { "" };
    }
    line += &endpoint
        .node
        .as_ref()
        .map_or(String::new(), |node| format!("@{node}"));
    let hints = endpoint.hints.clone().unwrap_or_default();
    for hint in hints.zones.iter().chain(&hints.nodes) {
        line += &format!("~{hint}");
    }
    line
}

fn slice_line(slice: &EndpointSlice) -> String {
    let mut line = format!("{} of {} {}", slice.name, slice.service, slice.family);
    for port in &slice.ports {
        line += &format!(" {}:{}/{}", port.name, port.port, port.protocol);
    }
    line + &slice
        .endpoints
        .iter()
        .map(endpoint_line)
        .collect::<String>()
}

fn node_line(node: &Node) -> String {
    let zone = node.zone.as_deref().unwrap_or("-");
    let fate = if node.to_be_deleted {
        " to-be-deleted"
    } else {
        ""
    };
    format!(
        "{} {zone} {} {}{fate}",
        node.name,
        list(&node.addresses),
        list(&node.pod_cidrs)
    )
}

#[test]
fn a_service_may_say_what_becomes_of_flows_to_gone_backends() {
    check_services(&[
        (
            "{metadata: {name: w, annotations: {beeline.io/gone-backends: keep}}, \
             spec: {clusterIP: 10.96.0.1}}",
            "default/w 10.96.0.1 gone=keep",
        ),
        (
            "{metadata: {name: w, annotations: {beeline.io/gone-backends: reset}}, \
             spec: {clusterIP: 10.96.0.1}}",
            "default/w 10.96.0.1 gone=reset",
        ),
        (
            "{metadata: {name: w, annotations: {beeline.io/gone-backends: away}}, \
             spec: {clusterIP: 10.96.0.1}}",
            "default/w 10.96.0.1 ! metadata.annotations['beeline.io/gone-backends']: neither \
             'reset' nor 'keep', but 'away'",
        ),
    ]);
}

fn check_services(cases: &[Case]) {
    check(
        cases,
        service,
        |object: &core::Service| &object.metadata,
        service_line,
    );
}

#[test]
fn which_services_are_ours() {
    check_services(&[
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.96.0.1}}",
            "default/w 10.96.0.1",
        ),
        (
            "{metadata: {name: w, namespace: s}, spec: {clusterIP: 10.96.0.1}}",
            "s/w 10.96.0.1",
        ),
        // R1
        ("{metadata: {name: w}}", "none"),
        ("{metadata: {name: w}, spec: {}}", "none"),
        ("{metadata: {name: w}, spec: {clusterIP: ''}}", "none"),
        (
            "{metadata: {name: w}, spec: {clusterIP: None, ports: [{port: 80}]}}",
            "none",
        ),
        // R2
        (
            "{metadata: {name: w}, spec: {type: ExternalName, clusterIP: 10.96.0.1}}",
            "none",
        ),
        // R3: whatever the value
        (
            "{metadata: {name: w, labels: {service.kubernetes.io/service-proxy-name: ''}}, \
              spec: {clusterIP: 10.96.0.1}}",
            "none",
        ),
        // R4: means nothing on a Service
        (
            "{metadata: {name: w, labels: {service.kubernetes.io/headless: ''}}, \
              spec: {clusterIP: 10.96.0.1}}",
            "default/w 10.96.0.1",
        ),
        (
            "{metadata: {name: w}, spec: {type: Odd, clusterIP: 10.96.0.1}}",
            "default/w 10.96.0.1 ! spec.type: unknown type 'Odd'",
        ),
    ]);
}

#[test]
fn cluster_ips_by_family() {
    check_services(&[
        // R151
        (
            "{metadata: {name: w}, spec: {clusterIP: fd00::1, clusterIPs: [fd00::1, 10.0.0.1], \
              ipFamilies: [IPv6, IPv4]}}",
            "default/w fd00::1,10.0.0.1",
        ),
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, fd00::1], \
              ipFamilies: [IPv4]}}",
            "default/w 10.0.0.1",
        ),
        (
            "{metadata: {name: w}, spec: {clusterIP: fd00::1}}",
            "default/w fd00::1",
        ),
        // R27
        (
            "{metadata: {name: w}, spec: {clusterIP: 010.096.000.001}}",
            "default/w 10.96.0.1",
        ),
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.x}}",
            "default/w  ! spec.clusterIP: '10.0.0.x' is not an IP address",
        ),
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, 10.0.0.2], \
              ipFamilies: [IPv4, IPv6]}}",
            "default/w 10.0.0.1 ! spec.clusterIPs[1]: '10.0.0.2' is not an IPv6 address",
        ),
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, 10.0.0.2], \
              ipFamilies: [IPv4, IPv4]}}",
            "default/w 10.0.0.1 ! spec.clusterIPs[1]: a second IPv4 address",
        ),
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1], \
              ipFamilies: [IPv4, IPv6]}}",
            "default/w 10.0.0.1 ! spec.clusterIPs[1]: missing",
        ),
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, fd00::1], \
              ipFamilies: [IPv4, IPv5]}}",
            "default/w 10.0.0.1 ! spec.ipFamilies[1]: unknown family 'IPv5'",
        ),
    ]);
}

#[test]
fn service_ports() {
    check_services(&[
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.1, ports: [{port: 80}, \
              {name: dns, port: 53, protocol: UDP}, {name: dns, port: 53, protocol: TCP}, \
              {name: x, port: 9, protocol: SCTP, targetPort: web}]}}",
            "default/w 10.0.0.1 :80/TCP dns:53/UDP dns:53/TCP x:9/SCTP",
        ),
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.1, ports: [{name: a, port: 80}, \
              {name: b, port: 81, protocol: QUIC}]}}",
            "default/w 10.0.0.1 a:80/TCP ! spec.ports[1].protocol: unknown protocol 'QUIC'",
        ),
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.1, ports: [{name: a}, \
              {name: b, port: 65536}, {name: c, port: -1}, {name: d, port: 65535}]}}",
            "default/w 10.0.0.1 d:65535/TCP ! spec.ports[0].port: 0 is not a port (1 to 65535) \
             ! spec.ports[1].port: 65536 is not a port (1 to 65535) \
             ! spec.ports[2].port: -1 is not a port (1 to 65535)",
        ),
        // R5, R10
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.1, ports: [{name: a, port: 80}, \
              {name: a, port: 81}, {name: b, port: 80}, {name: b, port: 80, protocol: UDP}]}}",
            "default/w 10.0.0.1 a:80/TCP b:80/UDP ! spec.ports[1].name: a second TCP port 'a' \
             ! spec.ports[2].port: a second port 80/TCP",
        ),
        // R89
        (
            "{metadata: {name: w}, spec: {type: NodePort, clusterIP: 10.0.0.1, \
              ports: [{name: a, port: 80, nodePort: 30080}, {name: b, port: 81, nodePort: 0}, \
              {name: c, port: 82, nodePort: 70000}]}}",
            "default/w 10.0.0.1 a:80/TCP@30080 b:81/TCP c:82/TCP \
             ! spec.ports[2].nodePort: 70000 is not a port (1 to 65535)",
        ),
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.1, ports: [{port: 80, nodePort: 1}]}}",
            "default/w 10.0.0.1 :80/TCP",
        ),
    ]);
}

#[test]
fn policies_and_affinity() {
    check_services(&[
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.1, internalTrafficPolicy: Local, \
              externalTrafficPolicy: Local}}",
            "default/w 10.0.0.1 iTP=Local eTP=Local",
        ),
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.1, internalTrafficPolicy: Near, \
              externalTrafficPolicy: Cluster}}",
            "default/w 10.0.0.1 ! spec.internalTrafficPolicy: unknown policy 'Near'",
        ),
        // R111
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.1, sessionAffinity: ClientIP}}",
            "default/w 10.0.0.1 affinity=10800",
        ),
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.1, sessionAffinity: ClientIP, \
              sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}}}",
            "default/w 10.0.0.1 affinity=5",
        ),
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.1, sessionAffinity: None, \
              sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}}}",
            "default/w 10.0.0.1",
        ),
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.1, sessionAffinity: ClientIP, \
              sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}}}",
            "default/w 10.0.0.1 affinity=10800 \
             ! spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is not within 1 to 86400",
        ),
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.1, sessionAffinity: Cookie}}",
            "default/w 10.0.0.1 ! spec.sessionAffinity: unknown affinity 'Cookie'",
        ),
        // R120
        (
            "{metadata: {name: w}, spec: {type: LoadBalancer, clusterIP: 10.0.0.1, \
              externalTrafficPolicy: Local, healthCheckNodePort: 31000}}",
            "default/w 10.0.0.1 eTP=Local health=31000",
        ),
        (
            "{metadata: {name: w}, spec: {type: LoadBalancer, clusterIP: 10.0.0.1, \
              healthCheckNodePort: 31000}}",
            "default/w 10.0.0.1",
        ),
        (
            "{metadata: {name: w}, spec: {type: NodePort, clusterIP: 10.0.0.1, \
              externalTrafficPolicy: Local, healthCheckNodePort: 31000}}",
            "default/w 10.0.0.1 eTP=Local",
        ),
    ]);
}

#[test]
fn addresses_from_outside() {
    check_services(&[
        // R152: both families, whatever the Service's own
        (
            "{metadata: {name: w}, spec: {clusterIP: 10.0.0.1, \
              externalIPs: [192.0.2.1, '2001:db8::1', '']}}",
            "default/w 10.0.0.1 external=192.0.2.1,2001:db8::1 \
             ! spec.externalIPs[2]: '' is not an IP address",
        ),
        // R100, R101
        (
            "{metadata: {name: w}, spec: {type: LoadBalancer, clusterIP: 10.0.0.1, \
              loadBalancerIP: 192.0.2.9}, status: {loadBalancer: {ingress: [{ip: 192.0.2.1}, \
              {hostname: x.example}, {ip: 192.0.2.2, ipMode: VIP}, \
              {ip: 192.0.2.3, ipMode: Proxy}, {ip: 192.0.2.4, ipMode: Odd}, {ip: y}]}}}",
            "default/w 10.0.0.1 vip=192.0.2.1,192.0.2.2 \
             ! status.loadBalancer.ingress[4].ipMode: unknown mode 'Odd' \
             ! status.loadBalancer.ingress[5].ip: 'y' is not an IP address",
        ),
        // R102, R27
        (
            "{metadata: {name: w}, spec: {type: LoadBalancer, clusterIP: 10.0.0.1, \
              loadBalancerSourceRanges: [' 203.000.113.0/24 ', 'fd00::/8', 1.2.3.4]}}",
            "default/w 10.0.0.1 from=203.0.113.0/24,fd00::/8 \
             ! spec.loadBalancerSourceRanges[2]: '1.2.3.4' is not an address range",
        ),
    ]);
}

#[test]
fn endpoint_slices() {
    let cases = [
        (
            "{metadata: {name: w-1, namespace: s, labels: {kubernetes.io/service-name: w}}, \
              addressType: IPv4, ports: [{name: '', port: 8080}, {name: d, port: 53, protocol: UDP}], \
              endpoints: [{addresses: [10.1.0.1, 10.1.0.9]}]}",
            "s/w-1 of s/w IPv4 :8080/TCP d:53/UDP 10.1.0.1",
        ),
        // R20
        (
            "{metadata: {name: w-1}, addressType: IPv4, endpoints: []}",
            "none",
        ),
        (
            "{metadata: {name: w-1, labels: {kubernetes.io/service-name: ''}}, addressType: IPv4}",
            "none",
        ),
        // R4; R3 means nothing here
        (
            "{metadata: {name: w-1, labels: {kubernetes.io/service-name: w, \
              service.kubernetes.io/headless: ''}}, addressType: IPv4}",
            "none",
        ),
        (
            "{metadata: {name: w-1, labels: {kubernetes.io/service-name: w, \
              service.kubernetes.io/service-proxy-name: x}}, addressType: IPv4}",
            "default/w-1 of default/w IPv4",
        ),
        // R21
        (
            "{metadata: {name: w-1, labels: {kubernetes.io/service-name: w}}, addressType: FQDN}",
            "none",
        ),
        (
            "{metadata: {name: w-1, labels: {kubernetes.io/service-name: w}}, addressType: IPX}",
            "none ! addressType: unknown address type 'IPX'",
        ),
        (
            "{metadata: {name: w-1, labels: {kubernetes.io/service-name: w}}}",
            "none ! addressType: missing",
        ),
        // R14, R11
        (
            "{metadata: {name: w-1, labels: {kubernetes.io/service-name: w}}, addressType: IPv6, \
              ports: [{port: 1}, {name: a}, {name: b, port: 0}, {name: c, port: 3, protocol: X}, \
              {name: d, port: 70000}, {name: e, port: 5, protocol: SCTP}], endpoints: null}",
            "default/w-1 of default/w IPv6 e:5/SCTP ! ports[3].protocol: unknown protocol 'X' \
             ! ports[4].port: 70000 is not a port (1 to 65535)",
        ),
        // R24, R25
        (
            "{metadata: {name: w-1, labels: {kubernetes.io/service-name: w}}, addressType: IPv4, \
              ports: null, endpoints: [\
              {addresses: [10.1.0.1], conditions: {ready: false, serving: true, terminating: true}}, \
              {addresses: [10.1.0.2], conditions: {ready: false, serving: false}, nodeName: n1}, \
              {addresses: [10.1.0.3], conditions: {}, nodeName: ''}]}",
            "default/w-1 of default/w IPv4 10.1.0.1/unready/terminating \
             10.1.0.2/unready/unserving@n1 10.1.0.3",
        ),
        // R28, R49
        (
            "{metadata: {name: w-1, labels: {kubernetes.io/service-name: w}}, addressType: IPv4, \
              endpoints: [{addresses: [10.1.0.1], zone: z9, deprecatedTopology: {a: b}, \
              hints: {forZones: [{name: z1}, {name: z2}], forNodes: [{name: n1}]}}]}",
            "default/w-1 of default/w IPv4 10.1.0.1~z1~z2~n1",
        ),
        // R26, R27, R172
        (
            "{metadata: {name: w-1, labels: {kubernetes.io/service-name: w}}, addressType: IPv4, \
              endpoints: [{addresses: []}, {addresses: [pod.example]}, {addresses: ['fd00::1']}, \
              {addresses: [010.001.000.004]}]}",
            "default/w-1 of default/w IPv4 10.1.0.4 ! endpoints[0].addresses[0]: missing \
             ! endpoints[1].addresses[0]: 'pod.example' is not an IP address \
             ! endpoints[2].addresses[0]: 'fd00::1' is not an IPv4 address",
        ),
    ];
    check(
        &cases,
        endpoint_slice,
        |object: &discovery::EndpointSlice| &object.metadata,
        slice_line,
    );
}

#[test]
fn service_cidrs() {
    let cases = [
        ("{metadata: {name: a}}", ""),
        (
            "{metadata: {name: a}, spec: {cidrs: [10.96.0.0/12, 'fd00::/112', x]}}",
            "10.96.0.0/12,fd00::/112 ! spec.cidrs[2]: 'x' is not an address range",
        ),
        // R186
        (
            "{metadata: {name: a, deletionTimestamp: '2026-01-01T00:00:00Z'}, \
              spec: {cidrs: [10.96.0.0/12]}}",
            "10.96.0.0/12",
        ),
    ];
    check(
        &cases,
        |_: &mut Strings, _, object: &networking::ServiceCIDR| service_cidr(object),
        |object: &networking::ServiceCIDR| &object.metadata,
        |ranges: &Vec<ipnet::IpNet>| list(ranges),
    );
}

#[test]
fn nodes() {
    let cases = [
        ("{metadata: {name: n1}}", "n1 -  "),
        // R46, R48
        (
            "{metadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}}",
            "n1 z1  ",
        ),
        (
            "{metadata: {name: n1, labels: {topology.kubernetes.io/zone: ''}}}",
            "n1 -  ",
        ),
        // R181
        (
            "{metadata: {name: n1}, status: {addresses: [{type: Hostname, address: n1}, \
              {type: ExternalIP, address: 192.0.2.1}, {type: InternalIP, address: 10.0.0.1}, \
              {type: InternalIP, address: 'fd00::1'}, {type: InternalIP, address: x}]}}",
            "n1 - 10.0.0.1,fd00::1,192.0.2.1  \
             ! status.addresses[4].address: 'x' is not an IP address",
        ),
        // R51
        (
            "{metadata: {name: n1}, spec: {podCIDR: 10.1.0.0/24, \
              podCIDRs: [10.1.0.0/24, 'fd00:1::/64', x]}}",
            "n1 -  10.1.0.0/24,fd00:1::/64 ! spec.podCIDRs[2]: 'x' is not an address range",
        ),
        (
            "{metadata: {name: n1}, spec: {podCIDR: 10.1.0.0/24}}",
            "n1 -  10.1.0.0/24",
        ),
        // R134
        (
            "{metadata: {name: n1}, spec: {taints: [{key: other, effect: NoExecute}, \
              {key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule, value: '1'}]}}",
            "n1 -   to-be-deleted",
        ),
        (
            "{metadata: {name: n1, deletionTimestamp: '2026-01-01T00:00:00Z'}}",
            "n1 -   to-be-deleted",
        ),
        (
            "{metadata: {name: n1}, spec: {unschedulable: true, \
              taints: [{key: node.kubernetes.io/unschedulable, effect: NoSchedule}]}}",
            "n1 -  ",
        ),
    ];
    check(
        &cases,
        node,
        |object: &core::Node| &object.metadata,
        node_line,
    );
}

#[test]
fn equal_strings_are_shared() {
    let mut strings = Strings::default();
    assert!(Arc::ptr_eq(&strings.share("n1"), &strings.share("n1")));
}

#[test]
fn strings_that_nobody_holds_are_swept() {
    let mut strings = Strings::default();
    let kept = strings.share("kept");
    for n in 0..10_000 {
        strings.share(&n.to_string());
    }
    assert!(strings.known.len() < 3000, "{}", strings.known.len());
    assert!(Arc::ptr_eq(&kept, &strings.share("kept")));
}

#[test]
fn a_nameless_object_is_refused() {
    let error = object_name(&mut Strings::default(), &ObjectMeta::default()).unwrap_err();
    assert_eq!(error.to_string(), "metadata.name: missing");
}

#[test]
fn pods() {
    check(
        &[
            ("metadata: {name: a, namespace: s, uid: u-1}", "s/a u-1"),
            (
                "metadata: {name: a, uid: u-1, labels: {app: x, b/c: ''}}",
                "default/a u-1 app=x,b/c=",
            ),
            // A static Pod: its cgroup carries the uid that the kubelet gave it.
            (
                "metadata: {name: a, uid: u-1, annotations: {kubernetes.io/config.mirror: h, \
                 kubernetes.io/config.hash: h}}",
                "default/a h",
            ),
            (
                "metadata: {name: a, uid: u-1, annotations: {kubernetes.io/config.hash: h}}",
                "default/a u-1",
            ),
            (
                "metadata: {name: a, uid: u-1, annotations: {kubernetes.io/config.mirror: h}}",
                "none ! metadata.annotations.kubernetes.io/config.hash: missing",
            ),
            (
                "metadata: {name: a, uid: ''}",
                "none ! metadata.uid: missing",
            ),
        ],
        |strings, name, object: &core::Pod| pod(strings, name, &object.metadata),
        |object| &object.metadata,
        |pod| {
            let labels = pod
                .labels
                .iter()
                .map(|(key, value)| format!("{key}={value}"));
            format!("{} {} {}", pod.name, pod.uid, list(labels))
                .trim_end()
                .to_owned()
        },
    );
}
