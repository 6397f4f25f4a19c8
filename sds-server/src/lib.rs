//! sds-server
