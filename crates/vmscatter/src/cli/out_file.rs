//! A file that is there as a whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::agent::config::os_text;
use crate::agent::input::BadInput;

/// A file to be written, for its owner only. Until then it has another name in the same directory; what is never written
/// is removed.
#[derive(Debug)]
pub(super) struct OutFile {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    kept: bool,
}

impl OutFile {
    /// Sees that the file can be written, before there is anything to write.
    ///
    /// # Errors
    /// One line that names the file.
    pub(super) fn create(path: &Path) -> Result<OutFile, BadInput> {
        let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
            return Err(BadInput::file(path, "is a directory"));
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}", std::process::id()));
        let temporary = path.with_file_name(hidden);
        // Left by a process that had this one's number.
        let _ = fs::remove_file(&temporary);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        let file = file.map_err(|e| BadInput::file(path, os_text(&e)))?;
        Ok(OutFile { path: path.to_owned(), temporary, file, kept: false })
    }

    /// Writes it and gives it its name; what had that name is replaced.
    ///
    /// # Errors
    /// One line that names the file.
    pub(super) fn write(mut self, bytes: &[u8]) -> Result<(), BadInput> {
        self.commit(bytes).map_err(|e| BadInput::file(&self.path, os_text(&e)))
    }

    fn commit(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.file.sync_all()?;
        fs::rename(&self.temporary, &self.path)?;
        self.kept = true;
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()
    }
}

impl Drop for OutFile {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_whole_and_private_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.fp");
        fs::write(&path, "before").unwrap();
        drop(OutFile::create(&path).unwrap());
        assert_eq!(
            (fs::read(&path).unwrap(), names(dir.path())),
            (b"before".to_vec(), vec!["a.fp".to_owned()])
        );
        OutFile::create(&path).unwrap().write(b"after").unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), names(dir.path())),
            (b"after".to_vec(), vec!["a.fp".to_owned()])
        );
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_cannot_be_written_is_said_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let line = OutFile::create(dir.path()).unwrap_err().to_string();
        assert_eq!(line, format!("{}: is a directory", dir.path().display()));
        let missing = dir.path().join("no/a.fp");
        let line = OutFile::create(&missing).unwrap_err().to_string();
        assert_eq!(line, format!("{}: no such file or directory", missing.display()));
    }
}
