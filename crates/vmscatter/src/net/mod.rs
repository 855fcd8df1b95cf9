//! Sockets of the data path: UDP multicast with segmentation offload, and TCP data connections.
//!
//! Nothing here opens or checks a piece; what arrives goes to the session as it is, in [`PieceBatch`](udp::PieceBatch)es
//! through a bounded queue.

pub mod data;
pub mod outlet;
pub mod udp;
