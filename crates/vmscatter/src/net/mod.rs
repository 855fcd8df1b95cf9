//! Sockets of the data path: UDP multicast with segmentation offload, and TCP data connections.

pub mod data;
pub mod udp;
