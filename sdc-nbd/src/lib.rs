//! sdc-nbd
