//! The handshake: client flags, then options until one of them opens an export.

use crate::consts::*;
use crate::options::{self, BadOption, Info};
use crate::output::{clipped, Output};
use crate::{Export, Exports};
use bytes::BufMut;

/// Identifier of `base:allocation` on this server, the only context there is.
pub(crate) const ALLOCATION_ID: u32 = 1;

/// What the client has agreed on so far.
#[derive(Default, Debug)]
pub(crate) struct Negotiation {
    /// The client's flags have arrived.
    pub greeted: bool,
    pub fixed: bool,
    pub no_zeroes: bool,
    pub structured: bool,
    /// Export for which `base:allocation` is selected, by its canonical name.
    pub meta: Option<String>,
    /// Options received.
    pub options: u32,
    /// Options are answered with `ERR_SHUTDOWN`.
    pub shutdown: bool,
}

/// What follows from an option.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Go on with the next option.
    More,
    /// Transmission begins; `allocation` says whether block status was agreed.
    Open { export: Export, allocation: bool },
    /// The client said goodbye.
    Abort,
    /// End the connection, for this reason.
    Drop(String),
}

/// A name as it may appear in a message: short and printable.
fn shown(name: &str) -> String {
    let short: String = name.chars().take(64).collect();
    format!("{short:?}")
}

impl Negotiation {
    /// Queues the server's first words.
    pub fn greet(o: &mut Output) {
        let h = o.head();
        h.put_u64(NBD_MAGIC);
        h.put_u64(NBD_OPTS_MAGIC);
        h.put_u16(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    }

    /// The client's flags. An unknown one must end the connection.
    pub fn client_flags(&mut self, flags: u32) -> Outcome {
        if flags & !(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES) != 0 {
            return Outcome::Drop(format!("unknown client flags {flags:#x}"));
        }
        self.greeted = true;
        self.fixed = flags & NBD_FLAG_C_FIXED_NEWSTYLE != 0;
        self.no_zeroes = flags & NBD_FLAG_C_NO_ZEROES != 0;
        Outcome::More
    }

    /// What can be said about an option from its header alone: `Some` ends the connection.
    pub fn refuse_header(&self, option: u32, len: u32, limits: &crate::Limits) -> Option<String> {
        if self.options >= limits.max_options {
            return Some(format!("more than {} options", limits.max_options));
        }
        if !self.fixed && option != NBD_OPT_EXPORT_NAME {
            return Some(format!("option {option} without fixed newstyle"));
        }
        if option == NBD_OPT_EXPORT_NAME && len as usize > MAX_STRING {
            return Some(format!("an export name of {len} bytes"));
        }
        if len > limits.max_discard {
            return Some(format!("an option of {len} bytes"));
        }
        None
    }

    /// An option whose data is longer than the limit; the data is thrown away first.
    pub fn too_long(&mut self, option: u32, o: &mut Output) {
        self.options += 1;
        let kind = if known(option) { NBD_REP_ERR_TOO_BIG } else { NBD_REP_ERR_UNSUP };
        refuse(o, option, kind, "the option's data is too long");
    }

    /// A complete option.
    pub fn option(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &dyn Exports,
        o: &mut Output,
    ) -> Outcome {
        self.options += 1;
        if option == NBD_OPT_ABORT {
            o.option_reply(option, NBD_REP_ACK, &[]);
            return Outcome::Abort;
        }
        if self.shutdown {
            if option == NBD_OPT_EXPORT_NAME {
                return Outcome::Drop("the server is shutting down".into());
            }
            refuse(o, option, NBD_REP_ERR_SHUTDOWN, "the server is shutting down");
            return Outcome::More;
        }
        match option {
            NBD_OPT_EXPORT_NAME => return self.export_name(data, exports, o),
            NBD_OPT_INFO | NBD_OPT_GO => return self.info_or_go(option, data, exports, o),
            NBD_OPT_LIST => list(data, exports, o),
            NBD_OPT_STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                o.option_reply(option, NBD_REP_ACK, &[]);
            }
            NBD_OPT_STRUCTURED_REPLY => {
                refuse(o, option, NBD_REP_ERR_INVALID, "this option carries no data")
            }
            NBD_OPT_LIST_META_CONTEXT | NBD_OPT_SET_META_CONTEXT => {
                self.meta_context(option, data, exports, o)
            }
            NBD_OPT_STARTTLS => refuse(o, option, NBD_REP_ERR_UNSUP, "this server has no TLS"),
            _ => refuse(o, option, NBD_REP_ERR_UNSUP, "this server does not know the option"),
        }
        Outcome::More
    }

    fn export_name(&mut self, data: &[u8], exports: &dyn Exports, o: &mut Output) -> Outcome {
        let name = match options::string(data) {
            Ok(n) => n,
            Err(e) => return Outcome::Drop(e.to_string()),
        };
        let Some(export) = exports.lookup(name).map(Export::sanitised) else {
            return Outcome::Drop(format!("no export named {}", shown(name)));
        };
        let h = o.head();
        h.put_u64(export.size);
        h.put_u16(export.transmission_flags(self.structured));
        if !self.no_zeroes {
            h.put_bytes(0, EXPORT_NAME_ZEROES);
        }
        self.open(export)
    }

    fn info_or_go(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &dyn Exports,
        o: &mut Output,
    ) -> Outcome {
        let info = match options::info(data) {
            Ok(i) => i,
            Err(e) => {
                refuse_bad(o, option, &e);
                return Outcome::More;
            }
        };
        let Some(export) = exports.lookup(info.name).map(Export::sanitised) else {
            let m = format!("no export named {}", shown(info.name));
            refuse(o, option, NBD_REP_ERR_UNKNOWN, &m);
            return Outcome::More;
        };
        self.send_info(option, &info, &export, o);
        o.option_reply(option, NBD_REP_ACK, &[]);
        if option == NBD_OPT_GO {
            return self.open(export);
        }
        Outcome::More
    }

    fn send_info(&self, option: u32, info: &Info<'_>, export: &Export, o: &mut Output) {
        let flags = export.transmission_flags(self.structured);
        let parts: [&[u8]; 3] =
            [&NBD_INFO_EXPORT.to_be_bytes(), &export.size.to_be_bytes(), &flags.to_be_bytes()];
        o.option_reply(option, NBD_REP_INFO, &parts);
        if info.want_name {
            let name = clipped(&export.name).as_bytes();
            o.option_reply(option, NBD_REP_INFO, &[&NBD_INFO_NAME.to_be_bytes(), name]);
        }
        if info.want_description && !export.description.is_empty() {
            let text = clipped(&export.description).as_bytes();
            o.option_reply(option, NBD_REP_INFO, &[&NBD_INFO_DESCRIPTION.to_be_bytes(), text]);
        }
        if info.want_block_size || export.has_own_block_sizes() {
            let parts: [&[u8]; 4] = [
                &NBD_INFO_BLOCK_SIZE.to_be_bytes(),
                &export.min_block.to_be_bytes(),
                &export.preferred_block.to_be_bytes(),
                &export.max_block.to_be_bytes(),
            ];
            o.option_reply(option, NBD_REP_INFO, &parts);
        }
    }

    fn open(&mut self, export: Export) -> Outcome {
        let allocation = self.structured && self.meta.as_deref() == Some(export.name.as_str());
        Outcome::Open { export, allocation }
    }

    fn meta_context(&mut self, option: u32, data: &[u8], exports: &dyn Exports, o: &mut Output) {
        let set = option == NBD_OPT_SET_META_CONTEXT;
        if set {
            // Replaces what was selected before, also when it fails.
            self.meta = None;
        }
        if !self.structured {
            return refuse(o, option, NBD_REP_ERR_INVALID, "structured replies come first");
        }
        let m = match options::meta(data) {
            Ok(m) => m,
            Err(e) => return refuse_bad(o, option, &e),
        };
        let Some(export) = exports.lookup(m.name) else {
            let text = format!("no export named {}", shown(m.name));
            return refuse(o, option, NBD_REP_ERR_UNKNOWN, &text);
        };
        let matches = m.allocation || (!set && (m.base_wildcard || m.no_queries));
        if matches {
            let id = if set { ALLOCATION_ID } else { 0 };
            let parts: [&[u8]; 2] = [&id.to_be_bytes(), BASE_ALLOCATION.as_bytes()];
            o.option_reply(option, NBD_REP_META_CONTEXT, &parts);
            if set {
                self.meta = Some(export.name);
            }
        }
        o.option_reply(option, NBD_REP_ACK, &[]);
    }
}

fn known(option: u32) -> bool {
    matches!(
        option,
        NBD_OPT_EXPORT_NAME
            | NBD_OPT_ABORT
            | NBD_OPT_LIST
            | NBD_OPT_INFO
            | NBD_OPT_GO
            | NBD_OPT_STRUCTURED_REPLY
            | NBD_OPT_LIST_META_CONTEXT
            | NBD_OPT_SET_META_CONTEXT
    )
}

fn refuse(o: &mut Output, option: u32, kind: u32, message: &str) {
    o.option_reply(option, kind, &[clipped(message).as_bytes()]);
}

fn refuse_bad(o: &mut Output, option: u32, e: &BadOption) {
    refuse(o, option, e.reply_type(), &e.to_string());
}

fn list(data: &[u8], exports: &dyn Exports, o: &mut Output) {
    if !data.is_empty() {
        return refuse(o, NBD_OPT_LIST, NBD_REP_ERR_INVALID, "this option carries no data");
    }
    for (name, description) in exports.list() {
        let (name, description) = (clipped(&name).as_bytes(), clipped(&description).as_bytes());
        let len = (name.len() as u32).to_be_bytes();
        o.option_reply(NBD_OPT_LIST, NBD_REP_SERVER, &[&len, name, description]);
    }
    o.option_reply(NBD_OPT_LIST, NBD_REP_ACK, &[]);
}
