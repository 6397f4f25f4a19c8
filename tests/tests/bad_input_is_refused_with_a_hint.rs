//! Wrong names, sizes, commands and devices: each is refused with the exit status `INTERFACE` promises, a clear message
//! and a hint, and nothing is lost by it.

use quarry_tests::cluster::{binary, Member};
use quarry_tests::*;
use serde_json::Value;
use std::time::Duration;

#[test]
fn bad_input_is_refused_with_a_hint() -> Res<()> {
    with_cluster(ClusterOptions::default(), |cluster| {
        let uri = cluster.new_volume("keep", "64MiB", "sdc1")?;
        let history = History::new(8);
        let load = Load::start(LoadSpec::new(&uri).area(Area::spread(48, 8)), &history)?;
        load.run_requests(1000, Duration::from_secs(20))?;
        load.stop().expect_no_error()?;
        let mut cases = Cases::new();
        scli_errors(&mut cases, cluster);
        rest_errors(&mut cases, cluster);
        usage_errors(&mut cases, cluster);
        daemon_errors(&mut cases, cluster);
        cases.case("nothing was lost by all this", || {
            cluster.wait_health("ok", Duration::from_secs(60))?;
            history.final_read(&uri)?;
            check::verify(&history).expect_clean()?;
            cluster.expect_all_running()
        });
        cases.finish()
    })
}

/// Runs scli with `--json` and expects one of these exit statuses, an error object with code, message and hint that holds these
/// words, and an empty stdout.
fn refused(cluster: &Cluster, args: &[&str], statuses: &[i32], words: &[&str]) -> Res<()> {
    let out = cluster.scli([&["--json"], args].concat())?;
    let status = out.status.unwrap_or(-1);
    ensure!(statuses.contains(&status), "exit status {statuses:?} is promised: {}", out.told());
    ensure!(out.stdout.is_empty(), "stdout carries only answers: {}", out.told());
    let error: Value = match serde_json::from_str(&out.stderr) {
        Ok(error) => error,
        Err(e) => fail!("stderr is no JSON object ({e}): {}", out.told()),
    };
    for field in ["code", "message", "hint"] {
        ensure!(error[field].as_str().is_some_and(|t| !t.is_empty()), "no {field}: {}", out.stderr);
    }
    let text = out.stderr.to_lowercase();
    for word in words {
        ensure!(
            text.contains(&word.to_lowercase()),
            "'{word}' is not in the message: {}",
            out.stderr
        );
    }
    Ok(())
}

/// What is wrong, the command, the exit statuses allowed, words the message must hold.
type Wrong<'a> = (&'a str, &'a [&'a str], &'a [i32], &'a [&'a str]);

fn scli_errors(cases: &mut Cases, cluster: &Cluster) {
    const REFUSED: &[i32] = &[1, 2];
    const MISSING: &[i32] = &[3];
    const CONFLICT: &[i32] = &[4];
    let long = "x".repeat(64);
    let table: &[Wrong] = &[
        ("get of an unknown volume", &["volume", "get", "--name", "nosuch"], MISSING, &["nosuch"]),
        ("get of an unknown id", &["volume", "get", "--id", "4711"], MISSING, &["4711"]),
        (
            "map of an unknown volume",
            &["volume", "map", "--name", "nosuch", "--sdc", "sdc1"],
            MISSING,
            &["nosuch"],
        ),
        (
            "map to an unknown sdc",
            &["volume", "map", "--name", "keep", "--sdc", "sdc9"],
            MISSING,
            &["sdc9"],
        ),
        (
            "unmap of an unknown volume",
            &["volume", "unmap", "--name", "nosuch", "--sdc", "sdc1"],
            MISSING,
            &["nosuch"],
        ),
        (
            "delete of an unknown volume",
            &["--yes", "volume", "delete", "--name", "nosuch"],
            MISSING,
            &["nosuch"],
        ),
        (
            "extend of an unknown volume",
            &["volume", "extend", "--name", "nosuch", "--size", "1GiB"],
            MISSING,
            &["nosuch"],
        ),
        (
            "rebuild of an unknown pool",
            &["rebuild", "status", "--pool", "nosuch"],
            MISSING,
            &["nosuch"],
        ),
        (
            "create in an unknown pool",
            &["volume", "create", "--name", "a", "--size", "1GiB", "--pool", "nosuch"],
            MISSING,
            &["nosuch"],
        ),
        (
            "a duplicate name",
            &["volume", "create", "--name", "keep", "--size", "1GiB"],
            CONFLICT,
            &["keep"],
        ),
        (
            "delete while mapped",
            &["--yes", "volume", "delete", "--name", "keep"],
            CONFLICT,
            &["map"],
        ),
        ("size 0", &["volume", "create", "--name", "a", "--size", "0"], REFUSED, &["MiB"]),
        (
            "size of half a MiB",
            &["volume", "create", "--name", "a", "--size", "524288"],
            REFUSED,
            &["MiB"],
        ),
        (
            "size no multiple of 1 MiB",
            &["volume", "create", "--name", "a", "--size", "10485761"],
            REFUSED,
            &["MiB"],
        ),
        (
            "size that is no size",
            &["volume", "create", "--name", "a", "--size", "lots"],
            REFUSED,
            &["lots"],
        ),
        (
            "size that overflows",
            &["volume", "create", "--name", "a", "--size", "99999999999TiB"],
            REFUSED,
            &[],
        ),
        ("negative size", &["volume", "create", "--name", "a", "--size=-1GiB"], REFUSED, &[]),
        (
            "more than over-commit allows",
            &["volume", "create", "--name", "a", "--size", "900TiB"],
            &[1, 2, 4],
            &["free", "provisioned", "limit"],
        ),
        (
            "thick beyond the free space",
            &["volume", "create", "--name", "a", "--size", "100GiB", "--provisioning", "thick"],
            &[1, 2, 4],
            &["free"],
        ),
        (
            "extend beyond over-commit",
            &["volume", "extend", "--name", "keep", "--size", "900TiB"],
            &[1, 2, 4],
            &["limit"],
        ),
        ("shrinking", &["volume", "extend", "--name", "keep", "--size", "1MiB"], &[1, 2, 4], &[]),
        (
            "a name with a slash",
            &["volume", "create", "--name", "a/b", "--size", "1GiB"],
            REFUSED,
            &["name"],
        ),
        (
            "a name that begins with a dot",
            &["volume", "create", "--name", ".a", "--size", "1GiB"],
            REFUSED,
            &["name"],
        ),
        (
            "an empty name",
            &["volume", "create", "--name", "", "--size", "1GiB"],
            REFUSED,
            &["name"],
        ),
        (
            "a name of 64 characters",
            &["volume", "create", "--name", &long, "--size", "1GiB"],
            REFUSED,
            &["name"],
        ),
        ("no MDM there", &["--api", "http://127.0.0.1:9", "volume", "list"], &[5], &[]),
        ("no MDM there, status", &["--api", "http://127.0.0.1:9", "status"], &[5], &[]),
        ("a wrong token", &["--token", "wrong", "volume", "list"], &[6], &["token"]),
    ];
    for (name, args, statuses, words) in table {
        cases.case(name, || refused(cluster, args, statuses, words));
    }
    cases.case("refused requests made nothing", || {
        let list = cluster.scli_json(["volume", "list"])?;
        ensure!(list.as_array().is_some_and(|l| l.len() == 1 && l[0]["name"] == "keep"), "{list}");
        let size = &cluster.scli_json(["volume", "get", "--name", "keep"])?["size_bytes"];
        ensure!(size == &Value::from(64u64 << 20), "the volume has size {size}");
        Ok(())
    });
}

fn rest_errors(cases: &mut Cases, cluster: &Cluster) {
    let call =
        |method: &str, path: &str, extra: &[String], token: Option<&str>, body: Option<&str>| {
            let mut headers = extra.to_vec();
            headers.extend(token.map(|t| format!("Authorization: Bearer {t}")));
            http::request(method, &format!("{}{path}", cluster.info("api")?), &headers, body)
        };
    let good = r#"{"name":"rest","size_bytes":1073741824}"#;
    let zero = r#"{"name":"zero","size_bytes":0}"#;
    let duplicate = r#"{"name":"keep","size_bytes":1073741824}"#;
    let table = [
        ("no token", "GET", "/vol/list", false, None, &[401u16][..]),
        ("no such path", "GET", "/no/such/path", true, None, &[404]),
        ("no such volume", "GET", "/vol/4711", true, None, &[404]),
        ("malformed JSON", "POST", "/vol/create", true, Some("{\"name\": "), &[400]),
        ("not an object", "POST", "/vol/create", true, Some("[1,2]"), &[400, 422]),
        (
            "a wrong type",
            "POST",
            "/vol/create",
            true,
            Some(r#"{"name":7,"size_gb":"x"}"#),
            &[400, 422],
        ),
        ("size 0", "POST", "/vol/create", true, Some(zero), &[400, 422]),
        ("a duplicate name", "POST", "/vol/create", true, Some(duplicate), &[409]),
    ];
    for (name, method, path, with_token, body, statuses) in table {
        cases.case(&format!("REST: {name}"), || {
            let token = cluster.info("token")?;
            let answer = call(method, path, &[], with_token.then_some(&token), body)?;
            ensure!(
                statuses.contains(&answer.status),
                "{statuses:?} is promised: {} {}",
                answer.status,
                answer.body
            );
            let error = answer.json()?;
            for field in ["code", "message", "hint"] {
                ensure!(error[field].is_string(), "no {field} in {error}");
            }
            Ok(())
        });
    }
    cases.case("REST: an idempotency key gives the first answer again", || {
        let token = cluster.info("token")?;
        let key = ["Idempotency-Key: one-and-the-same".to_string()];
        let first = call("POST", "/vol/create", &key, Some(&token), Some(good))?;
        let second = call("POST", "/vol/create", &key, Some(&token), Some(good))?;
        ensure!(first.status == 201, "{} {}", first.status, first.body);
        ensure!(
            second.status == 201 && second.json()? == first.json()?,
            "{} {}",
            second.status,
            second.body
        );
        cluster.scli(["--yes", "volume", "delete", "--name", "rest"])?.map_good()
    });
    cases.case("REST: a body of 100 MB and a broken request hurt nobody", || {
        let token = cluster.info("token")?;
        let huge = format!("{{\"name\":\"{}\"}}", "x".repeat(100_000_000));
        if let Ok(answer) = call("POST", "/vol/create", &[], Some(&token), Some(&huge)) {
            ensure!((400..500).contains(&answer.status), "{}", answer.status);
        }
        cluster.status().map(drop)
    });
}

fn usage_errors(cases: &mut Cases, cluster: &Cluster) {
    for args in [
        &["volume", "create", "--name", "a"][..],
        &["volume", "frobnicate"],
        &["--no-such-flag"],
        &["volume", "get"],
        &["volume", "get", "--name", "a", "--id", "1"],
        &["probe", "http://localhost/"],
    ] {
        cases.case(&format!("usage: scli {}", args.join(" ")), || {
            let out = cluster.scli(args)?;
            ensure!(out.status == Some(2), "exit status 2 is promised: {}", out.told());
            ensure!(out.stdout.is_empty() && !out.stderr.is_empty(), "{}", out.told());
            Ok(())
        });
    }
    for program in ["sdc-nbd", "sds-server", "mdm", "scli"] {
        cases.case(&format!("{program} --version, --help, a wrong flag"), || {
            let path = binary(program)?;
            let out = Command::new(&path).args(["--version"]).ok()?;
            for word in ["wire", "disk", "api"] {
                ensure!(
                    out.stdout.to_lowercase().contains(word),
                    "no {word} version: {}",
                    out.told()
                );
            }
            let out = Command::new(&path).args(["--help"]).ok()?;
            ensure!(out.stdout.contains("--log") || program == "scli", "{}", out.told());
            let out = Command::new(&path).args(["--no-such-flag"]).run()?;
            ensure!(out.status == Some(2) && out.stderr.contains("no-such-flag"), "{}", out.told());
            Ok(())
        });
        if program != "scli" {
            cases.case(&format!("{program} with a configuration that is none"), || {
                let files = Scratch::new()?;
                let config = files.file("bad.toml");
                std::fs::write(&config, "this is = = no TOML\n")?;
                let path = binary(program)?;
                let out =
                    Command::new(&path).args(["--check-config", "--config", &config]).run()?;
                ensure!(
                    out.status.is_some_and(|s| s != 0) && out.stderr.contains("bad.toml"),
                    "{}",
                    out.told()
                );
                std::fs::write(&config, "no_such_option = 1\n")?;
                let out =
                    Command::new(&path).args(["--check-config", "--config", &config]).run()?;
                let named = out.stderr.contains("no_such_option");
                ensure!(out.status.is_some_and(|s| s != 0) && named, "{}", out.told());
                Ok(())
            });
        }
    }
}

fn daemon_errors(cases: &mut Cases, cluster: &Cluster) {
    for name in ["mdm1", "sds1", "sdc1"] {
        cases.case(&format!("a second {name} on the same data"), || {
            let m = cluster.member(name)?;
            let out = run_command(&m)?;
            ensure!(out.status.is_some_and(|s| s != 0), "it ended well: {}", out.told());
            ensure!(
                out.all().contains(&m.pid.to_string()),
                "pid {} of the first is not named: {}",
                m.pid,
                out.told()
            );
            cluster.expect_all_running()
        });
    }
    cases.case("a missing device", || {
        device_trouble(
            cluster,
            &["does not exist", "not exist", "no such file", "missing"],
            |path, aside| Ok(std::fs::rename(path, aside)?),
        )
    });
    cases.case("a directory in place of the device", || {
        device_trouble(cluster, &["directory", "regular file", "block device"], |path, aside| {
            std::fs::rename(path, aside)?;
            Ok(std::fs::create_dir(path)?)
        })
    });
    cases.case("an empty file in place of the device", || {
        device_trouble(cluster, &["device", "size", "small", "empty", "format"], |path, aside| {
            std::fs::rename(path, aside)?;
            Ok(std::fs::write(path, b"")?)
        })
    });
    cases.case("a device of another cluster", || other_clusters_device(cluster));
    cases.case("a port in use", || {
        let url = cluster.info("api")?;
        let address = url.trim_start_matches("http://").trim_end_matches('/').to_string();
        cluster.stop("mdm1")?;
        let squatter = wait_until("the port", Duration::from_secs(5), || {
            Ok(std::net::TcpListener::bind(&address).ok())
        })?;
        let out = cluster.try_member("start", "mdm1");
        drop(squatter);
        let again = cluster.start("mdm1");
        let out = out?;
        ensure!(out.status != Some(0), "it started on a port in use: {}", out.told());
        let log = read_log(&cluster.member("mdm1")?);
        let said = format!("{}{log}", out.all()).to_lowercase();
        let port = address.rsplit(':').next().unwrap_or_default().to_string();
        ensure!(
            said.contains("in use") && said.contains(&port),
            "no word of port {port} in use: {}",
            out.told()
        );
        again
    });
}

/// Runs a member's command line; a daemon that refuses ends by itself.
fn run_command(m: &Member) -> Res<Output> {
    let Some((program, args)) = m.command.split_first() else { fail!("{} has no command", m.name) };
    Command::new(program).args(args).limit(Duration::from_secs(15)).run()
}

fn read_log(m: &Member) -> String {
    let bytes = std::fs::read(&m.log).unwrap_or_default();
    command::tail(&String::from_utf8_lossy(&bytes)).to_string()
}

/// Does something to the device of sds1 and runs sds1: it must end with a message that names the path and one of the words, or
/// go on without that device and say so. Then all is put back and must heal.
fn device_trouble(
    cluster: &Cluster,
    words: &[&str],
    harm: impl FnOnce(&str, &str) -> Res<()>,
) -> Res<()> {
    let m = cluster.member("sds1")?;
    let Some(path) = m.devices.first().cloned() else { fail!("sds1 has no device") };
    let aside = format!("{path}.aside");
    cluster.stop("sds1")?;
    let seen = harm(&path, &aside).and_then(|()| cluster.try_member("start", "sds1"));
    let log = read_log(&m);
    // Put everything back, whatever happened.
    if let Err(e) = cluster.stop("sds1") {
        eprintln!("  sds1 was not running: {e}");
    }
    if std::path::Path::new(&aside).exists() {
        if std::path::Path::new(&path).is_dir() {
            std::fs::remove_dir(&path)?;
        }
        std::fs::rename(&aside, &path)?;
    }
    let healed =
        cluster.start("sds1").and_then(|()| cluster.wait_health("ok", Duration::from_secs(60)));
    let out = seen?;
    let said = format!("{}{log}", out.all());
    ensure!(said.contains(&path), "no message names {path}: {said}");
    let lower = said.to_lowercase();
    ensure!(words.iter().any(|w| lower.contains(w)), "none of {words:?} is said: {said}");
    healed
}

fn other_clusters_device(cluster: &Cluster) -> Res<()> {
    let options = ClusterOptions { sds: 2, device_size: "512MiB", ..ClusterOptions::default() };
    let files = Scratch::in_memory()?;
    let copy = files.file("other");
    with_cluster(options, |other| {
        let uri = other.new_volume("theirs", "16MiB", "sdc1")?;
        nbd::Connection::open(&uri)?.write_at(0, &[0x77; 65536])?;
        other.down()?;
        let Some(path) = other.member("sds1")?.devices.first().cloned() else { fail!("no device") };
        Command::new("cp").args(["--sparse=always", &path, &copy]).ok().map(drop)
    })?;
    let before = std::fs::metadata(&copy)?.modified()?;
    device_trouble(cluster, &["cluster"], |path, aside| {
        std::fs::rename(path, aside)?;
        Ok(std::os::unix::fs::symlink(&copy, path)?)
    })?;
    ensure!(
        std::fs::metadata(&copy)?.modified()? == before,
        "the other cluster's device was written to"
    );
    Ok(())
}
