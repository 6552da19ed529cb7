//! The loop in a real process: UDP, io_uring, the monotonic clock.
//!
//! One thread turns the node and, by the profile, spins or sleeps in the ring on socket, disk and
//! deadline together.

use crate::api::{Handle, Wake};
use crate::config::{NodeConfig, Profile};
use crate::inquiry::Inquiry;
use crate::lanes;
use crate::node::{Node, OpenError};
use crate::salvage::{Adopted, Survivor, adopt};
use racos_buffer::Pool;
use racos_net::{Link, UdpConfig, UdpLink};
use racos_protocol::NodeSet;
use racos_storage::device::file::FileDevice;
use racos_storage::device::picture::PictureDevice;
use racos_storage::device::waiting::{Next, Waiting};
use racos_storage::device::{Device, FlushMethod, Sleep, UringConfig};
use racos_storage::{Condition, Log};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What a process serves.
pub struct Options {
    pub config: NodeConfig,
    /// Directory of the log, made and formatted if it is empty; or a block device.
    pub dir: PathBuf,
    /// Whether a block device that holds something else may be taken.
    pub take_device: bool,
    pub listen: SocketAddr,
    pub profile: Profile,
    /// Called once with the door for other threads, before the node serves.
    pub api: Option<Box<dyn FnOnce(Handle)>>,
}

/// Why a node ended, or could not start.
#[derive(Debug)]
pub enum ServeError {
    Open(OpenError),
    Listen {
        address: SocketAddr,
        error: io::Error,
    },
    Directory {
        dir: PathBuf,
        error: io::Error,
    },
    /// The directory is empty and the node must not begin anew; the text says why.
    Refused(String),
    /// The node must not go on; the text says why.
    Stopped(String),
    Sleep(io::Error),
    Pin {
        cpu: usize,
    },
    /// One of several lanes.
    Lane {
        lane: u8,
        error: Box<ServeError>,
    },
}

impl fmt::Display for ServeError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServeError::Open(error) => write!(out, "{error}"),
            ServeError::Listen { address, error } => write!(
                out,
                "cannot listen on {address}: {error}; is another process using the port, and is \
                 the address one of this host's?"
            ),
            ServeError::Directory { dir, error } => {
                write!(out, "cannot use {}: {error}", dir.display())
            }
            ServeError::Refused(why) => write!(out, "{why}"),
            ServeError::Stopped(why) => write!(out, "the node stopped itself: {why}"),
            ServeError::Pin { cpu } => write!(
                out,
                "cannot pin the reactor to CPU {cpu}: is it one that this process may use?"
            ),
            ServeError::Lane { lane, error } => write!(out, "lane {lane}: {error}"),
            ServeError::Sleep(error) => write!(out, "cannot wait for events: {error}"),
        }
    }
}

impl std::error::Error for ServeError {}

/// Between two looks at what the others answer to a node with an empty directory.
const INQUIRY_PAUSE: Duration = Duration::from_millis(2);
/// A node that waits for others says so after this time, and when it waits for other ones.
const WAITING_NS: u64 = 1_000_000_000;
/// Longest sleep: `stop` is looked at this often.
const SLEEP_NS_MAX: u64 = 100_000_000;

/// A directory made ready to be the next incarnation of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepared {
    pub disk_id: u128,
    /// It was made now; else an earlier attempt had made it.
    pub is_fresh: bool,
}

/// Why a directory cannot be a node's next incarnation.
#[derive(Debug)]
pub enum PrepareError {
    /// It holds something: the log of this node and incarnation, of this cluster or another.
    Holds {
        cluster: u64,
        node: u16,
        incarnation: u32,
    },
    Serve(ServeError),
}

/// Formats a directory that no process uses as the incarnation that `config` says, unless it is that
/// already. The directory must be empty.
pub fn prepare(
    config: &NodeConfig,
    dir: &std::path::Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Prepared, PrepareError> {
    let in_dir = |error| PrepareError::Serve(ServeError::Directory { dir: dir.into(), error });
    let mut device = FileDevice::open(dir, &UringConfig::default()).map_err(in_dir)?;
    let pool = Pool::new(config.bounds.buffer_bytes_max);
    let log_error = |error| PrepareError::Serve(ServeError::Open(OpenError::Log(error)));
    let wanted = (config.cluster, u16::from(config.node), config.incarnation);
    match Log::inspect(&mut device, &pool).map_err(log_error)? {
        Condition::Formatted(found) => {
            let found = (found.cluster, found.node, found.incarnation);
            let disk_id = Log::disk_id_on(&mut device, &pool).map_err(log_error)?;
            match disk_id.filter(|_| found == wanted) {
                Some(disk_id) => Ok(Prepared { disk_id, is_fresh: false }),
                None => {
                    let (cluster, node, incarnation) = found;
                    Err(PrepareError::Holds { cluster, node, incarnation })
                }
            }
        }
        Condition::Empty | Condition::Interrupted => {
            let disk_id = random_u128();
            let mut told = |done, total| progress(u64::from(done), u64::from(total));
            Node::<UdpLink, FileDevice>::format(config, &mut device, &pool, disk_id, &mut told)
                .map_err(|error| PrepareError::Serve(ServeError::Open(error)))?;
            Ok(Prepared { disk_id, is_fresh: true })
        }
    }
}

/// Takes the fragments of a disk that is replaced over into the prepared directory of the one that replaces
/// it, before that is started for the first time (PROTOCOL 10-f).
///
/// # Errors
/// As [`adopt`], and if a node uses the old directory.
pub fn adopt_from(
    config: &NodeConfig,
    dir: &std::path::Path,
    old: &std::path::Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Adopted, String> {
    const LEAST: usize = 256 << 20;
    let name = old.display().to_string();
    let about = |error: io::Error| format!("cannot look at {name}: {error}");
    let picture = PictureDevice::open(old).map_err(about)?;
    if picture.in_use() {
        return Err(format!("a node runs on {name}: stop it first"));
    }
    let pool = Pool::new(config.bounds.buffer_bytes_max.max(LEAST));
    let survivor = Survivor::read(&name, picture, &pool, &mut |_, _| {})?;
    let device = FileDevice::open(dir, &UringConfig::default());
    let device = device.map_err(|error| format!("{}: {error}", dir.display()))?;
    adopt(config, device, survivor, &pool, progress)
}

/// How far a process is that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told<'a> {
    /// So many segments of a new log have been written with zeros, of so many.
    Preparing { done: u64, total: u64 },
    /// The node is new and waits for others; the text says for whom.
    Waiting(&'a str),
    /// The node takes part. Told once.
    Ready,
    /// Other nodes hold another state than this one; the text says which, and what to do.
    Differs(&'a str),
    /// Something that makes the node quicker cannot be used here; the text says what and why. Told once.
    Without(&'a str),
}

/// A lane's share of the memory for what arrives.
fn udp_config(config: &NodeConfig) -> UdpConfig {
    const LEAST: usize = 4 << 20;
    let (usual, lanes) = (UdpConfig::default(), usize::from(config.lane.count));
    UdpConfig {
        socket_buffer_bytes: (usual.socket_buffer_bytes / lanes).max(LEAST),
        receive_pool_bytes: (usual.receive_pool_bytes / lanes).max(LEAST),
        ..usual
    }
}

/// Asks the others whether they know the node, before its directory is formatted.
fn inquire(
    config: &NodeConfig,
    listen: SocketAddr,
    pool: &Pool,
    stop: &AtomicBool,
) -> Result<(), ServeError> {
    if config.members.len() < 2 {
        return Ok(());
    }
    let link = UdpLink::bind(listen, udp_config(config))
        .map_err(|error| ServeError::Listen { address: listen, error })?;
    let clock = Instant::now();
    let mut inquiry = Inquiry::new(config.clone(), link, pool.clone(), 0);
    while !stop.load(Ordering::Relaxed)
        && !inquiry.turn(clock.elapsed().as_nanos() as u64).map_err(ServeError::Refused)?
    {
        std::thread::sleep(INQUIRY_PAUSE);
    }
    Ok(())
}

/// Opens, or makes, the directory and serves until `stop` is true: in this thread, or with several lanes
/// in one thread for each.
///
/// # Panics
/// If the API is asked for with several lanes.
pub fn serve(
    options: Options,
    told: &mut dyn FnMut(Told<'_>),
    stop: &AtomicBool,
) -> Result<(), ServeError> {
    let lanes = options.config.lane.count;
    lanes::check_layout(&options.dir, lanes).map_err(ServeError::Refused)?;
    if lanes == 1 {
        return serve_one(options, told, stop);
    }
    // PROTOCOL 3.1-k: a transaction may name any keys.
    assert!(options.api.is_none(), "the etcd API needs one order of all keys: one lane");
    lanes::serve(&options, told, stop)
}

/// [`serve`] for one lane, in this thread.
pub(crate) fn serve_one(
    options: Options,
    told: &mut dyn FnMut(Told<'_>),
    stop: &AtomicBool,
) -> Result<(), ServeError> {
    let Options { mut config, dir, take_device, listen, profile, api } = options;
    if let Some(cpu) = profile.cpu
        && !core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
    {
        return Err(ServeError::Pin { cpu });
    }
    let workers = profile.flush_cpu.into_iter().collect();
    let uring = UringConfig {
        flush: profile.flush,
        worker_cpus: workers,
        take_device,
        ..Default::default()
    };
    let in_dir = |error| ServeError::Directory { dir: dir.clone(), error };
    let mut device = FileDevice::open(&dir, &uring).map_err(in_dir)?;
    let pool = Pool::with_arenas(config.bounds.buffer_bytes_max);
    let log_error = |error| ServeError::Open(OpenError::Log(error));
    let condition = Log::inspect(&mut device, &pool).map_err(log_error)?;
    if let Condition::Formatted(identity) = condition {
        // The disk knows which one it is; a new one is made by `racos member replace`.
        config.incarnation = identity.incarnation;
    } else {
        inquire(&config, listen, &pool, stop)?;
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Zeros are written through the ring: quicker flushes are of no use yet.
        Node::<UdpLink, FileDevice>::format(
            &config,
            &mut device,
            &pool,
            random_u128(),
            &mut |done, total| {
                told(Told::Preparing { done: u64::from(done), total: u64::from(total) });
            },
        )
        .map_err(ServeError::Open)?;
    }
    let link = UdpLink::bind(listen, udp_config(&config))
        .map_err(|error| ServeError::Listen { address: listen, error })?;
    let (network, poll) = (link.describe(), profile.poll);
    let words = move |device: &FileDevice| format!("{}; {network}; {poll:?}", device.describe());
    let socket = link.fd();
    let clock = Instant::now();
    let now = || clock.elapsed().as_nanos() as u64;
    let mut node = Node::open(config, link, device, pool, now()).map_err(ServeError::Open)?;
    node.runtime_words = words(node.log_mut().device_mut());
    node.usage = usage;
    let alarm = Alarm::new().map_err(ServeError::Sleep)?;
    if let Some(api) = api {
        api(node.open_api(alarm.wake().map_err(ServeError::Sleep)?));
    }
    let mut entry = Entry::default();
    let mut differing = NodeSet::EMPTY;
    let mut waiting = Waiting::new(profile.poll, now());
    while !stop.load(Ordering::Relaxed) {
        let at = now();
        let turn = node.turn(at);
        if let Some(why) = node.failed() {
            return Err(ServeError::Stopped(why.to_string()));
        }
        if !entry.is_over {
            entry.look(&node, at, told);
        }
        if node.differing() != differing {
            differing = node.differing();
            if let Some(words) = node.state_problem() {
                told(Told::Differs(&words));
            }
        }
        if let Some(why) = node.log_mut().device_mut().take_refusal() {
            told(Told::Without(&format!("buffers cannot be registered with io_uring: {why}")));
            node.runtime_words = words(node.log_mut().device_mut());
        }
        let next = waiting.after_turn(at, turn.busy, turn.drained);
        if next != Next::Sleep {
            node.log_mut().submit();
            if next == Next::Yield {
                let before = now();
                std::thread::yield_now();
                waiting.yielded(now(), now() - before);
            }
            continue;
        }
        node.log_mut().device_mut().set_disturbed(waiting.is_disturbed(at));
        // The same call hands the disk its work and sleeps: a socket with data wakes it at once.
        let wait = node.deadline().map_or(SLEEP_NS_MAX, |due| due.saturating_sub(now()));
        let wait = Some(wait.min(SLEEP_NS_MAX));
        let fds = [socket, alarm.fd()];
        node.log_mut().device_mut().wait(&fds, wait).map_err(ServeError::Sleep)?;
        alarm.quiet();
    }
    Ok(())
}

/// Tells when the node takes part, and what it waits for until then.
#[derive(Default)]
struct Entry {
    is_over: bool,
    said: String,
    next_at: u64,
}

impl Entry {
    fn look<L: Link, D: Device>(
        &mut self,
        node: &Node<L, D>,
        now: u64,
        told: &mut dyn FnMut(Told<'_>),
    ) {
        let Some(words) = node.waits_for() else {
            self.is_over = true;
            return told(Told::Ready);
        };
        if self.next_at == 0 {
            self.next_at = now + WAITING_NS;
        } else if now >= self.next_at && words != self.said {
            told(Told::Waiting(&words));
            (self.said, self.next_at) = (words, now + WAITING_NS);
        }
    }
}

/// What wakes the loop for other threads: a byte in a socket of its own.
struct Alarm {
    hears: UnixStream,
    rings: UnixStream,
}

impl Alarm {
    fn new() -> io::Result<Alarm> {
        let (hears, rings) = UnixStream::pair()?;
        hears.set_nonblocking(true)?;
        rings.set_nonblocking(true)?;
        Ok(Alarm { hears, rings })
    }

    fn wake(&self) -> io::Result<Wake> {
        let rings = self.rings.try_clone()?;
        // A full socket wakes the loop as well as one byte more would.
        Ok(Box::new(move || drop((&rings).write(&[1]))))
    }

    fn fd(&self) -> RawFd {
        self.hears.as_raw_fd()
    }

    fn quiet(&self) {
        let mut bytes = [0; 64];
        while (&self.hears).read(&mut bytes).is_ok_and(|read| read == bytes.len()) {}
    }
}

/// The flush method that is safe on every host.
pub const FLUSH_DEFAULT: FlushMethod = FlushMethod::Linked;

/// CPU time and memory of this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    pub cpu_us: u64,
    pub memory_bytes: u64,
}

/// Reads `/proc/self`; zeros where there is none.
pub fn usage() -> Usage {
    const TICK_US: u64 = 10_000;
    const PAGE: u64 = 4096;
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let field = |index: usize| fields.get(index).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    Usage { cpu_us: (field(11) + field(12)) * TICK_US, memory_bytes: field(21) * PAGE }
}

/// 128 random bits from the operating system, for ids.
pub fn random_u128() -> u128 {
    let mut bytes = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.expect("the system's random source can be read");
    u128::from_le_bytes(bytes)
}
