//! What a run is like: cluster, network, disks, clocks, faults and work, all drawn from the seed.
//!
//! Purpose: swarm testing. Each run draws which kinds of faults it has and how many, so that every
//! mixture comes, and each kind sometimes alone.
//! Invariant: what is drawn stays within the promise: at most f nodes are lost for ever, partitions
//! heal, frozen nodes thaw, full disks get room again.

use crate::rng::Rng;
use racos_protocol::{Fast, Policy};

const US: u64 = 1_000;
pub const MS: u64 = 1_000_000;

/// The codes that runs draw from.
pub const CODES: [(usize, usize, usize); 7] =
    [(1, 0, 1), (3, 1, 1), (4, 1, 2), (5, 1, 3), (5, 1, 2), (7, 2, 3), (9, 3, 3)];

/// What the user may fix instead of having it drawn.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fixed {
    /// n, f and k.
    pub code: Option<(usize, usize, usize)>,
    /// No faults at all.
    pub calm: bool,
    /// A [`crate::guest::Guest`] beside the clients, and nodes that keep all versions.
    pub guest: bool,
    /// Members join and leave, and k changes, while the cluster works.
    pub changes: bool,
    /// Who fills the slots.
    pub policy: Policy,
    /// How many proposals decide a slot of class R; drawn if not given.
    pub fast: Option<Fast>,
    /// A quarter of an hour with as many faults and operations as otherwise come in seconds.
    pub long: bool,
    /// Whether nodes move to other addresses; drawn if not given.
    pub moves: Option<bool>,
}

/// How much longer everything takes in long runs but for what networks, disks and nodes take.
pub const STRETCH: u64 = 300;

/// The network. Probabilities are in a million.
#[derive(Debug, Clone)]
pub struct NetPlan {
    pub lose_ppm: u32,
    pub duplicate_ppm: u32,
    pub damage_ppm: u32,
    pub reorder_ppm: u32,
    pub straggler_ppm: u32,
    pub straggler_ns_mean: u64,
    pub delay_ns_min: u64,
    pub delay_ns_mean: u64,
    pub byte_ns_per_1024: u64,
    pub datagram_max: usize,
    /// What is sent to or by this node takes longer.
    pub late_node: Option<usize>,
    pub late_ns_mean: u64,
}

/// Disks.
#[derive(Debug, Clone)]
pub struct DiskPlan {
    pub write_ns_min: u64,
    pub write_ns_mean: u64,
    pub read_ns_mean: u64,
    pub slow_ppm: u32,
    pub slow_ns_mean: u64,
}

/// The bounds of the nodes.
#[derive(Debug, Clone)]
pub struct NodePlan {
    pub alpha: u64,
    pub own_slots_max: usize,
    pub inline_bytes_max: usize,
    pub value_bytes_max: usize,
    /// Values are cut into fewer fragments while nodes are missing.
    pub keeps_margin: bool,
    /// Fragments are kept for nodes that are missing; 0: they are not.
    pub hosting_bytes_max: u64,
    /// From so many bytes on a value is stored before it gets a slot.
    pub ready_bytes_min: usize,
    pub segment_bytes: u32,
    /// Small, so that every run writes checkpoints and gives segments back.
    pub checkpoint_bytes: u64,
    /// What of the history is kept for nodes that lag; those that lag further take a state.
    pub history_slots: u64,
    pub space_reserve_bytes: u64,
    /// Small, so that states consist of many pieces.
    pub piece_bytes_max: usize,
    pub cache_bytes_max: usize,
    /// How long a round over the disk takes: short, so that every run has some.
    pub scrub_ns: u64,
    /// After so long without a use a session is ended; 0: none is.
    pub session_idle_ns: u64,
    /// What one turn of the loop costs.
    pub turn_ns: u64,
    /// Clocks run fast or slow by up to so many parts in a million.
    pub drift_ppm_max: u64,
}

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The process dies; what it had in flight to the disk is there in part, and not flushed.
    Kill,
    /// The machine loses power; each unflushed sector is old or new.
    PowerCut,
    PowerCutAll,
    /// The node dies and never comes back.
    Lose,
    /// The process stands still while its packets queue up.
    Freeze,
    /// Nothing gets from one node to another, or to and from one node.
    Cut,
    /// The nodes fall into two groups that do not hear each other.
    Split,
    LossBurst,
    DiskStall,
    DiskFull,
    /// One flush fails: the node must stop.
    FlushError,
    /// The monotonic clock jumps ahead.
    ClockJump,
    /// A client forgets everything and starts anew.
    ClientRestart,
    /// A fragment on disk rots.
    Spoil,
    /// An empty disk takes the place of a lost one, or of one that still runs.
    Replace,
    /// A node is away until the others have dropped what it lacks; when it takes a state from one, it
    /// or the other may be killed.
    Lag,
    /// A node that is lost is started on an empty disk, as if it had never been there.
    Wipe,
    /// A node joins or leaves, or values are cut into more or fewer fragments.
    Reconfigure,
    /// A node goes on at another address, or a new disk comes up at one.
    Move,
}

pub const KINDS: [Kind; 19] = [
    Kind::Kill,
    Kind::PowerCut,
    Kind::PowerCutAll,
    Kind::Lose,
    Kind::Freeze,
    Kind::Cut,
    Kind::Split,
    Kind::LossBurst,
    Kind::DiskStall,
    Kind::DiskFull,
    Kind::FlushError,
    Kind::ClockJump,
    Kind::ClientRestart,
    Kind::Spoil,
    Kind::Replace,
    Kind::Lag,
    Kind::Wipe,
    Kind::Reconfigure,
    Kind::Move,
];
/// Kinds that a run draws some of; those behind them come by a plan of their own.
const DRAWN: usize = 13;

/// Faults of a run.
#[derive(Debug, Clone)]
pub struct FaultPlan {
    pub kinds: Vec<Kind>,
    /// Mean time between two faults, and how long they last; 0: none.
    pub every_ns_mean: u64,
    pub last_ns_mean: u64,
    /// Nodes that may be lost for ever.
    pub lost_max: usize,
    /// Mean time between two fragments that rot; 0: none.
    pub spoil_ns_mean: u64,
    /// Mean time until the disk of some node is replaced; 0: none is.
    pub replace_ns_mean: u64,
    /// Mean time until some node is away for long, and what helps it then is disturbed; 0: none is.
    pub lag_ns_mean: u64,
    /// Mean time until a lost node is started on an empty disk; 0: none is.
    pub wipe_ns_mean: u64,
    /// Mean time between changes of the members; 0: there are none. Machines beyond n that may join.
    pub change_ns_mean: u64,
    pub extra: usize,
    /// Mean time until some node is to be elsewhere; 0: none is.
    pub move_ns_mean: u64,
}

/// What clients do. Shares are in a million.
#[derive(Debug, Clone)]
pub struct WorkPlan {
    pub clients: usize,
    pub outstanding_max: usize,
    pub think_ns_mean: u64,
    pub patience_ns: u64,
    /// After so long without a write a client opens another session.
    pub session_idle_ns: u64,
    /// Keys are in families, which LIST reads whole.
    pub families: u64,
    pub family_keys: u64,
    /// Operations on the first key.
    pub hot_ppm: u32,
    pub get_ppm: u32,
    pub delete_ppm: u32,
    pub list_ppm: u32,
    /// Puts larger than a datagram, and puts larger than one request.
    pub large_ppm: u32,
    pub striped_ppm: u32,
}

/// One run.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub n: usize,
    pub f: usize,
    pub k: usize,
    pub net: NetPlan,
    pub disk: DiskPlan,
    pub node: NodePlan,
    pub faults: FaultPlan,
    pub work: WorkPlan,
    /// Virtual time at which faults stop.
    pub faults_end_ns: u64,
    /// They end with a power loss of all nodes, after which f of them never come back.
    pub ends_in_blackout: bool,
    pub guest: bool,
    pub policy: Policy,
    pub fast: Fast,
}

impl Plan {
    pub fn draw(seed: u64, fixed: &Fixed) -> Plan {
        let mut rng = Rng::new(seed).fork(1);
        let drawn = *rng.pick(&CODES);
        let (n, f, k) = fixed.code.unwrap_or(drawn);
        let mut plan = Plan {
            seed,
            n,
            f,
            k,
            net: net(&mut rng, fixed.calm),
            disk: disk(&mut rng),
            node: node(&mut rng, n, k),
            faults: faults(&mut rng, f, fixed.calm),
            work: work(&mut rng),
            faults_end_ns: rng.between(1_500, 4_000) * MS,
            ends_in_blackout: !fixed.calm && Rng::new(seed).fork(10).one_in(5),
            guest: fixed.guest,
            policy: fixed.policy,
            fast: Fast::Support,
        };
        let mut rng = Rng::new(seed).fork(11);
        if !fixed.calm && rng.one_in(2) {
            plan.faults.spoil_ns_mean = rng.between(20, 400) * MS;
        }
        if !fixed.calm && f > 0 && rng.one_in(3) {
            plan.faults.replace_ns_mean = rng.between(100, 1_500) * MS;
        }
        let mut rng = Rng::new(seed).fork(12);
        plan.node.history_slots = *rng.pick(&[0, 0, 16, 512, 1 << 20]);
        plan.node.space_reserve_bytes = *rng.pick(&[0, 0, 8 << 20]);
        plan.faults.lag_ns_mean = match !fixed.calm && f > 0 && rng.one_in(2) {
            true => rng.between(200, 1_200) * MS,
            false => 0,
        };
        if plan.faults.lag_ns_mean > 0 {
            // So that a state is what it takes to catch up, and takes some pieces.
            plan.node.checkpoint_bytes = rng.between(8, 64) << 10;
            plan.node.piece_bytes_max = *rng.pick(&[200, 1_000, 10_000]);
        }
        let mut rng = Rng::new(seed).fork(13);
        if !fixed.calm && f > 0 && rng.one_in(3) {
            plan.faults.wipe_ns_mean = rng.between(100, 1_500) * MS;
        }
        let mut rng = Rng::new(seed).fork(15);
        plan.node.ready_bytes_min = *rng.pick(&[1, 300, 3_000, 40_000, usize::MAX]);
        let mut rng = Rng::new(seed).fork(16);
        plan.node.session_idle_ns = *rng.pick(&[0, 0, 300, 2_000]) * MS;
        if plan.node.session_idle_ns > 0 {
            plan.work.session_idle_ns = *rng.pick(&[10, 100, 60_000]) * MS;
        }
        plan.node.keeps_margin = Rng::new(seed).fork(17).one_in(3);
        let mut rng = Rng::new(seed).fork(19);
        if rng.one_in(3) {
            plan.node.hosting_bytes_max = *rng.pick(&[20_000, 1 << 20, 64 << 20]);
        }
        let drawn = if Rng::new(seed).fork(18).one_in(4) { Fast::Least } else { Fast::Support };
        plan.fast = fixed.fast.unwrap_or(drawn);
        plan.sharpen(&mut Rng::new(seed).fork(9), fixed.calm);
        if plan.net.late_node.is_some() && plan.node.session_idle_ns > 0 {
            // A write through that node takes hundreds of milliseconds: a session in use must outlive it.
            plan.node.session_idle_ns = 2_000 * MS;
        }
        let mut rng = Rng::new(seed).fork(14);
        if !fixed.calm && plan.faults.every_ns_mean > 0 && fixed.changes {
            plan.faults.change_ns_mean = rng.between(100, 1_000) * MS;
            plan.faults.extra = rng.below(4) as usize;
        }
        let mut rng = Rng::new(seed).fork(20);
        let moves = rng.one_in(3);
        if !fixed.calm && f > 0 && fixed.moves.unwrap_or(moves) {
            let most = *rng.pick(&[100, 400, 1_000]);
            plan.faults.move_ns_mean = rng.between(20, most) * MS;
        }
        if fixed.long {
            plan.stretch();
        }
        if plan.policy == Policy::Queue {
            // All of these need slots with owners.
            (plan.faults.replace_ns_mean, plan.faults.move_ns_mean) = (0, 0);
            assert!(!fixed.changes && !fixed.guest, "refused where options are read");
        }
        plan
    }

    /// Machines of the cluster: the founding members, and those that may join.
    pub fn machines(&self) -> usize {
        self.n + self.faults.extra
    }

    /// Whatever is planned for a time comes later, and lasts longer. Nodes meet what they take time for by
    /// the clock: what they wait for ends long before the next fault, sessions and rounds of the scrub last
    /// minutes, and clocks drift apart by seconds.
    fn stretch(&mut self) {
        let Plan { node, faults, work, .. } = self;
        let times = [
            &mut self.faults_end_ns,
            &mut node.scrub_ns,
            &mut node.session_idle_ns,
            &mut work.session_idle_ns,
            &mut work.think_ns_mean,
            &mut faults.every_ns_mean,
            &mut faults.last_ns_mean,
            &mut faults.spoil_ns_mean,
            &mut faults.replace_ns_mean,
            &mut faults.lag_ns_mean,
            &mut faults.wipe_ns_mean,
            &mut faults.change_ns_mean,
            &mut faults.move_ns_mean,
        ];
        times.into_iter().for_each(|ns| *ns *= STRETCH);
    }

    /// Some runs go where bugs like to be.
    fn sharpen(&mut self, rng: &mut Rng, calm: bool) {
        if rng.one_in(5) && !calm {
            // Faults upon faults: nodes die while they recover.
            self.faults.every_ns_mean = rng.between(5, 60) * MS;
            self.faults.last_ns_mean = rng.between(2, 80) * MS;
        }
        if rng.one_in(6) {
            // One node is always late.
            self.net.late_node = Some(rng.below(self.n as u64) as usize);
            self.net.late_ns_mean = rng.between(200, 30_000) * US;
        }
        if rng.one_in(6) {
            // One key, overwritten until its versions go, while others read it.
            self.work.families = 1;
            self.work.family_keys = 1;
            self.work.think_ns_mean = MS;
            self.work.get_ppm = 400_000;
            self.work.large_ppm = sometimes(rng, 300_000);
            self.work.striped_ppm = sometimes(rng, 200_000);
        }
        if rng.one_in(6) {
            // Almost no time to think: full batches, full windows.
            self.work.think_ns_mean = rng.between(50, 500) * US;
            self.work.outstanding_max = 16;
            self.faults_end_ns = rng.between(500, 1_200) * MS;
        }
    }
}

/// Nothing in two of three cases, else up to `most`.
fn sometimes(rng: &mut Rng, most: u32) -> u32 {
    if rng.one_in(3) { rng.between(1, u64::from(most)) as u32 } else { 0 }
}

fn net(rng: &mut Rng, calm: bool) -> NetPlan {
    let mut plan = NetPlan {
        lose_ppm: sometimes(rng, 100_000),
        duplicate_ppm: sometimes(rng, 100_000),
        damage_ppm: sometimes(rng, 30_000),
        reorder_ppm: sometimes(rng, 500_000),
        straggler_ppm: sometimes(rng, 20_000),
        straggler_ns_mean: rng.between(200, 20_000) * US,
        delay_ns_min: rng.between(5, 100) * US,
        delay_ns_mean: rng.between(2, 100) * US,
        byte_ns_per_1024: rng.between(100, 2_000),
        datagram_max: *rng.pick(&[1_472, 8_972, 58_368]),
        late_node: None,
        late_ns_mean: 0,
    };
    if calm {
        plan.lose_ppm = 0;
        plan.duplicate_ppm = 0;
        plan.damage_ppm = 0;
    }
    plan
}

fn disk(rng: &mut Rng) -> DiskPlan {
    DiskPlan {
        write_ns_min: rng.between(10, 200) * US,
        write_ns_mean: rng.between(5, 300) * US,
        read_ns_mean: rng.between(10, 300) * US,
        slow_ppm: sometimes(rng, 30_000),
        slow_ns_mean: rng.between(1, 50) * MS,
    }
}

fn node(rng: &mut Rng, n: usize, k: usize) -> NodePlan {
    let own_slots_max = *rng.pick(&[1, 2, 2, 4]);
    let least = (n * own_slots_max) as u64;
    let segment_bytes: u32 = *rng.pick(&[256 << 10, 512 << 10, 1 << 20]);
    let fragment_max = segment_bytes as usize / 4 - (16 << 10);
    let alpha = *rng.pick(&[least, least + 3, 64.max(least), 256, 1024]);
    NodePlan {
        alpha,
        own_slots_max,
        inline_bytes_max: *rng.pick(&[0, 128, 1024]),
        value_bytes_max: (fragment_max * k).min(200 << 10),
        keeps_margin: false,
        hosting_bytes_max: 0,
        ready_bytes_min: usize::MAX,
        segment_bytes,
        // Of what was drawn, so that seeds kept from before mean what they meant.
        checkpoint_bytes: [64 << 10, 256 << 10, 1 << 20][(alpha % 3) as usize],
        history_slots: 512,
        space_reserve_bytes: 0,
        piece_bytes_max: 256 << 10,
        cache_bytes_max: *rng.pick(&[0, 64 << 10, 4 << 20]),
        // Of what was drawn, as above.
        scrub_ns: [500, 2_000, 8_000][(alpha / 3 % 3) as usize] * MS,
        session_idle_ns: 0,
        turn_ns: rng.between(1, 20) * US,
        drift_ppm_max: *rng.pick(&[0, 50, 2_000]),
    }
}

fn faults(rng: &mut Rng, f: usize, calm: bool) -> FaultPlan {
    // A few kinds, many, or one.
    let keep = *rng.pick(&[1, 3, 3, 8]);
    let mut kinds: Vec<Kind> = KINDS[..DRAWN].to_vec();
    while kinds.len() > keep {
        kinds.remove(rng.below(kinds.len() as u64) as usize);
    }
    let every_ns_mean = rng.between(30, 600) * MS;
    FaultPlan {
        kinds,
        every_ns_mean: if calm || rng.one_in(12) { 0 } else { every_ns_mean },
        last_ns_mean: rng.between(20, 500) * MS,
        lost_max: rng.below(f as u64 + 1) as usize,
        spoil_ns_mean: 0,
        replace_ns_mean: 0,
        lag_ns_mean: 0,
        wipe_ns_mean: 0,
        change_ns_mean: 0,
        extra: 0,
        move_ns_mean: 0,
    }
}

fn work(rng: &mut Rng) -> WorkPlan {
    WorkPlan {
        clients: rng.between(1, 5) as usize,
        outstanding_max: *rng.pick(&[1, 2, 4, 8]),
        think_ns_mean: rng.between(1, 20) * MS,
        session_idle_ns: 60_000 * MS,
        patience_ns: *rng.pick(&[300 * MS, 2_000 * MS, 20_000 * MS, 60_000 * MS]),
        families: rng.between(1, 6),
        family_keys: rng.between(1, 4),
        hot_ppm: sometimes(rng, 800_000),
        get_ppm: rng.between(100_000, 600_000) as u32,
        delete_ppm: sometimes(rng, 150_000),
        list_ppm: sometimes(rng, 80_000),
        large_ppm: sometimes(rng, 100_000),
        striped_ppm: sometimes(rng, 30_000),
    }
}
