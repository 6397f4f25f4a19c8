//! The error numbers a client may see, and the one place that maps to them.

/// An error of the transmission phase. The number is the one on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u32)]
pub enum NbdErrno {
    /// Not permitted: a write to a read-only export.
    Eperm = 1,
    /// The data could not be read or written.
    Eio = 5,
    /// Out of memory. The specification asks servers to avoid it.
    Enomem = 12,
    /// A request that makes no sense: range, flags, command.
    Einval = 22,
    /// No room, or a write beyond the end.
    Enospc = 28,
    /// A length this server will not handle in one piece.
    Eoverflow = 75,
    /// A fast zero request that would not be fast.
    Enotsup = 95,
    /// The server is shutting down.
    Eshutdown = 108,
}

impl NbdErrno {
    /// The number on the wire.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The error for an `errno` of this host (Linux numbers). What has no counterpart is `Eio`.
    pub const fn from_os(errno: i32) -> NbdErrno {
        match errno {
            1 | 13 | 30 => NbdErrno::Eperm,    // EPERM EACCES EROFS
            12 => NbdErrno::Enomem,            // ENOMEM
            22 => NbdErrno::Einval,            // EINVAL
            27 | 28 | 122 => NbdErrno::Enospc, // EFBIG ENOSPC EDQUOT
            75 => NbdErrno::Eoverflow,         // EOVERFLOW
            38 | 95 => NbdErrno::Enotsup,      // ENOSYS EOPNOTSUPP
            108 => NbdErrno::Eshutdown,        // ESHUTDOWN
            _ => NbdErrno::Eio,
        }
    }

    /// The error as the specification permits it for a command: `Enotsup` only answers a fast zero
    /// request and `Eoverflow` never answers a write; `Einval` and `Eio` take their places.
    pub(crate) const fn permitted(self, fast_zero: bool, write: bool) -> NbdErrno {
        match self {
            NbdErrno::Enotsup if !fast_zero => NbdErrno::Einval,
            NbdErrno::Eoverflow if write => NbdErrno::Eio,
            e => e,
        }
    }
}

impl std::fmt::Display for NbdErrno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NbdErrno::Eperm => "operation not permitted",
            NbdErrno::Eio => "input/output error",
            NbdErrno::Enomem => "cannot allocate memory",
            NbdErrno::Einval => "invalid argument",
            NbdErrno::Enospc => "no space left on device",
            NbdErrno::Eoverflow => "value too large",
            NbdErrno::Enotsup => "operation not supported",
            NbdErrno::Eshutdown => "server is shutting down",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_eight_numbers_of_the_specification_reach_the_wire() {
        let known = [1, 5, 12, 22, 28, 75, 95, 108];
        for os in -5..200 {
            assert!(known.contains(&NbdErrno::from_os(os).code()), "errno {os}");
        }
        assert_eq!(NbdErrno::from_os(122), NbdErrno::Enospc, "EDQUOT is ENOSPC");
        assert_eq!(NbdErrno::from_os(27), NbdErrno::Enospc, "EFBIG is ENOSPC");
        assert_eq!(NbdErrno::from_os(110), NbdErrno::Eio, "the rest is EIO");
        assert_eq!(NbdErrno::Enotsup.permitted(false, true), NbdErrno::Einval);
        assert_eq!(NbdErrno::Enotsup.permitted(true, true), NbdErrno::Enotsup);
    }
}
