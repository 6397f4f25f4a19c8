//! Notes how long records take to be durable on each of those who count (see [`crate::times`]).

use super::commit::Sequenced;
use super::primary::Primary;
use crate::cx::Cx;
use crate::times::Spell;
use quarry_base::{Nanos, Seq};
use std::collections::VecDeque;

impl Primary {
    /// Notes what has become durable since the last time. To be called before it is answered, which forgets it.
    pub(super) fn note_times(&mut self, cx: &mut Cx) {
        let own = cx.stable(self.pg).seq;
        let spell = between(&self.sequenced, self.own_noted, own, cx.now);
        if spell.count > 0 {
            cx.times.led.entry(self.device).or_default().own.join(spell);
        }
        self.own_noted = self.own_noted.max(own);
        for f in &mut self.followers {
            let from = f.noted;
            f.noted = f.noted.max(f.report());
            // One that does not count is sent things when it suits.
            if f.counts() {
                let spell = between(&self.sequenced, from, f.noted, cx.now);
                if spell.count > 0 {
                    cx.times.copies.entry(f.member.device).or_default().join(spell);
                }
            }
        }
    }

    /// Notes a write that is answered.
    pub(super) fn note_answer(&self, s: &Sequenced, cx: &mut Cx) {
        if let Some((came, at)) = s.times {
            let now = cx.now;
            let led = cx.times.led.entry(self.device).or_default();
            led.answered.add(came, now);
            led.admitted.add(came, at);
        }
    }
}

/// Of the writes with numbers above `from` up to `to`: how many there are, and how long ago they got these.
fn between(all: &VecDeque<Sequenced>, from: Seq, to: Seq, now: Nanos) -> Spell {
    let mut sum = Spell::default();
    if to > from {
        let first = all.partition_point(|s| s.seq <= from);
        let new = all.range(first..).take_while(|s| s.seq <= to);
        new.filter_map(|s| s.times).for_each(|(_, at)| sum.add(at, now));
    }
    sum
}
