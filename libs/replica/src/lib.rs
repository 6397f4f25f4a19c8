//! quarry-replica
