//! What one connection may use.

/// Limits of a session. A limit of the transmission phase makes the session stop reading
/// (back-pressure); a limit of the handshake ends the connection or answers `ERR_TOO_BIG`.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Requests handed out and not yet answered. At least 1.
    pub max_in_flight: usize,
    /// Sum of the lengths of the reads and writes among them and of the output not yet taken, bytes. One
    /// request is admitted whatever its length when there is nothing else.
    pub max_in_flight_bytes: usize,
    /// Output queued and not yet taken for sending, bytes. A client that does not read its replies
    /// is not read from either. Answers to requests already in flight come on top, so a connection
    /// queues at most `max_in_flight_bytes`, or the answer to one request, and the headers.
    pub max_output: usize,
    /// Options before the transmission phase; one more ends the connection.
    pub max_options: u32,
    /// Length of an option's data, bytes; a longer one is answered with `ERR_TOO_BIG`.
    pub max_option_len: u32,
    /// Longest payload that is read and thrown away to refuse a request politely, bytes; a longer
    /// one ends the connection. At least 32 MiB, as the specification asks.
    pub max_discard: u32,
    /// Largest receive buffer for headers and small payloads, bytes. Starts small, grows with load.
    pub recv_buffer: usize,
}

/// Size of the receive buffer of a quiet connection, bytes.
pub(crate) const RECV_BUFFER_MIN: usize = 16 << 10;
/// A write payload missing at least this many bytes is received directly into its own buffer.
pub(crate) const DIRECT_PAYLOAD: usize = 32 << 10;

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_in_flight: 512,
            max_in_flight_bytes: 64 << 20,
            max_output: 8 << 20,
            max_options: 4096,
            max_option_len: 64 << 10,
            max_discard: 64 << 20,
            recv_buffer: 128 << 10,
        }
    }
}

impl Limits {
    /// The same limits with values a session can work with.
    pub(crate) fn sanitised(mut self) -> Limits {
        self.max_in_flight = self.max_in_flight.clamp(1, 1 << 16);
        self.max_output = self.max_output.max(1);
        self.max_option_len = self.max_option_len.clamp(8 << 10, 1 << 20);
        self.max_discard = self.max_discard.max(crate::consts::DEFAULT_MAX_PAYLOAD);
        self.recv_buffer = self.recv_buffer.clamp(RECV_BUFFER_MIN, 1 << 20).next_power_of_two();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_in_a_crowd_can_have_the_smallest_buffer() {
        let small = Limits { recv_buffer: RECV_BUFFER_MIN, ..Limits::default() };
        assert_eq!(small.sanitised().recv_buffer, RECV_BUFFER_MIN);
    }
}
