//! Connections that are there and dead: hosts that vanished without a word.

use crate::links::hello_frame;
use crate::{Action, Engine, EngineConfig, Event, Limits, LinkId, LinkKind};
use quarry_base::{DeviceId, Instance, Nanos, SdcId, SdsId, StartNo};
use quarry_wire::{Change, Hello, Peer, SdsInfo, WIRE_VERSION};
use std::time::Duration;

const PEER: SdsId = SdsId(2);

/// Server 1, which leads a group with a member on server 2.
struct Here {
    e: Engine,
    now: Nanos,
    out: Vec<Action>,
}

impl Here {
    fn new() -> Here {
        let cfg = EngineConfig { cluster: "c".into(), limits: Limits::default() };
        let mut h = Here { e: Engine::new(cfg), now: Nanos(1), out: Vec::new() };
        h.step(Event::Registered { sds: SdsId(1), start: StartNo(1) });
        h.e.links.add_ref(PEER, h.now);
        h
    }

    fn step(&mut self, ev: Event) {
        self.e.step(self.now, ev, &mut self.out);
        self.e.flush(self.now, &mut self.out);
    }

    /// Lets time pass, with a look as often as is asked for.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.e.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.e.flush(self.now, &mut self.out);
        }
        self.now = end;
    }

    fn hello(&mut self, link: LinkId, peer: Peer) {
        let versions = (WIRE_VERSION, WIRE_VERSION);
        let h = Hello { versions, cluster: "c".into(), peer, device: DeviceId(0), auth: None };
        self.step(Event::Frame { link, frame: hello_frame(&h) });
    }

    /// Our two connections to server 2 stand, to a process with this start number.
    fn connected(&mut self, start: u64) {
        for (link, kind) in [(1, LinkKind::Data), (2, LinkKind::Heartbeat)] {
            self.step(Event::Dialled { link, sds: PEER, kind });
            self.hello(link, Peer::Sds { id: PEER, start: StartNo(start) });
        }
        self.out.clear();
    }

    fn closed(&mut self) -> Vec<LinkId> {
        let of = |a: &Action| match a {
            Action::Close { link } => Some(*link),
            _ => None,
        };
        let v = self.out.iter().filter_map(of).collect();
        self.out.clear();
        v
    }
}

#[test]
fn a_lease_connection_on_which_nothing_is_answered_is_made_anew() {
    let mut h = Here::new();
    h.connected(1);
    h.pass(Duration::from_millis(2900));
    assert_eq!(h.closed(), [0; 0]);
    h.pass(Duration::from_millis(600));
    let again = |a: &Action| matches!(a, Action::Dial { sds: PEER, kind: LinkKind::Heartbeat });
    assert_eq!(h.out.iter().filter(|a| again(a)).count(), 1);
    assert_eq!(h.closed(), [2]);
}

#[test]
fn connections_to_an_earlier_process_of_a_server_end_when_its_next_one_is_met() {
    let mut h = Here::new();
    h.connected(1);
    let (id, start) = (PEER, StartNo(2));
    let (name, host) = ("s".to_string(), "h".to_string());
    let info = SdsInfo { id, name, start, up: true, host, endpoints: Vec::new() };
    h.step(Event::Changes { index: quarry_base::ConfigIndex(9), changes: vec![Change::Sds(info)] });
    assert_eq!(h.closed(), [1, 2], "told by the MDM");
    let mut h = Here::new();
    h.connected(1);
    h.step(Event::Accepted { link: 3 });
    h.hello(3, Peer::SdsHeartbeat { id: PEER, start: StartNo(2) });
    assert_eq!(h.closed(), [1, 2], "it came itself");
    let mut h = Here::new();
    h.connected(2);
    h.step(Event::Accepted { link: 3 });
    h.hello(3, Peer::Sds { id: PEER, start: StartNo(2) });
    assert_eq!(h.closed(), [0; 0], "it is the one we know");
}

#[test]
fn who_does_not_introduce_himself_is_shown_out() {
    let mut h = Here::new();
    h.step(Event::Accepted { link: 3 });
    h.step(Event::Accepted { link: 4 });
    h.hello(4, Peer::Sdc { id: SdcId(1), instance: Instance(1) });
    h.step(Event::Dialled { link: 5, sds: PEER, kind: LinkKind::Data });
    h.out.clear();
    h.pass(Duration::from_millis(4900));
    assert_eq!(h.closed(), [0; 0]);
    h.pass(Duration::from_millis(200));
    assert_eq!(h.closed(), [3, 5], "neither a stranger nor a server that does not answer");
}
