//! scli
