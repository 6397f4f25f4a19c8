//! Writes to a metadata store and says what was acknowledged, for the test that cuts the power meanwhile.
//!
//! `meta-writer ours|raw write DIR` appends entry after entry for ever and prints the index of each once it is
//! acknowledged; `raw` is sled alone with its `flush`, `ours` the store of the daemon. `... read DIR` prints the
//! index of the last entry that is there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mdm::log::{MetaStore, SledStore};
use std::io::Write;
use std::path::Path;

fn entry(index: u64) -> Vec<u8> {
    index.to_le_bytes().repeat(40)
}

fn say(index: u64) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{index}").and_then(|()| out.flush()).expect("somebody listens");
}

fn ours(dir: &Path, write: bool) {
    let mut s = SledStore::open(dir).expect("the store opens");
    let there = s.load().expect("the store reads").entries;
    let mut last = 0;
    for (index, bytes) in there {
        assert!(
            index == last + 1 && bytes == entry(index),
            "entry {index} is not what was written"
        );
        last = index;
    }
    if !write {
        return say(last);
    }
    loop {
        last += 1;
        s.append(&[(last, entry(last))]).expect("an append");
        say(last);
    }
}

fn raw(dir: &Path, write: bool) {
    let db = sled::Config::new().path(dir).flush_every_ms(None).open().expect("sled opens");
    let last = db.iter().keys().filter_map(Result::ok).next_back();
    let mut last = last.map_or(0, |k| u64::from_be_bytes(k.as_ref().try_into().expect("8 bytes")));
    if !write {
        return say(last);
    }
    loop {
        last += 1;
        db.insert(last.to_be_bytes(), entry(last)).expect("an insert");
        db.flush().expect("a flush");
        say(last);
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [which, what, dir] = args.as_slice() else { panic!("ours|raw write|read DIR") };
    let (dir, write) = (Path::new(dir), what == "write");
    match which.as_str() {
        "ours" => ours(dir, write),
        _ => raw(dir, write),
    }
}
