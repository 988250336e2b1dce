//! A runner that lets everything pass would be worth nothing: each kind of expectation of the real
//! cases is made wrong, and the run must fail at just that place.

use std::path::Path;

use semantics::case::Case;
use semantics::outcome::Outcome;
use semantics::pure;
use serde_json::{Value, json};

/// How many cases each kind is tried on.
const SAMPLE: usize = 10;

/// A way to make the expectation of a flow or a check wrong. `None`: it does not apply.
type Tamper = fn(&mut Value) -> Option<()>;

fn cases() -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|file| file.extension().is_some_and(|it| it == "json"))
        .collect();
    files.sort();
    let read = |file| serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    files.into_iter().map(read).collect()
}

/// Pointers to all entries of lists called `list`, with their paths in reports.
fn places(case: &Value, list: &str) -> Vec<(String, String)> {
    let mut places = Vec::new();
    let mut add = |pointer: String, path: String, value: &Value| {
        let n = value
            .get(list)
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        for index in 0..n {
            places.push((
                format!("{pointer}/{list}/{index}"),
                format!("{path}{list}[{index}] "),
            ));
        }
    };
    add(String::new(), String::new(), case);
    let steps = case.get("steps").and_then(Value::as_array);
    for (index, step) in steps.into_iter().flatten().enumerate() {
        add(format!("/steps/{index}"), format!("steps[{index}]."), step);
    }
    places
}

/// Applies `tamper` to one place in each of some cases, spread over all.
fn assert_seen(list: &str, tamper: Tamper) {
    let mut tampered: Vec<(Value, String)> = Vec::new();
    for case in cases() {
        let applied = places(&case, list).into_iter().find_map(|(pointer, path)| {
            let mut case = case.clone();
            tamper(case.pointer_mut(&pointer)?)?;
            Some((case, path))
        });
        tampered.extend(applied);
    }
    assert!(!tampered.is_empty(), "applies to no case");
    let step = tampered.len().div_ceil(SAMPLE);
    for (case, path) in tampered.iter().step_by(step) {
        let case = Case::from_json(&case.to_string()).unwrap();
        let Outcome::Failed(failures) = pure::run(&case) else {
            panic!("{}: {path}: not seen", case.id);
        };
        let is_seen = failures
            .iter()
            .any(|it| it.place.to_string().starts_with(path));
        assert!(is_seen, "{}: {path}: {failures:?}", case.id);
    }
}

fn expect(flow: &mut Value) -> &mut Value {
    &mut flow["expect"]
}

fn backends(flow: &mut Value) -> Option<&mut Vec<Value>> {
    expect(flow).get_mut("backends")?.as_array_mut()
}

fn has_verdict(flow: &mut Value, verdict: &str) -> Option<()> {
    (expect(flow)["verdict"] == verdict).then_some(())
}

#[test]
fn a_wrong_backend() {
    assert_seen("flows", |flow| {
        let backend = backends(flow)?.first_mut()?;
        let (ip, _) = backend.as_str()?.rsplit_once(':')?;
        *backend = format!("{ip}:9").into();
        expect(flow).as_object_mut()?.remove("snatFor");
        Some(())
    });
}

#[test]
fn a_wrong_backend_of_an_open_connection() {
    assert_seen("flows", |flow| {
        (flow["packet"] == "established").then_some(())?;
        *backends(flow)? = vec![json!(if flow["to"]["ip"].as_str()?.contains(':') {
            "[fd00::9]:9"
        } else {
            "10.9.9.9:9"
        })];
        Some(())
    });
}

#[test]
fn a_backend_that_is_not_expected() {
    assert_seen("flows", |flow| {
        (expect(flow).get("snatFor").is_none() && backends(flow)?.len() > 1).then_some(())?;
        backends(flow)?.pop()?;
        Some(())
    });
}

#[test]
fn a_backend_that_is_never_chosen() {
    assert_seen("flows", |flow| {
        let is_free = flow.get("packet").is_none() && expect(flow).get("stickTo").is_none();
        is_free.then_some(())?;
        backends(flow)?.push(json!("10.9.9.9:9"));
        Some(())
    });
}

#[test]
fn a_source_that_is_not_rewritten() {
    assert_seen("flows", |flow| {
        (*expect(flow).get("snat")? == false).then_some(())?;
        expect(flow).as_object_mut()?.remove("snatFor");
        expect(flow)["snat"] = true.into();
        (flow["from"]["kind"] != "node").then_some(())
    });
}

#[test]
fn a_source_that_is_rewritten() {
    assert_seen("flows", |flow| {
        (*expect(flow).get("snat")? == true).then_some(())?;
        expect(flow)["snat"] = false.into();
        (flow["from"]["kind"] != "node").then_some(())
    });
}

#[test]
fn a_source_that_is_rewritten_for_some_backends() {
    assert_seen("flows", |flow| {
        expect(flow).as_object_mut()?.remove("snatFor").map(|_| ())
    });
    assert_seen("flows", |flow| {
        let is_free = flow["from"]["kind"] != "node" && expect(flow).get("snatFor").is_none();
        (is_free && *expect(flow).get("snat")? == false).then_some(())?;
        expect(flow)["snatFor"] = json!([backends(flow)?.first()?.clone()]);
        Some(())
    });
}

#[test]
fn another_verdict_than_forward() {
    assert_seen("flows", |flow| becomes(flow, "forward", "pass"));
    assert_seen("flows", |flow| becomes(flow, "forward", "drop"));
    assert_seen("flows", |flow| becomes(flow, "forward", "reject"));
}

fn becomes(flow: &mut Value, from: &str, to: &str) -> Option<()> {
    has_verdict(flow, from)?;
    *expect(flow) = json!({"verdict": to});
    Some(())
}

#[test]
fn another_verdict_than_reject() {
    assert_seen("flows", |flow| becomes(flow, "reject", "drop"));
    assert_seen("flows", |flow| becomes(flow, "reject", "pass"));
}

#[test]
fn another_verdict_than_drop() {
    assert_seen("flows", |flow| becomes(flow, "drop", "reject"));
    assert_seen("flows", |flow| becomes(flow, "drop", "pass"));
}

#[test]
fn another_verdict_than_pass() {
    assert_seen("flows", |flow| becomes(flow, "pass", "drop"));
    assert_seen("flows", |flow| becomes(flow, "pass", "reject"));
    assert_seen("flows", |flow| {
        has_verdict(flow, "pass")?;
        *expect(flow) = json!({"verdict": "forward", "backends": ["10.9.9.9:9"], "snat": true});
        Some(())
    });
}

/// A second connection must not get the backend of the first for sure if nothing binds it.
#[test]
fn sticking_without_affinity() {
    let mut n_seen = 0;
    for mut case in cases().into_iter().take(60) {
        let text = case.to_string();
        let Some(first) = case["flows"].get(0).cloned() else {
            continue;
        };
        let n_backends = first["expect"]["backends"].as_array().map_or(0, Vec::len);
        if text.contains("ClientIP") || n_backends < 2 {
            continue;
        }
        let mut second = first.clone();
        second["expect"]["stickTo"] = "first".into();
        case["flows"] = json!([first, second]);
        case["flows"][0]["id"] = "first".into();
        case["steps"] = json!([]);
        case["checks"] = json!([]);
        let case = Case::from_json(&case.to_string()).unwrap();
        let outcome = pure::run(&case);
        assert!(matches!(outcome, Outcome::Failed(_)), "{}", case.id);
        n_seen += 1;
    }
    assert!(n_seen > 5, "{n_seen}");
}

#[test]
fn another_answer_over_http() {
    assert_seen("checks", |check| {
        let status = check["expect"].get_mut("status")?;
        *status = (status.as_u64()? + 1).into();
        Some(())
    });
    assert_seen("checks", |check| {
        let headers = check["expect"].get_mut("headers")?.as_object_mut()?;
        *headers.values_mut().next()? = "other".into();
        Some(())
    });
    assert_seen("checks", |check| {
        let members = check["expect"].get_mut("json")?.as_object_mut()?;
        let _none = members.insert("more".into(), 1.into());
        Some(())
    });
    assert_seen("checks", |check| {
        check["expect"].get("status")?;
        check["expect"] = json!({"connect": "refused"});
        Some(())
    });
    assert_seen("checks", |check| {
        check["expect"].get("connect")?;
        check["expect"] = json!({"status": 200});
        Some(())
    });
}

#[test]
fn another_value_of_a_metric() {
    assert_seen("checks", |check| {
        let value = check["expect"].get_mut("value")?;
        *value = (value.as_f64()? + 1.0).into();
        Some(())
    });
}
