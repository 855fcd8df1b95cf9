//! vmscatter on Linux: everything that touches sockets, processes and files. The pure part is `vmscatter-core`.
//!
//! In reading order:
//!
//! - [`cli`]: the command line; it checks its input, asks the agent on this host, and shows what comes back
//! - [`agent`]: the daemon on each host: configuration, TLS, control connections, jobs, journal, the local socket
//! - [`qemu`]: a QEMU from outside: its monitor, its memory
//! - [`plan`]: which guest goes where, and what that will cost
//! - [`source`]: a job's work on the host that the guests leave
//! - [`target`]: the work on a host that takes them in
//! - [`recovery`]: guests that no session brought to their ends
//! - [`net`]: UDP multicast and TCP data connections
//! - [`random`]: keys and UUIDs; [`clock`]: this host's time
//! - [`topology_file`]: a network between hosts, as an operator writes it down
//! - [`report`]: what a job says while it runs and when it has ended, and how that is shown

pub mod agent;
pub mod cli;
pub mod clock;
pub mod net;
pub mod plan;
pub mod qemu;
pub mod random;
pub mod recovery;
pub mod report;
pub mod source;
pub mod target;
pub mod topology_file;
