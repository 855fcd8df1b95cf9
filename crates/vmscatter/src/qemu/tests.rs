//! The client against a scripted monitor; monitor and memory against a real QEMU.
//!
//! `VMSCATTER_TEST_QEMU` names another program, with options, than `qemu-system-x86_64`.

mod client;
mod real;
mod refusal;
mod text;
