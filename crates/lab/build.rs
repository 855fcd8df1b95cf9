//! Compiles the guests' workload as a static program and hands it to the library, which puts it into the initramfs.
//!
//! It is also an ordinary binary target, so that it is linted and tested, but Cargo can't link one target of a
//! package statically and another not. The compiler is therefore called directly; the program uses only `std`.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let source = "src/bin/guest-load";
    println!("cargo::rerun-if-changed={source}");
    let target = env::var("TARGET").expect("set by Cargo");
    assert_eq!(
        target, "x86_64-unknown-linux-gnu",
        "the lab's guests are x86-64 Linux, and so must be the host"
    );
    let output = PathBuf::from(env::var("OUT_DIR").expect("set by Cargo")).join("guest-load");
    let status = Command::new(env::var("RUSTC").expect("set by Cargo"))
        .args(["--edition=2024", "--crate-name=guest_load", "--crate-type=bin"])
        .args(["-Copt-level=3", "-Cpanic=abort", "-Cstrip=symbols"])
        .args(["-Ctarget-feature=+crt-static", "-Crelocation-model=static"])
        .arg("-o")
        .arg(&output)
        .arg(format!("{source}/main.rs"))
        .status()
        .expect("the compiler that Cargo named can be run");
    assert!(status.success(), "guest-load: static linking needs the C library's libc.a (Debian: libc6-dev)");
}
