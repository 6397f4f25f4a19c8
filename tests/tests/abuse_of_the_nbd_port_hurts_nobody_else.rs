//! What no client should do is answered as the NBD specification says, or ends that connection alone. A well-behaved client runs
//! beside it all the time and sees no error and no stall.

use quarry_tests::nbd::consts::*;
use quarry_tests::nbd::handshake::info_request;
use quarry_tests::nbd::raw::{request_header, Raw, Take};
use quarry_tests::*;
use std::io::{Read, Write};
use std::time::Duration;

const FLAGS: u32 = (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) as u32;
const SIZE: u64 = 256 << 20;

#[test]
fn abuse_of_the_nbd_port_hurts_nobody_else() -> Res<()> {
    with_cluster(ClusterOptions::default(), |cluster| {
        let uri = cluster.new_volume("abuse", "256MiB", "sdc1")?;
        let history = History::new(7);
        let spec = LoadSpec::new(&uri).area(Area::spread(32, 8)).width(2, 4);
        let load = Load::start(LoadSpec { most_per_second: 2000, ..spec }, &history)?;
        let mut cases = Cases::new();
        handshake(&mut cases, &uri);
        transmission(&mut cases, &uri);
        vanishing(&mut cases, &uri);
        crowds(&mut cases, &uri);
        load.run_requests(500, Duration::from_secs(20))?;
        let report = load.stop();
        eprintln!("  beside it: {report}");
        cases.case("the well-behaved client saw nothing of it", || {
            report.expect_no_error()?;
            report.expect_stall_below(Duration::from_secs(2))?;
            history.final_read(&uri)?;
            check::verify(&history).expect_clean()?;
            cluster.expect_all_running()
        });
        cases.finish()
    })
}

fn handshake(cases: &mut Cases, uri: &Uri) {
    cases.case("unknown client flags end the connection", || {
        Raw::greeted(uri, 0xFFFF_0000 | FLAGS)?.expect_closed()
    });
    cases.case("a wrong option magic ends the connection", || {
        let mut r = Raw::greeted(uri, FLAGS)?;
        r.send(&[0x55; 16])?;
        r.expect_closed()
    });
    cases.case("unknown options are refused and the next one works", || {
        let mut r = Raw::greeted(uri, FLAGS)?;
        for option in [0, 4, 99, 0x7777_7777, u32::MAX] {
            r.option(option, b"data of an unknown option")?;
            let (kind, _) = r.option_reply(option)?;
            ensure!(kind == REP_ERR_UNSUP, "option {option} was answered with {kind:#x}");
        }
        r.option(OPT_INFO, &info_request(&uri.name, &[])?)?;
        ensure!(r.option_reply(OPT_INFO)?.0 == REP_INFO, "INFO after unknown options");
        Ok(())
    });
    cases.case("TLS is refused while there is none", || {
        let mut r = Raw::greeted(uri, FLAGS)?;
        r.option(OPT_STARTTLS, &[])?;
        let (kind, _) = r.option_reply(OPT_STARTTLS)?;
        ensure!(
            matches!(kind, REP_ERR_UNSUP | REP_ERR_POLICY),
            "STARTTLS was answered with {kind:#x}"
        );
        Ok(())
    });
    cases.case("malformed GO is invalid, an unknown name is unknown", || {
        let mut r = Raw::greeted(uri, FLAGS)?;
        let name_too_long = [&1000u32.to_be_bytes()[..], b"short", &[0, 0]].concat();
        for bad in [&[][..], &[0, 0], &name_too_long, &[0, 0, 0, 0, 0, 9, 0, 3]] {
            r.option(OPT_GO, bad)?;
            let (kind, _) = r.option_reply(OPT_GO)?;
            ensure!(kind == REP_ERR_INVALID, "GO {bad:?} was answered with {kind:#x}");
        }
        r.option(OPT_GO, &info_request("no-such-volume", &[])?)?;
        let (kind, _) = r.option_reply(OPT_GO)?;
        ensure!(kind == REP_ERR_UNKNOWN, "an unknown name was answered with {kind:#x}");
        Ok(())
    });
    cases.case("EXPORT_NAME of nothing ends the connection", || {
        let mut r = Raw::greeted(uri, FLAGS)?;
        r.option(OPT_EXPORT_NAME, b"no-such-volume")?;
        r.expect_closed()
    });
    cases.case("options with data where none belongs are invalid", || {
        let mut r = Raw::greeted(uri, FLAGS)?;
        for option in [OPT_LIST, OPT_STRUCTURED_REPLY] {
            r.option(option, b"surplus")?;
            let (kind, _) = r.option_reply(option)?;
            ensure!(
                kind == REP_ERR_INVALID,
                "option {option} with data was answered with {kind:#x}"
            );
        }
        Ok(())
    });
    cases.case("meta contexts without structured replies are refused", || {
        let mut r = Raw::greeted(uri, FLAGS)?;
        let mut data = u32::try_from(uri.name.len())?.to_be_bytes().to_vec();
        data.extend(uri.name.as_bytes());
        data.extend(0u32.to_be_bytes());
        r.option(OPT_SET_META_CONTEXT, &data)?;
        let (kind, _) = r.option_reply(OPT_SET_META_CONTEXT)?;
        ensure!(kind & REP_ERR != 0, "SET_META_CONTEXT was answered with {kind:#x}");
        Ok(())
    });
    cases.case("an option that claims 4 GiB takes no memory", || {
        let mut r = Raw::greeted(uri, FLAGS)?;
        r.option_header(OPT_GO, u32::MAX)?;
        // It may refuse at once or end the connection; it must not wait for 4 GiB to answer.
        let mut answer = [0; 1];
        match r.stream.read(&mut answer) {
            Ok(0 | 1) => Ok(()),
            Ok(n) => fail!("{n} bytes in a buffer of one"),
            Err(e) => fail!("neither refused nor closed: {e}"),
        }
    });
    cases.case("many options in a row are answered or the connection ends", || {
        let mut r = Raw::greeted(uri, FLAGS)?;
        for _ in 0..5000 {
            if r.option(OPT_LIST, &[]).is_err() {
                return Ok(());
            }
            loop {
                match r.option_reply(OPT_LIST) {
                    Ok((REP_ACK, _)) => break,
                    Ok((REP_SERVER, _)) => {}
                    Ok((kind, _)) => fail!("LIST was answered with {kind:#x}"),
                    Err(_) => return Ok(()),
                }
            }
        }
        Ok(())
    });
    cases.case("ABORT is acknowledged and ends the connection", || {
        let mut r = Raw::greeted(uri, FLAGS)?;
        r.option(OPT_ABORT, &[])?;
        ensure!(r.option_reply(OPT_ABORT)?.0 == REP_ACK, "ABORT");
        r.expect_closed()
    });
}

fn transmission(cases: &mut Cases, uri: &Uri) {
    cases.case("EXPORT_NAME works, and a wrong request magic ends the connection", || {
        let (mut r, size) = Raw::transmission(uri)?;
        ensure!(size == SIZE, "size {size}");
        r.send(&request_header(0xDEAD_BEEF, 0, CMD_READ, 1, 0, 512))?;
        r.expect_closed()
    });
    cases.case("unknown commands, flags and ranges are errors of that request alone", || {
        let (mut r, _) = Raw::transmission(uri)?;
        let max = 1 << 20;
        // flags, command, offset, length, allowed errors
        let bad: &[(u16, u16, u64, u32, &[u32])] = &[
            (0, 99, 0, 512, &[EINVAL, ENOTSUP]),
            (0, u16::MAX, 0, 0, &[EINVAL, ENOTSUP]),
            (0x8000, CMD_READ, 0, 512, &[EINVAL]),
            (0, CMD_READ, SIZE, 512, &[EINVAL]),
            (0, CMD_READ, SIZE - 512, 1024, &[EINVAL]),
            (0, CMD_READ, u64::MAX - 511, 512, &[EINVAL]),
            (0, CMD_READ, 1 << 63, max, &[EINVAL]),
            (0, CMD_READ, 0, u32::MAX, &[EINVAL, EOVERFLOW]),
            (0, CMD_TRIM, SIZE, 4096, &[EINVAL, ENOSPC]),
            (0, CMD_TRIM, 0, u32::MAX, &[EINVAL, ENOSPC, EOVERFLOW]),
            (0, CMD_WRITE_ZEROES, SIZE - 4096, 8192, &[EINVAL, ENOSPC]),
            (0, CMD_CACHE, SIZE, 4096, &[EINVAL]),
            // Without structured replies and a meta context.
            (0, CMD_BLOCK_STATUS, 0, 4096, &[EINVAL]),
            (CMD_FLAG_DF, CMD_READ, 0, 4096, &[EINVAL]),
        ];
        for (n, &(flags, kind, offset, len, allowed)) in (1u64..).zip(bad) {
            r.request(flags, kind, n, offset, len)?;
            let (error, cookie) = r.simple_reply().map_err(|e| {
                e.within(format!("command {kind}, flags {flags:#x}, offset {offset}, length {len}"))
            })?;
            ensure!(cookie == n, "an answer to {cookie}, not {n}");
            ensure!(
                allowed.contains(&error),
                "command {kind}, flags {flags:#x}, offset {offset}, length {len}: error {error}, not {allowed:?}"
            );
        }
        r.request(0, CMD_READ, 77, 0, 512)?;
        ensure!(r.simple_reply()? == (0, 77), "a good read after the bad ones");
        r.take_bytes(512).map(drop)
    });
    cases.case("a write out of range is refused and its data skipped", || {
        let (mut r, _) = Raw::transmission(uri)?;
        r.request(0, CMD_WRITE, 5, SIZE - 512, 8192)?;
        r.send(&[0xAB; 8192])?;
        let (error, cookie) = r.simple_reply()?;
        ensure!(cookie == 5 && matches!(error, ENOSPC | EINVAL), "error {error} to {cookie}");
        r.request(0, CMD_FLUSH, 6, 0, 0)?;
        ensure!(r.simple_reply()? == (0, 6), "a flush after it");
        Ok(())
    });
    cases.case("an oversize write is refused or ends the connection", || {
        let (mut r, _) = Raw::transmission(uri)?;
        r.request(0, CMD_WRITE, 5, 0, 1 << 30)?;
        let chunk = vec![0; 1 << 20];
        for _ in 0..64 {
            if r.stream.write_all(&chunk).is_err() {
                return Ok(());
            }
        }
        // It may be reading on to skip it all; nobody else must suffer meanwhile.
        Ok(())
    });
    cases.case("unaligned requests work or are invalid", || {
        let min = nbd::Connection::open(uri)?.export.blocks.map_or(1, |b| b.0);
        let (mut r, _) = Raw::transmission(uri)?;
        r.request(0, CMD_READ, 9, 200 << 20 | 3, 7)?;
        match r.simple_reply()? {
            (0, 9) if min == 1 => r.take_bytes(7).map(drop),
            (EINVAL, 9) if min > 1 => Ok(()),
            other => fail!("minimum block size {min}, and an unaligned read gives {other:?}"),
        }
    });
    cases.case("the same cookie twice is answered twice", || {
        let (mut r, _) = Raw::transmission(uri)?;
        for _ in 0..2 {
            r.request(0, CMD_FLUSH, 1, 0, 0)?;
        }
        ensure!(r.simple_reply()? == (0, 1) && r.simple_reply()? == (0, 1), "two flushes");
        Ok(())
    });
}

fn vanishing(cases: &mut Cases, uri: &Uri) {
    for (name, goodbye) in [("a goodbye", true), ("half-closed without a goodbye", false)] {
        cases.case(&format!("{name}: outstanding requests are answered, then it ends"), || {
            let (mut r, _) = Raw::transmission(uri)?;
            for n in 0..16u64 {
                r.request(0, CMD_READ, n, (200 << 20) + n * 4096, 4096)?;
            }
            if goodbye {
                r.request(0, CMD_DISC, 99, 0, 0)?;
            } else {
                r.half_close()?;
            }
            let mut answered = 0;
            while let Ok((error, _)) = r.simple_reply() {
                ensure!(error == 0, "error {error}");
                r.take_bytes(4096)?;
                answered += 1;
            }
            // Only after a goodbye does the specification promise the answers.
            ensure!(answered == 16 || !goodbye, "{answered} of 16 answers came");
            r.expect_closed()
        });
    }
    cases.case("vanishing with requests in flight, in every state", || {
        for round in 0..40usize {
            let Ok((mut r, _)) = Raw::transmission(uri) else {
                fail!("round {round}: no connection")
            };
            for n in 0..32u64 {
                r.request(0, CMD_READ, n, (100 << 20) + n * (1 << 20), 1 << 20)?;
            }
            r.request(0, CMD_WRITE, 99, 200 << 20, 1 << 20)?;
            r.send(&vec![1; round * 26_000])?;
            drop(r);
        }
        for cut in [0, 1, 8, 15, 17] {
            let mut r = Raw::greeted(uri, FLAGS)?;
            r.send(&IHAVEOPT.to_be_bytes().repeat(3)[..cut])?;
        }
        for _ in 0..20 {
            Raw::connect(uri)?;
        }
        Ok(())
    });
    cases.case("a slow reader with much to read", || {
        let (mut r, _) = Raw::transmission(uri)?;
        r.stream.set_timeout(Duration::from_secs(1))?;
        // Asks until nothing is taken any more (back-pressure) or 400 MiB are outstanding, and reads nothing.
        let header =
            |n: u64| request_header(REQUEST_MAGIC, 0, CMD_READ, n, (n % 200) << 20, 1 << 20);
        let taken = (0..400u64).take_while(|&n| r.stream.write_all(&header(n)).is_ok()).count();
        std::thread::sleep(Duration::from_secs(1));
        // Late, but all of it comes; a header cut by the back-pressure ends the test here.
        r.stream.set_timeout(Duration::from_secs(10))?;
        for _ in 0..taken.min(50) {
            let (error, _) = r.simple_reply()?;
            ensure!(error == 0, "error {error}");
            r.take_bytes(1 << 20)?;
        }
        Ok(())
    });
}

/// Room for the crowd in this process.
fn more_files() -> Res<()> {
    use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
    let now = getrlimit(Resource::Nofile);
    let wanted = now.maximum.map_or(4096, |most| most.min(4096));
    ensure!(wanted >= 1500, "{wanted} open files are too few for a crowd of connections");
    if now.current.is_some_and(|n| n < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: now.maximum })?;
    }
    Ok(())
}

fn crowds(cases: &mut Cases, uri: &Uri) {
    cases.case(
        "1,000 connections, greeted and then idle, and one more that works beside them",
        || {
            more_files()?;
            let mut open = Vec::new();
            for n in 0..1000 {
                let r = Raw::greeted(uri, FLAGS);
                open.push(r.map_err(|e| e.within(format!("connection {n} of 1000")))?);
            }
            nbd::Connection::open(uri)?.read_at(0, 4096)?;
            // Each is still served.
            for r in open.iter_mut().step_by(100) {
                r.option(OPT_INFO, &info_request(&uri.name, &[])?)?;
                ensure!(r.option_reply(OPT_INFO)?.0 == REP_INFO, "INFO in a crowd");
            }
            Ok(())
        },
    );
    cases.case("beyond the limit connections are closed, and room comes back", || {
        let mut open = Vec::new();
        for _ in 0..1100 {
            open.push(Raw::connect(uri)?);
        }
        for r in &open {
            r.stream.set_timeout(Duration::from_secs(5))?;
        }
        let greeted = open.iter_mut().filter_map(|r| r.u64().ok()).count();
        ensure!((1000..1100).contains(&greeted), "{greeted} of 1100 connections were greeted");
        drop(open);
        wait_until("a connection after the crowd", Duration::from_secs(5), || {
            nbd::Connection::open(uri)?.read_at(0, 4096)?;
            Ok(Some(()))
        })
    });
    cases.case("many connections in transmission, each works", || {
        let mut open = Vec::new();
        for _ in 0..64 {
            open.push(nbd::Connection::open(uri)?);
        }
        for c in &mut open {
            c.read_at(0, 4096)?;
        }
        for c in open {
            c.disconnect()?;
        }
        Ok(())
    });
    cases.case("random bytes", || {
        let mut rng = rng::Rng::new(99);
        for round in 0..60 {
            let bytes: Vec<u8> = (0..500).flat_map(|_| rng.next_u64().to_le_bytes()).collect();
            let mut r = if round % 2 == 0 { Raw::connect(uri)? } else { Raw::greeted(uri, FLAGS)? };
            // The server may have closed before all was sent.
            if r.send(&bytes).is_ok() && r.half_close().is_ok() {
                r.expect_closed()?;
            }
        }
        Ok(())
    });
}
