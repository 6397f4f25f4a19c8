//! The real `scli` against a tiny MDM in this process: exit statuses, what goes to stdout and stderr.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use fake::Fake;
use serde_json::{json, Value};
use std::process::{Command, Output};

fn scli(api: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scli"))
        .args(args)
        .env_clear()
        .env("QUARRY_API", api)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs and gives exit status, stdout, stderr.
fn run(fake: &Fake, args: &[&str]) -> (i32, String, String) {
    let out = scli(&fake.url(), args);
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

const V: &str = r#"[{"id":7,"name":"v","size_bytes":1073741824,"provisioning":"thin"}]"#;

#[test]
fn a_list_is_an_array_for_programs_and_a_table_for_people() {
    let f = Fake::start(&[("GET /vol/list", 200, V)]);
    let (code, out, err) = run(&f, &["volume", "list", "--json"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()[0]["id"], 7);
    let (code, out, _) = run(&f, &["volume", "list"]);
    assert!(code == 0 && out.contains("NAME") && out.contains("1 GiB"), "{out}");
}

#[test]
fn every_refusal_has_its_exit_status_and_the_apis_words() {
    for (status, want) in
        [(400, 2), (401, 6), (403, 6), (404, 3), (409, 4), (422, 1), (501, 1), (503, 5)]
    {
        let body = r#"{"code":"c","message":"m","hint":"h"}"#;
        let f = Fake::start(&[("POST /vol/create", status, body)]);
        let args = ["volume", "create", "--name", "v", "--size", "1GiB", "--json"];
        let (code, out, err) = run(&f, &args);
        assert_eq!((code, out.as_str()), (want, ""), "HTTP {status}");
        let e: Value = serde_json::from_str(&err).unwrap();
        assert_eq!(e, json!({"code": "c", "message": "m", "hint": "h"}));
    }
}

#[test]
fn usage_errors_have_status_2_and_are_json_when_asked() {
    let f = Fake::start(&[]);
    for args in [
        &["volume", "create", "--name", "v", "--size", "0"][..],
        &["volume", "create", "--name", "v", "--size", "1MB2"],
        &["volume", "create", "--name", "no good", "--size", "1GiB"],
        &["volume", "frobnicate"],
        &["volume", "get"],
        &["probe", "http://x"],
    ] {
        let (code, out, err) = run(&f, args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}");
        assert!(!err.is_empty());
        let mut with_json = args.to_vec();
        with_json.push("--json");
        let (code, _, err) = run(&f, &with_json);
        let e: Value = serde_json::from_str(&err).unwrap();
        assert!(code == 2 && e["message"].is_string() && e["hint"].is_string(), "{err}");
    }
    assert!(f.requests().is_empty(), "nothing was sent");
}

#[test]
fn an_unknown_name_has_status_3() {
    let f = Fake::start(&[("GET /vol/list", 200, "[]")]);
    let (code, out, err) = run(&f, &["volume", "get", "--name", "nope"]);
    assert_eq!((code, out.as_str()), (3, ""));
    assert!(err.contains("'nope'") && err.contains("hint"), "{err}");
}

#[test]
fn no_mdm_has_status_5_and_a_hint() {
    let out = scli("http://127.0.0.1:1", &["status", "--json"]);
    assert_eq!(out.status.code(), Some(5));
    let e: Value = serde_json::from_str(&text(&out.stderr)).unwrap();
    assert!(e["code"] == "no_mdm" && !e["hint"].as_str().unwrap().is_empty());
}

#[test]
fn the_next_mdm_is_tried_when_one_is_gone_and_a_leader_is_followed() {
    let f = Fake::start(&[("GET /vol/list", 200, "[]")]);
    let list = format!("http://127.0.0.1:1,{}", f.url());
    assert_eq!(scli(&list, &["volume", "list"]).status.code(), Some(0));
    let leader = format!(r#"{{"code":"not_leader","message":"m","leader":"{}"}}"#, f.url());
    let follower = Fake::start(&[("GET /vol/list", 503, &leader)]);
    assert_eq!(run(&follower, &["volume", "list"]).0, 0);
}

#[test]
fn map_sends_names_and_prints_the_address() {
    let answer = r#"{"volume":"v","sdc":"sdc1","uri":"nbd+unix:///v?socket=/s/v.sock","uri_tcp":null,"device":null}"#;
    let f = Fake::start(&[("POST /vol/map", 200, answer)]);
    let args = ["volume", "map", "--name", "v", "--sdc", "sdc1"];
    let (code, out, _) = run(&f, &args);
    assert_eq!((code, out.as_str()), (0, "nbd+unix:///v?socket=/s/v.sock\n"));
    let request = f.requests().pop().unwrap();
    assert_eq!(request.body, json!({"volume": "v", "sdc": "sdc1"}));
    assert!(request.head.to_lowercase().contains("idempotency-key: "));
}

#[test]
fn map_waits_for_the_address_while_it_is_pending() {
    let answer = r#"{"volume":"v","sdc":"sdc1","uri":"nbd+unix:///v?socket=/s","uri_tcp":null,"device":null}"#;
    let f = Fake::start(&[
        ("POST /vol/map", 202, r#"{"task_id":3}"#),
        ("GET /tasks/3", 200, r#"{"id":3,"state":"running"}"#),
        ("GET /tasks/3", 200, r#"{"id":3,"state":"done"}"#),
        ("POST /vol/map", 200, answer),
    ]);
    let (code, out, _) = run(&f, &["volume", "map", "--name", "v", "--sdc", "sdc1", "--json"]);
    assert_eq!(code, 0);
    let got: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(got["uri"], "nbd+unix:///v?socket=/s");
}

#[test]
fn waiting_too_long_has_status_7_and_says_the_task_goes_on() {
    let f = Fake::start(&[
        ("GET /pool/list", 200, r#"[{"id":1,"name":"default"}]"#),
        ("POST /rebuild/start/1", 202, r#"{"task_id":"9"}"#),
        ("GET /tasks/9", 200, r#"{"state":"running"}"#),
    ]);
    let (code, out, err) = run(&f, &["rebuild", "start", "--wait", "0"]);
    assert_eq!((code, out.as_str()), (7, ""));
    assert!(err.contains("goes on"), "{err}");
    let (code, out, _) = run(&f, &["rebuild", "start", "--json"]);
    assert!(code == 0 && out.contains("task_id"), "without --wait the task's id is the answer");
}

#[test]
fn recover_with_wait_answers_once_and_after_it_has_waited() {
    let start = || {
        Fake::start(&[
            ("GET /sds/list", 200, r#"[{"id":2,"name":"s"}]"#),
            ("POST /sds/2/recover", 200, r#"{"id":2,"name":"s","state":"down"}"#),
            ("GET /status", 200, r#"{"health":"degraded"}"#),
            ("GET /status", 200, r#"{"health":"ok"}"#),
            ("GET /sds/2", 200, r#"{"id":2,"name":"s","state":"up"}"#),
        ])
    };
    let f = start();
    let args = ["sds", "recover", "--name", "s", "--wait", "30", "--json"];
    let (code, out, err) = run(&f, &args);
    assert_eq!((code, err.as_str()), (0, ""));
    let got: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(got, json!({"id": 2, "name": "s", "state": "up"}), "as it is then");
    let asked: Vec<String> = f.requests().iter().map(|r| r.line.clone()).collect();
    assert_eq!(asked.last().map(String::as_str), Some("GET /sds/2"), "{asked:?}");
    // One that does not come to its end in time has no answer, as with other commands.
    let (code, out, err) =
        run(&start(), &["sds", "recover", "--name", "s", "--wait", "0", "--json"]);
    assert_eq!((code, out.as_str()), (7, ""));
    assert_eq!(serde_json::from_str::<Value>(&err).unwrap()["code"], "timed_out");
    let (code, out, _) = run(&start(), &["sds", "recover", "--name", "s", "--json"]);
    assert!(code == 0 && out.contains("down"), "without --wait the answer is the API's: {out}");
}

#[test]
fn status_tells_health_and_its_exit_code_only_when_asked() {
    let s = r#"{"health":"degraded","bytes_degraded":1048576,"eta_seconds":null,"reasons":["sds2 is down"]}"#;
    let f = Fake::start(&[("GET /status", 200, s)]);
    let (code, out, _) = run(&f, &["status", "--json"]);
    let got: Value = serde_json::from_str(&out).unwrap();
    assert!(code == 0 && got["health"] == "degraded");
    assert_eq!(run(&f, &["status", "--exit-code"]).0, 10);
    let f = Fake::start(&[("GET /status", 503, r#"{"message":"no quorum"}"#)]);
    let (code, out, _) = run(&f, &["status", "--json"]);
    let got: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &got["health"]), (0, &json!("unavailable")), "an MDM answered");
    assert_eq!(run(&f, &["status", "--exit-code"]).0, 20);
}

#[test]
fn delete_finds_the_id_by_name() {
    let f = Fake::start(&[("GET /vol/list", 200, V), ("DELETE /vol/7", 200, "")]);
    let (code, out, _) = run(&f, &["volume", "delete", "--name", "v", "--yes", "--json"]);
    assert_eq!((code, out.as_str()), (0, "{}\n"));
    assert!(f.requests().iter().any(|r| r.line == "GET /vol/list?name=v"));
}

#[test]
fn events_are_the_newest_ones_in_order() {
    let f = Fake::start(&[("GET /events", 200, r#"[{"id":1},{"id":2},{"id":3}]"#)]);
    let (code, out, _) = run(&f, &["events", "--limit", "2", "--json"]);
    let got: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, got), (0, json!([{"id": 2}, {"id": 3}])));
}

#[test]
fn the_token_is_sent_as_bearer() {
    let f = Fake::start(&[("GET /vol/list", 200, "[]")]);
    run(&f, &["volume", "list", "--token", "sesame"]);
    assert!(f.requests()[0].head.to_lowercase().contains("authorization: bearer sesame"));
}

#[test]
fn version_names_commit_and_formats() {
    let f = Fake::start(&[]);
    let (code, out, _) = run(&f, &["--version"]);
    assert_eq!(code, 0);
    for part in ["commit ", "wire ", "disk ", "api "] {
        assert!(out.contains(part), "{out}");
    }
}

#[test]
fn doctor_gives_one_line_a_check() {
    let f = Fake::start(&[]);
    let dir = std::env::temp_dir();
    let (_, out, _) = run(&f, &["doctor", "--dir", dir.to_str().unwrap()]);
    assert!(out.lines().count() >= 10);
    for line in out.lines() {
        assert!(["ok ", "warn ", "fail "].iter().any(|w| line.starts_with(w)), "{line}");
    }
}

#[test]
fn can_stop_has_an_exit_status_for_each_verdict() {
    for (verdict, want) in [("yes", 0), ("with_care", 10), ("no", 20)] {
        let answer = format!(
            r#"{{"node":"n1","verdict":"{verdict}","reasons":["r"],"unavailable_volumes":[]}}"#
        );
        let f = Fake::start(&[
            ("GET /cluster/nodes", 200, r#"[{"id":3,"name":"n1"}]"#),
            ("GET /cluster/nodes/3/can_stop", 200, &answer),
        ]);
        let (code, out, _) = run(&f, &["node", "can-stop", "--name", "n1"]);
        assert!(code == want && out.contains("n1"), "{verdict}: {code} {out}");
    }
}

#[test]
fn a_dry_run_is_asked_for_and_told() {
    let answer = r#"{"dry_run":true,"would":[{"what":"sds_drain","object":"sds s","reason":"12 copies"}],
        "placement_groups_changed":12,"volumes_unavailable":["db"]}"#;
    let f = Fake::start(&[
        ("GET /sds/list", 200, r#"[{"id":2,"name":"s"}]"#),
        ("POST /sds/2/drain", 200, answer),
    ]);
    let (code, out, _) = run(&f, &["sds", "drain", "--name", "s", "--dry-run"]);
    for part in ["nothing was done", "12 copies", "12 placement groups", "UNAVAILABLE: db"] {
        assert!(code == 0 && out.contains(part), "{part}: {out}");
    }
    assert!(f.requests().iter().any(|r| r.line == "POST /sds/2/drain?dry_run=true"));
    let (code, _, err) = run(&f, &["volume", "list", "--dry-run"]);
    assert!(code == 2 && err.contains("no dry run"), "{err}");
}

#[test]
fn explain_says_why_and_what_to_do() {
    let answer = r#"{"summary":"volume v works","why":["sds s is down"],"what_to_do":["start it"],
        "health":"degraded","bytes_one_copy":1048576,"eta_seconds":null,"groups":[]}"#;
    let f = Fake::start(&[("GET /explain/volume/v", 200, answer)]);
    let (code, out, _) = run(&f, &["explain", "volume", "v"]);
    for part in ["sds s is down", "start it", "1 MiB have one copy", "not known when"] {
        assert!(code == 0 && out.contains(part), "{part}: {out}");
    }
}
