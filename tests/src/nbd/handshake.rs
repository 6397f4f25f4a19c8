//! The handshake: fixed newstyle, structured replies where asked for and offered, block sizes, GO.

use super::consts::*;
use super::raw::Raw;
use super::uri::Uri;
use crate::{ensure, fail, Res};

/// What the server says of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Export {
    pub size: u64,
    /// Transmission flags ([`SEND_FLUSH`] and so on).
    pub flags: u16,
    /// Minimum, preferred and maximum block size; None when the server did not say.
    pub blocks: Option<(u32, u32, u32)>,
    /// Whether replies are structured.
    pub structured: bool,
}

/// Negotiates up to transmission.
pub fn go(uri: &Uri, structured: bool) -> Res<(Raw, Export)> {
    let mut raw = Raw::greeted(uri, u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES))?;
    let mut export = Export::default();
    if structured {
        raw.option(OPT_STRUCTURED_REPLY, &[])?;
        export.structured = raw.option_reply(OPT_STRUCTURED_REPLY)?.0 == REP_ACK;
    }
    raw.option(OPT_GO, &info_request(&uri.name, &[INFO_BLOCK_SIZE])?)?;
    let mut told = false;
    loop {
        let (kind, data) = raw.option_reply(OPT_GO)?;
        match kind {
            REP_ACK => break,
            REP_INFO => told |= take_info(&mut export, &data)?,
            _ => fail!(
                "export '{}' is refused: reply {kind:#x}, {}",
                uri.name,
                String::from_utf8_lossy(&data)
            ),
        }
    }
    ensure!(told, "GO was acknowledged without NBD_INFO_EXPORT");
    Ok((raw, export))
}

/// The data of `NBD_OPT_GO` and `NBD_OPT_INFO`.
pub fn info_request(name: &str, infos: &[u16]) -> Res<Vec<u8>> {
    let mut b = u32::try_from(name.len())?.to_be_bytes().to_vec();
    b.extend(name.as_bytes());
    b.extend(u16::try_from(infos.len())?.to_be_bytes());
    for i in infos {
        b.extend(i.to_be_bytes());
    }
    Ok(b)
}

/// Takes one `NBD_REP_INFO`; true when it is the one every server must send.
fn take_info(export: &mut Export, data: &[u8]) -> Res<bool> {
    let be = |at: usize, n: usize| {
        data.get(at..at + n).map(|b| b.iter().fold(0u64, |v, &x| v << 8 | u64::from(x)))
    };
    match (be(0, 2), data.len()) {
        (Some(kind), 12) if kind == u64::from(INFO_EXPORT) => {
            export.size = be(2, 8).unwrap_or_default();
            export.flags = be(10, 2).unwrap_or_default() as u16;
            Ok(true)
        }
        (Some(kind), 14) if kind == u64::from(INFO_BLOCK_SIZE) => {
            let n = |at| be(at, 4).unwrap_or_default() as u32;
            export.blocks = Some((n(2), n(6), n(10)));
            Ok(false)
        }
        (Some(kind), _) if kind > u64::from(INFO_BLOCK_SIZE) => Ok(false),
        (kind, len) => fail!("an NBD_REP_INFO {kind:?} of {len} bytes"),
    }
}
