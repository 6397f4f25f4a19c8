//! From start to "ready": registered, and what `sdctab` names is mapped and attached.
//!
//! Volumes are asked for once the MDM knows this client, and again while it refuses. Once mapped, a
//! volume is not asked for again: an operator who unmaps it later is obeyed until the next start.
//! Ready is told to systemd when nothing is open any more, or after [`LONGEST`] with a line in the log
//! about each volume that is missing, so that one bad line does not keep the others' mounts from
//! beginning.

use super::sdctab::{Entry, Table};
use quarry_base::VolumeId;
use quarry_control::{Attachment, FromNode};
use quarry_metrics::systemd::{notify, State};
use std::time::Duration;
use tokio::time::Instant;

/// Ready is told after this time at the latest, counted from the registration, or from the start if there is no MDM.
const LONGEST: Duration = Duration::from_secs(30);
/// Wait before what was refused, or not answered, is asked for again.
const AGAIN: Duration = Duration::from_secs(5);

enum Stage {
    /// Asked for then, or not yet.
    Asked(Option<Instant>),
    /// The MDM has mapped it.
    Mapped(VolumeId),
    Attached,
}

/// The start's progress.
pub(super) struct Start {
    wanted: Vec<(Entry, Stage)>,
    /// What was open at the last look: a volume may be open before the answer that it is mapped arrives.
    open: Vec<Attachment>,
    began: Instant,
    registered: Option<Instant>,
    ready: bool,
    table: String,
}

impl Start {
    pub fn new(table: Table, now: Instant) -> Start {
        for why in &table.errors {
            tracing::warn!("{why}; the line is left out");
        }
        let path = table.path.display().to_string();
        let wanted = table.entries.into_iter().map(|e| (e, Stage::Asked(None))).collect();
        Start { wanted, open: Vec::new(), began: now, registered: None, ready: false, table: path }
    }

    /// The MDM knows this client: what to ask it for.
    pub fn registered(&mut self, now: Instant) -> Vec<FromNode> {
        self.registered.get_or_insert(now);
        // What was asked on an earlier session may not have arrived.
        for (_, stage) in &mut self.wanted {
            if let Stage::Asked(at) = stage {
                *at = None;
            }
        }
        self.due(now)
    }

    /// No MDM for so long: what can be served without it is, and whoever waits for the start goes on.
    pub fn without_mdm(&mut self, now: Instant) {
        if self.ready || self.registered.is_some() || now < self.began + LONGEST {
            return;
        }
        self.ready = true;
        tracing::warn!(
            missing = self.wanted.len(),
            "ready, and no MDM has answered yet: volumes come when one does"
        );
        notify(State::Ready);
    }

    /// What to ask for now. Tells systemd when nothing is open any more.
    pub fn due(&mut self, now: Instant) -> Vec<FromNode> {
        let Some(since) = self.registered else { return Vec::new() };
        let mut ask = Vec::new();
        for (e, stage) in &mut self.wanted {
            let Stage::Asked(at) = stage else { continue };
            if at.is_some_and(|at| now < at + AGAIN) {
                continue;
            }
            *at = Some(now);
            ask.push(FromNode::MapHere {
                volume: e.volume.clone(),
                device: e.device,
                read_only: e.read_only,
            });
        }
        let open = self.wanted.iter().filter(|(_, s)| !matches!(s, Stage::Attached)).count();
        if !self.ready && (open == 0 || now >= since + LONGEST) {
            self.ready = true;
            for (e, _) in self.wanted.iter().filter(|(_, s)| !matches!(s, Stage::Attached)) {
                tracing::warn!(volume = e.volume, "{}, line {}: not there yet", self.table, e.line);
            }
            tracing::info!(volumes = self.wanted.len() - open, missing = open, "ready");
            notify(State::Ready);
        }
        ask
    }

    /// The MDM's answer.
    pub fn mapped(&mut self, volume: &str, result: Result<VolumeId, String>) {
        let Some((e, stage)) = self.wanted.iter_mut().find(|(e, _)| e.volume == volume) else {
            return;
        };
        match (result, &stage) {
            (Ok(id), Stage::Asked(_)) => *stage = Stage::Mapped(id),
            (Ok(_), _) => {}
            (Err(why), _) => tracing::warn!("{}, line {}: {why}", self.table, e.line),
        }
        self.settle();
    }

    /// What is open here now.
    pub fn attachments(&mut self, list: &[Attachment]) {
        self.open = list.to_vec();
        self.settle();
    }

    fn settle(&mut self) {
        let list = &self.open;
        for (e, stage) in &mut self.wanted {
            let Stage::Mapped(id) = stage else { continue };
            let there = |a: &&Attachment| {
                a.volume == *id && a.socket.is_some() && (!e.device || a.device.is_some())
            };
            if list.iter().any(|a| there(&a)) {
                *stage = Stage::Attached;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quarry_base::Generation;

    fn table(text: &[(&str, bool)]) -> Table {
        let entries = (1..).zip(text).map(|(line, (v, device))| Entry {
            line,
            volume: v.to_string(),
            device: *device,
            read_only: false,
        });
        Table { entries: entries.collect(), ..Table::default() }
    }

    fn names(asked: &[FromNode]) -> Vec<&str> {
        let name = |m: &FromNode| match m {
            FromNode::MapHere { volume, .. } => volume.clone(),
            other => panic!("{other:?}"),
        };
        asked.iter().map(name).map(|n| &*n.leak()).collect()
    }

    fn open(id: u32, device: Option<&str>) -> Attachment {
        Attachment {
            volume: VolumeId(id),
            generation: Generation(1),
            socket: Some("/s".into()),
            device: device.map(str::to_string),
            error: None,
        }
    }

    #[test]
    fn without_an_mdm_the_start_does_not_wait_for_ever() {
        let t = Instant::now();
        let mut s = Start::new(table(&[("a", true)]), t);
        s.without_mdm(t + LONGEST / 2);
        assert!(!s.ready);
        s.without_mdm(t + LONGEST);
        assert!(s.ready);
        // One that comes later is asked all the same.
        assert_eq!(names(&s.registered(t + 2 * LONGEST)), ["a"]);
    }

    #[test]
    fn ready_means_that_every_volume_of_the_table_is_attached() {
        let t = Instant::now();
        let mut s = Start::new(table(&[("a", true), ("b", false)]), Instant::now());
        assert!(s.due(t).is_empty(), "nobody to ask yet");
        assert_eq!(names(&s.registered(t)), ["a", "b"]);
        assert!(s.due(t).is_empty(), "asked already");
        s.mapped("a", Ok(VolumeId(7)));
        s.mapped("b", Err("there is no volume 'b'".into()));
        s.attachments(&[open(7, None)]);
        assert_eq!(names(&s.due(t + AGAIN)), ["b"], "a is mapped");
        s.mapped("b", Ok(VolumeId(8)));
        s.attachments(&[open(7, None), open(8, None)]);
        s.due(t + AGAIN);
        assert!(!s.ready, "a has no device yet");
        s.attachments(&[open(7, Some("/dev/nbd0")), open(8, None)]);
        s.due(t + AGAIN);
        assert!(s.ready);
        s.attachments(&[]);
        assert!(s.registered(t + AGAIN).is_empty(), "unmapped by an operator: not asked for again");
    }

    #[test]
    fn a_volume_that_is_open_before_the_answer_comes_counts() {
        let t = Instant::now();
        let mut s = Start::new(table(&[("a", false)]), Instant::now());
        s.registered(t);
        s.attachments(&[open(7, None)]);
        s.due(t);
        assert!(!s.ready, "which of the table is volume 7 is not known yet");
        s.mapped("a", Ok(VolumeId(7)));
        s.due(t);
        assert!(s.ready);
    }

    #[test]
    fn a_volume_that_never_comes_does_not_hold_back_the_others_for_ever() {
        let t = Instant::now();
        let mut s = Start::new(table(&[("a", true)]), Instant::now());
        s.registered(t);
        s.due(t + LONGEST - Duration::from_secs(1));
        assert!(!s.ready);
        assert_eq!(names(&s.due(t + LONGEST + AGAIN)), ["a"], "asked for all the same");
        assert!(s.ready);
    }

    #[test]
    fn what_a_lost_session_may_have_swallowed_is_asked_again() {
        let t = Instant::now();
        let mut s = Start::new(table(&[("a", false)]), Instant::now());
        assert_eq!(names(&s.registered(t)), ["a"]);
        assert_eq!(names(&s.registered(t)), ["a"]);
    }
}
