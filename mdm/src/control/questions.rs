//! Questions to a client that wait for its answer.
//!
//! An unmap cuts off whoever uses the volume there, so the client is asked first. A client that has no session or
//! does not answer in time says nothing, and that is not taken for a use: a lost client can always be fenced.

use super::Hub;
use quarry_base::{SdcId, VolumeId};
use quarry_control::ToNode;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long a client is waited for. It looks twice, a fraction of a second apart.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions that may be open; more go without an answer.
const MAX_OPEN: usize = 1024;

/// Questions asked and not answered yet, with the client each is for.
#[derive(Default)]
pub struct Questions {
    last: u64,
    open: HashMap<u64, (SdcId, oneshot::Sender<Vec<String>>)>,
}

impl Questions {
    fn ask(&mut self, sdc: SdcId) -> Option<(u64, oneshot::Receiver<Vec<String>>)> {
        if self.open.len() >= MAX_OPEN {
            return None;
        }
        self.last += 1;
        let (tx, rx) = oneshot::channel();
        self.open.insert(self.last, (sdc, tx));
        Some((self.last, rx))
    }

    /// A client's answer. One to a question that was not put to it, or is not waited for, is nothing.
    pub fn answered(&mut self, request: u64, sdc: SdcId, users: Vec<String>) {
        if self.open.get(&request).is_some_and(|q| q.0 == sdc) {
            if let Some((_, tx)) = self.open.remove(&request) {
                // Gone: it gave up waiting in this moment.
                tx.send(users).ok();
            }
        }
    }
}

/// Who uses a volume at a client, each in a few words. `None`: the client cannot be asked or does not answer.
pub async fn users_of(hub: &Hub, sdc: SdcId, volume: VolumeId) -> Option<Vec<String>> {
    let (request, answer) = {
        let mut h = hub.lock();
        let session = h.sdcs.get(&sdc)?.session?;
        let (request, answer) = h.questions.ask(sdc)?;
        h.send(session, Arc::new(ToNode::WhoUses { request, volume }));
        (request, answer)
    };
    let told = tokio::time::timeout(PATIENCE, answer).await;
    hub.lock().questions.open.remove(&request);
    told.ok()?.ok()
}
