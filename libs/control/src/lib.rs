//! quarry-control
