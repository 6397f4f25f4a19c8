//! `sdctab`: what it names is mapped when the client starts, systemd hears of it then and not before, and a bad line is named with
//! its number while the others are served.

use quarry_tests::*;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

#[test]
fn a_clients_table_of_volumes_is_mapped_when_it_starts() -> Res<()> {
    with_cluster(ClusterOptions { sds: 2, ..ClusterOptions::default() }, |cluster| {
        for name in ["tab1", "tab2"] {
            cluster.scli_json(["volume", "create", "--name", name, "--size", "16MiB"])?;
        }
        let files = Scratch::new()?;
        let (table, notify) = (files.file("sdctab"), files.file("notify"));
        let systemd = UnixDatagram::bind(&notify)?;
        systemd.set_read_timeout(Some(Duration::from_secs(20)))?;
        cluster.stop("sdc1")?;

        std::fs::write(&table, "# at start\ntab1 socket\ntab2\tsocket\tro  # a copy\n")?;
        start(cluster, &table, &notify)?;
        let mut said = [0u8; 64];
        let n = systemd.recv(&mut said)?;
        ensure!(&said[..n] == b"READY=1", "systemd heard {:?}", &said[..n]);
        // Ready means there: nothing is waited for here.
        let (one, two) = (uri(cluster, "tab1")?, uri(cluster, "tab2")?);
        let mut c = nbd::Connection::open(&one)?;
        c.write_at(4096, &[5; 4096])?;
        ensure!(c.read_at(4096, 4096)? == [5; 4096], "what was written");
        let flags = nbd::Connection::open(&two)?.export.flags;
        ensure!(flags & nbd::consts::READ_ONLY != 0, "tab2 is not read-only: {flags:#x}");
        cluster.stop("sdc1")?;
        let n = systemd.recv(&mut said)?;
        ensure!(&said[..n] == b"STOPPING=1", "systemd heard {:?}", &said[..n]);

        // Bad lines: each is named, by a check beforehand and by the daemon, which serves the others.
        std::fs::write(&table, "tab1 socket\nnosuch socket\n\ntab2 floppy\ntab1 socket\n")?;
        let mut check = cluster.member("sdc1")?.command;
        let program = check.remove(0);
        check.extend(["--check-config".into(), "--sdctab".into(), table.clone()]);
        let out = Command::new(program).args(check).run()?;
        ensure!(out.status == Some(1), "{}", out.told());
        for line in [4, 5] {
            let text = format!("{table}, line {line}: ");
            ensure!(out.stderr.contains(&text), "no '{text}' in {}", out.told());
        }
        start(cluster, &table, &notify)?;
        wait_until("the lines in the log", Duration::from_secs(10), || {
            let log = std::fs::read_to_string(cluster.member("sdc1")?.log)?;
            let wanted = ["line 4: ", "line 5: ", "line 2: there is no volume 'nosuch'"];
            Ok(wanted.iter().all(|w| log.contains(&format!("{table}, {w}"))).then_some(()))
        })?;
        wait_until("the good line's volume", Duration::from_secs(10), || {
            Ok(Some(nbd::Connection::open(&one)?.read_at(4096, 1)?))
        })?;
        Ok(())
    })
}

fn start(cluster: &Cluster, table: &str, notify: &str) -> Res<()> {
    Command::new(cluster::root().join("scripts/cluster"))
        .args(["start", "sdc1", "--dir", &cluster.directory().to_string_lossy()])
        .env("QUARRY_SDCTAB", table)
        .env("NOTIFY_SOCKET", notify)
        .ok()
        .map(drop)
}

/// Where the volume is, as its mapping says; it must be mapped already.
fn uri(cluster: &Cluster, name: &str) -> Res<Uri> {
    let socket = cluster.json()?["socket_dir"].as_str().unwrap_or_default().to_string();
    let all = cluster.scli_json(["volume", "get", "--name", name])?;
    ensure!(all.to_string().contains("sdc1"), "{name} is not mapped: {all}");
    let mut found = Vec::new();
    find(Path::new(&socket), &format!("{name}.sock"), &mut found)?;
    let [path] = &found[..] else { fail!("sockets of {name}: {found:?}") };
    Uri::parse(&format!("nbd+unix:///{name}?socket={path}"))
}

fn find(dir: &Path, name: &str, found: &mut Vec<String>) -> Res<()> {
    for e in std::fs::read_dir(dir)? {
        let e = e?;
        if e.file_type()?.is_dir() {
            find(&e.path(), name, found)?;
        } else if e.file_name().to_string_lossy() == name {
            found.push(e.path().to_string_lossy().into_owned());
        }
    }
    Ok(())
}
