//! quarry-tests
