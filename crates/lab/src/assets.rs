//! What the guests boot from: the kernel of a distribution's package, an initramfs with the workload, and a read-only
//! disk with the files that all guests share.
//!
//! The files are on a disk and not in the initramfs because the kernel fills the memory of a used initramfs with 0xCC:
//! that would be sharing nobody has in practice.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cpio::Archive;

/// Bytes of files that every guest holds in its page cache, at least.
pub const SHARED_BYTES: u64 = 64 << 20;

const PAGE_SIZE: u64 = 4096;
/// Modules that a guest's kernel needs, if it does not have them built in: for the disk.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];
/// The same, and what is laid over the Debian disk.
const DEBIAN_MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "ext4", "overlay"];
/// Where more files come from if the kernel package has too few.
const MORE_FILES: &str = "/usr/lib/x86_64-linux-gnu";

static GUEST_LOAD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest-load"));

/// The files that a guest's QEMU is started with.
#[derive(Debug, Clone)]
pub struct Assets {
    /// bzImage.
    pub kernel: PathBuf,
    /// Initramfs with the workload.
    pub initramfs: PathBuf,
    /// ext4 image with the shared files.
    pub disk: PathBuf,
    /// Bytes of the shared files.
    pub shared_bytes: u64,
    /// ext4 image with a small Debian and the workloads, if they are wanted.
    pub debian: Option<PathBuf>,
}

/// Where `scripts/provision.sh` unpacks the kernel and the lab keeps what it builds of it: `VMSCATTER_LAB_CACHE`, else
/// `target/lab` of this workspace.
pub fn cache_directory() -> PathBuf {
    std::env::var_os("VMSCATTER_LAB_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/lab"), PathBuf::from)
}

impl Assets {
    /// Builds what is not in the cache yet.
    pub fn prepare() -> Result<Self> {
        Self::prepare_with("initramfs", &MODULES)
    }

    /// The same for guests with a workload of the Debian disk, which `provision_debian` has made.
    pub fn prepare_debian() -> Result<Self> {
        let cache = cache_directory();
        let image = cache.join("debian/current/disk.img");
        // Resolved, for another lab may bring a new one.
        let image = fs::canonicalize(&image).with_context(|| {
            format!("{}: no Debian for the guests; run scripts/table2 once", image.display())
        })?;
        Ok(Self { debian: Some(image), ..Self::prepare_with("initramfs-debian", &DEBIAN_MODULES)? })
    }

    fn prepare_with(initramfs_name: &str, modules: &[&str]) -> Result<Self> {
        let cache = cache_directory();
        let package = fs::canonicalize(cache.join("kernel/current"))
            .with_context(|| format!("{}: no guest kernel; run ./demo once", cache.display()))?;
        let kernel = find(&package.join("boot"), |name| name.starts_with("vmlinuz-"))?
            .with_context(|| format!("no vmlinuz in {}", package.display()))?;
        let initramfs = cache.join(format!("{initramfs_name}-{}", std::process::id()));
        let assets = Self {
            initramfs: cache.join(initramfs_name),
            disk: package.join("disk.img"),
            kernel,
            shared_bytes: 0,
            debian: None,
        };
        // Written anew each time, for it holds this build's workload; renamed, for another lab may be reading it.
        fs::write(&initramfs, build_initramfs(&package, modules)?)?;
        fs::rename(&initramfs, &assets.initramfs)?;
        let shared_bytes = build_disk(&package, &assets.disk)?;
        Ok(Self { shared_bytes, ..assets })
    }
}

impl Assets {
    /// A page of a file that every guest has in its page cache: of the kernel image's compressed part, so that it
    /// stands nowhere else.
    pub fn sample_page(&self) -> Result<Vec<u8>> {
        let content = fs::read(&self.kernel)?;
        let middle = content.len() / 2 / PAGE_SIZE as usize * PAGE_SIZE as usize;
        Ok(content[middle..middle + PAGE_SIZE as usize].to_vec())
    }
}

fn find(directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .with_context(|| directory.display().to_string())?
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(&wanted))
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    Ok(paths.pop())
}

fn build_initramfs(package: &Path, modules: &[&str]) -> Result<Vec<u8>> {
    let mut files = Vec::new();
    walk(&package.join("lib"), &mut files)?;
    let mut archive = Archive::new();
    archive.directory("dev");
    archive.device("dev/console", (5, 1));
    archive.file("init", 0o755, GUEST_LOAD);
    archive.directory("modules");
    let mut order = Vec::new();
    for module in modules {
        add_module(module, &files, &mut order)?;
    }
    for (place, path) in order.iter().enumerate() {
        let name = path.file_name().and_then(|name| name.to_str()).context("a module's name")?;
        archive.file(&format!("modules/{place:02}-{name}"), 0o644, &fs::read(path)?);
    }
    Ok(archive.finish())
}

/// Puts the module and, before it, what it depends on into `order`. One that has no file is built into the kernel.
fn add_module(name: &str, files: &[PathBuf], order: &mut Vec<PathBuf>) -> Result<()> {
    let file_name = |path: &&PathBuf| {
        path.file_name().and_then(|file| file.to_str()).map(|file| file.replace('-', "_"))
            == Some(format!("{name}.ko"))
    };
    let Some(path) = files.iter().find(file_name) else { return Ok(()) };
    if order.contains(path) {
        return Ok(());
    }
    for dependency in dependencies(&fs::read(path)?) {
        add_module(&dependency, files, order)?;
    }
    order.push(path.clone());
    Ok(())
}

/// The `depends=` entry of a module's `.modinfo`, which is a row of NUL-terminated strings.
fn dependencies(module: &[u8]) -> Vec<String> {
    let strings = module.split(|&byte| byte == 0);
    let list = strings.filter_map(|string| string.strip_prefix(b"depends=")).next().unwrap_or_default();
    String::from_utf8_lossy(list)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// Makes the disk unless it is there; returns the bytes of files on it.
fn build_disk(package: &Path, disk: &Path) -> Result<u64> {
    let note = disk.with_extension("bytes");
    if disk.exists()
        && let Some(bytes) = fs::read_to_string(&note).ok().and_then(|text| text.trim().parse().ok())
    {
        return Ok(bytes);
    }
    let mut files = Vec::new();
    walk(&package.join("boot"), &mut files)?;
    walk(&package.join("lib"), &mut files)?;
    if let Ok(path) = fs::canonicalize(MORE_FILES) {
        let mut more = Vec::new();
        walk(&path, &mut more)?;
        more.retain(|path| path.to_string_lossy().contains(".so"));
        files.extend(more);
    }
    let staging = disk.with_extension(format!("{}.d", std::process::id()));
    let bytes = stage(&files, &staging)?;
    let image = disk.with_extension(format!("{}.new", std::process::id()));
    let result = make_file_system(&staging, &image);
    fs::remove_dir_all(&staging)?;
    result?;
    fs::write(&note, bytes.to_string())?;
    fs::rename(&image, disk)?;
    Ok(bytes)
}

/// Copies files, in their order, until they are enough. Equal files are taken once: copies would be shared pages that
/// only the lab has.
fn stage(files: &[PathBuf], staging: &Path) -> Result<u64> {
    fs::create_dir_all(staging)?;
    let mut bytes = 0;
    let mut seen = BTreeSet::new();
    for (index, path) in files.iter().enumerate() {
        if bytes >= SHARED_BYTES {
            return Ok(bytes);
        }
        let Ok(content) = fs::read(path) else { continue };
        if (content.len() as u64) < PAGE_SIZE || !seen.insert(content.clone()) {
            continue;
        }
        fs::write(staging.join(format!("{index:05}")), &content)?;
        bytes += content.len() as u64;
    }
    bail!("only {bytes} bytes of files for the guests, {SHARED_BYTES} are needed");
}

fn make_file_system(staging: &Path, image: &Path) -> Result<()> {
    // Twice the content: room for inodes and for files that end within a block. The image is sparse.
    fs::File::create(image)?.set_len(2 * SHARED_BYTES)?;
    let output = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-b", "4096", "-d"])
        .arg(staging)
        .arg(image)
        .output()
        .context("mke2fs")?;
    ensure!(output.status.success(), "mke2fs: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// All regular files below `directory`, in the order of their paths.
fn walk(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries: Vec<_> =
        fs::read_dir(directory).with_context(|| directory.display().to_string())?.flatten().collect();
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}
