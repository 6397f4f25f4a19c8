//! quarry-placement
