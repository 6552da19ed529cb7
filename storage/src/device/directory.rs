//! The directory that holds the files of a log, and its lock.
//!
//! Purpose: names, creation and exclusive use, alike for every device on a file system.
//! Invariant: a file with a segment's final name is whole; one in the making has another name.
//! What would break it: renaming before the file was flushed.

use super::lock::Lock;
use super::{FileId, SUPERBLOCK};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Whoever uses the directory holds a lock on this file.
pub(super) const LOCK_NAME: &str = "lock";

pub(super) struct Directory {
    path: PathBuf,
    /// For flushing the directory itself.
    pub handle: File,
    _lock: Lock,
}

impl Directory {
    /// Makes the directory if needed and takes it for this process alone.
    pub fn open(path: &Path) -> io::Result<Directory> {
        let about = |what: &str, error: io::Error| {
            io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
        };
        if !path.exists() {
            fs::create_dir_all(path).map_err(|error| about("cannot create directory", error))?;
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new("."))).and_then(|parent| parent.sync_all())?;
        }
        let handle = File::open(path).map_err(|error| about("cannot open directory", error))?;
        let lock =
            File::create(path.join(LOCK_NAME)).map_err(|error| about("cannot lock", error))?;
        let lock = Lock::take(lock, || {
            format!(
                "directory {} is in use by another process (it holds {0}/lock): stop it first",
                path.display()
            )
        })?;
        let directory = Directory { path: path.to_owned(), handle, _lock: lock };
        directory.clean()?;
        Ok(directory)
    }

    /// Removes files whose making was cut short.
    fn clean(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "new") {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    pub fn file_path(&self, file: FileId) -> PathBuf {
        match file {
            SUPERBLOCK => self.path.join("superblock"),
            segment => self.path.join(format!("segment-{segment:08}.log")),
        }
    }

    /// The name of a file in the making.
    pub fn new_path(&self, file: FileId) -> PathBuf {
        self.path.join(format!("segment-{file:08}.new"))
    }

    /// Files that exist, with their lengths, in order of their numbers.
    pub fn list(&self) -> io::Result<Vec<(FileId, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if let Some(file) = entry.file_name().to_str().and_then(parse_name) {
                files.push((file, entry.metadata()?.len()));
            }
        }
        files.sort_unstable();
        Ok(files)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The file of a log that has this name.
pub(super) fn parse_name(name: &str) -> Option<FileId> {
    if name == "superblock" {
        return Some(SUPERBLOCK);
    }
    let digits = name.strip_prefix("segment-")?.strip_suffix(".log")?;
    let number = digits.parse().ok()?;
    (digits.len() >= 8 && number != SUPERBLOCK).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_log_are_files_of_the_log() {
        assert_eq!(parse_name("superblock"), Some(0));
        assert_eq!(parse_name("segment-00000012.log"), Some(12));
        for other in ["segment-00000000.log", "segment-12.log", "segment-00000012.new", "lock"] {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }
}
