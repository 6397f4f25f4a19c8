//! The volumes offered here: a Unix socket each, opened when mapped, closed when not.
//!
//! A slot is reported to the MDM as soon as its socket listens and for as long as anything of the
//! volume is open here; that is what an unmap waits for (R21).

use super::mail::DeviceState;
use super::meters::{Meters, VolumeMeter};
use super::settings::socket_path;
use super::shard::{Tag, Token};
use crate::engine::MappedVolume;
use quarry_base::{Generation, Nanos, VolumeId, PAGE};
use quarry_control::Attachment;
use quarry_nbd_proto::Export;
use quarry_ring::{ListenerId, Reactor};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long clients of an unmapped volume may take to finish what is in flight.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// Wait before a socket that could not be made is tried again.
const SOCKET_RETRY: Duration = Duration::from_secs(1);
/// Largest read or write of a client, bytes.
const MAX_BLOCK: u32 = 32 << 20;
/// Permissions of a volume's socket.
const SOCKET_MODE: u32 = 0o660;

enum State {
    Failed {
        error: String,
        retry_at: Nanos,
    },
    Listening {
        listener: ListenerId,
        path: PathBuf,
    },
    /// What was open when it was unmapped ends until then; it may be mapped again meanwhile.
    Closing {
        deadline: Nanos,
        /// Connections of before that are left.
        sessions: usize,
        /// The kernel device of before is not let go yet.
        device: bool,
    },
}

/// One volume.
pub struct Slot {
    wanted: Option<MappedVolume>,
    generation: Generation,
    state: State,
    pub export: Export,
    pub meter: Arc<VolumeMeter>,
    /// Connections, kernel ones included.
    pub sessions: usize,
    device: DeviceState,
    closings: u32,
}

impl Slot {
    /// How often the volume has been closed here: what came after is not cut with what was before.
    pub fn closings(&self) -> u32 {
        self.closings
    }

    /// Is the volume mapped here? If not, what is open of it only ends.
    pub fn is_wanted(&self) -> bool {
        self.wanted.is_some()
    }

    /// A connection that came after so many closings is gone.
    pub fn session_ended(&mut self, after: u32) {
        self.sessions = self.sessions.saturating_sub(1);
        if let State::Closing { sessions, .. } = &mut self.state {
            *sessions = sessions.saturating_sub(usize::from(after < self.closings));
        }
    }

    /// Connections that have to end before the volume is closed.
    fn ending(&self) -> usize {
        match self.state {
            State::Closing { sessions, .. } if self.wanted.is_some() => sessions,
            State::Closing { .. } => self.sessions,
            State::Failed { .. } | State::Listening { .. } => 0,
        }
    }
}

/// What the caller is to do about a volume's connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Follow {
    Nothing,
    /// The export is another size now.
    Resize(u64),
    /// Let them finish and end.
    End,
}

/// All volumes.
pub struct Exports {
    dir: PathBuf,
    meters: Meters,
    slots: BTreeMap<VolumeId, Slot>,
    stopping: bool,
    /// Every socket listens: nothing is due.
    settled: bool,
    /// The list for the MDM may have changed.
    pub changed: bool,
}

fn export_of(v: &MappedVolume) -> Export {
    Export {
        name: v.name.clone(),
        description: format!("Quarry volume {}", v.id),
        size: v.size_bytes,
        read_only: v.read_only,
        min_block: 1,
        preferred_block: PAGE as u32,
        max_block: MAX_BLOCK,
        multi_conn: true,
    }
}

impl Exports {
    pub fn new(dir: PathBuf, meters: Meters) -> Exports {
        Exports {
            dir,
            meters,
            slots: BTreeMap::new(),
            stopping: false,
            settled: true,
            changed: true,
        }
    }

    pub fn get_mut(&mut self, id: VolumeId) -> Option<&mut Slot> {
        self.slots.get_mut(&id)
    }

    /// A volume was mapped, changed, or (`None`) unmapped.
    pub fn set(
        &mut self,
        reactor: &mut Reactor,
        id: VolumeId,
        wanted: Option<MappedVolume>,
    ) -> Follow {
        self.changed = true;
        self.settled = false;
        let now = reactor.now();
        match (self.slots.get_mut(&id), wanted) {
            (None, None) => Follow::Nothing,
            (None, Some(v)) => {
                let slot = Slot {
                    generation: v.generation,
                    state: State::Failed { error: String::new(), retry_at: now },
                    export: export_of(&v),
                    meter: self.meters.volume(id, &v.name),
                    sessions: 0,
                    closings: 0,
                    device: if v.device { DeviceState::Pending } else { DeviceState::None },
                    wanted: Some(v),
                };
                self.slots.insert(id, slot);
                self.open(reactor, id);
                Follow::Nothing
            }
            (Some(slot), Some(v)) => {
                let resized = slot.export.size != v.size_bytes;
                slot.export = export_of(&v);
                // While what was open under an older mapping ends, it is that one that is reported.
                if !matches!(slot.state, State::Closing { .. }) {
                    slot.generation = v.generation;
                }
                match (&slot.device, v.device) {
                    (DeviceState::None, true) => slot.device = DeviceState::Pending,
                    (DeviceState::Pending | DeviceState::Failed(_), false) => {
                        slot.device = DeviceState::None
                    }
                    _ => {}
                }
                let size = v.size_bytes;
                slot.wanted = Some(v);
                if resized {
                    Follow::Resize(size)
                } else {
                    Follow::Nothing
                }
            }
            (Some(slot), None) => {
                slot.wanted = None;
                slot.closings += 1;
                let closing = State::Closing {
                    deadline: now + CLOSE_GRACE,
                    sessions: slot.sessions,
                    device: slot.device != DeviceState::None,
                };
                if let State::Listening { listener, .. } =
                    std::mem::replace(&mut slot.state, closing)
                {
                    reactor.close_listener(listener);
                }
                Follow::End
            }
        }
    }

    /// Whether the volume has a kernel device.
    pub fn is_attached(&self, id: VolumeId) -> bool {
        self.slots.get(&id).is_some_and(|s| matches!(s.device, DeviceState::Attached(_)))
    }

    /// How it stands with a volume's kernel device.
    pub fn set_device(&mut self, id: VolumeId, state: DeviceState) {
        let Some(s) = self.slots.get_mut(&id) else { return };
        self.changed = true;
        let gone = state == DeviceState::None;
        s.device = match state {
            // The one of before is gone, the next is on its way.
            DeviceState::None if s.wanted.as_ref().is_some_and(|w| w.device) => {
                DeviceState::Pending
            }
            other => other,
        };
        // Only what a worker says at its end: before that it may still take a device over, or fail to.
        if let (true, State::Closing { device, .. }) = (gone, &mut s.state) {
            *device = false;
        }
    }

    /// Makes a volume's socket.
    fn open(&mut self, reactor: &mut Reactor, id: VolumeId) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let Some(v) = &slot.wanted else { return };
        if self.stopping {
            return;
        }
        slot.generation = v.generation;
        let path = socket_path(&self.dir, &v.name, id.0);
        slot.state = match reactor.listen_unix(
            &path,
            SOCKET_MODE,
            Token::make(Tag::Listener, id.0.into()),
        ) {
            Ok(listener) => {
                tracing::info!(volume = %v.name, socket = %path.display(), "volume offered");
                State::Listening { listener, path }
            }
            Err(e) => {
                let error = e.to_string();
                tracing::warn!(volume = %v.name, %error, "a volume's socket cannot be made");
                State::Failed { error, retry_at: reactor.now() + SOCKET_RETRY }
            }
        };
        self.changed = true;
    }

    /// Tries failed sockets again and forgets volumes that are closed. Gives those whose connections
    /// are to be cut now.
    pub fn due(&mut self, reactor: &mut Reactor) -> Vec<VolumeId> {
        let mut cut = Vec::new();
        if self.settled {
            return cut;
        }
        self.settled = self.slots.values().all(|s| matches!(s.state, State::Listening { .. }));
        let now = reactor.now();
        let ids: Vec<VolumeId> = self.slots.keys().copied().collect();
        for id in ids {
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            match slot.state {
                State::Failed { retry_at, .. } if retry_at <= now => self.open(reactor, id),
                State::Closing { device: false, .. } if slot.ending() == 0 => {
                    self.closed(reactor, id)
                }
                State::Closing { deadline, .. } if deadline <= now && slot.ending() > 0 => {
                    cut.push(id)
                }
                _ => {}
            }
        }
        cut
    }

    /// Nothing of the volume is open any more; it may have been mapped again meanwhile.
    fn closed(&mut self, reactor: &mut Reactor, id: VolumeId) {
        self.changed = true;
        let again = self.slots.get(&id).is_some_and(|s| s.wanted.is_some());
        if again {
            self.open(reactor, id);
        } else {
            tracing::info!(volume = %id, "volume closed");
            self.slots.remove(&id);
            self.meters.forget(id);
        }
    }

    /// When [`Exports::due`] has something to do.
    pub fn deadline(&self) -> Option<Nanos> {
        let at = |s: &Slot| match s.state {
            State::Failed { retry_at, .. } => (!self.stopping).then_some(retry_at),
            State::Closing { deadline, .. } => (s.ending() > 0).then_some(deadline),
            State::Listening { .. } => None,
        };
        if self.settled {
            return None;
        }
        self.slots.values().filter_map(at).min()
    }

    /// No new connections from now on.
    pub fn stop(&mut self, reactor: &mut Reactor) {
        self.stopping = true;
        self.settled = false;
        for slot in self.slots.values_mut() {
            if let State::Listening { listener, .. } = slot.state {
                reactor.close_listener(listener);
                slot.closings += 1;
                let (sessions, device) = (slot.sessions, slot.device != DeviceState::None);
                slot.state = State::Closing { deadline: Nanos::MAX, sessions, device };
            }
        }
    }

    /// The list for the MDM: what is open here. A volume whose kernel device is being attached is left
    /// out until that is decided.
    pub fn attachments(&self) -> Vec<Attachment> {
        let shown = |(id, s): (&VolumeId, &Slot)| {
            let (device, device_error) = match &s.device {
                DeviceState::None => (None, None),
                DeviceState::Pending if s.wanted.is_some() => return None,
                DeviceState::Pending => (None, None),
                DeviceState::Attached(path) => (Some(path.clone()), None),
                DeviceState::Failed(why) => (None, Some(why.clone())),
            };
            let (socket, socket_error) = match &s.state {
                State::Listening { path, .. } => (Some(path.clone()), None),
                State::Failed { error, .. } => (None, Some(error.clone())),
                State::Closing { .. } => (None, None),
            };
            let error = socket_error.or(device_error);
            Some(Attachment { volume: *id, generation: s.generation, socket, device, error })
        };
        self.slots.iter().filter_map(shown).collect()
    }
}

/// What one connection may open: its socket's volume, by name or as the default.
pub struct Offer<'a>(pub Option<&'a Export>);

impl quarry_nbd_proto::Exports for Offer<'_> {
    fn lookup(&self, name: &str) -> Option<Export> {
        self.0.filter(|e| name.is_empty() || name == e.name).cloned()
    }
    fn list(&self) -> Vec<(String, String)> {
        self.0.iter().map(|e| (e.name.clone(), e.description.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quarry_metrics::{version::Info, Metrics};
    use quarry_ring::RingConfig;

    const ID: VolumeId = VolumeId(1);

    fn mapped(generation: u64) -> Option<MappedVolume> {
        Some(MappedVolume {
            id: ID,
            name: "vol1".into(),
            size_bytes: 1 << 20,
            generation: Generation(generation),
            since: Generation(generation),
            read_only: false,
            device: true,
        })
    }

    /// A client of before that does not let go held the volume's end up, and each new connection of the kernel was cut with it.
    #[test]
    fn what_came_after_a_volume_was_mapped_again_is_not_cut_with_what_was_before() {
        let dir = std::env::temp_dir().join(format!("quarry-exports-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut reactor = Reactor::new(RingConfig::default()).unwrap();
        let meters = Meters::new(&Metrics::new(Info::new("sdc-nbd", 1, 1, 1), "sdc", "c1"));
        let mut e = Exports::new(dir.clone(), meters);
        e.set(&mut reactor, ID, mapped(1));
        e.set_device(ID, DeviceState::Attached("/dev/nbd0".into()));
        let old = e.get_mut(ID).unwrap();
        old.sessions = 2;
        let before = old.closings();
        assert!(e.set(&mut reactor, ID, None) == Follow::End);
        assert!(e.set(&mut reactor, ID, mapped(2)) == Follow::Nothing);
        // The worker of before was taking its device over and could not; then it is let go, and the new one connects.
        e.set_device(ID, DeviceState::Failed("gone".into()));
        assert!(e.due(&mut reactor).is_empty());
        e.set_device(ID, DeviceState::None);
        let slot = e.get_mut(ID).unwrap();
        slot.session_ended(before);
        let after = slot.closings();
        slot.sessions += 1;
        e.set_device(ID, DeviceState::Attached("/dev/nbd1".into()));
        let told = |e: &Exports| {
            e.attachments()
                .into_iter()
                .map(|a| (a.generation.0, a.socket.is_some()))
                .collect::<Vec<_>>()
        };
        assert_eq!(told(&e), [(1, false)], "the old client is still there");
        let cut = loop {
            let cut = e.due(&mut reactor);
            if !cut.is_empty() {
                break cut;
            }
            let until = e.deadline();
            reactor.turn(until, &mut Vec::new()).unwrap();
        };
        assert_eq!(cut, [ID]);
        assert!(before < after, "those of before are told apart");
        e.get_mut(ID).unwrap().session_ended(before);
        assert!(e.due(&mut reactor).is_empty());
        assert_eq!((told(&e), e.get_mut(ID).unwrap().sessions), (vec![(2, true)], 1));
        assert!(e.due(&mut reactor).is_empty() && e.deadline().is_none(), "nothing more is cut");
        // Unmapped: whatever is open holds the volume's end up, and then it is gone.
        e.set(&mut reactor, ID, None);
        e.set_device(ID, DeviceState::Attached("/dev/nbd1".into()));
        e.get_mut(ID).unwrap().session_ended(after);
        assert!(
            e.due(&mut reactor).is_empty() && e.get_mut(ID).is_some(),
            "its device is still there"
        );
        e.set_device(ID, DeviceState::None);
        e.due(&mut reactor);
        assert!(e.get_mut(ID).is_none());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
