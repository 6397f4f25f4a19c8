//! Devices that are too slow to take part, or do nothing at all for a while (R27): *suspended*.
//!
//! A suspended device leaves the in-sync sets of its groups, all with one command, and comes back as syncing when it is tried
//! again; meanwhile nobody waits for it. Unlike a failed one it is expected back: its copies are made elsewhere only after the
//! pool's grace time. Where its copy is the last one on a device that works, or the group would be below `min_copies`
//! without it, the group stays as it is: a slow copy is better than none.
//!
//! Who is found slow again soon after its return waits twice as long each time, so that a group does not change to and fro.

use super::{Answer, Answered, Ctx, Device, Lapses, Reject, Sluggish, State, Suspension};
use quarry_base::{DeviceId, PoolId, StartNo};
use quarry_wire::Member;

/// Shortest suspension of a device that stalled, milliseconds; it has to have moved again as well.
const STALLED_MS: u64 = 5_000;
/// First suspension of a slow device, and second one of a stalled device, milliseconds; doubled each time.
pub const SLOW_MS: u64 = 60_000;
/// Longest suspension, milliseconds.
pub const LONGEST_MS: u64 = 3_600_000;
/// Found slow again within this time of its return, milliseconds: it waits twice as long.
const AGAIN_MS: u64 = 600_000;

impl Sluggish {
    pub fn is_stalled(&self) -> bool {
        matches!(self, Sluggish::Stalled { .. })
    }

    /// In a few words, with the figures.
    pub fn text(&self) -> String {
        match self {
            Sluggish::Stalled { idle_ms } => {
                format!("operations are under way and none ended for {idle_ms} ms")
            }
            Sluggish::Slow { median_us, others_us, ops } => format!(
                "half of its {ops} last writes and syncs took more than {} ms, those of the pool's other devices {}.{} ms",
                median_us / 1000,
                others_us / 1000,
                others_us % 1000 / 100
            ),
        }
    }

    /// How long it is suspended at least, the `times`th time in a row.
    fn pause_ms(&self, times: u32) -> u64 {
        let doubled = match (self, times) {
            (Sluggish::Stalled { .. }, 0 | 1) => return STALLED_MS,
            (Sluggish::Stalled { .. }, n) => n - 2,
            (Sluggish::Slow { .. }, n) => n.saturating_sub(1),
        };
        SLOW_MS.saturating_mul(1 << doubled.min(16)).min(LONGEST_MS)
    }
}

impl Suspension {
    /// It may be tried again. An end further away than any can be was set before the clock went back: it counts no more.
    pub fn is_over(&self, now_ms: u64) -> bool {
        self.until_ms <= now_ms || self.until_ms > now_ms.saturating_add(LONGEST_MS)
    }
}

impl State {
    /// Good ([`State::good`]) and not suspended.
    pub fn fit(&self, m: &Member) -> bool {
        self.good(m) && self.devices.get(&m.device).is_some_and(|d| d.suspended.is_none())
    }

    /// Suspended members go if enough of the others stay, one of whom has answered since.
    pub(super) fn remove_suspended(&self, c: &mut quarry_wire::PgConfig, answered: &Answered) {
        let fit = c.in_sync.iter().filter(|m| self.fit(m));
        let (left, heard) =
            fit.fold((0, false), |(n, heard), m| (n + 1, heard || answered.contains(&m.sds)));
        if heard && left >= usize::from(c.min_copies) {
            c.in_sync.retain(|m| self.fit(m));
        }
    }

    /// Other devices of the pool that are suspended for being slow.
    fn slow_ones(&self, pool: PoolId, but: DeviceId) -> impl Iterator<Item = &Device> {
        let slow = |d: &Device| d.suspended.as_ref().is_some_and(|s| !s.why.is_stalled());
        self.pool_devices(pool).filter(move |d| d.id != but && slow(d))
    }

    /// May the device be suspended now? Its pool.
    pub fn check_suspend(
        &self,
        device: DeviceId,
        start: StartNo,
        why: &Sluggish,
    ) -> Result<PoolId, Reject> {
        let d = self.devices.get(&device).ok_or_else(|| Reject::not_found("device", device))?;
        let s = self.sds.get(&d.sds).filter(|s| s.start == start);
        if d.failed.is_some() || d.missing || s.is_none() || !self.healthy(d) {
            return Err(Reject::stale(format!(
                "device {device} is out of use, or of an earlier start"
            )));
        }
        let Some(pool) = d.pool else {
            return Err(Reject::stale(format!("device {device} is in no pool")));
        };
        if d.suspended.as_ref().is_some_and(|s| s.why.is_stalled() || !why.is_stalled()) {
            return Err(Reject::stale(format!("device {device} is suspended already")));
        }
        let works = |o: &&Device| o.suspended.is_none() && !o.missing && self.healthy(o);
        if !self.pool_devices(pool).filter(|o| o.id != device).any(|o| works(&o)) {
            return Err(Reject::stale(format!("no other device of pool {pool} works")));
        }
        // Where several are slow it is not the disk.
        let mut others = self.pool_devices(pool).filter(|o| o.id != device);
        // Nobody waits for a copy that is being made.
        if !why.is_stalled() && !self.pgs.values().any(|p| p.config.is_in_sync(device)) {
            return Err(Reject::stale(format!("device {device} has no copy in sync")));
        }
        if !why.is_stalled() && others.any(|o| o.suspended.is_some()) {
            return Err(Reject::stale(format!("another device of pool {pool} is suspended")));
        }
        Ok(pool)
    }

    pub(crate) fn suspend_device(
        &mut self,
        ctx: &mut Ctx,
        device: DeviceId,
        start: StartNo,
        why: &Sluggish,
        answered: &Answered,
    ) -> Result<Answer, Reject> {
        let pool = self.check_suspend(device, start, why)?;
        // One at a time: a slow one makes room for one that does nothing at all.
        for slow in self.slow_ones(pool, device).map(|d| d.id).collect::<Vec<_>>() {
            self.take_back(ctx, slow, "another device of the pool stalls");
        }
        let Some(d) = self.devices.get_mut(&device) else { return Ok(Answer::Done) };
        let soon = |l: &Lapses| l.returned_ms <= ctx.at_ms && ctx.at_ms - l.returned_ms < AGAIN_MS;
        let before = d.lapses.filter(soon).map_or(0, |l| l.times);
        // One that was slow and stalls now has been counted.
        let times = before + u32::from(d.suspended.is_none() || before == 0);
        d.lapses = Some(Lapses { times, returned_ms: ctx.at_ms });
        let pause = why.pause_ms(times);
        let until_ms = ctx.at_ms.saturating_add(pause);
        let since_ms = d.suspended.as_ref().map_or(ctx.at_ms, |s| s.since_ms);
        d.suspended = Some(Suspension { why: why.clone(), since_ms, until_ms });
        let sds = d.sds;
        let (what, then) = match why.is_stalled() {
            true => ("device_stalled", "it comes back when it moves again".to_string()),
            false => ("device_slow", format!("it is tried again in {} s", pause / 1000)),
        };
        let text = format!("{}: suspended, {then}", why.text());
        ctx.event(what, format!("device {device}"), text);
        let pgs = self.groups_of(sds);
        self.settle(ctx, &pgs, answered);
        Ok(Answer::Done)
    }

    pub(crate) fn resume_device(
        &mut self,
        ctx: &mut Ctx,
        device: DeviceId,
    ) -> Result<Answer, Reject> {
        let d = self.devices.get(&device).ok_or_else(|| Reject::not_found("device", device))?;
        let Some(s) = d.suspended.as_ref().filter(|s| s.is_over(ctx.at_ms)) else {
            return Err(Reject::stale(format!("device {device} is not to be tried again now")));
        };
        let why = match s.why.is_stalled() {
            true => "it moves again",
            false => "it is tried again",
        };
        self.take_back(ctx, device, why);
        Ok(Answer::Done)
    }

    fn take_back(&mut self, ctx: &mut Ctx, device: DeviceId, why: &str) {
        let Some(d) = self.devices.get_mut(&device) else { return };
        d.suspended = None;
        if let Some(l) = &mut d.lapses {
            l.returned_ms = ctx.at_ms;
        }
        let sds = d.sds;
        ctx.event("device_resume", format!("device {device}"), why);
        let pgs = self.groups_of(sds);
        self.settle(ctx, &pgs, &Answered::new());
    }

    /// The operator says that the server's devices are well: what was slow before does not count, and is tried again at once.
    pub(super) fn forgive(&mut self, sds: quarry_base::SdsId) {
        for d in self.devices.values_mut().filter(|d| d.sds == sds) {
            d.lapses = None;
            if let Some(s) = &mut d.suspended {
                s.until_ms = 0;
            }
        }
    }
}
