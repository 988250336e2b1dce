//! Services whose manifest is broken when the daemon starts.

use proxy_common::abi::Family;
use xtask::testbed::Daemon;

use crate::client::{Connection, udp, udp_echo};
use crate::cluster::{Cluster, Plan, Service};

fn serves(cluster: &Cluster, service: &Service) {
    cluster.client.run(|| {
        for address in Family::ALL.map(|family| service.address(family)) {
            Connection::open(address).unwrap().echo(b"hello").unwrap();
            udp_echo(&udp(0, address).unwrap(), b"hello").unwrap();
        }
    });
}

fn has_start_problem(status: &serde_json::Value) -> bool {
    status["problems"]
        .to_string()
        .contains(r#""subject":"start""#)
}

fn wait_until_nothing_is_kept(daemon: &Daemon) {
    let done = |status: &serde_json::Value| !status.is_null() && !has_start_problem(status);
    daemon.wait_until("nothing kept any more", done).unwrap();
}

#[test]
fn a_file_that_breaks_while_the_daemon_is_down_keeps_its_services() {
    let mut cluster = Cluster::new(Plan::default());
    let web = cluster.service.clone();
    let [shop, old] = [("shop", 11), ("old", 12)].map(|(name, number)| {
        let service = Service::new(name, number, &cluster.backends);
        cluster.apply(&service);
        service
    });
    // One file has `shop` and `old`, the other `web`.
    let folder = cluster.testbed.manifests();
    let [shop_file, old_file] = ["shop.json", "old.json"].map(|name| folder.join(name));
    let shop_alone = std::fs::read_to_string(&shop_file).unwrap();
    let both = format!(
        "{shop_alone}\n---\n{}",
        std::fs::read_to_string(&old_file).unwrap()
    );
    cluster.daemon.kill();
    std::fs::remove_file(&shop_file).unwrap();
    std::fs::remove_file(&old_file).unwrap();
    let file = folder.join("both.yaml");
    std::fs::write(&file, format!("{both}\n---\n[")).unwrap();

    cluster.start_again();
    for service in [&web, &shop, &old] {
        serves(&cluster, service);
    }
    let says = |status: &serde_json::Value| has_start_problem(status);
    cluster.daemon.wait_until("something kept", says).unwrap();
    let (status, log) = (cluster.daemon.status().to_string(), cluster.daemon.log());
    for text in [&status, &log] {
        assert!(
            text.contains("Service default/old, Service default/shop: kept"),
            "{text}"
        );
        assert!(text.contains("both.yaml"), "{text}");
    }
    assert_eq!(
        log.matches("kept as before the restart").count(),
        1,
        "{log}"
    );

    std::fs::write(&file, shop_alone).unwrap();
    wait_until_nothing_is_kept(&cluster.daemon);
    serves(&cluster, &web);
    serves(&cluster, &shop);
    let services = cluster.beeline().json(["services"]).unwrap().to_string();
    assert!(!services.contains("default/old"), "{services}");
    let gone = cluster
        .client
        .run(|| Connection::open(old.address(Family::Ipv4)));
    assert!(gone.is_err(), "{gone:?}");
}
