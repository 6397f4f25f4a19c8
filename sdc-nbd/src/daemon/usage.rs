//! Who uses a volume here, asked before an unmap that is not to cut anybody off.
//!
//! A use is a kernel device that is mounted, open, used as swap or stacked upon, and an NBD client that is connected and
//! has written lately or waits for an answer. A client that is connected and idle is none: it may be left behind by
//! something that has finished. What is seen once is looked for again a moment later: programs that look
//! at new block devices open them briefly, and a client's end takes a moment to be noticed.

use super::meters::{Meters, Traffic};
use super::owner::Owner;
use crate::kernel::holders::held;
use crate::kernel::Roots;
use quarry_base::VolumeId;
use quarry_control::FromNode;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How long ago a client may have written and still count as one that writes.
const LATELY: Duration = Duration::from_secs(2);
/// Between the two looks.
const AGAIN: Duration = Duration::from_millis(300);

/// What was seen of a volume's changes.
#[derive(Clone, Copy)]
struct Seen {
    changes: u64,
    /// When they grew last.
    grew: Option<Instant>,
}

/// Follows what is written, answers who uses a volume.
pub struct Usage {
    meters: Meters,
    owner: Owner,
    seen: Arc<Mutex<HashMap<VolumeId, Seen>>>,
}

impl Usage {
    pub fn new(meters: Meters) -> Usage {
        Usage { meters, owner: Owner::default(), seen: Arc::default() }
    }

    /// Whose kernel devices are looked at.
    pub fn set_owner(&mut self, owner: Owner) {
        self.owner = owner;
    }

    /// With every heartbeat.
    pub fn beat(&self) {
        let now = Instant::now();
        let traffic = self.meters.traffic();
        let mut seen = self.seen.lock().unwrap_or_else(|e| e.into_inner());
        seen.retain(|id, _| traffic.iter().any(|(t, _)| t == id));
        for (id, t) in traffic {
            // One that is new here began to count from nothing.
            let s = seen.entry(id).or_insert(Seen { changes: 0, grew: None });
            if t.changes != s.changes {
                *s = Seen { changes: t.changes, grew: Some(now) };
            }
        }
    }

    /// Sends the answer as soon as it is known.
    pub fn answer(&self, request: u64, volume: VolumeId, to_mdm: mpsc::Sender<FromNode>) {
        let look = Look {
            meters: self.meters.clone(),
            seen: Arc::clone(&self.seen),
            owner: self.owner.clone(),
            volume,
        };
        tokio::spawn(async move {
            let mut users = look.once().await;
            if !users.is_empty() {
                tokio::time::sleep(AGAIN).await;
                users = look.once().await;
            }
            // Full, or no session: the MDM does not wait for ever.
            to_mdm.try_send(FromNode::Users { request, users }).ok();
        });
    }
}

/// Everything a look needs.
struct Look {
    meters: Meters,
    seen: Arc<Mutex<HashMap<VolumeId, Seen>>>,
    owner: Owner,
    volume: VolumeId,
}

impl Look {
    async fn once(&self) -> Vec<String> {
        let (owner, volume) = (self.owner.clone(), self.volume);
        let of_kernel = tokio::task::spawn_blocking(move || {
            let roots = Roots::default();
            let devices: Vec<u32> = owner.left_of(&roots, volume).iter().map(|l| l.index).collect();
            held(&roots, &devices)
        });
        // It ends by a panic only, and then nothing is known.
        let mut users = of_kernel.await.unwrap_or_default();
        users.extend(self.clients());
        users
    }

    fn clients(&self) -> Option<String> {
        let all = self.meters.traffic();
        let t = all.iter().find(|(id, _)| *id == self.volume)?.1;
        let seen = self.seen.lock().unwrap_or_else(|e| e.into_inner()).get(&self.volume).copied();
        active(t, seen, Instant::now())
    }
}

fn active(t: Traffic, seen: Option<Seen>, now: Instant) -> Option<String> {
    let fresh = |s: Seen| s.changes != t.changes || s.grew.is_some_and(|at| now - at < LATELY);
    let writes = seen.map_or(t.changes > 0, fresh);
    if t.clients == 0 || !(writes || t.in_flight) {
        return None;
    }
    let s = if t.clients == 1 { "" } else { "s" };
    let what = if writes { "written within the last 2 s" } else { "requests in flight" };
    Some(format!("{} NBD client{s} connected, {what}", t.clients))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_counts_while_it_is_connected_and_writes_or_waits() {
        let now = Instant::now() + LATELY * 2;
        let idle = Traffic { clients: 1, changes: 7, in_flight: false };
        let seen = |grew| Some(Seen { changes: 7, grew });
        assert!(active(idle, None, now).is_some(), "no heartbeat since it was mapped");
        assert_eq!(active(Traffic { changes: 0, ..idle }, None, now), None);
        assert_eq!(active(idle, seen(None), now), None);
        assert_eq!(active(idle, seen(Some(now - LATELY)), now), None, "it wrote long ago");
        let just = Some(now - LATELY / 2);
        assert!(active(idle, seen(just), now).unwrap().contains("1 NBD client connected"));
        let more = Traffic { changes: 8, ..idle };
        assert!(active(more, seen(None), now).is_some(), "it wrote since the last heartbeat");
        let waits = Traffic { clients: 2, in_flight: true, ..idle };
        assert!(active(waits, seen(None), now).unwrap().contains("2 NBD clients"));
        let gone = Traffic { clients: 0, in_flight: true, ..idle };
        assert_eq!(active(gone, seen(just), now), None, "it has left");
    }
}
