//! What `vmscatter keys init` makes: a private CA, a certificate per host that serves and asks alike, and the fleet's key.
//!
//! The CA's key is needed again only when a host is added; keep it off the hosts. The fleet's key, in `fleet.key`, is one
//! for all hosts whose saved fingerprints are to be compared: 32 random bytes in hexadecimal.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};
use vmscatter_core::index::FleetKey;

use super::config::{os_text, read_bounded};
use super::input::{BadInput, is_host_name};
use super::tls::check_private;
use crate::random::random;

/// Days for which a new CA holds.
const CA_DAYS: i64 = 3_650;
/// Clocks of hosts may be behind by this much.
const CLOCK_SKEW: Duration = Duration::hours(1);
const PEM_BYTES_MAX: u64 = 64 * 1024;
/// The fleet's key, and room for white space.
const FLEET_KEY_BYTES_MAX: u64 = 256;
/// Hosts can't have these names: their files would be others'.
const RESERVED: [(&str, &str); 2] =
    [("ca", "is the name of the CA's own files"), ("fleet", "is the name of the fleet's key")];

/// Where a certificate and its key are.
struct Pair {
    cert: PathBuf,
    key: PathBuf,
}

impl Pair {
    fn of(dir: &Path, name: &str) -> Pair {
        Pair { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) }
    }
}

/// Makes `ca.pem` and `ca.key`, and `fleet.key`, in `dir` unless they are there, and `NAME.pem` and `NAME.key` for each host, to hold for
/// `days`. Nothing that is there is overwritten, and nothing is written if a name is refused.
///
/// # Errors
/// One line: a name that is no host's, files that are there already, a CA that is incomplete.
pub fn init(dir: &Path, hosts: &[String], days: u32) -> Result<(), BadInput> {
    for (index, host) in hosts.iter().enumerate() {
        let bad = |detail: &str| BadInput::new(format!("--host {host}"), detail);
        if !is_host_name(host) {
            return Err(bad("is no host name (lower case, as in DNS)"));
        }
        if let Some((_, why)) = RESERVED.iter().find(|(name, _)| host == name) {
            return Err(bad(why));
        }
        if hosts[..index].contains(host) {
            return Err(bad("is given twice"));
        }
        let pair = Pair::of(dir, host);
        for path in [pair.cert, pair.key] {
            if path.symlink_metadata().is_ok() {
                return Err(BadInput::file(&path, "is there already, and is not overwritten"));
            }
        }
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| BadInput::file(dir, os_text(&e)))?;
    let ca = Pair::of(dir, "ca");
    let issuer = match (ca.cert.exists(), ca.key.exists()) {
        (true, true) => load_ca(&ca)?,
        (false, false) => make_ca(&ca)?,
        (true, false) => {
            return Err(BadInput::file(&ca.key, "is missing beside ca.pem; without it no host can be added"));
        }
        (false, true) => return Err(BadInput::file(&ca.cert, "is missing beside ca.key")),
    };
    let fleet = dir.join("fleet.key");
    if fleet.symlink_metadata().is_err() {
        let hex: String = random::<32>().iter().map(|byte| format!("{byte:02x}")).collect();
        write_new(&fleet, &format!("{hex}\n"), 0o600)?;
    }
    for host in hosts {
        let pair = Pair::of(dir, host);
        make_host(&pair, host, i64::from(days), &issuer)?;
    }
    Ok(())
}

/// Reads the fleet's key.
///
/// # Errors
/// One line that names the file: unreadable, open to everybody, or no key.
pub fn load_fleet_key(path: &Path) -> Result<FleetKey, BadInput> {
    check_private(path, "fleet's key")?;
    let text = read_bounded(path, FLEET_KEY_BYTES_MAX)?;
    let bytes = parse_hex(text.trim()).ok_or_else(|| {
        BadInput::file(path, "is no fleet key: 64 hexadecimal digits, as 'vmscatter keys init' writes them")
    })?;
    Ok(FleetKey::new(&bytes))
}

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |at: usize| char::from(digits[at]).to_digit(16);
        *byte = (digit(0)? << 4 | digit(1)?) as u8;
    }
    Some(bytes)
}

fn make_ca(files: &Pair) -> Result<Issuer<'static, KeyPair>, BadInput> {
    let bad = |e: rcgen::Error| BadInput::file(&files.cert, e.to_string());
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "vmscatter CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = validity(CA_DAYS);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(bad)?;
    let cert = params.self_signed(&key).map_err(bad)?;
    write_new(&files.key, &key.serialize_pem(), 0o600)?;
    write_new(&files.cert, &cert.pem(), 0o644)?;
    Ok(Issuer::new(params, key))
}

fn load_ca(files: &Pair) -> Result<Issuer<'static, KeyPair>, BadInput> {
    let key = KeyPair::from_pem(&read_bounded(&files.key, PEM_BYTES_MAX)?)
        .map_err(|_| BadInput::file(&files.key, "has no private key in PEM"))?;
    let public = key.subject_public_key_info();
    let text = read_bounded(&files.cert, PEM_BYTES_MAX)?;
    let bad = |detail: String| BadInput::file(&files.cert, detail);
    if !certificate_has_key(&text, &public) {
        return Err(bad("is no certificate in PEM that goes with ca.key".into()));
    }
    Issuer::from_ca_cert_pem(&text, key).map_err(|e| bad(e.to_string()))
}

/// Whether the certificate holds this public key: its SubjectPublicKeyInfo stands in the certificate byte for byte, as
/// both are DER (RFC 5280, 4.1).
fn certificate_has_key(pem: &str, public_key_info: &[u8]) -> bool {
    match CertificateDer::from_pem_slice(pem.as_bytes()) {
        Ok(der) => der.windows(public_key_info.len()).any(|window| window == public_key_info),
        Err(_) => false,
    }
}

fn make_host(files: &Pair, host: &str, days: i64, issuer: &Issuer<'_, KeyPair>) -> Result<(), BadInput> {
    let bad = |e: rcgen::Error| BadInput::file(&files.cert, e.to_string());
    let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(bad)?;
    params.distinguished_name.push(DnType::CommonName, host);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = validity(days);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(bad)?;
    let cert = params.signed_by(&key, issuer).map_err(bad)?;
    write_new(&files.key, &key.serialize_pem(), 0o600)?;
    write_new(&files.cert, &cert.pem(), 0o644)
}

fn validity(days: i64) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - CLOCK_SKEW, now + Duration::days(days))
}

/// Writes a file that was not there, with its mode from the first moment on.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), BadInput> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(|e| BadInput::file(path, os_text(&e)))
}
