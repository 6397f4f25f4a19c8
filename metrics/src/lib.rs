//! quarry-metrics
