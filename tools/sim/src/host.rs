//! One machine of the cluster: its disk, its clock, and the node that runs on it or not.

use crate::moves::Moving;
use crate::net::{Net, SimLink};
use crate::oracle::Witness;
use crate::plan::Plan;
use crate::rng::Rng;
use racos_buffer::Pool;
use racos_engine::api::Handle;
use racos_engine::{Bounds, Node, NodeConfig};
use racos_net::Link;
use racos_storage::device::memory::{Disk, MemoryDevice, Op, Timing};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

pub type SimNode = Node<SimLink, MemoryDevice>;

/// Bytes of files that a disk takes while it is not full.
pub const DISK_BYTES: u64 = 8 << 30;
const BUFFER_BYTES: usize = 96 << 20;
pub const CLUSTER: u64 = 0x7261_636f_7373_696d;

/// A node's monotonic clock: skewed, drifting, and now and then jumping ahead.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Nanoseconds gained or lost in a million.
    pub drift_ppm: i64,
    pub offset_ns: u64,
}

impl Clock {
    /// What the clock shows at a virtual time.
    pub fn local(&self, at_ns: u64) -> u64 {
        // Asked at every turn; what has room in 64 bits is several times as fast there.
        let product = i64::try_from(at_ns).ok().and_then(|at| at.checked_mul(self.drift_ppm));
        let gained = match product {
            Some(product) => i128::from(product / 1_000_000),
            None => i128::from(at_ns) * i128::from(self.drift_ppm) / 1_000_000,
        };
        (i128::from(at_ns) + gained) as u64 + self.offset_ns
    }

    /// The first virtual time at which the clock shows `local_ns` or more.
    pub fn virtual_of(&self, local_ns: u64) -> u64 {
        let since = local_ns.saturating_sub(self.offset_ns);
        let rate = 1_000_000 + self.drift_ppm;
        let mut at = match since.checked_mul(1_000_000) {
            Some(product) => product / rate as u64,
            None => (i128::from(since) * 1_000_000 / i128::from(rate)) as u64,
        };
        while self.local(at) < local_ns {
            at += 1;
        }
        at
    }
}

/// Whether a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Up,
    Down,
    /// For ever.
    Lost,
    /// For ever, and nothing lies on it: it was removed and released.
    Gone,
}

/// A disk that is to take the place of a host's.
pub struct Replacement {
    pub disk: Rc<RefCell<Disk>>,
    pub disk_id: u128,
    /// Where it comes up, if that is named.
    pub address: Option<SocketAddr>,
    /// Its REPLACE was admitted; it is in the host.
    pub is_admitted: bool,
    pub is_in: bool,
}

/// One machine.
pub struct Host {
    pub replacement: Option<Replacement>,
    pub moving: Option<Moving>,
    /// The incarnation that was last told to be elsewhere.
    pub moved: Option<u32>,
    /// Addresses that it has left, and some others may not know it.
    pub left: Vec<SocketAddr>,
    pub index: usize,
    pub node: Option<SimNode>,
    /// The node's door, if a guest asks.
    pub handle: Option<Handle>,
    pub state: State,
    pub disk: Rc<RefCell<Disk>>,
    pub clock: Clock,
    /// When the node's next turn, and its disk's next completion, is in the queue of events.
    pub wake_ns: Option<u64>,
    pub disk_ns: Option<u64>,
    pub busy_until_ns: u64,
    pub frozen_until_ns: u64,
    pub stalled_until_ns: u64,
    pub full_until_ns: u64,
    /// A flush was made to fail: the node has to stop.
    pub flush_fails: bool,
    pub boots: u32,
    /// Its node, on whatever disk, took part once; it is lost and runs on an empty disk.
    pub took_part: bool,
    pub is_wiped: bool,
    /// Starts that began at a checkpoint, checkpoints written, and segments given back, by the
    /// processes that have ended.
    pub upkeep: Upkeep,
    /// The disk that it has from the beginning.
    pub disk_id: u128,
    /// Buffers of the process that runs.
    pub pool: Pool,
    config: NodeConfig,
}

/// What nodes did to keep their logs short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Upkeep {
    pub checkpoints: u64,
    pub segments_back: u64,
    pub copied_bytes: u64,
    pub starts_from_one: u64,
    /// States taken from peers.
    pub jumps: u64,
    /// Fragments that nodes made again, and that others had kept for them.
    pub repaired: u64,
    pub from_hosts: u64,
}

impl Upkeep {
    /// Both together.
    pub fn and(self, more: Upkeep) -> Upkeep {
        Upkeep {
            checkpoints: self.checkpoints + more.checkpoints,
            segments_back: self.segments_back + more.segments_back,
            copied_bytes: self.copied_bytes + more.copied_bytes,
            starts_from_one: self.starts_from_one + more.starts_from_one,
            jumps: self.jumps + more.jumps,
            repaired: self.repaired + more.repaired,
            from_hosts: self.from_hosts + more.from_hosts,
        }
    }
}

impl Host {
    /// What this machine's nodes have done so far.
    pub fn upkeep(&self) -> Upkeep {
        let before = self.upkeep;
        let status = self.node.as_ref().map(|node| node.status()).unwrap_or_default();
        let disk = status.disk;
        let since = Upkeep {
            checkpoints: disk.checkpoints,
            segments_back: disk.segments_back,
            copied_bytes: disk.copied_bytes,
            starts_from_one: 0,
            jumps: status.catch_up.installed,
            repaired: status.repair.repaired - status.repair.from_hosts,
            from_hosts: status.repair.from_hosts,
        };
        before.and(since)
    }

    /// A machine with a formatted disk; the node is not started.
    pub fn new(plan: &Plan, index: usize, members: &[SocketAddr], mut rng: Rng) -> Host {
        let drift = plan.node.drift_ppm_max;
        let drift_ppm = rng.between(0, 2 * drift) as i64 - drift as i64;
        let clock = Clock { drift_ppm, offset_ns: rng.below(1 << 40) };
        let disk = new_disk(plan, rng.fork(1));
        let config = config(plan, index, members, &mut rng);
        let disk_id = u128::from(rng.number());
        let pool = format(&config, &disk, disk_id);
        Host {
            replacement: None,
            moving: None,
            moved: None,
            left: Vec::new(),
            index,
            node: None,
            handle: None,
            state: State::Down,
            disk,
            clock,
            wake_ns: None,
            disk_ns: None,
            busy_until_ns: 0,
            frozen_until_ns: 0,
            stalled_until_ns: 0,
            full_until_ns: 0,
            flush_fails: false,
            boots: 0,
            took_part: false,
            is_wiped: false,
            upkeep: Upkeep::default(),
            disk_id,
            pool,
            config,
        }
    }

    /// It is not yet where the cluster was told, or the cluster was not.
    pub fn is_moving(&self) -> bool {
        self.moving.as_ref().is_some_and(|moving| !moving.is_over)
    }

    /// The incarnation that runs, or last ran, here.
    pub fn incarnation(&self) -> u32 {
        self.config.incarnation
    }

    /// Makes an empty disk that is to be the next incarnation.
    pub fn make_replacement(
        &mut self,
        plan: &Plan,
        mut rng: Rng,
        address: Option<SocketAddr>,
        now_ns: u64,
    ) {
        let disk = new_disk(plan, rng.fork(1));
        let config = NodeConfig { incarnation: self.config.incarnation + 1, ..self.config.clone() };
        let disk_id = u128::from(rng.number());
        format(&config, &disk, disk_id);
        disk.borrow_mut().advance(now_ns);
        let (is_admitted, is_in) = (false, false);
        self.replacement = Some(Replacement { disk, disk_id, address, is_admitted, is_in });
    }

    /// Puts the new disk in; the process has ended.
    pub fn swap_disk(&mut self) {
        let replacement = self.replacement.as_mut().expect("a new disk is there");
        self.disk = replacement.disk.clone();
        self.config.incarnation += 1;
        replacement.is_in = true;
        self.state = State::Down;
        self.disk_ns = None;
    }

    /// An empty disk, formatted as one that was never there.
    pub fn wipe(&mut self, plan: &Plan, mut rng: Rng, now_ns: u64) {
        self.disk = new_disk(plan, rng.fork(1));
        self.is_wiped = true;
        format(&self.running_config(), &self.disk, u128::from(rng.number()));
        self.disk.borrow_mut().advance(now_ns);
        self.state = State::Down;
        self.disk_ns = None;
    }

    fn running_config(&self) -> NodeConfig {
        let mut config = self.config.clone();
        if self.is_wiped {
            config.incarnation = 1;
        }
        config
    }

    /// Starts the process.
    ///
    /// # Errors
    /// Why it cannot: the promise leaves no reason.
    pub fn start(
        &mut self,
        net: &Rc<RefCell<Net>>,
        witness: Witness,
        guest: bool,
        now_ns: u64,
    ) -> Result<(), String> {
        net.borrow_mut().listen(self.index, true);
        let link = SimLink::new(net.clone(), self.index);
        let device = MemoryDevice::new(self.disk.clone());
        // What the process before has given back is as good as new, and costs less to have.
        if self.pool.used() > 0 {
            self.pool = Pool::new(BUFFER_BYTES);
        }
        let pool = self.pool.clone();
        let local = self.clock.local(now_ns);
        let witness = Some(Box::new(witness) as Box<_>);
        let mut config = self.running_config();
        // Its own place in the list; those of the others stay as they were at the founding.
        if let Some(own) = config.members.get_mut(self.index) {
            *own = link.local();
        }
        let node = SimNode::open_observed(config, link, device, pool, local, witness);
        let mut node =
            node.map_err(|error| format!("node {} cannot start: {error}", self.index))?;
        self.upkeep.starts_from_one += u64::from(node.snapshot().generation > 0);
        // The world gives the node a turn for whatever is asked.
        self.handle = guest.then(|| node.open_api(Box::new(|| {})));
        self.node = Some(node);
        self.state = State::Up;
        self.boots += 1;
        Ok(())
    }

    /// The process is gone.
    pub fn stop(&mut self, net: &Rc<RefCell<Net>>, state: State) {
        self.upkeep = self.upkeep();
        self.node = None;
        self.handle = None;
        self.state = state;
        self.wake_ns = None;
        self.frozen_until_ns = 0;
        self.flush_fails = false;
        net.borrow_mut().listen(self.index, false);
    }
}

fn new_disk(plan: &Plan, mut rng: Rng) -> Rc<RefCell<Disk>> {
    let plan = plan.disk.clone();
    let latency = Box::new(move |op| {
        let mut ns = match op {
            Op::Write(bytes) => {
                let transfer = bytes as u64 / 2;
                let spread = rng.exponential(plan.write_ns_mean);
                plan.write_ns_min + spread + transfer
            }
            Op::Read(bytes) => rng.exponential(plan.read_ns_mean) + bytes as u64 / 2,
            Op::Prepare(bytes) => bytes * 2,
        };
        if rng.chance(plan.slow_ppm) {
            ns += rng.exponential(plan.slow_ns_mean);
        }
        ns.max(1)
    });
    Disk::new(DISK_BYTES, Timing::Timed(latency))
}

fn format(config: &NodeConfig, disk: &Rc<RefCell<Disk>>, disk_id: u128) -> Pool {
    let mut device = MemoryDevice::new(disk.clone());
    let pool = Pool::new(BUFFER_BYTES);
    SimNode::format(config, &mut device, &pool, disk_id, &mut |_, _| {})
        .expect("an empty disk can be formatted");
    pool
}

fn config(plan: &Plan, index: usize, members: &[SocketAddr], rng: &mut Rng) -> NodeConfig {
    let mut config = NodeConfig::new(CLUSTER, index as u8, members.to_vec(), plan.f, plan.k);
    config.alpha = plan.node.alpha;
    config.own_slots_max = plan.node.own_slots_max;
    (config.policy, config.fast) = (plan.policy, plan.fast);
    config.inline_bytes_max = plan.node.inline_bytes_max;
    config.seed = rng.number();
    if plan.machines() > plan.n {
        config.contacts = (0..plan.machines()).map(crate::net::address).collect();
        config.contacts.remove(index);
    }
    if plan.guest {
        config.versions_per_key_max = u32::MAX;
    }
    config.keeps_margin = plan.node.keeps_margin;
    config.bounds = Bounds {
        buffer_bytes_max: BUFFER_BYTES,
        cache_bytes_max: plan.node.cache_bytes_max,
        segment_bytes: plan.node.segment_bytes,
        initial_segments: 2,
        value_bytes_max: plan.node.value_bytes_max,
        ready_bytes_min: plan.node.ready_bytes_min,
        checkpoint_bytes: plan.node.checkpoint_bytes,
        space_reserve_bytes: plan.node.space_reserve_bytes,
        history_slots: plan.node.history_slots,
        piece_bytes_max: plan.node.piece_bytes_max,
        disk_reserve_bytes: 0,
        // A few values at a time, so that faults and changes come in between.
        recode_bytes_per_s: 4 << 20,
        // A little more than the time in which each node is heard once at least.
        missing_ns: 520_000_000,
        hosting_bytes_max: plan.node.hosting_bytes_max,
        scrub_ns: plan.node.scrub_ns,
        session_idle_ns: plan.node.session_idle_ns,
    };
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_shows_the_same_whether_its_numbers_have_room_in_64_bits_or_not() {
        for drift_ppm in [-2_000, -7, 0, 50, 2_000] {
            let clock = Clock { drift_ppm, offset_ns: 77 };
            let wide = |at: u64| i128::from(at) * i128::from(drift_ppm) / 1_000_000;
            for at in (0..63).map(|bit| (1 << bit) + 12_345) {
                assert_eq!(i128::from(clock.local(at)), i128::from(at) + wide(at) + 77);
                let back = i128::from(at) * 1_000_000 / i128::from(1_000_000 + drift_ppm);
                assert!((back..back + 2).contains(&clock.virtual_of(at + 77).into()), "{at}");
            }
        }
    }

    #[test]
    fn a_deadline_is_met_at_the_first_time_the_clock_shows_it() {
        for drift_ppm in [-2_000, 0, 50] {
            let clock = Clock { drift_ppm, offset_ns: 77 };
            for local in [77, 1_000, 123_456_789_012] {
                let at = clock.virtual_of(local);
                assert!(clock.local(at) >= local && (at == 0 || clock.local(at - 1) < local));
            }
        }
    }
}
