//! Every route of the REST interface on a running cluster, with its error cases; what `scli` makes of it.

use quarry_tests::*;
use serde_json::{json, Value};
use std::time::Duration;

/// One request with the cluster's token: status and answer.
fn call(c: &Cluster, method: &str, path: &str, body: Option<&str>) -> Res<(u16, Value)> {
    let headers = vec![format!("Authorization: Bearer {}", c.info("token")?)];
    let r = http::request(method, &format!("{}{path}", c.info("api")?), &headers, body)?;
    Ok((r.status, r.json().unwrap_or(Value::String(r.body))))
}

/// A request that must be refused so.
fn refused(
    c: &Cluster,
    method: &str,
    path: &str,
    body: Value,
    status: u16,
    code: &str,
) -> Res<Value> {
    let (s, v) = call(c, method, path, Some(&body.to_string()))?;
    ensure!(s == status && v["code"] == code, "{method} {path} {body}: {s} {v}");
    ensure!(v["message"].as_str().is_some_and(|m| !m.is_empty()), "no message: {v}");
    Ok(v)
}

fn post(c: &Cluster, path: &str, body: Value) -> Res<Value> {
    let (s, v) = call(c, "POST", path, Some(&body.to_string()))?;
    ensure!((200..300).contains(&s), "POST {path} {body}: {s} {v}");
    Ok(v)
}

#[test]
fn rest_and_scli_refuse_what_is_wrong() -> Res<()> {
    with_cluster(ClusterOptions::default(), |c| {
        let mut cases = Cases::new();
        cases.case("the document that is served is the one in the tree", || {
            let r = http::get(&format!("{}/openapi.json", c.info("api")?))?;
            let tree = std::fs::read_to_string(cluster::root().join("docs/openapi.json"))?;
            ensure!(r.json()? == serde_json::from_str::<Value>(&tree)?, "they differ");
            Ok(())
        });
        cases.case("every route wants a token, knows its objects, and reads its body", || {
            every_route(c)
        });
        cases.case("capabilities decide", || capabilities(c));
        cases.case("volumes are checked, grow, and never shrink", || volumes(c));
        cases.case("the first answer survives a kill of the MDM", || keys(c));
        cases.case("settings, thresholds, events", || settings(c));
        cases.case("scli explains, asks, and has its exit codes", || scli(c));
        cases.case("a volume in use is unmapped by force only", || in_use(c));
        cases.case("a property-based client finds no breach of the contract", || contract(c));
        cases.finish()
    })
}

/// By the document itself: no route is forgotten.
fn every_route(c: &Cluster) -> Res<()> {
    let (_, doc) = call(c, "GET", "/openapi.json", None)?;
    let Some(paths) = doc["paths"].as_object() else { fail!("no paths") };
    let mut n = 0;
    for (path, operations) in paths {
        for (method, op) in operations.as_object().into_iter().flatten() {
            let method = method.to_uppercase();
            let url = path.split('/').map(|p| if p.starts_with('{') { "no-such-thing" } else { p });
            let url = url.collect::<Vec<_>>().join("/");
            let open = op["security"].as_array().is_some_and(Vec::is_empty);
            let r = http::request(&method, &format!("{}{url}", c.info("api")?), &[], Some("{}"))?;
            ensure!(open || r.status == 401, "{method} {url} without a token: {}", r.status);
            if path.contains('{') {
                let (s, v) = call(c, &method, &url, Some("{}"))?;
                let known = if op["requestBody"]["required"] == true { 400 } else { 404 };
                ensure!(s == known || s == 404, "{method} {url}: {s} {v}");
                ensure!(v["hint"].is_string(), "{method} {url}: no hint in {v}");
            }
            if !op["requestBody"].is_null() {
                for bad in ["{nonsense", "[1]", r#"{"no_such_field":1}"#] {
                    let (s, v) = call(c, &method, &url, Some(bad))?;
                    // An unknown object may be told before the body is.
                    ensure!(s == 400 || s == 404, "{method} {url} {bad}: {s} {v}");
                }
            }
            n += 1;
        }
    }
    ensure!(n > 50, "only {n} operations");
    let (s, v) = call(c, "PUT", "/vol/list", None)?;
    ensure!(s == 405, "{s} {v}");
    refused(c, "GET", "/vol/list?colour=red", json!({}), 400, "malformed")?;
    refused(c, "GET", "/vol/list?limit=-1", json!({}), 400, "malformed")?;
    Ok(())
}

fn capabilities(c: &Cluster) -> Res<()> {
    let (_, nodes) = call(c, "GET", "/cluster/nodes", None)?;
    let rows = nodes.as_array().map(Vec::len).unwrap_or_default();
    ensure!(rows == c.members()?.len(), "one row a node: {nodes}");
    let pd = post(c, "/pd/create", json!({"name": "empty"}))?["id"].clone();
    post(c, "/pool/create", json!({"name": "nothing", "protection_domain_id": pd}))?;
    let v = json!({"name": "v0", "pool": "nothing", "size_gb": 1});
    refused(c, "POST", "/vol/create", v, 422, "no_sds_capable_node")?;
    post(c, "/vol/create", json!({"name": "v1", "size_bytes": 64 << 20}))?;
    let to = |sdc: &str| json!({"volume": "v1", "sdc": sdc});
    refused(c, "POST", "/vol/map", to("sds1"), 422, "node_lacks_sdc")?;
    refused(c, "POST", "/vol/map", to("nobody"), 404, "not_found")?;
    post(c, "/vol/map", to("sdc1"))?;
    let off = |n: &str| format!("/cluster/nodes/{n}/capabilities");
    refused(c, "POST", &off("sdc1"), json!({"capabilities": []}), 409, "mapped")?;
    refused(c, "POST", &off("sds1"), json!({"capabilities": []}), 409, "capability_in_use")?;
    refused(c, "POST", &off("mdm1"), json!({"capabilities": []}), 409, "last_mdm")?;
    refused(
        c,
        "POST",
        &off("sds1"),
        json!({"capabilities": ["SDS", "SDC"]}),
        422,
        "capability_not_declared",
    )?;
    post(c, "/vol/unmap", to("sdc1"))?;
    post(c, &off("sdc1"), json!({"capabilities": []}))?;
    refused(c, "POST", "/vol/map", to("sdc1"), 422, "node_lacks_sdc")?;
    post(c, &off("sdc1"), json!({"capabilities": ["SDC"]}))?;
    post(c, "/vol/map", to("sdc1"))?;
    refused(c, "DELETE", "/sdc/sdc1", json!({}), 409, "mapped")?;
    refused(c, "DELETE", "/sds/sds1", json!({}), 409, "holds_copies")?;
    refused(c, "DELETE", "/device/1", json!({}), 409, "holds_copies")?;
    call(c, "DELETE", "/pool/nothing", None)?;
    let (s, v) = call(c, "DELETE", "/pd/empty", None)?;
    ensure!(s == 200, "{v}");
    Ok(())
}

fn volumes(c: &Cluster) -> Res<()> {
    let grow = |bytes: u64| json!({"volume": "v1", "size_bytes": bytes});
    let v = post(c, "/vol/extend", grow(128 << 20))?;
    ensure!(v["size_bytes"] == 128 << 20, "{v}");
    refused(c, "POST", "/vol/extend", grow(64 << 20), 422, "shrink")?;
    refused(c, "POST", "/vol/extend", grow((128 << 20) + 1), 422, "bad_size")?;
    let make =
        |name: &str, gb: u64, how: &str| json!({"name": name, "size_gb": gb, "provisioning": how});
    refused(c, "POST", "/vol/create", make("v1", 1, "thin"), 409, "name_taken")?;
    refused(c, "POST", "/vol/create", make("t", 4, "thick"), 422, "no_space")?;
    refused(c, "POST", "/vol/create", make("t", 100, "thin"), 422, "over_commit")?;
    refused(c, "POST", "/vol/create", make("-", 1, "thin"), 422, "bad_name")?;
    refused(c, "POST", "/vol/create", make("t", 1, "fluffy"), 400, "malformed")?;
    refused(c, "DELETE", "/vol/v1", json!({}), 409, "mapped")?;
    let (_, p) = call(c, "GET", "/pool/default", None)?;
    // Three devices of 1 GiB hold somewhat less: log and tables are on them too.
    let total = p["total_capacity_gb"].as_f64().unwrap_or_default();
    ensure!(p["provisioned_bytes"] == 128 << 20 && total > 2.4 && total < 3.0, "{p}");
    let (_, page) = call(c, "GET", "/pg/list?pool_id=1&limit=5&offset=3", None)?;
    ensure!(page.as_array().map(Vec::len) == Some(5), "{page}");
    Ok(())
}

fn keys(c: &Cluster) -> Res<()> {
    let token = c.info("token")?;
    let create = |key: &str, name: &str| {
        let headers =
            vec![format!("Authorization: Bearer {token}"), format!("Idempotency-Key: {key}")];
        let body = json!({"name": name, "size_bytes": 1 << 20}).to_string();
        http::request("POST", &format!("{}/vol/create", c.info("api")?), &headers, Some(&body))
    };
    let first = create("k-1", "keyed")?;
    ensure!(first.status == 201, "{}", first.body);
    c.kill("mdm1")?;
    c.start("mdm1")?;
    wait_until("the MDM to answer", Duration::from_secs(20), || Ok(Some(create("k-2", "other")?)))?;
    let again = create("k-1", "keyed")?;
    ensure!(again.status == 201 && again.body == first.body, "{} {}", first.body, again.body);
    let reused = create("k-1", "another")?;
    ensure!(reused.status == 422, "{}", reused.body);
    let (s, v) = call(c, "DELETE", "/vol/keyed?dry_run=true", None)?;
    ensure!(s == 200 && v["dry_run"] == true, "{v}");
    let (s, v) = call(c, "DELETE", "/vol/keyed", None)?;
    ensure!(s == 200, "the dry run destroyed nothing: {v}");
    ensure!(create("k-1", "keyed")?.body == first.body, "the first answer, though it is gone");
    c.wait_health("ok", Duration::from_secs(30))
}

fn settings(c: &Cluster) -> Res<()> {
    let path = "/policy/default";
    refused(c, "POST", path, json!({"rebuild_policy": "limit"}), 422, "bad_limit")?;
    refused(c, "POST", path, json!({"rebuild_policy": "fastest"}), 400, "malformed")?;
    let p = post(
        c,
        path,
        json!({"rebuild_policy": "dynamic", "rebuild_bytes_per_second": 33554432, "alert_high_percent": 1}),
    )?;
    ensure!(p["rebuild_policy"] == "dynamic" && p["alert_high_percent"] == 1, "{p}");
    // The MDM was restarted: the client tells its sockets anew.
    let uri = wait_until("the socket of v1", Duration::from_secs(20), || {
        let (_, v) = call(c, "GET", "/vol/v1", None)?;
        Ok(v["mappings"][0]["uri"].as_str().map(String::from))
    })?;
    let mut nbd = nbd::Connection::open(&Uri::parse(&uri)?)?;
    for i in 0..64u64 {
        nbd.write_at(i << 20, &vec![i as u8 + 1; 1 << 20])?;
    }
    wait_until("the event of a pool that fills", Duration::from_secs(30), || {
        let (_, e) = call(c, "GET", "/events?what=pool_capacity&outcome=high", None)?;
        ensure!(e[0]["object"] == "pool default", "{e}");
        let s = c.status()?;
        ensure!(s["health"] == "ok" && s["warnings"][0].is_string(), "{s}");
        Ok(Some(()))
    })?;
    post(c, path, json!({"rebuild_policy": "unlimited", "alert_high_percent": 80}))?;
    let (_, all) = call(c, "GET", "/events?who=admin", None)?;
    for what in [
        "vol_create",
        "vol_map",
        "vol_extend",
        "vol_unmap",
        "policy_set",
        "capabilities_set",
        "pool_delete",
    ] {
        let has = all.as_array().into_iter().flatten().any(|e| e["what"] == what);
        ensure!(has, "no event {what}");
    }
    let (_, last) = call(c, "GET", "/events?last=1", None)?;
    let id = last[0]["id"].as_u64().unwrap_or_default();
    post(c, "/fault_set/create", json!({"name": "rack"}))?;
    let (_, news) =
        call(c, "GET", &format!("/events?since={id}&wait_seconds=5&what=fault_set_create"), None)?;
    ensure!(news.as_array().map(Vec::len) == Some(1), "{news}");
    refused(c, "POST", "/fault_set/create", json!({"name": "rack"}), 409, "name_taken")?;
    let (s, _) = call(c, "DELETE", "/fault_set/rack", None)?;
    ensure!(s == 200, "{s}");
    refused(c, "POST", "/events/retention", json!({"keep": 1}), 422, "bad_limit")?;
    Ok(())
}

fn scli(c: &Cluster) -> Res<()> {
    let run = |args: &[&str], want: i32, part: &str| -> Res<()> {
        let out = c.scli(args)?;
        ensure!(out.status == Some(want), "{}", out.told());
        ensure!(
            out.stdout.contains(part) || out.stderr.contains(part),
            "no '{part}': {}",
            out.told()
        );
        Ok(())
    };
    run(&["explain", "volume", "v1"], 0, "has all its copies")?;
    run(&["explain", "pool", "default", "--json"], 0, "what_to_do")?;
    run(&["explain", "volume", "nope"], 3, "there is no vol")?;
    run(&["node", "can-stop", "--name", "sds1"], 0, "YES")?;
    run(&["node", "can-stop", "--name", "mdm1"], 10, "CARE")?;
    run(&["node", "can-stop", "--name", "sdc1"], 10, "v1")?;
    run(&["sds", "fail", "--name", "sds1", "--dry-run"], 0, "nothing was done")?;
    run(&["volume", "list", "--dry-run"], 2, "no dry run")?;
    run(&["volume", "delete", "--name", "v1", "--yes"], 4, "mapped")?;
    run(&["policy", "set", "--pool", "default"], 2, "nothing to change")?;
    run(&["policy", "get", "--json"], 0, "rebuild_policy")?;
    run(&["policy", "set", "--pool", "default", "--scrub", "1KiB"], 1, "scrub_bytes_per_second")?;
    run(&["policy", "set", "--pool", "default", "--scrub", "fast"], 2, "as each server is set")?;
    run(&["policy", "set", "--pool", "default", "--scrub", "32MiB"], 0, "changed")?;
    run(&["policy", "list"], 0, "32 MiB")?;
    run(&["policy", "set", "--pool", "default", "--scrub", "server"], 0, "changed")?;
    run(&["fault-set", "create", "--name", "rack2"], 0, "made")?;
    run(&["fault-set", "assign", "--sds", "sds1", "--fault-set", "rack2"], 0, "sds1")?;
    run(&["fault-set", "assign", "--sds", "sds1"], 0, "none")?;
    run(&["fault-set", "delete", "--name", "rack2"], 0, "removed")?;
    run(&["device", "list"], 0, "COPIES")?;
    run(&["task", "list"], 0, "")?;
    run(&["events", "--limit", "3", "--what", "vol_create"], 0, "vol_create")?;
    run(&["node", "list"], 0, "CAPABILITIES")?;
    run(&["completions", "bash"], 0, "can-stop")?;
    run(&["status"], 0, "OK")
}

/// Who writes is not cut off; who is connected and idle is no obstacle; force cuts.
fn in_use(c: &Cluster) -> Res<()> {
    let uri = c.new_volume("used", "16MiB", "sdc1")?;
    let to = json!({"volume": "used", "sdc": "sdc1"});
    let mut nbd = nbd::Connection::open(&uri)?;
    nbd.write_at(0, &[1; 4096])?;
    let v = refused(c, "POST", "/vol/unmap", to.clone(), 409, "in_use")?;
    let (said, hint) = (v["message"].to_string(), v["hint"].to_string());
    ensure!(said.contains("NBD client") && said.contains("sdc1"), "who uses it: {v}");
    ensure!(hint.contains("force"), "{v}");
    nbd.write_at(0, &[2; 4096])?;
    let out = c.scli(["volume", "unmap", "--name", "used", "--sdc", "sdc1"])?;
    ensure!(out.status == Some(4) && out.stderr.contains("in use"), "{}", out.told());
    ensure!(nbd.read_at(0, 4096)? == [2; 4096], "a refused unmap did harm");
    // Two seconds after its last write a connection is idle.
    std::thread::sleep(Duration::from_secs(3));
    ensure!(post(c, "/vol/unmap", to.clone())?["unmapped"] == true, "an idle connection");
    let uri = c.map("used", "sdc1")?;
    let mut nbd = nbd::Connection::open(&uri)?;
    nbd.write_at(0, &[3; 4096])?;
    c.scli_json(["volume", "unmap", "--name", "used", "--sdc", "sdc1", "--force"])?;
    ensure!(nbd.write_at(0, &[4; 4096]).is_err(), "it was cut off");
    let (s, v) = call(c, "DELETE", "/vol/used", None)?;
    ensure!(s == 200, "{v}");
    Ok(())
}

fn contract(c: &Cluster) -> Res<()> {
    let (examples, seconds) = if full() { ("60", "600") } else { ("3", "20") };
    let limit = if full() { 900 } else { 300 };
    let script = cluster::root().join("tests/api/contract");
    let out = Command::new(&script)
        .args([c.info("api")?.as_str(), c.info("token")?.as_str(), examples, seconds])
        .limit(Duration::from_secs(limit))
        .run()?;
    if out.status == Some(77) {
        skip("a_property_based_client_finds_no_breach", "schemathesis cannot be installed here");
        return Ok(());
    }
    ensure!(out.status == Some(0), "{}", out.told());
    // Daemons that the client removed from the cluster end, and say so; nobody else does. It may have let the name in again since.
    let ends = |m: &cluster::Member| {
        std::fs::read_to_string(&m.log)
            .is_ok_and(|log| log.contains("was removed from the cluster"))
    };
    let command = |m: &cluster::Member| std::fs::read(format!("/proc/{}/cmdline", m.pid));
    for m in c.members()? {
        let runs = !command(&m).unwrap_or_default().is_empty();
        ensure!(runs || ends(&m), "{} (pid {}) has died", m.name, m.pid);
    }
    Ok(())
}
