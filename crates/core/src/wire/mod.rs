//! What crosses the network: control messages over TLS, and sealed pieces of frames over UDP multicast and TCP.

pub mod control;
pub mod frame;
pub mod hardware;
pub mod piece;
pub mod relay;
pub mod seal;
mod window;

pub(crate) use window::NumberWindow;
