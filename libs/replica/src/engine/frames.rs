//! Frames: who may send what, and the check of epochs (R2).

use super::Engine;
use crate::cx::Cx;
use crate::event::{Action, LinkId};
use crate::links::Who;
use crate::pg::request::{answer, Request, Standing};
use crate::pg::Pg;
use quarry_base::{Instance, Nanos, SdcId, SdsId, StartNo};
use quarry_wire::{flags, Frame, Header, Op, PgConfig, Status};

impl Engine {
    pub(super) fn on_frame(
        &mut self,
        link: LinkId,
        frame: Frame,
        now: Nanos,
        out: &mut Vec<Action>,
    ) {
        let Some(who) = self.links.who(link) else { return };
        let op = frame.header.op;
        match (op, who) {
            (Op::Hello, _) => self.on_hello(link, &frame, now, out),
            (Op::HelloRefused, _) => self.links.close_soon(link),
            (Op::Ping, _) => {
                let mut h = Header::new(Op::Pong);
                h.request_id = frame.header.request_id;
                self.links.send(link, Frame::bare(h), out);
            }
            (Op::Pong, _) => {}
            (Op::ConfigPush, Who::Sdc { .. } | Who::Sds { .. }) => {
                self.on_config_push(&frame, now, out)
            }
            (Op::ConfigAsk, Who::Sdc { .. } | Who::Sds { .. }) => {
                self.on_config_ask(link, &frame.header, out)
            }
            (Op::Read | Op::Map | Op::Write | Op::Zero | Op::Flush, Who::Sdc { id, instance }) => {
                self.on_client(link, id, instance, frame, now, out);
            }
            (Op::GrantAsk, Who::Beat { id, start }) => {
                self.on_grant_ask(link, id, start, &frame.header, now, out)
            }
            (Op::GrantAnswer, Who::Beat { id, start }) => {
                self.on_grant_answer(id, start, &frame, now, out)
            }
            (Op::GrantGiveUp, Who::Sds { id, .. }) => {
                if let Some(&g) = self.index.get(&frame.header.pg) {
                    let quiet = frame.header.flags & flags::QUIET != 0;
                    self.with(g, now, out, |pg, cx| {
                        pg.on_give_up(id, frame.header.epoch, quiet, cx);
                    });
                }
            }
            (_, Who::Sds { id, start }) => self.on_peer(link, (id, start), frame, now, out),
            // Nobody may say that: not one of us.
            _ => self.links.close_soon(link),
        }
    }

    fn on_config_push(&mut self, frame: &Frame, now: Nanos, out: &mut Vec<Action>) {
        if let Some(cfg) = PgConfig::from_meta(&frame.meta) {
            self.take_config(cfg, now, out);
        }
    }

    fn on_config_ask(&mut self, link: LinkId, h: &Header, out: &mut Vec<Action>) {
        let held = self
            .index
            .get(&h.pg)
            .and_then(|&g| self.groups.get(g))
            .and_then(|p| p.meta.config.as_ref());
        if let Some(cfg) = held.or_else(|| self.view.cluster.pgs.get(&h.pg)) {
            self.links.send(link, config_frame(cfg), out);
        }
    }

    fn on_client(
        &mut self,
        link: LinkId,
        sdc: SdcId,
        instance: Instance,
        frame: Frame,
        now: Nanos,
        out: &mut Vec<Action>,
    ) {
        let h = frame.header;
        if h.instance != instance {
            self.links.close_soon(link);
            return;
        }
        let Some(&g) = self.index.get(&h.pg) else {
            return self.answer_without(link, &h, out);
        };
        self.with(g, now, out, |pg, cx| on_request(pg, Request::new(link, sdc, now, frame), cx));
    }

    /// A request for a group that is not here.
    fn answer_without(&mut self, link: LinkId, h: &Header, out: &mut Vec<Action>) {
        let config = self.view.cluster.pgs.get(&h.pg);
        let status = match config {
            Some(c) if c.epoch > h.epoch => Status::StaleEpoch,
            _ => Status::TryAgain,
        };
        let s = Standing { config, commit: quarry_base::Seq::ZERO, index: self.view.index() };
        answer(h, link, status, &s, &self.links, out);
    }

    /// A frame of replication.
    fn on_peer(
        &mut self,
        link: LinkId,
        from: (SdsId, StartNo),
        frame: Frame,
        now: Nanos,
        out: &mut Vec<Action>,
    ) {
        let h = frame.header;
        if h.op == Op::StreamOpen {
            // It brings its configuration along.
            self.on_config_push(&frame, now, out);
        }
        let Some(&g) = self.index.get(&h.pg) else { return };
        self.with(g, now, out, |pg, cx| on_stream(pg, link, from, frame, cx));
    }
}

fn config_frame(cfg: &PgConfig) -> Frame {
    let mut h = Header::new(Op::ConfigPush);
    h.pg = cfg.pg;
    h.epoch = cfg.epoch;
    h.config_index = cfg.index;
    Frame::with_meta(h, cfg.to_meta())
}

fn on_request(pg: &mut Pg, r: Request, cx: &mut Cx) {
    let epoch = pg.epoch();
    let h = r.h;
    let pending = pg.leads(cx.me);
    if let Some(p) = pg.primary() {
        if p.epoch == h.epoch {
            if h.op == Op::Flush {
                return p.on_flush(r, cx);
            }
            return p.on_request(r, cx);
        }
    }
    let status = if h.epoch > epoch || (h.epoch == epoch && pending) {
        Status::TryAgain
    } else {
        Status::StaleEpoch
    };
    match status {
        Status::TryAgain => cx.stats.try_again += 1,
        _ => cx.stats.stale_epoch += 1,
    }
    let commit = cx.store.pg_state(pg.id).commit;
    let s = Standing { config: pg.meta.config.as_ref(), commit, index: cx.view.index() };
    answer(&h, r.link, status, &s, cx.links, cx.out);
}

fn on_stream(pg: &mut Pg, link: LinkId, from: (SdsId, StartNo), frame: Frame, cx: &mut Cx) {
    let (h, epoch) = (frame.header, pg.epoch());
    if h.epoch < epoch {
        if let Some(c) = &pg.meta.config {
            let f = config_frame(c);
            cx.send(link, f);
        }
        return;
    }
    if h.epoch > epoch {
        let mut ask = cx.header(Op::ConfigAsk, pg.id);
        ask.epoch = epoch;
        cx.send(link, Frame::bare(ask));
        return;
    }
    match h.op {
        Op::StreamOpen => pg.on_stream_open(link, from, &h, cx),
        Op::StreamStart
        | Op::Replicate
        | Op::Commit
        | Op::SyncCopy
        | Op::SyncDrop
        | Op::SyncIds
        | Op::SyncAsk
        | Op::Confirm
        | Op::FetchBlock => {
            if h.op == Op::FetchBlock && pg.primary().is_some() {
                return pg.on_member_fetch(link, h, cx);
            }
            pg.on_stream_frame(link, frame, cx);
        }
        Op::StreamPos | Op::ReplAck | Op::SyncDone | Op::Confirmed | Op::BlockData => {
            if h.op == Op::BlockData && pg.primary().is_none() {
                return pg.on_mend_data(link, &frame, cx);
            }
            let Some(p) = pg.primary() else { return };
            match h.op {
                Op::StreamPos => p.on_stream_pos(link, &frame, cx),
                Op::ReplAck => p.on_ack(link, &h, cx),
                Op::SyncDone => p.on_sync_done(link, &h, cx),
                Op::Confirmed => p.on_confirmed(link, &h, cx),
                _ => p.on_block_data(link, &frame, cx),
            }
        }
        _ => cx.close(link),
    }
}
