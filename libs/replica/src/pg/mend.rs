//! A member's own repair: what its scrub found damaged is asked of the primary.
//!
//! No lock is needed: the store takes content of exactly its own version and checksums, nothing else. A copy of
//! another version (a write is under way) is asked for again a little later, a few times; what is given up then, or
//! beyond the limit, is found again by the next pass of the scrub.

use super::member::Fetch;
use super::{Pg, Purpose, Role};
use crate::codec::frame_copy;
use crate::cx::Cx;
use crate::event::{LinkId, Note};
use quarry_base::{Nanos, RequestId};
use quarry_store::{AppendId, BlockCopy, BlockKey, RepairError};
use quarry_wire::{Frame, Header, Op, Status};

/// Blocks of a group under repair at a time; more wait for the next pass.
const MAX_MENDS: usize = 64;
/// Questions for one block.
const MAX_TRIES: u8 = 8;

/// A block of ours with a damaged page.
pub(crate) struct Mend {
    key: BlockKey,
    /// Its damaged pages.
    bad: u16,
    tries: u8,
    /// When the primary was last asked, or a try was in vain.
    asked: Option<Nanos>,
    /// The good copy is on its way to the device.
    healing: Option<AppendId>,
}

impl Pg {
    /// A page of this block is not what it should be.
    pub fn on_corruption(&mut self, key: BlockKey, pages: u16, cx: &mut Cx) {
        cx.stats.corrupt_blocks += 1;
        match &mut self.role {
            // It notes it.
            Role::Primary(p) => return p.repair_for_scrub(key, pages, cx),
            Role::Member(m) => {
                let known = self.mends.iter().any(|m| m.key == key);
                if m.is_in_sync() && !known && self.mends.len() < MAX_MENDS {
                    self.mends.push(Mend { key, bad: pages, tries: 0, asked: None, healing: None });
                }
            }
            Role::None => {}
        }
        cx.note(Note::Corruption { pg: self.id, device: self.device, key });
    }

    /// Asks for copies, and says what came of it.
    pub fn turn_mends(&mut self, cx: &mut Cx) {
        let link = self.stream_link();
        let mut i = 0;
        while let Some(m) = self.mends.get_mut(i) {
            let key = m.key;
            if m.healing.is_some_and(|id| id <= cx.durable) {
                self.mends.remove(i);
                cx.stats.repairs += 1;
                cx.note(Note::Repaired { pg: self.id, device: self.device, key });
                continue;
            }
            let due = m.asked.map_or(cx.now, |at| at + cx.limits.fetch_timeout);
            if m.healing.is_none() && cx.now >= due {
                if m.tries >= MAX_TRIES {
                    self.mends.remove(i);
                    cx.stats.no_good_copy += 1;
                    cx.note(Note::NoGoodCopy { pg: self.id, key });
                    continue;
                }
                m.asked = Some(cx.now);
                if let Some(link) = link {
                    m.tries += 1;
                    self.ask_for(key, link, cx);
                }
            }
            self.wake = self.wake.min(cx.now.max(due) + cx.limits.fetch_timeout);
            i += 1;
        }
    }

    fn ask_for(&self, key: BlockKey, link: LinkId, cx: &mut Cx) {
        let mut h = cx.header(Op::FetchBlock, self.id);
        h.epoch = self.epoch();
        h.request_id = RequestId(1);
        (h.vtree, h.layer, h.extent, h.offset) = (key.vtree, key.layer, key.extent, key.offset());
        cx.send(link, Frame::bare(h));
    }

    /// A member wants our copy of a block, at whatever version it has.
    pub fn on_member_fetch(&mut self, link: LinkId, h: Header, cx: &mut Cx) {
        let token = cx.token(Purpose::Fetch(Box::new(Fetch { link, h, without: 0 })));
        cx.store.read_block(token, self.id, BlockKey::at(h.vtree, h.layer, h.extent, h.offset));
    }

    /// The primary's copy.
    pub fn on_mend_data(&mut self, link: LinkId, frame: &Frame, cx: &mut Cx) {
        if self.stream_link() != Some(link) || frame.header.status != Status::Ok {
            return;
        }
        let Some(copy) = frame_copy(frame) else { return };
        // One that is silent about the damaged pages, which are damaged there too, mends nothing.
        let helps = |m: &Mend| m.bad & copy.valid != 0 || copy.part == BlockCopy::WHOLE;
        let waits = |m: &Mend| m.key == copy.key && m.healing.is_none() && helps(m);
        let Some(at) = self.mends.iter().position(waits) else { return };
        match cx.store.repair(self.id, copy) {
            Ok(id) => {
                cx.appends.push_back((id, cx.group));
                self.mends[at].healing = Some(id);
            }
            // Gone or overwritten meanwhile.
            Err(RepairError::NoBlock) => drop(self.mends.remove(at)),
            Err(_) => {}
        }
    }
}
