//! quarry-sim
