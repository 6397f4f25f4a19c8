//! Little-endian bytes in and out. Reading never goes beyond the input: it says `None`.

/// Appends integers to a byte vector.
pub(crate) trait Put {
    fn u8(&mut self, v: u8);
    fn u16(&mut self, v: u16);
    fn u32(&mut self, v: u32);
    fn u64(&mut self, v: u64);
}

impl Put for Vec<u8> {
    fn u8(&mut self, v: u8) {
        self.push(v);
    }
    fn u16(&mut self, v: u16) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn u32(&mut self, v: u32) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn u64(&mut self, v: u64) {
        self.extend_from_slice(&v.to_le_bytes());
    }
}

/// A cursor over bytes.
pub(crate) struct Get<'a>(pub &'a [u8]);

impl<'a> Get<'a> {
    pub fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (a, b) = self.0.split_at_checked(n)?;
        self.0 = b;
        Some(a)
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (a, b) = self.0.split_first_chunk::<N>()?;
        self.0 = b;
        Some(*a)
    }
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|a| a[0])
    }
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    pub fn id16(&mut self) -> Option<[u8; 16]> {
        self.array()
    }
}

/// CRC-32C of a page-sized structure whose checksum field, 4 bytes at `at`, counts as zero.
pub(crate) fn crc_without(page: &[u8], at: usize) -> u32 {
    // Two parts and the four zeroes between them, without copying the page.
    let head = quarry_base::crc32c(&page[..at]);
    let tail = quarry_base::crc32c(&page[at + 4..]);
    let mut mix = [0u8; 16];
    mix[..4].copy_from_slice(&head.to_le_bytes());
    mix[4..8].copy_from_slice(&tail.to_le_bytes());
    mix[8..].copy_from_slice(&(page.len() as u64).to_le_bytes());
    quarry_base::crc32c(&mix)
}
