//! Mutual TLS between agents: TLS 1.3 only, against a private CA, in both directions.
//!
//! A host is who its certificate says: the caller learns the DNS names in the peer's certificate, and a client accepts
//! no server but the one whose name the operator gave. Sessions are not resumed, so that a peer taken off the
//! list is refused at its next connection.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::config::{TlsConfig, os_text, read_bounded};
use super::input::BadInput;

/// A PEM file may have this many bytes.
const PEM_BYTES_MAX: u64 = 256 * 1024;
/// DNS names that are looked at in one certificate.
const NAMES_MAX: usize = 16;

/// This host's side of every TLS connection.
#[derive(Clone)]
pub struct TlsContext {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    peers: Option<Arc<[String]>>,
}

impl std::fmt::Debug for TlsContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsContext").field("peers", &self.peers).finish_non_exhaustive()
    }
}

impl TlsContext {
    /// Reads the files, and checks that they belong together: the key to the certificate, the certificate to the CA and
    /// to `name`.
    ///
    /// # Errors
    /// One line that names the file.
    pub fn load(files: &TlsConfig, name: &str) -> Result<TlsContext, BadInput> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let ca_error = |e: String| BadInput::file(&files.ca, e);
        let roots = Arc::new(roots(&files.ca)?);
        let chain = certificates(&files.cert)?;
        if !dns_names(&chain[0]).iter().any(|n| n.eq_ignore_ascii_case(name)) {
            return Err(BadInput::file(&files.cert, format!("is not for host '{name}'")));
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| ca_error(e.to_string()))?;
        verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).map_err(|e| {
            BadInput::file(&files.cert, format!("does not hold under {}: {e}", files.ca.display()))
        })?;
        let key = private_key(&files.key)?;
        let pair_error = |e: rustls::Error| {
            BadInput::file(&files.key, format!("does not go with {}: {e}", files.cert.display()))
        };

        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| ca_error(e.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(pair_error)?;
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| ca_error(e.to_string()))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(pair_error)?;
        client.resumption = Resumption::disabled();
        let peers = files.peers.clone().map(Arc::from);
        Ok(TlsContext { server: Arc::new(server), client: Arc::new(client), peers })
    }

    /// Accepts connections of hosts that have a certificate of the CA.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.server.clone())
    }

    /// Connects to hosts that have a certificate of the CA for the name that the caller gives.
    pub fn connector(&self) -> TlsConnector {
        TlsConnector::from(self.client.clone())
    }

    /// Whether a host of this name may open sessions here.
    pub fn permits(&self, peer: &str) -> bool {
        self.peers.as_ref().is_none_or(|peers| peers.iter().any(|p| p.eq_ignore_ascii_case(peer)))
    }
}

/// The DNS names in a certificate that TLS has verified, the first few; empty where it has none.
pub fn dns_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    match webpki::EndEntityCert::try_from(certificate) {
        Ok(parsed) => parsed.valid_dns_names().take(NAMES_MAX).map(str::to_owned).collect(),
        Err(_) => Vec::new(),
    }
}

fn roots(path: &Path) -> Result<RootCertStore, BadInput> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| BadInput::file(path, e.to_string()))?;
    }
    Ok(roots)
}

/// At least one certificate.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, BadInput> {
    let text = read_bounded(path, PEM_BYTES_MAX)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(BadInput::file(path, "has no certificate in PEM")),
        Err(e) => Err(BadInput::file(path, e.to_string())),
    }
}

/// Whether a file that holds a secret is kept from everybody.
///
/// # Errors
/// One line that names the file.
pub(super) fn check_private(path: &Path, what: &str) -> Result<(), BadInput> {
    let mode = std::fs::metadata(path).map_err(|e| BadInput::file(path, os_text(&e)))?.permissions().mode();
    if mode & 0o007 != 0 {
        return Err(BadInput::file(path, format!("mode {:o} lets everybody at the {what}", mode & 0o777)));
    }
    Ok(())
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, BadInput> {
    check_private(path, "private key")?;
    let text = read_bounded(path, PEM_BYTES_MAX)?;
    PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|_| BadInput::file(path, "has no private key in PEM"))
}
