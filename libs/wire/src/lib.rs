//! quarry-wire
