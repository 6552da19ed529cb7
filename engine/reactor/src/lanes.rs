//! Lanes: a node as several whole instances, each with some of the keys (PROTOCOL 3.1-j).
//!
//! Purpose: each lane has a thread, a log, a port and an order of its own and shares nothing with the
//! others, so that neither a slot that waits nor a full core in one holds up another. What they have in
//! common is the process: they start, stop, fail and lose power together.
//!
//! Invariant: lane i of a node talks to lane i of the others only, keeps its log in `lane-i`, and
//! listens on the node's port plus i. Nothing is formatted before every directory was looked at.
//! What would break it: another hash, or another number of lanes than the one founded with: keys would
//! be looked for where they are not. Disks, datagrams and requests are refused for it.

use crate::config::NodeConfig;
use crate::runtime::{Options, ServeError, Told, serve_one};
use racos_buffer::Pool;
use racos_net::Lane;
use racos_storage::device::file::is_block_device;
use racos_storage::device::picture::PictureDevice;
use racos_storage::{Condition, Log};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

/// Most lanes of a node.
pub const LANES_MAX: u8 = Lane::COUNT_MAX;
/// What a directory's superblock is read with.
const LOOK_BYTES: usize = 1 << 20;
/// What lanes may have told before they wait for the one who listens.
const EVENTS_MAX: usize = 1024;

/// The lane that a key belongs to, of so many: the first eight bytes of its BLAKE3 hash, as a
/// little-endian number, modulo the number of lanes. Equal at all nodes and clients, for ever.
///
/// # Panics
/// If there is no lane.
pub fn lane_of(key: &[u8], lanes: u8) -> u8 {
    // PROTOCOL 3.1-j: hash(key) mod L.
    if lanes == 1 {
        return 0;
    }
    let hash = blake3::hash(key);
    let word = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("8 of 32 bytes"));
    (word % u64::from(lanes)) as u8
}

/// Where a lane of a node is reached whose lane 0 is at `base`; `None` if there is no such port.
pub fn lane_address(base: SocketAddr, lane: u8) -> Option<SocketAddr> {
    let port = base.port().checked_add(u16::from(lane))?;
    Some(SocketAddr::new(base.ip(), port))
}

/// What tells a lane's part of a node's configuration.
#[derive(Debug, Clone)]
pub struct Part {
    pub config: NodeConfig,
    pub dir: PathBuf,
    pub listen: SocketAddr,
}

/// The part of one lane. Memory, and room on the disk besides what is live, are divided among the
/// lanes; what must stay free on the file system is the same for each.
///
/// # Errors
/// An address without room for the ports of all lanes.
pub fn part(options: &Options, lane: u8) -> Result<Part, ServeError> {
    let mut config = options.config.clone();
    let count = config.lane.count;
    if count == 1 {
        return Ok(Part { config, dir: options.dir.clone(), listen: options.listen });
    }
    let at = |base: SocketAddr| {
        lane_address(base, lane).ok_or_else(|| {
            ServeError::Refused(format!("{base}: there is no port {} ports further on", lane))
        })
    };
    config.lane = Lane { number: lane, count };
    config.members = config.members.into_iter().map(at).collect::<Result<_, _>>()?;
    config.contacts = config.contacts.into_iter().map(at).collect::<Result<_, _>>()?;
    let bounds = &mut config.bounds;
    let (shares, segment) = (u64::from(count), u64::from(bounds.segment_bytes));
    bounds.buffer_bytes_max /= usize::from(count);
    bounds.cache_bytes_max /= usize::from(count);
    bounds.hosting_bytes_max /= shares;
    // A lane needs some segments to work with, however many lanes there are.
    bounds.space_reserve_bytes = (bounds.space_reserve_bytes / shares).max(4 * segment);
    bounds.checkpoint_bytes = (bounds.checkpoint_bytes / shares).max(segment);
    bounds.recode_bytes_per_s = (bounds.recode_bytes_per_s / shares).max(1 << 20);
    let dir = lane_dir(&options.dir, lane);
    Ok(Part { config, dir, listen: at(options.listen)? })
}

fn lane_dir(dir: &Path, lane: u8) -> PathBuf {
    dir.join(format!("lane-{lane}"))
}

/// Refuses a directory that was made for another number of lanes, or whose lanes were mixed up; changes
/// nothing.
///
/// # Errors
/// What is wrong, and how to mend it.
pub fn check_layout(dir: &Path, lanes: u8) -> Result<(), String> {
    let shown = dir.display();
    if lanes > 1 && is_block_device(dir) {
        return Err(format!(
            "{shown} is one block device, and each of {lanes} lanes needs a log of its own: make data_dir \
             a directory in which lane-0 to lane-{} are directories, or symbolic links to block devices",
            lanes - 1
        ));
    }
    if lanes > 1 && dir.join("superblock").exists() {
        return Err(format!(
            "{shown} holds the log of a node with one lane, and `lanes = {lanes}` is given: a node keeps \
             the number of lanes that its cluster was founded with; remove `lanes`"
        ));
    }
    for lane in 0..LANES_MAX {
        let path = lane_dir(dir, lane);
        let Some(found) = look(&path)? else { continue };
        if found.count != lanes {
            return Err(format!(
                "{} was made for a node with lanes = {}, and `lanes = {lanes}` holds: a node keeps the \
                 number of lanes that its cluster was founded with; set `lanes = {}`",
                path.display(),
                found.count,
                found.count
            ));
        }
        if found.number != lane {
            return Err(format!(
                "{} holds the log of lane {}: directories of lanes were swapped; move each back under \
                 its own name",
                path.display(),
                found.number
            ));
        }
    }
    Ok(())
}

/// The lane whose log a directory or device holds, if it holds one.
fn look(path: &Path) -> Result<Option<Lane>, String> {
    if !path.exists() {
        return Ok(None);
    }
    let cannot = |error: String| format!("cannot look at {}: {error}", path.display());
    // What is no log of racos is for the lane itself to refuse, or to take.
    let Ok(mut picture) = PictureDevice::open(path) else { return Ok(None) };
    let condition = Log::inspect(&mut picture, &Pool::new(LOOK_BYTES));
    match condition.map_err(|error| cannot(error.to_string()))? {
        Condition::Formatted(it) => Ok(Some(Lane { number: it.lane, count: it.lanes })),
        Condition::Empty | Condition::Interrupted => Ok(None),
    }
}

/// What a lane's thread says.
enum Event {
    Preparing { done: u64, total: u64 },
    Waiting(String),
    Ready,
    Differs(String),
    Without(String),
    Ended(Result<(), ServeError>),
}

/// Sets the flag when it goes, however that comes about: one lane does not go on without the others.
struct EndsAll<'a>(&'a AtomicBool);

impl Drop for EndsAll<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Serves all lanes, each in a thread of its own, until `stop` is true. The first that ends ends all.
///
/// # Errors
/// Why the first lane ended that did not have to.
pub(crate) fn serve(
    options: &Options,
    told: &mut dyn FnMut(Told<'_>),
    stop: &AtomicBool,
) -> Result<(), ServeError> {
    let count = options.config.lane.count;
    let parts: Vec<Part> = (0..count).map(|lane| part(options, lane)).collect::<Result<_, _>>()?;
    let (sender, events) = sync_channel(EVENTS_MAX);
    std::thread::scope(|scope| {
        for part in parts {
            let (take_device, mut profile) = (options.take_device, options.profile);
            let lane = part.config.lane.number;
            // Each has a core of its own, from the one that is named on.
            profile.cpu = profile.cpu.map(|cpu| cpu + usize::from(lane));
            let sender = sender.clone();
            let thread = std::thread::Builder::new().name(format!("lane-{lane}"));
            let spawned = thread.spawn_scoped(scope, move || {
                let _all = EndsAll(stop);
                let Part { config, dir, listen } = part;
                let options = Options { config, dir, take_device, listen, profile, api: None };
                let mut told = |told: Told<'_>| tell(&sender, lane, told);
                let served = serve_one(options, &mut told, stop);
                // Nobody hears it only if the listener panicked.
                let _ = sender.send((lane, Event::Ended(served)));
            });
            if let Err(error) = spawned {
                stop.store(true, Ordering::Relaxed);
                return Err(ServeError::Refused(format!("no thread for lane {lane}: {error}")));
            }
        }
        drop(sender);
        let mut heard = Heard::new(usize::from(count));
        let mut outcome = Ok(());
        for (lane, event) in events {
            if let Event::Ended(Err(error)) = event {
                let failed = ServeError::Lane { lane, error: Box::new(error) };
                outcome = outcome.and(Err(failed));
            } else {
                heard.hear(lane, event, told);
            }
        }
        outcome
    })
}

fn tell(sender: &SyncSender<(u8, Event)>, lane: u8, told: Told<'_>) {
    let event = match told {
        Told::Preparing { done, total } => Event::Preparing { done, total },
        Told::Waiting(words) => Event::Waiting(words.to_string()),
        Told::Ready => Event::Ready,
        Told::Differs(words) => Event::Differs(words.to_string()),
        Told::Without(words) => Event::Without(words.to_string()),
    };
    let _ = sender.send((lane, event));
}

/// What the lanes have said so far, as one node says it.
struct Heard {
    prepared: Vec<(u64, u64)>,
    ready: usize,
    is_without_told: bool,
}

impl Heard {
    fn new(lanes: usize) -> Heard {
        Heard { prepared: vec![(0, 0); lanes], ready: 0, is_without_told: false }
    }

    fn hear(&mut self, lane: u8, event: Event, told: &mut dyn FnMut(Told<'_>)) {
        match event {
            Event::Preparing { done, total } => {
                self.prepared[usize::from(lane)] = (done, total);
                let sum = |of: fn(&(u64, u64)) -> u64| self.prepared.iter().map(of).sum();
                told(Told::Preparing { done: sum(|it| it.0), total: sum(|it| it.1) });
            }
            Event::Waiting(words) => told(Told::Waiting(&format!("lane {lane}: {words}"))),
            Event::Differs(words) => told(Told::Differs(&format!("lane {lane}: {words}"))),
            // It is the same for all: once is enough.
            Event::Without(words) => {
                if !std::mem::replace(&mut self.is_without_told, true) {
                    told(Told::Without(&words));
                }
            }
            Event::Ready => {
                self.ready += 1;
                if self.ready == self.prepared.len() {
                    told(Told::Ready);
                }
            }
            Event::Ended(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// tests PROTOCOL 3.1-j
    #[test]
    fn the_lane_of_a_key_is_the_same_for_ever() {
        // Changing these numbers means that no client finds what was written before.
        for (key, lanes, lane) in LANES_OF {
            assert_eq!(lane_of(key, lanes), lane, "{key:?} of {lanes}");
        }
        assert!((0..100u8).all(|key| lane_of(&[key], 1) == 0));
    }

    const LANES_OF: [(&[u8], u8, u8); 5] = [
        (b"", 2, 1),
        (b"greeting", 2, 0),
        (b"greeting", 4, 0),
        (b"greeting", 64, 52),
        (b"a", 3, 0),
    ];

    #[test]
    fn keys_that_look_alike_are_spread_evenly() {
        for lanes in [2, 3, 4, 64] {
            let mut counts = vec![0u32; usize::from(lanes)];
            let keys = (0..64_000u32).map(|key| format!("user/{key:08}/"));
            keys.for_each(|key| counts[usize::from(lane_of(key.as_bytes(), lanes))] += 1);
            let mean = 64_000 / u32::from(lanes);
            let even = |count: &u32| count.abs_diff(mean) < mean / 5;
            assert!(counts.iter().all(even), "{lanes}: {counts:?}");
        }
    }

    #[test]
    fn a_node_is_ready_when_its_last_lane_is() {
        let mut heard = Heard::new(2);
        let mut lines = Vec::new();
        let events = [
            (1, Event::Preparing { done: 1, total: 2 }),
            (0, Event::Preparing { done: 2, total: 2 }),
            (1, Event::Ready),
            (0, Event::Waiting("for node 3".into())),
            (1, Event::Differs("from node 2".into())),
            (0, Event::Without("memory".into())),
            (1, Event::Without("memory".into())),
            (0, Event::Ready),
        ];
        for (lane, event) in events {
            heard.hear(lane, event, &mut |told| lines.push(format!("{told:?}")));
        }
        let expected = [
            "Preparing { done: 1, total: 2 }",
            "Preparing { done: 3, total: 4 }",
            "Waiting(\"lane 0: for node 3\")",
            "Differs(\"lane 1: from node 2\")",
            "Without(\"memory\")",
            "Ready",
        ];
        assert_eq!(lines, expected);
    }
}
