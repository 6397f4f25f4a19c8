//! Parsing of the data of options. Nothing is trusted: every length is checked against what is there.

use crate::consts::*;

/// Why an option is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadOption {
    #[error("{0}")]
    Invalid(&'static str),
    #[error("{0}")]
    TooBig(&'static str),
}

impl BadOption {
    /// The type of the reply.
    pub fn reply_type(&self) -> u32 {
        match self {
            BadOption::Invalid(_) => NBD_REP_ERR_INVALID,
            BadOption::TooBig(_) => NBD_REP_ERR_TOO_BIG,
        }
    }
}

const SHORT: BadOption = BadOption::Invalid("the option's data ends too early");
const LONG: BadOption = BadOption::Invalid("the option carries more data than it describes");

/// A cursor over option data.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], BadOption> {
        let (a, b) = self.0.split_at_checked(n).ok_or(SHORT)?;
        self.0 = b;
        Ok(a)
    }
    fn u16(&mut self) -> Result<u16, BadOption> {
        Ok(self.take(2)?.iter().fold(0, |a, &b| (a << 8) | b as u16))
    }
    fn u32(&mut self) -> Result<u32, BadOption> {
        Ok(self.take(4)?.iter().fold(0, |a, &b| (a << 8) | b as u32))
    }
    /// A string with its length in front.
    fn string(&mut self) -> Result<&'a str, BadOption> {
        let n = self.u32()? as usize;
        string(self.take(n)?)
    }
    fn end(&self) -> Result<(), BadOption> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(LONG)
        }
    }
}

/// Bytes as a string of the specification: UTF-8, no NUL, at most 4096 bytes.
pub(crate) fn string(b: &[u8]) -> Result<&str, BadOption> {
    if b.len() > MAX_STRING {
        return Err(BadOption::TooBig("a name has at most 4096 bytes"));
    }
    match std::str::from_utf8(b) {
        Ok(s) if !s.contains('\0') => Ok(s),
        _ => Err(BadOption::Invalid("a name is UTF-8 without NUL")),
    }
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Info<'a> {
    pub name: &'a str,
    pub want_name: bool,
    pub want_description: bool,
    pub want_block_size: bool,
}

pub(crate) fn info(data: &[u8]) -> Result<Info<'_>, BadOption> {
    let mut c = Cursor(data);
    let mut info = Info {
        name: c.string()?,
        want_name: false,
        want_description: false,
        want_block_size: false,
    };
    for _ in 0..c.u16()? {
        match c.u16()? {
            NBD_INFO_NAME => info.want_name = true,
            NBD_INFO_DESCRIPTION => info.want_description = true,
            NBD_INFO_BLOCK_SIZE => info.want_block_size = true,
            _ => {}
        }
    }
    c.end()?;
    Ok(info)
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`, reduced to what this
/// server can offer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Meta<'a> {
    pub name: &'a str,
    /// No query at all.
    pub no_queries: bool,
    /// `base:allocation` was asked for by its name.
    pub allocation: bool,
    /// `base:` was asked for, the wildcard of that namespace.
    pub base_wildcard: bool,
}

pub(crate) fn meta(data: &[u8]) -> Result<Meta<'_>, BadOption> {
    let mut c = Cursor(data);
    let name = c.string()?;
    let n = c.u32()?;
    let mut m = Meta { name, no_queries: n == 0, allocation: false, base_wildcard: false };
    // Each query takes at least four bytes, so the loop ends with the data whatever `n` claims.
    for _ in 0..n {
        let q = c.string()?;
        if !q.contains(':') {
            return Err(BadOption::Invalid("a metadata query is NAMESPACE:NAME"));
        }
        m.allocation |= q == BASE_ALLOCATION;
        m.base_wildcard |= q == "base:";
    }
    c.end()?;
    Ok(m)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_length_beyond_the_data_is_invalid_at_every_cut() {
        let whole = b"\0\0\0\x03vol\0\x02\0\x01\0\x03";
        assert_eq!(info(whole).unwrap().name, "vol");
        assert!(info(whole).unwrap().want_name && info(whole).unwrap().want_block_size);
        for cut in 0..whole.len() {
            assert_eq!(info(&whole[..cut]), Err(SHORT), "cut at {cut}");
        }
        let mut more = whole.to_vec();
        more.push(0);
        assert_eq!(info(&more), Err(LONG));
    }

    #[test]
    fn names_follow_the_rules_for_strings() {
        assert!(string(&[b'a'; 4096]).is_ok());
        assert!(matches!(string(&[b'a'; 4097]), Err(BadOption::TooBig(_))));
        assert!(matches!(string(b"a\0b"), Err(BadOption::Invalid(_))));
        assert!(matches!(string(b"\xff"), Err(BadOption::Invalid(_))));
        assert_eq!(string("größe".as_bytes()), Ok("größe"));
    }
}
