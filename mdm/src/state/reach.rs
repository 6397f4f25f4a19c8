//! A client that reaches another in-sync member of a group but not its primary: the primary moves (R27).
//!
//! Two clients that each reach another member would make it move to and fro for ever; so a group's primary moves at
//! most [`MOST_MOVES`] times in [`MOVES_WITHIN_MS`] at clients' requests, and stays where it is beyond that.

use super::pg::Primaries;
use super::{Answer, Ctx, Reject, State};
use quarry_base::{DeviceId, PgId, SdcId};

/// Moves of one group's primary at clients' requests ...
pub const MOST_MOVES: usize = 2;
/// ... within this time, milliseconds.
pub const MOVES_WITHIN_MS: u64 = 60_000;

impl State {
    /// `sdc` says that it cannot reach `device`, the primary of `pg`.
    pub(crate) fn unreachable(
        &mut self,
        ctx: &mut Ctx,
        sdc: SdcId,
        pg: PgId,
        device: DeviceId,
    ) -> Result<Answer, Reject> {
        let p = self.pgs.get(&pg).ok_or_else(|| Reject::stale(format!("{pg} does not exist")))?;
        let mut c = p.config.clone();
        if c.primary != Some(device) {
            return Err(Reject::stale(format!("{pg} is not led by device {device} any more")));
        }
        let since = ctx.at_ms.saturating_sub(MOVES_WITHIN_MS);
        if p.moved_ms.iter().filter(|at| **at > since).count() >= MOST_MOVES {
            return Err(Reject::stale(format!("{pg} has moved {MOST_MOVES} times in a minute")));
        }
        let n = self.primaries();
        let others = c.in_sync.iter().filter(|m| m.device != device && self.good(m));
        let Some(to) = others.min_by_key(|m| n.get(&m.device).copied().unwrap_or(0)) else {
            return Err(Reject::stale(format!("{pg} has no other member that could lead")));
        };
        c.primary = Some(to.device);
        ctx.event(
            "pg_move",
            format!("pg {pg} from device {device} to {}", to.device),
            format!("SDC {sdc} cannot reach it"),
        );
        if let Some(p) = self.pgs.get_mut(&pg) {
            p.moved_ms.retain(|at| *at > since);
            p.moved_ms.push(ctx.at_ms);
        }
        self.finish(ctx, c, &mut Primaries::Some(n));
        Ok(Answer::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Lab;
    use super::super::Op;
    use super::*;

    #[test]
    fn r27_the_primary_moves_to_a_member_in_sync_and_not_for_ever() {
        let mut l = Lab::cluster(3, 2);
        let old = l.pg(0).clone();
        let move_from = |l: &mut Lab, device| {
            l.run(Op::Unreachable { sdc: SdcId(1), pg: old.pg, device }).is_ok()
        };
        let first = old.primary.unwrap();
        assert!(move_from(&mut l, first));
        let new = l.pg(0).clone();
        let second = new.primary.unwrap();
        assert!(second != first && new.is_in_sync(second));
        assert_eq!((new.epoch.0, &new.in_sync), (old.epoch.0 + 1, &old.in_sync));
        assert!(!move_from(&mut l, first), "it does not lead any more");
        assert!(move_from(&mut l, second));
        assert!(!move_from(&mut l, first), "twice a minute is enough");
        l.at_ms += MOVES_WITHIN_MS;
        assert!(move_from(&mut l, first));
    }

    #[test]
    fn r27_a_primary_alone_stays() {
        let mut l = Lab::cluster(2, 2);
        l.fail(2, &[1]);
        let alone = l.pg(0).primary.unwrap();
        assert!(l.run(Op::Unreachable { sdc: SdcId(1), pg: l.pg(0).pg, device: alone }).is_err());
        assert_eq!(l.pg(0).primary, Some(alone));
    }
}
