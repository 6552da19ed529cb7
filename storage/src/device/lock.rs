//! What says that a directory or a device is used by one process alone.
//!
//! Purpose: taking it, and giving it back at once.
//! Invariant: given back when it is dropped, whoever else holds a copy of the descriptor meanwhile: a
//! child process has one from its making until it runs its own program.
//! What would break it: leaving the release to the closing of the file, which waits for every copy.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};

pub(super) struct Lock {
    file: File,
}

impl Lock {
    /// `ErrorKind::ResourceBusy` with the text of `in_use` if another process has it.
    pub fn take(file: File, in_use: impl FnOnce() -> String) -> io::Result<Lock> {
        // PROTOCOL 10-b
        match file.try_lock() {
            Ok(()) => Ok(Lock { file }),
            Err(TryLockError::WouldBlock) => Err(io::Error::new(ErrorKind::ResourceBusy, in_use())),
            Err(TryLockError::Error(error)) => {
                Err(io::Error::new(error.kind(), format!("cannot lock: {error}")))
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file releases it, too, if this cannot.
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_given_back_although_a_child_has_a_copy_of_it() {
        let path = std::env::temp_dir().join(format!("racos-lock-{}", std::process::id()));
        let take = || Lock::take(File::create(&path).unwrap(), || "in use".to_string());
        let lock = take().unwrap();
        let refused = take().err().expect("one at a time");
        assert_eq!(
            (refused.kind(), refused.to_string()),
            (ErrorKind::ResourceBusy, "in use".into())
        );
        let copy = lock.file.try_clone().unwrap();
        drop(lock);
        take().unwrap();
        drop(copy);
        std::fs::remove_file(&path).unwrap();
    }
}
