//! The API through a real server, with nodes played by hand.

use crate::test_util::{auth, hello, raw, Fake, Mdm};
use quarry_control::Role;
use serde_json::{json, Value};

async fn cluster() -> (Mdm, Vec<Fake>) {
    let mdm = Mdm::start().await;
    let mut nodes = Vec::new();
    for (i, name) in ["sds1", "sds2", "sds3"].iter().enumerate() {
        nodes.push(Fake::join(&mdm, hello(Role::Sds, name, i as u32)).await);
    }
    nodes.push(Fake::join(&mdm, hello(Role::Sdc, "sdc1", 9)).await);
    (mdm, nodes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_created_mapped_and_taken_away_again() {
    let (mdm, _nodes) = cluster().await;
    let (code, pool) = mdm.call("POST", "/pool/create", Some(json!({"name": "default"}))).await;
    assert_eq!((code, &pool["pg_count"], &pool["copies"]), (201, &json!(128), &json!(2)), "{pool}");
    mdm.health("ok").await;
    let v = mdm.post("/vol/create", json!({"name": "v1", "size_gb": 1})).await;
    assert_eq!(
        (&v["id"], &v["size_bytes"], &v["size_gb"]),
        (&json!(1), &json!(1u64 << 30), &json!(1.0))
    );
    let (code, m) =
        mdm.call("POST", "/vol/map", Some(json!({"volume": "v1", "sdc": "sdc1"}))).await;
    assert_eq!(code, 201, "{m}");
    assert_eq!(m["uri"], "nbd+unix:///v1?socket=/run/v1.sock");
    assert_eq!((&m["uri_tcp"], &m["device"]), (&Value::Null, &Value::Null));
    let (code, again) =
        mdm.call("POST", "/vol/map", Some(json!({"volume_id": 1, "sdc_id": 1}))).await;
    assert_eq!((code, again), (200, m));
    let m = mdm.post("/vol/map", json!({"name": "v1", "sdc": 1, "device": true})).await;
    assert_eq!(m["device"], "/dev/nbd0");
    let (code, e) = mdm.call("DELETE", "/vol/1", None).await;
    assert_eq!((code, &e["code"]), (409, &json!("mapped")));
    let (code, e) = mdm.call("DELETE", "/pool/1", None).await;
    assert_eq!((code, &e["code"]), (409, &json!("not_empty")));
    assert_eq!(mdm.get("/metrics/volume/v1").await["counters"]["read_bytes"], 5);
    let (code, u) =
        mdm.call("POST", "/vol/unmap", Some(json!({"volume": "v1", "sdc": "sdc1"}))).await;
    assert_eq!((code, &u["unmapped"]), (200, &json!(true)), "{u}");
    assert_eq!(mdm.call("DELETE", "/vol/v1", None).await.0, 200);
    assert_eq!(mdm.get("/vol/list").await, json!([]));
    assert_eq!(mdm.call("DELETE", "/pool/default", None).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeline_is_recorded_and_bad_questions_are_refused() {
    let (mdm, _nodes) = cluster().await;
    mdm.post("/pool/create", json!({"name": "default"})).await;
    mdm.post("/vol/create", json!({"name": "v1", "size_bytes": 1 << 20})).await;
    let path = "/metrics/timeline?kind=pool&id=default&metric=capacity_bytes&seconds=60&step=1";
    let mut answer = Value::Null;
    for _ in 0..100 {
        answer = mdm.get(path).await;
        if answer["points"].as_array().is_some_and(|p| p.len() >= 2) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let capacity = &mdm.get("/pool/default").await["capacity_bytes"];
    let points = answer["points"].as_array().unwrap();
    assert!(points.len() >= 2, "{answer}");
    let newest = points.last().unwrap()[1].as_f64();
    assert_eq!((newest, &answer["unit"]), (capacity.as_f64(), &json!("bytes")));
    for (query, status, code) in [
        ("id=1&metric=read_ops", 400, "malformed"),
        ("kind=volume&metric=read_ops", 400, "malformed"),
        ("kind=volume&id=1", 400, "malformed"),
        ("kind=moon&id=1&metric=read_ops", 422, "unknown_kind"),
        ("kind=volume&id=7&metric=read_ops", 404, "not_found"),
        ("kind=volume&id=1&metric=tides", 422, "unknown_metric"),
        ("kind=volume&id=1&metric=read_ops&seconds=0", 422, "bad_range"),
        ("kind=volume&id=1&metric=read_ops&seconds=99999999", 422, "bad_range"),
        ("kind=volume&id=1&metric=read_ops&step=x", 400, "malformed"),
    ] {
        let (s, e) = mdm.call("GET", &format!("/metrics/timeline?{query}"), None).await;
        assert_eq!((s, e["code"].as_str()), (status, Some(code)), "{query}: {e}");
        assert!(!e["hint"].as_str().unwrap_or_default().is_empty(), "{query}: {e}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_in_use_is_unmapped_by_force_only() {
    let (mdm, nodes) = cluster().await;
    mdm.post("/pool/create", json!({"name": "default"})).await;
    mdm.post("/vol/create", json!({"name": "v1", "size_bytes": 1 << 20})).await;
    let mut body = json!({"volume": "v1", "sdc": "sdc1"});
    mdm.post("/vol/map", body.clone()).await;
    nodes[3].with(|k| k.users = vec!["/dev/nbd0 mounted at /srv".into(), "open in fio".into()]);
    let (code, e) = mdm.call("POST", "/vol/unmap", Some(body.clone())).await;
    assert_eq!((code, &e["code"]), (409, &json!("in_use")), "{e}");
    let said = "volume v1 is in use on sdc1: /dev/nbd0 mounted at /srv, open in fio";
    assert_eq!(e["message"], said);
    assert!(e["hint"].as_str().unwrap().contains("--force"), "{e}");
    assert_eq!(mdm.get("/vol/v1").await["mappings"].as_array().unwrap().len(), 1);
    body["force"] = json!(true);
    let (code, u) = mdm.call("POST", "/vol/unmap", Some(body.clone())).await;
    assert_eq!((code, &u["unmapped"]), (200, &json!(true)), "{u}");
    let (code, e) = mdm.call("POST", "/vol/unmap", Some(body)).await;
    assert_eq!((code, &e["code"]), (404, &json!("not_mapped")), "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unmap_that_nobody_confirms_becomes_a_task_that_names_who() {
    let (mdm, nodes) = cluster().await;
    mdm.post("/pool/create", json!({"name": "default"})).await;
    mdm.post("/vol/create", json!({"name": "v1", "size_bytes": 1 << 20})).await;
    mdm.post("/vol/map", json!({"volume": "v1", "sdc": "sdc1"})).await;
    nodes[0].with(|k| k.detached = true);
    nodes[3].with(|k| k.detached = true);
    let (code, t) =
        mdm.call("POST", "/vol/unmap", Some(json!({"volume": "v1", "sdc": "sdc1"}))).await;
    assert_eq!((code, &t["state"]), (202, &json!("running")), "{t}");
    assert_eq!(
        t["waiting_for"],
        json!(["sdc sdc1 has not detached", "sds sds1 has not confirmed"])
    );
    drop(nodes);
    let path = format!("/tasks/{}", t["task_id"]);
    // Without live primaries it stays pending and names them.
    for _ in 0..100 {
        let t = mdm.get(&path).await;
        if t["waiting_for"].to_string().contains("no live primary") {
            assert_eq!(t["state"], "running");
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{}", mdm.get(&path).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_mdm_that_has_just_started_takes_no_volume_from_a_client_it_has_not_heard() {
    let store = crate::log::MemStore::default();
    let mdm = Mdm::on(Box::new(store.clone())).await;
    let mut nodes = Vec::new();
    for (i, name) in ["sds1", "sds2"].iter().enumerate() {
        nodes.push(Fake::join(&mdm, hello(Role::Sds, name, i as u32)).await);
    }
    nodes.push(Fake::join(&mdm, hello(Role::Sdc, "sdc1", 9)).await);
    mdm.post("/pool/create", json!({"name": "default"})).await;
    mdm.post("/vol/create", json!({"name": "v1", "size_bytes": 1 << 20})).await;
    let mut body = json!({"volume": "v1", "sdc": "sdc1"});
    mdm.post("/vol/map", body.clone()).await;
    // The client is at the first one still.
    let second = Mdm::on(Box::new(store)).await;
    let (code, e) = second.call("POST", "/vol/unmap", Some(body.clone())).await;
    assert_eq!((code, &e["code"]), (503, &json!("client_unknown")), "{e}");
    body["force"] = json!(true);
    let (code, e) = second.call("POST", "/vol/unmap", Some(body)).await;
    assert!(code == 200 || code == 202, "{code} {e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unmap_ends_although_the_volume_was_mapped_again_meanwhile() {
    let (mdm, nodes) = cluster().await;
    mdm.post("/pool/create", json!({"name": "default"})).await;
    mdm.post("/vol/create", json!({"name": "v1", "size_bytes": 1 << 20})).await;
    let body = json!({"volume": "v1", "sdc": "sdc1"});
    mdm.post("/vol/map", body.clone()).await;
    nodes[0].with(|k| k.detached = true);
    let (code, t) = mdm.call("POST", "/vol/unmap", Some(body.clone())).await;
    assert_eq!((code, &t["state"]), (202, &json!("running")), "{t}");
    mdm.post("/vol/map", body).await;
    nodes[0].with(|k| k.detached = false);
    // The next change is confirmed by all.
    mdm.post("/vol/create", json!({"name": "v2", "size_bytes": 1 << 20})).await;
    let path = format!("/tasks/{}", t["task_id"]);
    for _ in 0..100 {
        if mdm.get(&path).await["state"] == "done" {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{}", mdm.get(&path).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_get_a_code_a_message_and_the_right_status() {
    let (mdm, _nodes) = cluster().await;
    mdm.post("/pool/create", json!({"name": "default"})).await;
    mdm.post("/vol/create", json!({"name": "v1", "size_gb": 1})).await;
    let gib = 1u64 << 30;
    let cases = [
        ("POST", "/vol/create", json!({"name": "v1", "size_gb": 1}), 409, "name_taken"),
        ("POST", "/vol/create", json!({"name": "v2", "size_gb": 0}), 422, "bad_size"),
        ("POST", "/vol/create", json!({"name": "007", "size_gb": 1}), 422, "bad_name"),
        ("POST", "/pool/create", json!({"name": "1"}), 422, "bad_name"),
        ("POST", "/vol/create", json!({"name": "v2", "size_bytes": 1000}), 422, "bad_size"),
        ("POST", "/vol/create", json!({"name": "v2", "size_bytes": 200 * gib}), 422, "over_commit"),
        (
            "POST",
            "/vol/create",
            json!({"name": "v2", "size_gb": 11, "provisioning": "thick"}),
            422,
            "no_space",
        ),
        (
            "POST",
            "/vol/create",
            json!({"name": "v2", "size_gb": 1, "provisioning": "fat"}),
            400,
            "malformed",
        ),
        ("POST", "/vol/create", json!({"name": "v2"}), 400, "malformed"),
        ("POST", "/vol/create", json!({"name": "-", "size_gb": 1}), 422, "bad_name"),
        ("POST", "/vol/create", json!({"name": "v2", "size_gb": 1, "pool": "x"}), 404, "not_found"),
        ("POST", "/vol/create", json!({"name": "v2", "size_gb": 1, "colour": 1}), 400, "malformed"),
        ("POST", "/vol/create", json!([1]), 400, "malformed"),
        ("POST", "/vol/extend", json!({"name": "v1", "size_bytes": gib / 2}), 422, "shrink"),
        ("POST", "/vol/map", json!({"volume": "v1", "sdc": "sds1"}), 422, "node_lacks_sdc"),
        ("POST", "/vol/map", json!({"volume": "v1", "sdc": "nobody"}), 404, "not_found"),
        ("POST", "/vol/map", json!({"sdc": "sdc1"}), 400, "malformed"),
        ("POST", "/vol/unmap", json!({"volume": "v1", "sdc": "sdc1"}), 404, "not_mapped"),
        ("POST", "/pool/create", json!({"name": "p", "copies": 4}), 422, "bad_copies"),
        ("POST", "/pool/create", json!({"name": "default"}), 409, "name_taken"),
        ("POST", "/pd/create", json!({"name": "default"}), 409, "name_taken"),
        ("DELETE", "/pd/1", json!({}), 409, "not_empty"),
        ("GET", "/vol/7", json!({}), 404, "not_found"),
        ("GET", "/tasks/x", json!({}), 404, "not_found"),
        ("GET", "/no/such", json!({}), 404, "no_such_route"),
        ("PUT", "/vol/list", json!({}), 405, "method_not_allowed"),
        ("POST", "/sds/7/drain", json!({}), 404, "not_found"),
        ("GET", "/metrics/timeline", json!({}), 400, "malformed"),
        ("GET", "/ui/no.js", json!({}), 404, "no_such_file"),
        ("GET", "/vol/list?limit=x", json!({}), 400, "malformed"),
    ];
    for (method, path, body, status, code) in cases {
        let (s, e) = mdm.call(method, path, Some(body)).await;
        assert_eq!((s, &e["code"]), (status, &json!(code)), "{method} {path}: {e}");
        assert!(
            e["message"].as_str().is_some_and(|m| !m.is_empty()) && e["hint"].is_string(),
            "{e}"
        );
    }
    let (_, e) =
        mdm.call("POST", "/vol/create", Some(json!({"name": "v2", "size_bytes": 200 * gib}))).await;
    for word in ["free", "provisioned", "limit"] {
        assert!(e["message"].as_str().unwrap().contains(word), "{e}");
    }
    let (s, text) = raw(mdm.run.api_addr, "POST", "/vol/create", &auth(""), "{not json").await;
    assert!(s == 400 && text.contains("malformed"), "{s} {text}");
    let big = format!("\"{}\"", "x".repeat(300 << 10));
    let (s, text) = raw(mdm.run.api_addr, "POST", "/vol/create", &auth(""), &big).await;
    assert!(s == 413 && text.contains("too_large"), "{s} {text}");
    let (s, text) = raw(mdm.run.api_addr, "GET", "/vol/list", "", "").await;
    assert!(s == 401 && text.contains("no_token"), "{s} {text}");
    let (s, text) =
        raw(mdm.run.api_addr, "GET", "/vol/list", "Authorization: Bearer no\r\n", "").await;
    assert!(s == 401 && text.contains("wrong_token"), "{s} {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_repeated_with_its_key_gives_the_first_answer() {
    let (mdm, _nodes) = cluster().await;
    let key = auth("Idempotency-Key: k1\r\n");
    let body = r#"{"name":"pd2"}"#;
    let a = raw(mdm.run.api_addr, "POST", "/pd/create", &key, body).await;
    let b = raw(mdm.run.api_addr, "POST", "/pd/create", &key, body).await;
    assert_eq!((a.0, &a), (201, &b));
    let (s, t) = raw(mdm.run.api_addr, "POST", "/pd/create", &key, r#"{"name":"pd3"}"#).await;
    assert!(s == 422 && t.contains("idempotency_key_reused"), "{t}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_is_shown_whole() {
    let (mdm, _nodes) = cluster().await;
    mdm.post("/pool/create", json!({"name": "default", "copies": 3})).await;
    mdm.health("ok").await;
    let nodes = mdm.get("/cluster/nodes").await;
    assert_eq!(nodes.as_array().unwrap().len(), 5);
    for key in
        ["id", "name", "addresses", "capabilities", "state", "last_heartbeat_seconds", "version"]
    {
        assert!(!nodes[1][key].is_null(), "{key}: {nodes}");
    }
    let s = mdm.get("/status").await;
    assert_eq!(
        (&s["bytes_degraded"], &s["eta_seconds"], &s["reasons"]),
        (&json!(0), &json!(0), &json!([]))
    );
    assert_eq!(mdm.get("/pg/list?pool_id=1").await.as_array().unwrap().len(), 128);
    assert_eq!(mdm.get("/device/list").await[0]["pool_id"], 1);
    assert_eq!(mdm.get("/rebuild/status/1").await["state"], "idle");
    assert!(mdm
        .get("/events")
        .await
        .as_array()
        .unwrap()
        .iter()
        .any(|e| e["what"] == "pool_create"));
    let (code, t) = raw(mdm.run.api_addr, "GET", "/prometheus/targets", "", "").await;
    assert!(code == 200 && t.contains("127.0.0.1:9") && !t.contains("http://"), "{t}");
    let (code, text) = raw(mdm.run.api_addr, "GET", "/metrics", "", "").await;
    assert_eq!(code, 200);
    for m in
        ["quarry_health{", "quarry_pgs{", "quarry_mdm_commit_seconds", "quarry_api_requests_total"]
    {
        assert!(text.contains(m), "{m} is missing:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_made_before_its_servers_is_laid_out_when_they_come() {
    let (mdm, mut nodes) = cluster().await;
    let pd = mdm.post("/pd/create", json!({"name": "pd2"})).await["id"].clone();
    let pool = mdm.post("/pool/create", json!({"name": "p2", "protection_domain_id": pd})).await;
    assert_eq!(pool["health"], "degraded");
    let (s, e) = mdm
        .call("POST", "/vol/create", Some(json!({"name": "v", "size_gb": 1, "pool": "p2"})))
        .await;
    assert_eq!((s, &e["code"]), (422, &json!("no_sds_capable_node")));
    mdm.post("/sds/add", json!({"name": "sds1", "protection_domain_id": pd})).await;
    mdm.post("/sds/add", json!({"name": "late", "protection_domain_id": pd})).await;
    nodes.push(Fake::join(&mdm, hello(Role::Sds, "late", 50)).await);
    mdm.post("/vol/create", json!({"name": "v", "size_gb": 1, "pool": "p2"})).await;
    mdm.health("ok").await;
}

/// Path of the document in the tree; `QUARRY_WRITE_OPENAPI=1` writes it anew.
const CHECKED_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");

#[test]
fn the_openapi_document_in_the_tree_is_the_one_that_is_served() {
    let text = serde_json::to_string_pretty(&super::document()).unwrap() + "\n";
    if std::env::var_os("QUARRY_WRITE_OPENAPI").is_some() {
        std::fs::write(CHECKED_IN, &text).unwrap();
    }
    let have = std::fs::read_to_string(CHECKED_IN).unwrap_or_default();
    assert!(have == text, "docs/openapi.json is old: run this test with QUARRY_WRITE_OPENAPI=1");
}

#[test]
fn every_reference_of_the_openapi_document_leads_somewhere() {
    let doc = super::document();
    fn walk(doc: &Value, v: &Value) {
        match v {
            Value::Object(o) => {
                if let Some(r) = o.get("$ref").and_then(Value::as_str) {
                    assert!(doc.pointer(r.trim_start_matches('#')).is_some(), "{r}");
                }
                o.values().for_each(|x| walk(doc, x));
            }
            Value::Array(a) => a.iter().for_each(|x| walk(doc, x)),
            _ => {}
        }
    }
    walk(&doc, &doc);
    let mut ids: Vec<&str> = Vec::new();
    for op in
        doc["paths"].as_object().unwrap().values().flat_map(|p| p.as_object().unwrap().values())
    {
        ids.push(op["operationId"].as_str().unwrap());
        assert!(!op["summary"].as_str().unwrap().is_empty());
    }
    let n = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), n, "operation ids are unique");
}
