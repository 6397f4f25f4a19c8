//! The first frame on every connection, both ways.

use quarry_base::{DeviceId, Instance, SdcId, SdsId, StartNo};
use serde::{Deserialize, Serialize};

/// Who speaks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    /// A client; every request carries this instance too.
    Sdc { id: SdcId, instance: Instance },
    /// A data server on its replication connection.
    Sds { id: SdsId, start: StartNo },
    /// A data server on its heartbeat connection (R17: a connection of its own).
    SdsHeartbeat { id: SdsId, start: StartNo },
}

/// Meta section of [`crate::Op::Hello`], as JSON so that it can grow. The dialler speaks first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Lowest and highest frame version spoken; the highest common one is used.
    pub versions: (u8, u8),
    /// Cluster id, 32 hexadecimal digits. Another cluster is refused.
    pub cluster: String,
    pub peer: Peer,
    /// Device wanted (0: any), for servers with several shards.
    pub device: DeviceId,
    /// Room for authentication; unknown to version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<String>,
}

impl Hello {
    /// The meta section of a Hello frame.
    pub fn to_meta(&self) -> bytes::Bytes {
        // Plain structs always serialise; an empty section is refused by the other side.
        serde_json::to_vec(self).map_or_else(|_| bytes::Bytes::new(), bytes::Bytes::from)
    }
    /// Reads [`Hello::to_meta`]; `None` if it is not one.
    pub fn from_meta(meta: &[u8]) -> Option<Hello> {
        serde_json::from_slice(meta).ok()
    }
}
