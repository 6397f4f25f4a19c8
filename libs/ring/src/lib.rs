//! quarry-ring
