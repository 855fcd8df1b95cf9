//! The daemon on each host.
//!
//! It listens for control connections of other agents ([`control`], mutual [`tls`], [`keys`]), for data connections, and on a local
//! socket ([`local`], [`protocol`]) for the command line. At the source it owns [`jobs`]; what they do is in
//! [`crate::source`]. For each control connection that comes in, [`crate::target`] does the target's part.
//!
//! - [`admission`]: how many connections there may be, and of whom
//! - [`config`]: the configuration file; [`guest_file`]: how a guest is described
//! - [`host`]: memory and interfaces
//! - [`speeds`]: what earlier migrations have measured
//! - [`input`]: bad input, in one line; [`cancel`]: a flag to wait for

pub mod admission;
pub mod cancel;
pub mod config;
pub mod control;
pub mod guest_file;
pub mod holds;
pub mod host;
pub mod input;
pub mod jobs;
pub mod journal;
pub mod keys;
pub mod local;
pub mod protocol;
pub mod speeds;
pub mod tls;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use vmscatter_core::index::FleetKey;
use vmscatter_core::wire::control::Resources;

use admission::{Admission, Handshake};
use cancel::CancelToken;
use config::{AgentConfig, os_text};
use control::{ControlConnection, PeerInfo, hello};
use guest_file::{Values, format_uuid};
use holds::Holds;
use host::{HostError, Interface, MemoryLedger};
use input::BadInput;
use jobs::Jobs;
use journal::Journal;
use protocol::{AgentStatus, IncomingStatus};
use speeds::Speeds;
use tls::TlsContext;

use crate::net::udp::WayOut;
use crate::recovery::{self, Recovery};
use crate::target::data::DataRouter;

/// Clients of the local socket at once.
pub const LOCAL_CLIENTS_MAX: usize = 64;
/// Jobs and sessions get this long to end when the agent is stopped.
pub const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// Pause after a failed accept, so that a lack of descriptors makes no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the jobs and sessions of an agent share.
#[derive(Debug)]
pub struct AgentContext {
    /// The configuration.
    pub config: AgentConfig,
    /// What guest files are expanded with here.
    pub values: Values,
    /// This host's certificate, and whom it trusts.
    pub tls: TlsContext,
    /// The fleet's key, if this host has it.
    pub fleet_key: Option<FleetKey>,
    /// Memory for guests that come in.
    pub memory: MemoryLedger,
    /// Jobs of this host as source.
    pub jobs: Jobs,
    /// Where control connections come in, as bound.
    pub listen: SocketAddr,
    /// Where data connections come in, as bound.
    pub data_listen: SocketAddr,
    /// Which session waits for which data connection.
    pub data_router: DataRouter,
    /// What this host has promised and decided.
    pub journal: Journal,
    /// Looks after guests that no session has brought to their ends.
    pub recovery: Recovery,
    /// What its migrations have measured.
    pub speeds: Speeds,
    /// For tests: where guests are held.
    pub holds: Holds,
    /// Set when the agent is to stop: sessions abort what they have not committed, and end.
    pub shutdown: CancelToken,
    incoming: Mutex<BTreeMap<u64, IncomingStatus>>,
}

impl AgentContext {
    /// What this host says it can take, on a connection that has the local address `addr`.
    pub fn resources(&self, addr: SocketAddr) -> Resources {
        let mtu = self.interface(addr).map_or(0, |interface| interface.mtu);
        Resources { free_memory_bytes: self.memory.free_bytes(), mtu, data_port: self.data_listen.port() }
    }

    /// The interface on which multicast leaves and arrives: the configured one, else that of the local address `addr` of
    /// a control connection ([`PeerInfo::local_addr`]).
    ///
    /// # Errors
    /// There is no such interface.
    pub fn interface(&self, addr: SocketAddr) -> Result<Interface, HostError> {
        match &self.config.multicast.interface {
            Some(name) => Interface::named(name),
            None => Interface::with_address(addr.ip()),
        }
    }

    /// By which way multicast leaves this host, by the interface of this name if there is one, on a session whose control
    /// connections have the local address `addr`.
    ///
    /// # Errors
    /// There is no such interface, or it has no IPv4 address where that is spoken.
    pub fn way_out(&self, name: Option<&str>, addr: SocketAddr) -> Result<WayOut, HostError> {
        let interface = name.map_or_else(|| self.interface(addr), Interface::named)?;
        if addr.ip().to_canonical().is_ipv4() && interface.ipv4.is_none() {
            return Err(HostError::NoIpv4(interface.name));
        }
        Ok(WayOut { interface: Some(interface), ttl: self.config.multicast.ttl })
    }

    /// What `vmscatter status` shows.
    pub fn status(&self) -> AgentStatus {
        AgentStatus {
            name: self.config.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listen: self.listen,
            data_listen: self.data_listen,
            free_memory_bytes: self.memory.free_bytes(),
            jobs: self.jobs.status(),
            incoming: self.incoming().values().cloned().collect(),
            unfinished: self.recovery.status(self.journal.vms()),
        }
    }

    fn incoming(&self) -> MutexGuard<'_, BTreeMap<u64, IncomingStatus>> {
        self.incoming.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Why an agent ended other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration, or what it names, is wrong; nothing has started.
    #[error(transparent)]
    BadInput(#[from] BadInput),
    /// The system refused what it always grants.
    #[error("{0}: {text}", text = os_text(.1))]
    Os(&'static str, std::io::Error),
}

/// Runs the agent until SIGTERM or SIGINT; prints `ready` and its addresses on standard output once it listens.
///
/// # Errors
/// [`AgentError`], before `ready`.
pub fn run(config: AgentConfig) -> Result<(), AgentError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| AgentError::Os("runtime", e))?;
    let result = runtime.block_on(serve(config));
    // A thread of a job that does not end must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(config: AgentConfig) -> Result<(), AgentError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| AgentError::Os("SIGTERM", e))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| AgentError::Os("SIGINT", e))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(|e| AgentError::Os("SIGHUP", e))?;
    let tls = TlsContext::load(&config.tls, &config.name)?;
    let fleet_key = config.fleet_key.as_deref().map(keys::load_fleet_key).transpose()?;
    if let Some(name) = &config.multicast.interface {
        Interface::named(name).map_err(|e| config.bad("multicast.interface", e))?;
    }
    let _lock = lock_state(&config.state_dir)?;
    let journal = Journal::open(&config.state_dir)?;
    make_dir(&config.run_dir)?;
    let bind_error = |key: &str, addr: SocketAddr, e: &std::io::Error| {
        config.bad(key, format!("cannot listen on {addr}: {}", os_text(e)))
    };
    let control =
        TcpListener::bind(config.listen).await.map_err(|e| bind_error("listen", config.listen, &e))?;
    let data = std::net::TcpListener::bind(config.data_listen)
        .map_err(|e| bind_error("data_listen", config.data_listen, &e))?;
    let local = local::bind(&config.socket)?;

    let context = Arc::new(AgentContext {
        values: config.values(),
        tls,
        fleet_key,
        memory: MemoryLedger::new(config.memory),
        jobs: Jobs::default(),
        listen: control.local_addr().map_err(|e| AgentError::Os("listen", e))?,
        data_listen: data.local_addr().map_err(|e| AgentError::Os("data_listen", e))?,
        data_router: DataRouter::default(),
        journal,
        recovery: Recovery::default(),
        speeds: Speeds::in_dir(&config.state_dir),
        holds: Holds::new(config.holds.clone()),
        shutdown: CancelToken::new(),
        incoming: Mutex::default(),
        config,
    });
    accept_data(context.data_router.clone(), data)?;
    announce(&context);
    let control_loop = tokio::spawn(accept_control(context.clone(), control));
    let local_loop = tokio::spawn(accept_local(context.clone(), local));
    let recovery = tokio::spawn(recovery::run(context.clone()));
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            // Guests on their way must not depend on the terminal from which the agent was started.
            _ = hangup.recv() => tracing::info!("hang-up ignored"),
        }
    }
    tracing::info!("stopping");
    context.shutdown.cancel();
    let stop = async {
        context.jobs.stop().await;
        let _ = control_loop.await;
        let _ = local_loop.await;
        let _ = recovery.await;
    };
    tokio::select! {
        stopped = timeout(STOP_DEADLINE, stop) => {
            if stopped.is_err() {
                tracing::error!("jobs or sessions have not ended within {} s", STOP_DEADLINE.as_secs());
            }
        }
        _ = terminate.recv() => tracing::warn!("told to stop twice"),
        _ = interrupt.recv() => tracing::warn!("told to stop twice"),
    }
    let _ = std::fs::remove_file(&context.config.socket);
    Ok(())
}

fn announce(context: &AgentContext) {
    let mut stdout = std::io::stdout();
    // Who started the agent may have closed the pipe; that is no reason to end.
    let _ = writeln!(
        stdout,
        "ready control={} data={} socket={}",
        context.listen,
        context.data_listen,
        context.config.socket.display()
    );
    let _ = stdout.flush();
}

/// Makes a directory that only its owner can enter, unless it is there.
fn make_dir(path: &Path) -> Result<(), BadInput> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| BadInput::file(path, format!("cannot make the directory: {}", os_text(&e))))
}

/// Two agents must not share journals.
fn lock_state(dir: &Path) -> Result<Flock<File>, BadInput> {
    make_dir(dir)?;
    let path = dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| BadInput::file(&path, os_text(&e)))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => BadInput::file(dir, "state_dir: another agent uses it"),
        errno => BadInput::file(&path, errno.desc()),
    })
}

/// Takes data connections in for as long as the process lives; sessions take them from the router.
fn accept_data(router: DataRouter, listener: std::net::TcpListener) -> Result<(), AgentError> {
    let body = move || router.run(&listener);
    let thread = std::thread::Builder::new().name("data-accept".into()).spawn(body);
    thread.map(drop).map_err(|e| AgentError::Os("thread", e))
}

/// Takes control connections in until the agent stops, then waits for those that are open.
async fn accept_control(context: Arc<AgentContext>, listener: TcpListener) {
    let admission = Admission::default();
    let mut sessions = JoinSet::new();
    let mut number = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = sessions.join_next() => continue,
            () = context.shutdown.cancelled() => break,
        };
        let (tcp, addr) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("accept: {error}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        number += 1;
        sessions.spawn(serve_control(context.clone(), tcp, addr, admission.handshake(), number));
    }
    drop(listener);
    while sessions.join_next().await.is_some() {}
}

async fn serve_control(
    context: Arc<AgentContext>,
    tcp: TcpStream,
    addr: SocketAddr,
    handshake: Handshake,
    number: u64,
) {
    let local_addr = tcp.local_addr().unwrap_or(context.listen);
    let ours = hello(&context.config.name, context.resources(local_addr));
    let accepted = tokio::select! {
        accepted = ControlConnection::accept(tcp, addr, &context.tls, ours) => accepted,
        () = handshake.ousted() => return tracing::warn!(%addr, "turned away: others wait for its place"),
        () = context.shutdown.cancelled() => return,
    };
    let connection = match accepted {
        Ok(connection) => connection,
        Err(error) => return tracing::warn!("turned away: {error}"),
    };
    let _place = match handshake.admit(&connection.peer.name) {
        Ok(place) => place,
        Err(full) => return tracing::warn!(peer = connection.peer.name, %addr, "turned away: {full}"),
    };
    let PeerInfo { name, session, .. } = &connection.peer;
    let status = IncomingStatus { source: name.clone(), addr, session: format_uuid(session) };
    tracing::debug!(source = status.source, session = status.session, "connection opened");
    let session = status.session.clone();
    context.incoming().insert(number, status);
    let served = tokio::spawn(crate::target::serve(context.clone(), connection)).await;
    context.incoming().remove(&number);
    match served {
        Ok(()) => tracing::debug!(session, "connection closed"),
        Err(error) => tracing::error!(session, "session broke: {error}"),
    }
}

/// Serves the command line until the agent stops; replies under way end with their jobs.
async fn accept_local(context: Arc<AgentContext>, listener: UnixListener) {
    let room = Arc::new(Semaphore::new(LOCAL_CLIENTS_MAX));
    let mut clients = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = clients.join_next() => continue,
            () = context.shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let Ok(permit) = room.clone().try_acquire_owned() else {
                    tracing::warn!("turned away: {LOCAL_CLIENTS_MAX} local clients are connected");
                    continue;
                };
                let context = context.clone();
                clients.spawn(async move {
                    if let Err(error) = local::serve(context, stream).await {
                        tracing::debug!("local client: {error}");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!("accept: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while clients.join_next().await.is_some() {}
}
