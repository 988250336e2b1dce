use super::*;

const PERIOD: Duration = Duration::from_secs(30);

/// A state at a time that moves as told.
struct Scene {
    state: State,
    now: Instant,
}

impl Scene {
    /// Up to date, on a node that stays.
    fn synced() -> Self {
        let mut scene = Self {
            state: State::new(PERIOD),
            now: Instant::now(),
        };
        scene.state.set_node(&node(false));
        for family in Family::ALL {
            scene.changed(family);
            scene.sync(family);
        }
        scene
    }

    fn changed(&mut self, family: Family) {
        self.state.changed(family, self.now);
    }

    fn sync(&mut self, family: Family) {
        self.state.synced(family, self.now);
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn proxy(&self) -> ProxyHealth {
        self.state.proxy(self.now)
    }

    fn check(&self, name: &str, family: Family) -> CheckAnswer {
        self.state.check(&object(name), family, self.now)
    }
}

fn node(to_be_deleted: bool) -> Node {
    Node {
        name: "here".into(),
        zone: None,
        addresses: vec![],
        pod_cidrs: vec![],
        to_be_deleted,
    }
}

fn object(name: &str) -> ObjectName {
    ObjectName {
        namespace: "shop".into(),
        name: name.into(),
    }
}

fn check(port: u16, counts: &[(Family, u32)]) -> Option<HealthCheck> {
    Some(HealthCheck {
        port,
        local: counts.iter().copied().collect(),
    })
}

fn addresses(listeners: &BTreeSet<Listener>) -> Vec<String> {
    let text = |it: &Listener| format!("{} {}", it.service.name, it.address);
    listeners.iter().map(text).collect()
}

#[test]
fn r132_without_a_change_it_is_healthy_for_ever() {
    let mut scene = Scene::synced();
    scene.pass(3600);
    assert!(scene.proxy().is_healthy);
    assert_eq!(scene.proxy().age(), Some(Duration::ZERO));
}

#[test]
fn r132_a_change_may_wait_for_twice_the_period() {
    let mut scene = Scene::synced();
    scene.pass(10);
    scene.changed(Family::Ipv4);
    scene.pass(60);
    assert!(scene.proxy().is_healthy);
    scene.pass(1);
    assert!(!scene.proxy().is_healthy);
    assert_eq!(scene.proxy().age(), Some(Duration::from_secs(71)));
}

#[test]
fn r132_the_oldest_change_counts() {
    let mut scene = Scene::synced();
    for _ in 0..4 {
        scene.changed(Family::Ipv4);
        scene.pass(20);
    }
    assert!(!scene.proxy().is_healthy);
}

#[test]
fn r132_the_first_sync_may_be_late_too() {
    let mut state = State::new(PERIOD);
    let now = Instant::now();
    assert!(state.proxy(now).is_healthy);
    state.changed(Family::Ipv6, now);
    let late = state.proxy(now + Duration::from_secs(61));
    assert!(!late.is_healthy);
    assert_eq!(late.age(), None);
}

#[test]
fn r132_r150_both_families_count() {
    let mut scene = Scene::synced();
    scene.changed(Family::Ipv4);
    scene.changed(Family::Ipv6);
    scene.sync(Family::Ipv4);
    scene.pass(61);
    let proxy = scene.proxy();
    assert!(!proxy.is_healthy);
    assert!(proxy.families[&Family::Ipv4].0);
    assert!(!proxy.families[&Family::Ipv6].0);
    scene.sync(Family::Ipv6);
    assert!(scene.proxy().is_healthy);
}

#[test]
fn r133_a_sync_makes_it_healthy_at_once() {
    let mut scene = Scene::synced();
    scene.changed(Family::Ipv4);
    scene.pass(1000);
    assert!(!scene.proxy().is_healthy);
    scene.sync(Family::Ipv4);
    assert!(scene.proxy().is_healthy);
    // The next change has all its time.
    scene.changed(Family::Ipv4);
    scene.pass(60);
    assert!(scene.proxy().is_healthy);
}

#[test]
fn r134_the_node_is_eligible_once_seen_and_while_it_stays() {
    let mut scene = Scene::synced();
    assert!(scene.proxy().is_node_eligible);
    scene.state.set_node(&node(true));
    assert!(!scene.proxy().is_node_eligible);
    assert!(scene.proxy().is_healthy);
    scene.state.set_node(&node(false));
    assert!(scene.proxy().is_node_eligible);
    assert!(!State::new(PERIOD).proxy(scene.now).is_node_eligible);
}

#[test]
fn r122_a_check_is_good_with_a_local_endpoint_and_a_proxy_up_to_date() {
    let mut scene = Scene::synced();
    let family = Family::Ipv4;
    scene
        .state
        .set_check(&object("web"), check(30100, &[(family, 1)]));
    assert!(scene.check("web", family).is_good());
    scene.changed(family);
    scene.pass(61);
    let late = scene.check("web", family);
    assert_eq!((late.n_local, late.is_proxy_healthy), (1, false));
    assert!(!late.is_good());
    scene.sync(family);
    scene
        .state
        .set_check(&object("web"), check(30100, &[(family, 0)]));
    assert!(!scene.check("web", family).is_good());
    assert!(scene.check("web", family).is_proxy_healthy);
}

#[test]
fn r126_each_service_and_family_has_its_own_count() {
    let mut scene = Scene::synced();
    let both = check(30110, &[(Family::Ipv4, 2), (Family::Ipv6, 0)]);
    scene.state.set_check(&object("a"), both);
    let one = check(30111, &[(Family::Ipv4, 0)]);
    scene.state.set_check(&object("b"), one);
    assert!(scene.check("a", Family::Ipv4).is_good());
    assert!(!scene.check("a", Family::Ipv6).is_good());
    assert!(!scene.check("b", Family::Ipv4).is_good());
    assert!(!scene.check("unknown", Family::Ipv4).is_good());
}

#[test]
fn r127_the_node_plays_no_part_in_checks() {
    let mut scene = Scene::synced();
    let family = Family::Ipv4;
    scene
        .state
        .set_check(&object("web"), check(30100, &[(family, 1)]));
    scene.state.set_node(&node(true));
    assert!(scene.check("web", family).is_good());
}

#[test]
fn r121_listeners_are_on_the_node_port_addresses_of_their_families() {
    let mut state = State::new(PERIOD);
    let both = check(30110, &[(Family::Ipv4, 0), (Family::Ipv6, 0)]);
    state.set_check(&object("a"), both);
    state.set_check(&object("b"), check(30111, &[(Family::Ipv6, 1)]));
    assert_eq!(
        addresses(&state.listeners()),
        ["a 0.0.0.0:30110", "a [::]:30110", "b [::]:30111"]
    );
    state.set_addresses(
        ["192.0.2.1", "192.0.2.2"]
            .map(|it| it.parse().unwrap())
            .into(),
    );
    assert_eq!(
        addresses(&state.listeners()),
        ["a 192.0.2.1:30110", "a 192.0.2.2:30110"]
    );
    state.set_addresses(BTreeSet::new());
    assert!(state.listeners().is_empty());
}

#[test]
fn r125_only_what_moves_a_listener_gives_a_new_version() {
    let mut state = State::new(PERIOD);
    let mut versions = vec![state.listeners_version()];
    let mut set = |check| {
        state.set_check(&object("web"), check);
        versions.push(state.listeners_version());
    };
    set(None);
    set(check(30100, &[(Family::Ipv4, 1)]));
    set(check(30100, &[(Family::Ipv4, 5)]));
    set(check(30101, &[(Family::Ipv4, 5)]));
    set(check(30101, &[(Family::Ipv4, 5), (Family::Ipv6, 0)]));
    set(None);
    assert_eq!(versions, [0, 0, 1, 1, 2, 3, 4]);
    let same = state.addresses.clone();
    state.set_addresses(same);
    assert_eq!(state.listeners_version(), 4);
    state.set_addresses(BTreeSet::new());
    assert_eq!(state.listeners_version(), 5);
}
