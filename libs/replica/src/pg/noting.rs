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
        cx.times.own.join(between(&self.sequenced, self.own_noted, own, cx.now));
        self.own_noted = self.own_noted.max(own);
        for f in self.followers.iter_mut().filter(|f| f.counts()) {
            let spell = between(&self.sequenced, f.noted, f.report(), cx.now);
            f.noted = f.noted.max(f.report());
            if spell.count > 0 {
                cx.times.copies.entry(f.member.sds).or_default().join(spell);
            }
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
