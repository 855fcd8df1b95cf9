//! What a migration will carry and how long it will take, before anything moves.
//!
//! [`Inventory`] is what the guests hold, [`Volume`] what of it leaves for whom under a placement, [`Wire`] turns that into
//! bytes on links, and [`Pace`] bytes into time. Bytes follow from the formats of [`wire`](crate::wire) and the headers
//! around them; nothing here is fitted to a run. What is left out is small: control messages (a few kilobytes a target),
//! acknowledgements, repair of lost datagrams, and pages that guests rewrite meanwhile.

mod inventory;
mod pace;
#[cfg(test)]
mod tests;
mod wire;

pub use inventory::{Inventory, SetVolume, VmInventory, VmVolume, Volume};
pub use pace::{Measured, Pace, PhaseMeasured, PhaseTimes};
pub use wire::{
    Bytes, Compressed, DEVICE_STATE_BYTES, Wire, off_the_shelf_bytes, tcp_wire_bytes, udp_wire_bytes,
};
