//! A client that reaches another in-sync member of a group but not its primary: the primary moves (R27).
//!
//! Two clients that each reach another member would make it move to and fro for ever; so a group's primary moves at
//! most [`MOST_MOVES`] times in [`MOVES_WITHIN_MS`], and stays where it is beyond that. Nor may one client have more than
//! half of all groups moved in that time: what cannot be reached from one place alone is rather that place's fault.

use super::pg::Primaries;
use super::primaries::REACHED_MS;
use super::{Answer, Ctx, Reject, State};
use quarry_base::{DeviceId, PgId, SdcId};

/// Moves of one group's primary at clients' requests ...
pub const MOST_MOVES: usize = 2;
/// ... within this time, milliseconds.
pub const MOVES_WITHIN_MS: u64 = 60_000;
/// Moves that one client may bring about within this time, where half of all groups is less.
pub const MOST_OF_CLIENT: u32 = 32;

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
        // A change for another reason counts too.
        let other = p.led_ms.filter(|at| !p.moved_ms.contains(at));
        // Those of a time to come are of before the clock went back.
        let recent = |at: &&u64| **at > since && **at <= ctx.at_ms;
        let moves = p.moved_ms.iter().chain(&other).filter(recent).count();
        if moves >= MOST_MOVES {
            return Err(Reject::stale(format!("{pg} has moved {MOST_MOVES} times in a minute")));
        }
        let begun = self.check_reporter(sdc, ctx.at_ms)?;
        let n = self.primaries();
        let others = c.in_sync.iter().filter(|m| m.device != device && self.fit(m));
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
            let kept = ctx.at_ms.saturating_sub(REACHED_MS);
            p.moved_ms.retain(|at| *at > kept && *at <= ctx.at_ms);
            p.moved_ms.push(ctx.at_ms);
        }
        if let Some(s) = self.sdcs.get_mut(&sdc) {
            s.moved = (begun.0, begun.1 + 1);
        }
        self.finish(ctx, c, &mut Primaries::Some(n));
        Ok(Answer::Done)
    }

    /// Since when the client's moves are counted, and how many there were; refused when that is enough.
    fn check_reporter(&self, sdc: SdcId, at_ms: u64) -> Result<(u64, u32), Reject> {
        let most = MOST_OF_CLIENT.max(u32::try_from(self.pgs.len() / 2).unwrap_or(u32::MAX));
        let Some(s) = self.sdcs.get(&sdc) else { return Ok((at_ms, 0)) };
        let (begun, moves) = s.moved;
        if begun > at_ms || at_ms - begun >= MOVES_WITHIN_MS {
            return Ok((at_ms, 0));
        }
        if moves >= most {
            let why = format!("SDC {} has had {most} primaries moved in a minute", s.name);
            return Err(Reject::stale(why));
        }
        Ok((begun, moves))
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
    fn r27_one_client_does_not_turn_the_cluster_over() {
        let mut l = Lab::cluster(3, 2);
        let c = l.register_sdc(7);
        let mut moved = 0;
        for round in 0..3 {
            for pg in l.all() {
                let op = Op::Unreachable { sdc: c, pg: pg.pg, device: pg.primary.unwrap() };
                moved += u32::from(l.run(op).is_ok());
            }
            assert!(moved <= MOST_OF_CLIENT, "{moved} in round {round}");
        }
        assert_eq!(moved, MOST_OF_CLIENT);
        l.at_ms += MOVES_WITHIN_MS;
        let pg = l.pg(0).clone();
        assert!(l.run(Op::Unreachable { sdc: c, pg: pg.pg, device: pg.primary.unwrap() }).is_ok());
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
