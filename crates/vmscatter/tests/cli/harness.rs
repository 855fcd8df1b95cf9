//! Runs the built binary: commands, and agents in a directory of their own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use vmscatter::agent::config::TlsConfig;
use vmscatter::agent::tls::TlsContext;

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn vmscatter(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmscatter")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs a command that must fail with `code`, and gives back its one line.
pub(crate) fn failing(code: i32, args: &[&str]) -> String {
    let output = vmscatter(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert_eq!(output.stdout, b"", "{args:?}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    stderr.trim_end().strip_prefix("vmscatter: ").unwrap_or_else(|| panic!("{stderr}")).to_owned()
}

/// A directory with keys, configurations and guest files.
pub(crate) struct Lab {
    pub(crate) dir: TempDir,
}

impl Lab {
    pub(crate) fn new(hosts: &str) -> Lab {
        let lab = Lab { dir: tempfile::tempdir().unwrap() };
        let output = vmscatter(&["keys", "init", "--dir", &lab.path("keys"), "--host", hosts]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        lab
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.dir.path().join(name), text).unwrap();
        self.path(name)
    }

    /// A guest file, and a socket where it says that QMP is.
    pub(crate) fn guest(&self, name: &str) -> (String, UnixListener) {
        let qmp = self.path(&format!("{name}.qmp"));
        let listener = UnixListener::bind(&qmp).unwrap();
        let text = format!("name = '{name}'\nqmp = '{qmp}'\ncommand = ['/usr/bin/qemu', '-m', '64']\n");
        (self.write(&format!("{name}.toml"), &text), listener)
    }

    pub(crate) fn config(&self, name: &str) -> String {
        format!(
            "name = '{name}'\nlisten = '127.0.0.1:0'\nsocket = '{name}.sock'\nstate_dir = '{name}.state'\n\
             run_dir = '{name}.run'\n[tls]\nca = 'keys/ca.pem'\ncert = 'keys/{name}.pem'\nkey = 'keys/{name}.key'\n\
             [qemu]\nprograms = ['/usr/bin/qemu']\n"
        )
    }

    pub(crate) fn agent(&self, name: &str) -> Agent {
        let config = self.write(&format!("{name}.toml"), &self.config(name));
        Agent::start(Path::new(&config), self.dir.path().join(format!("{name}.sock")))
    }

    pub(crate) fn tls(&self, name: &str) -> TlsContext {
        let path = |file: String| PathBuf::from(self.path(&file));
        let files = TlsConfig {
            ca: path("keys/ca.pem".into()),
            cert: path(format!("keys/{name}.pem")),
            key: path(format!("keys/{name}.key")),
            peers: None,
        };
        TlsContext::load(&files, name).unwrap()
    }
}

pub(crate) struct Agent {
    pub(crate) child: Child,
    pub(crate) control: SocketAddr,
    pub(crate) socket: PathBuf,
}

impl Agent {
    pub(crate) fn start(config: &Path, socket: PathBuf) -> Agent {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vmscatter"))
            .arg("agent")
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let Some(rest) = line.strip_prefix("ready control=") else {
            let mut stderr = String::new();
            child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
            panic!("{line}{stderr}");
        };
        assert!(rest.contains(" data=127.0.0.1:") && rest.contains(" socket="), "{line}");
        let control = rest.split(' ').next().unwrap().parse().unwrap();
        Agent { child, control, socket }
    }

    pub(crate) fn socket(&self) -> &str {
        self.socket.to_str().unwrap()
    }

    pub(crate) fn status(&self) -> Value {
        let output = vmscatter(&["status", "--json", "--agent", self.socket()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Sends a request as it is, and gives back all lines of the reply.
    pub(crate) fn raw(&self, request: &[u8]) -> Vec<Value> {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(request).unwrap();
        BufReader::new(stream).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
    }

    /// Tells the agent to stop, and gives back its log.
    pub(crate) fn stop(mut self, signal: Signal) -> String {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{stderr}");
        assert!(!self.socket.exists());
        stderr
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
