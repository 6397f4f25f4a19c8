//! An NBD client of our own: fixed newstyle with GO, simple and structured replies, any number of requests in flight.
//!
//! [`Connection`] is one session; [`Connection::split`] parts it into a [`Sender`] and a [`Receiver`] for two threads.
//! [`raw::Raw`] is the socket itself, for what no client should send.

pub mod client;
pub mod consts;
pub mod handshake;
pub mod raw;
pub mod reply;
#[cfg(test)]
pub(crate) mod tests;
pub mod uri;

pub use client::{Connection, Request, Sender};
pub use handshake::Export;
pub use reply::{Receiver, Reply};
pub use uri::{Stream, Uri};
