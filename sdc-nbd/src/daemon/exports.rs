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
    /// Not mapped any more; connections end until then.
    Closing {
        deadline: Nanos,
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
                let closing = State::Closing { deadline: now + CLOSE_GRACE };
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
        if let Some(s) = self.slots.get_mut(&id) {
            s.device = state;
            self.changed = true;
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
                State::Closing { .. } if slot.sessions == 0 && slot.device == DeviceState::None => {
                    self.closed(reactor, id);
                }
                State::Closing { deadline } if deadline <= now && slot.sessions > 0 => cut.push(id),
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
            State::Closing { deadline } => (s.sessions > 0).then_some(deadline),
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
                slot.state = State::Closing { deadline: Nanos::MAX };
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
