//! A message on a stream: 4-byte little-endian length, then JSON.

use serde::{de::DeserializeOwned, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest control message, bytes. A snapshot of 100,000 placement groups fits.
pub const MAX_MESSAGE: usize = 64 << 20;

/// What goes wrong on a control session.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("control connection: {0}")]
    Io(#[from] std::io::Error),
    #[error("control message of {0} bytes is above the limit of {MAX_MESSAGE}")]
    TooLong(usize),
    #[error("control message not understood: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the MDM refused this node: {message} ({code}); {hint}")]
    Refused { code: String, message: String, hint: String },
    #[error("control session: {0}")]
    Protocol(&'static str),
}

/// Sends one message.
pub async fn write_message<T: Serialize>(
    w: &mut (impl AsyncWrite + Unpin),
    m: &T,
) -> Result<(), ControlError> {
    let mut out = vec![0; 4];
    serde_json::to_writer(&mut out, m)?;
    let len = out.len() - 4;
    if len > MAX_MESSAGE {
        return Err(ControlError::TooLong(len));
    }
    out[..4].copy_from_slice(&(len as u32).to_le_bytes());
    w.write_all(&out).await?;
    Ok(w.flush().await?)
}

/// Receives one message. Not cancel-safe: read in a task of its own.
pub async fn read_message<T: DeserializeOwned>(
    r: &mut (impl AsyncRead + Unpin),
) -> Result<T, ControlError> {
    let len = r.read_u32_le().await? as usize;
    if len > MAX_MESSAGE {
        return Err(ControlError::TooLong(len));
    }
    // Grows with what really arrives, so that a lying length costs nothing.
    let mut body = Vec::with_capacity(len.min(1 << 20));
    r.take(len as u64).read_to_end(&mut body).await?;
    if body.len() < len {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FromNode, Proposal};

    #[tokio::test]
    async fn a_message_survives_the_stream() {
        let (mut a, mut b) = tokio::io::duplex(64);
        let m = FromNode::Propose { request: 7, proposal: Proposal::HandOver };
        let sent = m.clone();
        let t = tokio::spawn(async move { write_message(&mut a, &sent).await.map(|_| a) });
        let got: FromNode = read_message(&mut b).await.unwrap();
        assert_eq!(got, m);
        t.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_length_above_the_limit_is_refused() {
        let mut r: &[u8] = &[0xff, 0xff, 0xff, 0xff, 1, 2, 3];
        let e = read_message::<FromNode>(&mut r).await.unwrap_err();
        assert!(matches!(e, ControlError::TooLong(_)), "{e}");
    }

    #[tokio::test]
    async fn a_cut_message_is_an_error() {
        let mut r: &[u8] = &[10, 0, 0, 0, b'{'];
        assert!(read_message::<FromNode>(&mut r).await.is_err());
    }
}
