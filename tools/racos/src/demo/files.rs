//! The files that the demo stores: the checkout's own, and a few made for their sizes.

use crate::exit::{Failure, failed};
use std::fs;
use std::path::{Path, PathBuf};

/// What is wanted at least, and what is enough.
const FILES_MIN: usize = 200;
const FILES_MAX: usize = 420;
const BYTES_MIN: u64 = 100 << 20;
const BYTES_ENOUGH: u64 = 112 << 20;
/// Largest file taken.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Entries looked at; a home directory is not searched to the end.
const VISITED_MAX: usize = 200_000;

/// Sizes at the borders of what is stored in one way or another: inline, coded, in whole sectors, a
/// datagram, one stripe, several.
const BORDERS: [u64; 22] = [
    0,
    1,
    2,
    3,
    127,
    128,
    129,
    4095,
    4096,
    4097,
    (32 << 10) - 1,
    32 << 10,
    (56 << 10) + 1,
    (1 << 20) + 1,
    (2 << 20) - 1,
    2 << 20,
    (2 << 20) + 1,
    (4 << 20) - 1,
    4 << 20,
    (4 << 20) + 1,
    (6 << 20) + 12345,
    16 << 20,
];

/// A file to store.
pub struct Entry {
    pub key: Vec<u8>,
    pub path: PathBuf,
    pub bytes: u64,
}

/// What was found, and what was made.
pub struct Selection {
    pub entries: Vec<Entry>,
    pub made: usize,
    pub bytes: u64,
}

/// Chooses files below `root`, and makes more in `made_dir` as needed.
pub fn select(root: &Path, made_dir: &Path) -> Result<Selection, Failure> {
    let mut found = find(root);
    // Sources first, all of them; then build products in an order that mixes sizes.
    found.sort_by_key(|(path, _)| (is_build_product(root, path), mix(path), path.clone()));
    let mut selection = Selection { entries: Vec::new(), made: 0, bytes: 0 };
    fs::create_dir_all(made_dir)
        .map_err(|error| failed(format!("cannot make {}: {error}", made_dir.display())))?;
    for bytes in BORDERS {
        selection.make(made_dir, bytes)?;
    }
    for (path, bytes) in found {
        let is_enough = selection.entries.len() >= FILES_MIN && selection.bytes >= BYTES_ENOUGH;
        if is_enough || selection.entries.len() >= FILES_MAX {
            break;
        }
        // Leave places for large files if small ones have taken most.
        let is_late = selection.entries.len() > FILES_MAX / 2 && selection.bytes < BYTES_ENOUGH / 2;
        if is_late && bytes < 64 << 10 {
            continue;
        }
        let name = path.strip_prefix(root).unwrap_or(&path).as_os_str().as_encoded_bytes();
        let key = [b"files/", name].concat();
        if key.len() <= racos_client::KEY_BYTES_MAX {
            selection.bytes += bytes;
            selection.entries.push(Entry { key, path, bytes });
        }
    }
    let mut bytes = 1000;
    while selection.entries.len() < FILES_MIN {
        bytes = (bytes * 7 + 13) % (300 << 10);
        selection.make(made_dir, bytes)?;
    }
    while selection.bytes < BYTES_MIN {
        bytes = (5 << 20) + selection.bytes % 1_000_003;
        selection.make(made_dir, bytes)?;
    }
    Ok(selection)
}

impl Selection {
    fn make(&mut self, dir: &Path, bytes: u64) -> Result<(), Failure> {
        let name = format!("{:03}-{bytes}", self.made);
        let path = dir.join(&name);
        fs::write(&path, super::load::pattern(self.made as u64 + 1, bytes as usize))
            .map_err(|error| failed(format!("cannot write {}: {error}", path.display())))?;
        let key = [b"made/", name.as_bytes()].concat();
        self.entries.push(Entry { key, path, bytes });
        self.made += 1;
        self.bytes += bytes;
        Ok(())
    }
}

/// Regular files below `root`, not too large; what cannot be read is left out.
fn find(root: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_path_buf()];
    let mut visited = 0;
    while let Some(directory) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            visited += 1;
            let Ok(kind) = entry.file_type() else { continue };
            let path = entry.path();
            if kind.is_dir() && !is_left_out(&entry.file_name()) && visited < VISITED_MAX {
                directories.push(path);
            } else if kind.is_file()
                && let Ok(meta) = entry.metadata()
                && meta.len() <= FILE_BYTES_MAX
                && fs::File::open(&path).is_ok()
            {
                found.push((path, meta.len()));
            }
        }
    }
    found
}

/// Directories whose files change while we look, or are ours.
fn is_left_out(name: &std::ffi::OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name == b".git" || name == b"incremental" || name.starts_with(b"racos-")
}

fn is_build_product(root: &Path, path: &Path) -> bool {
    path.strip_prefix(root).is_ok_and(|path| path.starts_with("target"))
}

/// A number that follows from the path and from nothing else.
fn mix(path: &Path) -> u64 {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_directory_gives_enough_made_files() {
        let dir = std::env::temp_dir();
        let dir = dir.join(format!("racos-files-{:x}", crate::connect::random_u64()));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("own"), b"text").unwrap();
        let selection = select(&dir, &dir.join("racos-made")).unwrap();
        assert!(selection.entries.len() >= FILES_MIN && selection.bytes >= BYTES_MIN);
        let total: u64 = selection.entries.iter().map(|entry| entry.bytes).sum();
        assert_eq!(total, selection.bytes);
        let mut keys: Vec<_> = selection.entries.iter().map(|entry| entry.key.clone()).collect();
        assert!(keys.contains(&b"files/own".to_vec()));
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), selection.entries.len(), "keys differ");
        assert!(selection.entries.iter().any(|entry| entry.bytes == FILE_BYTES_MAX));
        fs::remove_dir_all(&dir).unwrap();
    }
}
