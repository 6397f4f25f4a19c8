//! Random clients, servers, link losses and configuration changes, against a byte array.

use super::fake::*;
use super::*;
use bytes::Bytes;
use proptest::prelude::*;
use quarry_base::*;
use quarry_wire::{Frame, Header, Op, Status};
use std::collections::HashMap;

/// What may happen next; numbers choose among what is there.
#[derive(Clone, Debug)]
enum Act {
    Write(u32, u32, u8),
    Zero(u32, u32),
    Read(u32, u32),
    /// A server takes one of its frames.
    Serve(usize),
    /// ... answers it late, or refuses it for now.
    Accept(usize),
    Answer(usize),
    Refuse(usize),
    Break(usize),
    /// A group moves; the MDM tells, or not yet.
    Move(u32, bool),
    Tell(u32),
    Tick(u16),
}

fn act() -> impl Strategy<Value = Act> {
    let at = 0..(SIZE as u32 - 1);
    let len = prop_oneof![6 => 1u32..600, 4 => 1u32..20_000, 1 => 900_000u32..2_200_000, 4 => Just(4096u32)];
    prop_oneof![
        6 => (at.clone(), len.clone(), 1u8..255).prop_map(|(a, l, f)| Act::Write(a, l, f)),
        1 => (at.clone(), len.clone()).prop_map(|(a, l)| Act::Zero(a, l)),
        4 => (at, len).prop_map(|(a, l)| Act::Read(a, l)),
        10 => any::<usize>().prop_map(Act::Serve),
        4 => any::<usize>().prop_map(Act::Accept),
        4 => any::<usize>().prop_map(Act::Answer),
        1 => any::<usize>().prop_map(Act::Refuse),
        1 => any::<usize>().prop_map(Act::Break),
        1 => (0..PGS, any::<bool>()).prop_map(|(p, t)| Act::Move(p, t)),
        1 => (0..PGS).prop_map(Act::Tell),
        2 => (0u16..60).prop_map(Act::Tick),
    ]
}

struct Run {
    w: World,
    /// Writes applied in order of arrival: what must be there in the end.
    model: Vec<u8>,
    next: u64,
    writes: HashMap<u64, (u64, u64)>,
    /// Reads with what they must give; `None` once a write overlapped in time.
    reads: HashMap<u64, (u64, u64, Option<Vec<u8>>)>,
    /// Executed at a server, answer not delivered.
    late: Vec<(LinkId, Header, Frame)>,
}

impl Run {
    fn clip(at: u32, len: u32) -> (u64, u64) {
        let at = u64::from(at).min(SIZE - 1);
        (at, u64::from(len).min(SIZE - at))
    }

    fn change(&mut self, at: u64, len: u64, fill: u8, op: IoOp) {
        for (a, l, want) in self.reads.values_mut() {
            if *a < at + len && at < *a + *l {
                *want = None;
            }
        }
        self.model[at as usize..(at + len) as usize].fill(fill);
        self.writes.insert(self.next, (at, len));
        self.w.ask_as(self.next % 3, self.next, op);
        self.next += 1;
    }

    fn act(&mut self, a: Act) {
        let nth = |n: usize, of: usize| (of > 0).then(|| n % of.max(1));
        match a {
            Act::Write(a, l, fill) => {
                let (at, len) = Run::clip(a, l);
                let data = Bytes::from(vec![fill; len as usize]);
                self.change(at, len, fill, IoOp::Write { offset: at, data, fua: false });
            }
            Act::Zero(a, l) => {
                let (offset, len) = Run::clip(a, l);
                self.change(
                    offset,
                    len,
                    0,
                    IoOp::Zero { offset, len, no_hole: false, trim: false, fua: false },
                );
            }
            Act::Read(a, l) => {
                let (at, len) = Run::clip(a, l);
                let busy = self.writes.values().any(|(a, l)| *a < at + len && at < *a + *l);
                let want = (!busy).then(|| self.model[at as usize..(at + len) as usize].to_vec());
                self.reads.insert(self.next, (at, len, want));
                self.w.read(self.next, at, len as u32);
                self.next += 1;
            }
            Act::Serve(n) => {
                let busy: Vec<LinkId> = self
                    .w
                    .links
                    .iter()
                    .filter(|(_, l)| !l.inbox.is_empty())
                    .map(|(k, _)| *k)
                    .collect();
                if let Some(i) = nth(n, busy.len()) {
                    self.w.serve(busy[i]);
                }
            }
            Act::Accept(n) | Act::Refuse(n) => {
                let links: Vec<LinkId> = self.w.links.keys().copied().collect();
                let Some(i) = nth(n, links.len()) else { return };
                let link = links[i];
                let data_op = |f: &Frame| matches!(f.header.op, Op::Read | Op::Write | Op::Zero);
                if !self.w.links[&link].inbox.front().is_some_and(data_op) {
                    return;
                }
                let Some(f) = self.w.take(link) else { return };
                let verdict = self.w.judge(link, &f.header);
                let (status, data) = match (verdict, matches!(a, Act::Accept(_))) {
                    (Status::Ok, true) => self.w.execute(&f),
                    (Status::Ok, false) => (Status::TryAgain, Bytes::new()),
                    (s, _) => (s, Bytes::new()),
                };
                let frame = self.w.answer_frame(&f.header, status, data);
                self.late.push((link, f.header, frame));
            }
            Act::Answer(n) => {
                if let Some(i) = nth(n, self.late.len()) {
                    let (link, h, frame) = self.late.remove(i);
                    if self.w.links.contains_key(&link) {
                        self.w.deliver(link, &h, frame);
                    }
                }
            }
            Act::Break(n) => {
                let links: Vec<LinkId> = self.w.links.keys().copied().collect();
                if let Some(i) = nth(n, links.len()) {
                    self.w.break_link(links[i]);
                }
            }
            Act::Move(p, tell) => {
                let id = PgId::new(PoolId(1), p);
                let c = &self.w.configs[&id];
                let to = 3 - c.primary.unwrap().0;
                let c = config(p, c.epoch.0 + 1, to);
                self.w.set_config(c);
                if tell {
                    self.w.tell_config(id);
                }
            }
            Act::Tell(p) => self.w.tell_config(PgId::new(PoolId(1), p)),
            Act::Tick(ms) => self.w.tick(ms.into()),
        }
        self.collect();
    }

    fn collect(&mut self) {
        for (h, r) in std::mem::take(&mut self.w.done) {
            let data = r.unwrap();
            if self.writes.remove(&h).is_some() {
                continue;
            }
            let (at, len, want) = self.reads.remove(&h).unwrap();
            assert_eq!(data.len() as u64, len);
            if let Some(want) = want {
                assert!(data == want, "read of {len} at {at} gave other data");
            }
        }
    }

    fn finish(mut self) {
        for p in 0..PGS {
            self.act(Act::Tell(p));
        }
        for _ in 0..4000 {
            if self.writes.is_empty() && self.reads.is_empty() {
                break;
            }
            while !self.late.is_empty() {
                self.act(Act::Answer(0));
            }
            self.w.settle();
            self.act(Act::Tick(10));
        }
        assert!(self.writes.is_empty() && self.reads.is_empty(), "something never ended");
        assert!(self.w.truth[..SIZE as usize] == self.model[..], "order of arrival was not kept");
        assert_eq!(self.w.e.stats().stale_request + self.w.e.stats().bad_data, 0);
        assert_eq!(
            (self.w.e.requests.len(), self.w.e.parts.len(), self.w.e.load(VOLUME)),
            (0, 0, 0)
        );
        assert!(self.w.e.pgs.list.iter().all(|p| p.in_flight == 0 && p.span() == 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_requests_end_and_the_volume_holds_what_was_written(
        acts in prop::collection::vec(act(), 1..160)
    ) {
        let model = vec![0; SIZE as usize];
        let mut r = Run {
            w: World::ready(), model, next: 1, writes: HashMap::new(), reads: HashMap::new(), late: vec![],
        };
        for a in acts {
            r.act(a);
        }
        r.finish();
    }
}
