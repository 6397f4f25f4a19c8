//! What the driver sees of the cluster's life and wants remembered: each becomes an event.

use super::{Answer, Ctx, Level, Reject, State};
use quarry_base::units::show_size;
use quarry_base::{DeviceId, PoolId, SdsId};

/// What passes of a scrub over a device read and found.
pub(crate) struct Scrubbed {
    pub passes: u64,
    pub bytes: u64,
    pub bad_pages: u64,
    pub bad_groups: u64,
    pub read_errors: u64,
}

impl State {
    pub(crate) fn note_level(
        &mut self,
        ctx: &mut Ctx,
        id: PoolId,
        level: Level,
        reason: &str,
    ) -> Result<Answer, Reject> {
        let p = self.pools.get_mut(&id).ok_or_else(|| Reject::not_found("pool", id))?;
        if p.level != level {
            p.level = level;
            ctx.outcome("pool_capacity", format!("pool {}", p.name), level.name(), reason);
        }
        Ok(Answer::Done)
    }

    pub(crate) fn note_health(
        &mut self,
        ctx: &mut Ctx,
        id: PoolId,
        health: &str,
        reason: &str,
    ) -> Result<Answer, Reject> {
        let p = self.pools.get_mut(&id).ok_or_else(|| Reject::not_found("pool", id))?;
        if p.health != health {
            p.health = health.into();
            ctx.outcome("pool_health", format!("pool {}", p.name), health, reason);
        }
        Ok(Answer::Done)
    }

    pub(crate) fn note_damage(
        &mut self,
        ctx: &mut Ctx,
        id: SdsId,
        found: u64,
        repaired: u64,
        lost: u64,
    ) -> Result<Answer, Reject> {
        let x = self.sds.get(&id).ok_or_else(|| Reject::not_found("sds", id))?;
        let outcome = if lost > 0 { "no_good_copy" } else { "repaired" };
        let text = format!(
            "{found} damaged blocks were found, {repaired} repaired from another copy; {lost} times there was no good copy"
        );
        ctx.outcome("checksum_errors", format!("sds {}", x.name), outcome, text);
        Ok(Answer::Done)
    }

    pub(crate) fn note_scrub(
        &mut self,
        ctx: &mut Ctx,
        id: SdsId,
        device: DeviceId,
        s: &Scrubbed,
    ) -> Result<Answer, Reject> {
        let x = self.sds.get(&id).ok_or_else(|| Reject::not_found("sds", id))?;
        let path = self.devices.get(&device).map(|d| format!(" ({})", d.path.display()));
        let ended = match s.passes {
            1 => "a pass of the scrub".to_string(),
            n => format!("{n} passes of the scrub"),
        };
        let found = match (s.bad_pages, s.bad_groups) {
            (0, 0) => "no damage found".to_string(),
            (pages, 0) => format!("{} found", several(pages, "damaged page", "damaged pages")),
            (pages, groups) => format!(
                "{} and {} found",
                several(pages, "damaged page", "damaged pages"),
                several(
                    groups,
                    "damaged part of the block table",
                    "damaged parts of the block table"
                )
            ),
        };
        let failed = match s.read_errors {
            0 => String::new(),
            n => format!(", {} failed", several(n, "read", "reads")),
        };
        let text = format!(
            "{ended} over device {device}{} ended: {} read, {found}{failed}",
            path.unwrap_or_default(),
            show_size(s.bytes)
        );
        let outcome = match (s.bad_pages, s.bad_groups, s.read_errors) {
            (0, 0, 0) => "ok",
            (0, 0, _) => "read_errors",
            _ => "damage_found",
        };
        ctx.outcome("scrub_pass", format!("sds {}", x.name), outcome, text);
        Ok(Answer::Done)
    }
}

fn several(n: u64, one: &str, more: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { more })
}

#[cfg(test)]
mod tests {
    use super::super::tests::Lab;
    use super::super::Op;
    use super::*;

    fn told(bad_pages: u64, bad_groups: u64, read_errors: u64, passes: u64) -> (String, String) {
        let mut l = Lab::cluster(2, 2);
        let (sds, device, bytes) = (SdsId(1), DeviceId(1), 3 << 30);
        l.ok(Op::NoteScrub { sds, device, passes, bytes, bad_pages, bad_groups, read_errors });
        let e = l.s.events.back().unwrap();
        assert_eq!((e.what.as_str(), e.object.as_str()), ("scrub_pass", "sds s1"));
        (e.outcome.clone(), e.reason.clone())
    }

    #[test]
    fn a_pass_of_the_scrub_says_where_how_much_and_what_was_found() {
        let (outcome, text) = told(0, 0, 0, 1);
        let want = "a pass of the scrub over device 1 (/d) ended: 3 GiB read, no damage found";
        assert_eq!((outcome.as_str(), text.as_str()), ("ok", want));
        let (outcome, text) = told(1, 0, 0, 12);
        let want =
            "12 passes of the scrub over device 1 (/d) ended: 3 GiB read, 1 damaged page found";
        assert_eq!((outcome.as_str(), text.as_str()), ("damage_found", want));
        let (outcome, text) = told(5, 2, 0, 1);
        let want = "5 damaged pages and 2 damaged parts of the block table found";
        assert!(outcome == "damage_found" && text.ends_with(want), "{text}");
        let (outcome, text) = told(0, 0, 3, 1);
        assert!(outcome == "read_errors" && text.ends_with(", 3 reads failed"), "{text}");
    }

    #[test]
    fn a_pass_over_a_device_that_is_gone_is_told_and_of_a_removed_server_refused() {
        let mut l = Lab::cluster(2, 2);
        let note = |sds| Op::NoteScrub {
            sds,
            device: DeviceId(99),
            passes: 1,
            bytes: 0,
            bad_pages: 0,
            bad_groups: 0,
            read_errors: 0,
        };
        l.ok(note(SdsId(1)));
        assert!(l.s.events.back().unwrap().reason.contains("over device 99 ended"));
        assert_eq!(l.run(note(SdsId(7))).unwrap_err().code, "not_found");
    }
}
