//! quarry-nbd-proto
