//! The `vmscatter` binary; see [`vmscatter::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    vmscatter::cli::main()
}
