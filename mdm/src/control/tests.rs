//! Control sessions with played nodes: registration, failure, return.

use crate::log::{MemStore, MetaStore};
use crate::test_util::{held, hello, Fake, Mdm};
use quarry_base::ConfigIndex;
use quarry_control::{FromNode, Hello, Proposal, Role};
use serde_json::json;

async fn pair(mdm: &Mdm) -> (Fake, Fake) {
    let a = Fake::join(mdm, hello(Role::Sds, "a", 1)).await;
    let b = Fake::join(mdm, hello(Role::Sds, "b", 2)).await;
    mdm.post("/pool/create", json!({"name": "default", "pg_count": 32})).await;
    mdm.health("ok").await;
    (a, b)
}

fn returning(f: &Fake, name: &str, pid: u32, last: (u64, u64), commit: u64) -> Hello {
    let mut h = hello(Role::Sds, name, pid);
    let (view, device) = f.with(|k| (k.view.clone(), k.devices[0]));
    h.devices[0].pgs = held(&view, device, last, commit);
    h
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_is_removed_and_comes_back_through_syncing() {
    let mdm = Mdm::start().await;
    let (a, b) = pair(&mdm).await;
    mdm.post("/vol/create", json!({"name": "v", "size_gb": 1})).await;
    b.with(|k| k.adds = false);
    let old = a.with(|k| (k.start, k.device_only()));
    drop(a);
    b.until(|k| {
        k.view.pgs.values().all(|c| c.in_sync.len() == 1 && c.primary == Some(k.devices[0]))
    })
    .await;
    mdm.health("degraded").await;
    let s = mdm.get("/status").await;
    assert!(
        s["bytes_degraded"].as_u64().unwrap() >= 32_000
            && s["reasons"].to_string().contains("sds a is down"),
        "{s}"
    );
    let a = Fake::join(&mdm, hello(Role::Sds, "a", 3)).await;
    assert!(
        a.with(|k| k.start) > old.0 && a.with(|k| k.device_only()) == old.1,
        "new start, same device"
    );
    b.until(|k| k.view.pgs.values().all(|c| c.syncing.len() == 1 && c.in_sync.len() == 1)).await;
    b.with(|k| k.adds = true);
    let pg = b.with(|k| k.view.pgs.values().next().cloned()).unwrap();
    let stale = Proposal::Add { pg: pg.pg, epoch: (pg.epoch.0 - 1).into(), device: old.1 };
    b.send.send(FromNode::Propose { request: 77, proposal: stale }).await.unwrap();
    b.until(|k| k.results.iter().any(|r| r.0 == 77 && !r.1)).await;
    b.until(|k| k.view.pgs.values().all(|c| c.is_complete())).await;
    mdm.health("ok").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_resumes_keeps_its_start_and_its_roles() {
    let mdm = Mdm::start().await;
    let (a, b) = pair(&mdm).await;
    let (start, epochs) = (a.with(|k| k.start), epochs(&b));
    drop(a);
    let mut h = hello(Role::Sds, "a", 1);
    h.resume = Some(start);
    let a = Fake::join(&mdm, h).await;
    assert_eq!(a.with(|k| k.start), start);
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    assert_eq!(self::epochs(&b), epochs);
}

fn epochs(f: &Fake) -> Vec<u64> {
    f.with(|k| k.view.pgs.values().map(|c| c.epoch.0).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_restart_the_newest_position_leads() {
    let mdm = Mdm::start().await;
    let (a, b) = pair(&mdm).await;
    let (ha, hb) = (returning(&a, "a", 11, (1, 9), 7), returning(&b, "b", 12, (1, 8), 8));
    drop((a, b));
    mdm.health("unavailable").await;
    assert!(
        mdm.run.state.read().pgs.values().all(|p| p.config.in_sync.len() == 2),
        "the last are never removed"
    );
    let a = Fake::join(&mdm, ha).await;
    let b = Fake::join(&mdm, hb).await;
    mdm.health("ok").await;
    let d = a.device();
    b.until(|k| k.view.pgs.values().all(|c| c.primary == Some(d) && c.in_sync.len() == 2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_server_alone_does_not_serve() {
    let mdm = Mdm::start().await;
    let (a, b) = pair(&mdm).await;
    let ha = returning(&a, "a", 11, (1, 5), 5);
    drop(a);
    b.until(|k| k.view.pgs.values().all(|c| c.in_sync.len() == 1)).await;
    let hb = returning(&b, "b", 12, (2, 50), 50);
    drop(b);
    mdm.health("unavailable").await;
    let _a = Fake::join(&mdm, ha).await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let s = mdm.get("/status").await;
    assert!(
        s["health"] == "unavailable" && s["reasons"].to_string().contains("sds b is down"),
        "{s}"
    );
    let b = Fake::join(&mdm, hb).await;
    mdm.health("ok").await;
    assert!(b.with(|k| k.view.pgs.values().all(|c| c.primary == Some(k.devices[0]))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_do_not_belong_are_refused_with_a_code() {
    let mdm = Mdm::start().await;
    let _a = Fake::join(&mdm, hello(Role::Sds, "a", 1)).await;
    let mut cases = Vec::new();
    let mut h = hello(Role::Sds, "x", 9);
    h.secret = "no".into();
    cases.push((h, "wrong_secret"));
    let mut h = hello(Role::Sds, "x", 9);
    h.cluster = Some("other".into());
    cases.push((h, "other_cluster"));
    let mut h = hello(Role::Sds, "x", 9);
    h.capabilities.clear();
    cases.push((h, "capability_missing"));
    let mut h = hello(Role::Sds, "x", 9);
    h.devices[0].uuid = hello(Role::Sds, "a", 1).devices[0].uuid.clone();
    cases.push((h, "device_elsewhere"));
    cases.push((hello(Role::Sds, "a", 99), "name_in_use"));
    cases.push((hello(Role::Sdc, "../x", 9), "bad_name"));
    for (h, code) in cases {
        let f = Fake::join(&mdm, h).await;
        assert_eq!(f.with(|k| k.refused.clone()).as_deref(), Some(code));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_mdm_with_an_older_state_changes_nothing() {
    let mdm = Mdm::start().await;
    let (a, b) = pair(&mdm).await;
    let mut h = returning(&a, "a", 5, (1, 1), 1);
    h.devices[0].pgs[0].config.as_mut().unwrap().epoch.0 += 7;
    drop(a);
    b.until(|k| k.view.pgs.values().all(|c| c.in_sync.len() == 1)).await;
    let s = tokio::net::TcpStream::connect(mdm.run.control_addr).await.unwrap();
    let (mut r, mut w) = s.into_split();
    quarry_control::write_message(&mut w, &FromNode::Hello(Box::new(h))).await.unwrap();
    assert!(
        quarry_control::read_message::<quarry_control::ToNode>(&mut r).await.is_err(),
        "closed without a word"
    );
    let (status, e) = mdm.call("POST", "/pd/create", Some(json!({"name": "p"}))).await;
    assert_eq!((status, &e["code"]), (503, &json!("state_older")), "{e}");
    assert!(mdm.get("/status").await["reasons"][0]
        .as_str()
        .unwrap()
        .contains("newer than anything here"));
}

/// Volumes, mappings and settings move no group: a client that has heard of them is what tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_mdm_that_does_not_know_what_a_client_was_told_changes_nothing() {
    let mdm = Mdm::start().await;
    let (_a, _b) = pair(&mdm).await;
    let index = mdm.get("/status").await["index"].as_u64().unwrap();
    let up_to_date = Hello { seen: ConfigIndex(index), ..hello(Role::Sdc, "c", 7) };
    let c = Fake::join(&mdm, up_to_date).await;
    assert!(c.with(|k| k.refused.is_none()));
    mdm.post("/pd/create", json!({"name": "p"})).await;
    let ahead = Hello { seen: ConfigIndex(index + 1000), ..hello(Role::Sdc, "d", 8) };
    let s = tokio::net::TcpStream::connect(mdm.run.control_addr).await.unwrap();
    let (mut r, mut w) = s.into_split();
    quarry_control::write_message(&mut w, &FromNode::Hello(Box::new(ahead))).await.unwrap();
    assert!(quarry_control::read_message::<quarry_control::ToNode>(&mut r).await.is_err());
    let (status, e) = mdm.call("POST", "/pd/create", Some(json!({"name": "q"}))).await;
    assert_eq!((status, &e["code"]), (503, &json!("state_older")), "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_hand_over_moves_all_roles_before_the_session_ends() {
    let mdm = Mdm::start().await;
    let (a, b) = pair(&mdm).await;
    a.send.send(FromNode::Propose { request: 5, proposal: Proposal::HandOver }).await.unwrap();
    b.until(|k| {
        k.view.pgs.values().all(|c| {
            c.primary == Some(k.devices[0]) && c.in_sync.len() == 1 && c.syncing.is_empty()
        })
    })
    .await;
    a.until(|k| k.results.iter().any(|r| r.0 == 5 && r.1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_server_leaves_at_once_and_returns_on_recover() {
    let mdm = Mdm::start().await;
    let (a, b) = pair(&mdm).await;
    mdm.post("/vol/create", json!({"name": "v", "size_gb": 1})).await;
    let id = a.with(|k| k.sds);
    let r = mdm.post(&format!("/sds/{id}/fail"), json!({})).await;
    assert_eq!(r["state"], "failed");
    b.until(|k| k.view.pgs.values().all(|c| c.in_sync.len() == 1)).await;
    let (code, e) = mdm.call("POST", "/sds/b/fail", Some(json!({}))).await;
    assert_eq!((code, &e["code"]), (409, &json!("last_copy")));
    assert!(e["message"].as_str().unwrap().contains('v'), "{e}");
    let start = a.with(|k| k.start);
    drop(a);
    let mut h = hello(Role::Sds, "a", 1);
    h.resume = Some(start);
    let a = Fake::join(&mdm, h).await;
    assert_ne!(a.with(|k| k.start), start, "its roles have ended");
    assert!(b.with(|k| k.view.pgs.values().all(|c| c.members().count() == 1)), "fenced: no role");
    mdm.post("/sds/a/recover", json!({})).await;
    mdm.health("ok").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_copy_is_rebuilt_on_another_server() {
    let mdm = Mdm::start().await;
    let (a, b) = pair(&mdm).await;
    let c = Fake::join(&mdm, hello(Role::Sds, "c", 3)).await;
    drop(a);
    mdm.health("degraded").await;
    mdm.post("/rebuild/start/default", json!({})).await;
    mdm.health("ok").await;
    let (db, dc) = (b.device(), c.device());
    // The health is known here before the server has heard of it.
    let both = |l: &[quarry_base::DeviceId]| l.len() == 2 && l.contains(&db) && l.contains(&dc);
    b.until(|k| k.view.pgs.values().all(|p| both(&p.listed))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_there_after_a_restart_of_the_mdm() {
    let store = MemStore::default();
    let mdm = Mdm::on(Box::new(store.clone())).await;
    let (a, b) = pair(&mdm).await;
    mdm.post("/vol/create", json!({"name": "v", "size_gb": 1})).await;
    let before = mdm.run.state.read().clone();
    assert!(store.clone().load().unwrap().entries.len() as u64 == before.index.0);
    let again = crate::engine::restore(&mut store.clone()).unwrap();
    assert_eq!(again, before);
    let second = Mdm::on(Box::new(store)).await;
    let mut h = hello(Role::Sds, "a", 1);
    h.resume = Some(a.with(|k| k.start));
    let a2 = Fake::join(&second, h).await;
    assert_eq!(a2.with(|k| k.start), a.with(|k| k.start), "I/O goes on with the same starts");
    drop(b);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_writer_ends_with_a_snapshot_although_handles_are_left() {
    let store = MemStore::default();
    let mdm = Mdm::on(Box::new(store.clone())).await;
    let _pair = pair(&mdm).await;
    mdm.run.engine.stop().await;
    let writer = mdm.writer;
    tokio::task::spawn_blocking(|| writer.join()).await.unwrap();
    let loaded = store.clone().load().unwrap();
    assert_eq!(loaded.snapshot.map(|s| s.0), Some(mdm.run.state.read().index.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_maps_the_volumes_of_its_table_to_itself() {
    let mdm = Mdm::start().await;
    let (a, _b) = pair(&mdm).await;
    let c = Fake::join(&mdm, hello(Role::Sdc, "c", 3)).await;
    mdm.post("/vol/create", json!({"name": "v", "size_gb": 1})).await;
    let ask = |volume: &str, read_only: bool| FromNode::MapHere {
        volume: volume.into(),
        device: true,
        read_only,
    };
    for (n, m) in
        (1..).zip([ask("v", false), ask("nosuch", false), ask("v", false), ask("v", true)])
    {
        c.send.send(m).await.unwrap();
        c.until(|k| k.mapped.len() == n).await;
    }
    let answers = c.with(|k| k.mapped.clone());
    assert!(answers[0].1.is_ok() && answers[0] == answers[2], "asking twice changes nothing");
    assert!(answers[1].1.as_ref().is_err_and(|e| e.contains("no volume 'nosuch'")));
    assert!(answers[3].1.as_ref().is_err_and(|e| e.contains("read-write")));
    let v = c.with(|k| k.view.volumes.values().next().cloned()).unwrap();
    assert_eq!(v.mappings.len(), 1);
    assert!(
        v.mappings[0].device && !v.mappings[0].read_only && v.mappings[0].sdc == c.with(|k| k.sdc)
    );
    // A server cannot ask for that.
    a.send.send(ask("v", false)).await.unwrap();
    assert!(a.with(|k| k.mapped.is_empty()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_device_that_cannot_be_attached_is_given_up_by_mapping_without_one() {
    let mdm = Mdm::start().await;
    let _servers = pair(&mdm).await;
    let c = Fake::join(&mdm, hello(Role::Sdc, "c", 3)).await;
    c.with(|k| k.no_kernel = true);
    mdm.post("/vol/create", json!({"name": "v", "size_gb": 1})).await;
    let map = |device| json!({"volume": "v", "sdc": "c", "device": device});
    let (status, e) = mdm.call("POST", "/vol/map", Some(map(true))).await;
    assert_eq!((status, e["code"].as_str().unwrap()), (422, "attach_failed"));
    assert!(mdm.get("/explain/volume/v").await["why"].to_string().contains("no NBD driver"));
    let mapped = mdm.post("/vol/map", map(false)).await;
    assert!(mapped["uri"].is_string() && mapped["device"].is_null(), "{mapped}");
    assert!(c.with(|k| k.view.volumes.values().all(|v| !v.mappings[0].device)));
    assert!(!mdm.get("/explain/volume/v").await["why"].to_string().contains("NBD"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_away_or_waits_for_devices_is_explained_as_such() {
    let mdm = Mdm::start().await;
    let (a, b) = pair(&mdm).await;
    let summary = |v: serde_json::Value| v["summary"].as_str().unwrap().to_string();
    assert!(summary(mdm.get("/explain/sds/b").await).contains("is well"));
    drop(b);
    a.until(|k| k.view.pgs.values().all(|c| c.in_sync.len() == 1)).await;
    for path in ["/explain/sds/b", "/explain/node/b"] {
        assert!(summary(mdm.get(path).await).contains("is out of use"), "{path}");
    }
    assert!(!summary(mdm.get("/explain/node/a").await).contains("out of use"));
    // Nobody is left whom its copies could be made on, so none is promised.
    let todo = mdm.get("/explain/pool/default").await["what_to_do"].to_string();
    assert!(todo.contains("add a server") && !todo.contains("grace time"), "{todo}");
    mdm.post("/pd/create", json!({"name": "d2"})).await;
    mdm.post("/pool/create", json!({"name": "p2", "protection_domain_id": 2})).await;
    let p = mdm.get("/explain/pool/p2").await;
    assert!(summary(p.clone()).contains("cannot take data yet"), "{p}");
    assert!(p["why"].to_string().contains("waits for devices"), "{p}");
    assert_eq!((&p["health"], &p["waits_for_devices"]), (&json!("degraded"), &json!(true)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_in_too_few_fault_sets_to_part_copies_are_told() {
    let mdm = Mdm::start().await;
    let (_a, _b) = pair(&mdm).await;
    mdm.post("/fault_set/create", json!({"name": "rack1"})).await;
    let told = || async { mdm.get("/explain/pool/default").await["why"].to_string() };
    mdm.post("/sds/a/fault_set", json!({"fault_set": "rack1"})).await;
    assert!(!told().await.contains("fault set"), "one server stands alone");
    mdm.post("/sds/b/fault_set", json!({"fault_set": "rack1"})).await;
    assert!(told().await.contains("in 1 fault set(s), for 2 copies"), "{}", told().await);
    mdm.post("/sds/b/fault_set", json!({"fault_set": null})).await;
    assert!(!told().await.contains("fault set"), "{}", told().await);
}

/// What is told of the pool `p`: its reasons, what to do about them, and that they speak of no lost copies.
async fn told_of_waiting(mdm: &Mdm) -> (String, String) {
    let s = mdm.get("/status").await;
    assert_eq!((&s["health"], &s["eta_seconds"]), (&json!("degraded"), &serde_json::Value::Null));
    assert_eq!((&s["bytes_degraded"], &s["bytes_one_copy"]), (&json!(0), &json!(0)));
    let p = s["pools"].as_array().unwrap().iter().find(|p| p["pool"] == "p").unwrap();
    assert_eq!((&p["health"], &p["waits_for_devices"]), (&json!("degraded"), &json!(true)));
    let e = mdm.get("/explain/pool/p").await;
    assert!(e["summary"].as_str().unwrap().contains("cannot take data yet"), "{e}");
    let text = |v: &serde_json::Value| v.as_array().unwrap()[0].as_str().unwrap().to_string();
    let (why, todo) = (text(&e["why"]), text(&e["what_to_do"]));
    assert_eq!(text(&p["reasons"]), format!("{why}: {todo}"));
    assert!(!why.contains("copies") && !why.contains("miss"), "{why}");
    (why, todo)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_lacks_devices_says_what_to_do_and_claims_no_lost_copies() {
    let mdm = Mdm::start().await;
    mdm.post("/pool/create", json!({"name": "p"})).await;
    let (why, todo) = told_of_waiting(&mdm).await;
    assert!(why.contains("has no devices yet") && why.contains("on 2 servers"), "{why}");
    assert!(todo.contains("start SDS nodes") && todo.contains("--pool p"), "{todo}");
    // Only its pool: a device of a new server joins by itself.
    let a = Fake::join(&mdm, hello(Role::Sds, "a", 1)).await;
    let (why, _) = told_of_waiting(&mdm).await;
    assert!(why.contains("can be used on 1 server,") && why.contains("on 2 servers"), "{why}");
    // With a second pool it does not: the command is named, and it is the one that helps.
    mdm.post("/pool/create", json!({"name": "q"})).await;
    let b = Fake::join(&mdm, hello(Role::Sds, "b", 2)).await;
    let (_, todo) = told_of_waiting(&mdm).await;
    let want = format!("scli device add --id {} --pool p", b.device());
    assert!(todo.starts_with(&want), "{todo}");
    mdm.post("/device/add", json!({"device_id": b.device(), "pool": "p"})).await;
    a.until(|k| !k.view.pgs.is_empty()).await;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let s = mdm.get("/status").await;
        let p = s["pools"].as_array().unwrap().iter().find(|p| p["pool"] == "p").unwrap();
        if p["health"] == "ok" {
            assert_eq!(p["waits_for_devices"], json!(false));
            break;
        }
        assert!(std::time::Instant::now() < end, "{s}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// R26: what would be lost is said, nothing happens without a yes, and the decision waits for a client that is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_lets_older_copies_count() {
    let mdm = Mdm::start().await;
    let (a, b) = pair(&mdm).await;
    let c = Fake::join(&mdm, hello(Role::Sdc, "c", 3)).await;
    mdm.post("/vol/create", json!({"name": "v", "size_gb": 1})).await;
    mdm.post("/vol/map", json!({"volume": "v", "sdc": "c"})).await;
    c.until(|k| k.view.volumes.len() == 1).await;
    let ha = returning(&a, "a", 11, (1, 5), 5);
    drop(a);
    b.until(|k| k.view.pgs.values().all(|c| c.in_sync.len() == 1)).await;
    drop((b, c));
    mdm.health("unavailable").await;
    let a = Fake::join(&mdm, ha).await;
    let path = "/pool/default/accept_stale";
    let loss = mdm.post(&format!("{path}?dry_run=true"), json!({})).await;
    let groups = loss["groups"].as_array().unwrap();
    assert!(groups.len() == 32 && loss["volumes"] == json!(["v"]), "{loss}");
    for g in groups {
        assert!(g["stale_sds"] == "a" && g["good_sds"] == json!(["b"]), "{g}");
        assert!(g["mixed"] == true && g["in_sync_until"].is_string(), "{g}");
    }
    assert!(loss["records_lost"].as_u64().unwrap() >= 32 * 100, "{loss}");
    let (status, refused) = mdm.call("POST", path, Some(json!({}))).await;
    assert_eq!((status, refused["code"].as_str().unwrap()), (422, "loss_not_accepted"));
    let other = json!({"accept_loss": true, "plan": "0"});
    let (status, refused) = mdm.call("POST", path, Some(other)).await;
    assert_eq!((status, refused["code"].as_str().unwrap()), (409, "plan_changed"));
    let yes = json!({"accept_loss": true, "plan": loss["plan"]});
    let task = mdm.post(path, yes.clone()).await;
    let id = task["task_id"].as_u64().unwrap();
    assert!(task["waiting_for"].to_string().contains("sdc c has not confirmed"), "{task}");
    let why = mdm.get("/explain/pool/default").await;
    assert!(why["why"].to_string().contains("sdc c has not confirmed"), "{why}");
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    assert!(a.with(|k| k.view.pgs.values().all(|c| c.primary.is_none() && c.line == c.epoch)));
    // The client is there again and knows.
    let _c = Fake::join(&mdm, hello(Role::Sdc, "c", 4)).await;
    let d = a.device();
    a.until(|k| k.view.pgs.values().all(|c| c.primary == Some(d))).await;
    mdm.health("degraded").await;
    assert_eq!(mdm.get(&format!("/tasks/{id}")).await["state"], "done");
    let (status, none) = mdm.call("POST", path, Some(yes)).await;
    assert_eq!((status, none["code"].as_str().unwrap()), (409, "plan_changed"));
    let (status, none) = mdm.call("POST", path, Some(json!({"accept_loss": true}))).await;
    assert_eq!((status, none["code"].as_str().unwrap()), (409, "nothing_stale"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_without_which_its_server_registers_is_missing_and_not_waited_for() {
    let mdm = Mdm::start().await;
    let (a, b) = pair(&mdm).await;
    let ha = returning(&a, "a", 11, (1, 5), 5);
    drop((a, b));
    mdm.health("unavailable").await;
    // Another disk is in it now: nothing of the old one may be taken for there, nor be elected.
    let mut other = ha.clone();
    other.devices[0].uuid = format!("{:0>32}", "other");
    other.devices[0].pgs.clear();
    let a = Fake::join(&mdm, other).await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(mdm.get("/status").await["health"], "unavailable");
    let list = mdm.get("/device/list").await;
    assert!(list.to_string().contains("registered without it"), "{list}");
    drop(a);
    let _a = Fake::join(&mdm, ha).await;
    mdm.health("degraded").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_no_copy_has_whole_is_named_with_its_volume() {
    let mdm = Mdm::start().await;
    let (a, b) = pair(&mdm).await;
    mdm.post("/vol/create", json!({"name": "v", "size_gb": 1})).await;
    a.with(|k| k.adds = false);
    drop(b);
    a.until(|k| k.view.pgs.values().all(|c| c.in_sync.len() == 1)).await;
    let _b = Fake::join(&mdm, hello(Role::Sds, "b", 3)).await;
    a.until(|k| k.view.pgs.values().all(|c| !c.syncing.is_empty())).await;
    let c = a.with(|k| k.view.pgs.values().next().cloned()).unwrap();
    let vtree = a.with(|k| k.view.volumes.values().next().map(|v| v.vtree)).unwrap();
    let proposal = Proposal::DropSyncing {
        pg: c.pg,
        epoch: c.epoch,
        device: c.syncing[0].device,
        reason: "a block has no good copy".into(),
        damaged: Some((vtree, (1 << 20) + (64 << 10))),
        no_room: false,
    };
    a.send.send(FromNode::Propose { request: 9, proposal }).await.unwrap();
    a.until(|k| k.results.iter().any(|r| (r.0, r.1) == (9, true))).await;
    let e = mdm.get("/explain/pool/default").await;
    let why = e["why"].to_string();
    assert!(why.contains("of volume v, bytes 1114112 to 1179648, a page is damaged"), "{e}");
    assert!(e["what_to_do"].to_string().contains("write it from a backup or discard it"), "{e}");
}
