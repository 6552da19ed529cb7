//! A directory for a short-lived cluster, removed when done.

use crate::connect::random_u64;
use crate::exit::{Failure, failed, usage};
use std::path::{Path, PathBuf};

/// A fresh directory. Dropping it removes it unless the user wanted to keep it.
pub struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    /// Makes a directory: `keep` if given, which must not exist, else one under `target` of the
    /// current directory if there is one (a real disk more often than the system's temporary
    /// directory), else under that.
    pub fn new(purpose: &str, keep: Option<&Path>) -> Result<Scratch, Failure> {
        let path = match keep {
            Some(path) if path.exists() => {
                return Err(usage(format!("{} exists: give a new directory", path.display())));
            }
            Some(path) => path.to_path_buf(),
            None => {
                let parent = match std::env::current_dir().map(|dir| dir.join("target")) {
                    Ok(target) if target.is_dir() => target,
                    _ => std::env::temp_dir(),
                };
                return Scratch::below(&parent, purpose);
            }
        };
        Scratch::made(path, true)
    }

    /// A fresh directory in another one.
    pub fn below(parent: &Path, purpose: &str) -> Result<Scratch, Failure> {
        let name = format!("racos-{purpose}-{:08x}", random_u64() as u32);
        Scratch::made(parent.join(name), false)
    }

    fn made(path: PathBuf, keep: bool) -> Result<Scratch, Failure> {
        std::fs::create_dir_all(&path)
            .map_err(|error| failed(format!("cannot make {}: {error}", path.display())))?;
        Ok(Scratch { path, keep })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            eprintln!("racos: cannot remove {}: {error}", self.path.display());
        }
    }
}
