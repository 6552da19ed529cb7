//! A whole cluster in virtual time: nodes, disks, network and clients, and the events between them.
//!
//! Purpose: moves time from event to event; whoever has something to do at that time does it.
//! Invariant: events are handled in the order (time, number), one at a time; all chance comes from
//! generators that follow from the seed. Nothing reads a clock of the real world.
//! What would break it: iterating over a map with random order, or threads inside of a run.

use crate::client::{Book, SimClient};
use crate::content::Contents;
use crate::guest::{self, Door, Guest};
use crate::host::{CLUSTER, Host, SimNode, State};
use crate::net::{Net, Packet, SimLink, address, number};
use crate::oracle::{Oracle, Witness};
use crate::plan::{KINDS, Kind, Plan};
use crate::queue::Queue;
use crate::reconfigure::Wanted;
use crate::rng::Rng;
use crate::trace::Trace;
use racos_buffer::Pool;
use racos_client::ClientConfig;
use racos_machine::OpId;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;

const CLIENT_POOL_BYTES: usize = 512 << 20;

/// Something that happens at a time.
#[derive(Debug)]
pub enum Event {
    Arrive(Packet),
    /// A node's turn; void if the host's `wake_ns` says otherwise. Likewise the next two.
    Node(usize),
    Disk(usize),
    Client(usize),
    Guest,
    /// The next fault is drawn.
    Fault,
    /// A fragment on some disk rots.
    Spoil,
    /// Some node's disk is to be replaced; the replacement of this one goes on.
    Replace,
    Replacing(usize),
    /// A lost node is to be started on an empty disk.
    Wipe,
    /// Some node is to be away for long; this one is back and may be catching up.
    Lag,
    Lagging(usize),
    /// The operator thinks of other members, or asks for them again.
    Reconfigure,
    /// Some node is to be elsewhere; the move of this one goes on.
    Move,
    Moving(usize),
    /// What a fault did ends.
    Start(usize),
    Thaw(usize),
    HealCuts,
    Room(usize),
}

/// What a run cost: how often whoever may have something to do was asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Everything taken from the queue, and the packets among it.
    pub handled: u64,
    pub packets: u64,
    /// Turns of nodes, and those of them in which nothing had come, from anywhere, and nothing was sent.
    pub turns: u64,
    pub turns_idle: u64,
    /// Looks at disks.
    pub disk: u64,
    /// Turns of clients.
    pub client: u64,
    /// What an earlier time had replaced when it came.
    pub void: u64,
}

impl Load {
    pub fn add(&mut self, other: &Load) {
        self.handled += other.handled;
        self.packets += other.packets;
        self.turns += other.turns;
        self.turns_idle += other.turns_idle;
        self.disk += other.disk;
        self.client += other.client;
        self.void += other.void;
    }
}

impl fmt::Display for Load {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Load { handled, packets, turns, turns_idle, disk, client, void } = self;
        write!(
            out,
            "{handled} handled: {packets} packets, {turns} turns of nodes ({turns_idle} for nothing), \
             {disk} looks at disks, {client} turns of clients, {void} that were void"
        )
    }
}

/// One run.
pub struct World {
    pub plan: Plan,
    pub load: Load,
    pub now_ns: u64,
    pub net: Rc<RefCell<Net>>,
    pub hosts: Vec<Host>,
    pub clients: Vec<SimClient>,
    pub guest: Option<Guest>,
    pub book: Book,
    pub oracle: Rc<RefCell<Oracle>>,
    pub contents: Rc<RefCell<Contents>>,
    pub trace: Trace,
    pub rng: Rng,
    /// Faults so far, in the order of [`KINDS`].
    pub faults: [u64; KINDS.len()],
    /// Whether faults still come.
    pub is_faulty: bool,
    pub lost: usize,
    /// Values that were in fewer fragments than configured when the faults stopped, at some node.
    pub narrow: u64,
    /// Nodes with rotten fragments: they count as lost for what they held.
    pub spoiled: BTreeSet<usize>,
    pub spoil_rng: Rng,
    pub replace_rng: Rng,
    pub lag_rng: Rng,
    pub wipe_rng: Rng,
    /// A node that is away, or back for a short time; its slot and the time when it went.
    pub lagging: Option<(usize, u64, u64)>,
    pub change_rng: Rng,
    pub wanted: Option<Wanted>,
    /// Nodes that were chosen to leave, whether they did or not.
    pub leaving: BTreeSet<usize>,
    pub move_rng: Rng,
    /// Addresses that nodes have left, and all others know it.
    pub vacant: Vec<SocketAddr>,
    pub problem: Option<String>,
    queue: Queue,
    client_pool: Pool,
    clients_made: u64,
}

impl World {
    pub fn new(plan: Plan, print: bool) -> World {
        let rng = Rng::new(plan.seed);
        let net = Net::new(plan.net.clone(), rng.fork(2));
        (0..plan.machines()).for_each(|_| {
            net.borrow_mut().enter();
        });
        let members: Vec<SocketAddr> = (0..plan.n).map(address).collect();
        let hosts = (0..plan.machines()).map(|index| {
            let host = Host::new(&plan, index, &members, rng.fork(100 + index as u64));
            net.borrow_mut().listen(index, false);
            host
        });
        let hosts = hosts.collect();
        let contents = Rc::new(RefCell::new(Contents::new(&plan.work)));
        let mut world = World {
            load: Load::default(),
            now_ns: 0,
            net,
            hosts,
            clients: Vec::new(),
            guest: plan.guest.then(|| Guest::new(rng.fork(5))),
            book: Book::default(),
            oracle: Rc::default(),
            contents,
            trace: Trace::new(print),
            rng: rng.fork(3),
            faults: [0; KINDS.len()],
            is_faulty: plan.faults.every_ns_mean > 0,
            lost: 0,
            narrow: 0,
            spoiled: BTreeSet::new(),
            spoil_rng: rng.fork(4),
            replace_rng: rng.fork(5),
            lag_rng: rng.fork(6),
            wipe_rng: rng.fork(8),
            lagging: None,
            change_rng: rng.fork(15),
            wanted: None,
            leaving: BTreeSet::new(),
            move_rng: rng.fork(16),
            vacant: Vec::new(),
            problem: None,
            queue: Queue::default(),
            client_pool: Pool::new(CLIENT_POOL_BYTES),
            clients_made: 0,
            plan,
        };
        world.trace.say(0, || format!("{:#?}", world.plan));
        for index in 0..world.plan.machines() {
            let at_ns = world.rng.below(2_000_000);
            world.at(at_ns, Event::Start(index));
        }
        for _ in 0..world.plan.work.clients {
            let client = world.new_client(world.plan.work.patience_ns);
            world.clients[client].is_issuing = true;
            world.wake_client(client, 1_000_000);
        }
        if world.guest.is_some() {
            world.at(guest::STEP_NS, Event::Guest);
        }
        if world.is_faulty {
            let at_ns = world.rng.exponential(world.plan.faults.every_ns_mean);
            world.at(at_ns, Event::Fault);
        }
        if world.plan.faults.spoil_ns_mean > 0 {
            world.at(300_000_000, Event::Spoil);
        }
        if world.plan.faults.replace_ns_mean > 0 {
            let at_ns = world.replace_rng.exponential(world.plan.faults.replace_ns_mean);
            world.at(at_ns, Event::Replace);
        }
        if world.plan.faults.lag_ns_mean > 0 {
            let at_ns = world.lag_rng.exponential(world.plan.faults.lag_ns_mean);
            world.at(at_ns, Event::Lag);
        }
        if world.plan.faults.wipe_ns_mean > 0 {
            let at_ns = world.wipe_rng.exponential(world.plan.faults.wipe_ns_mean);
            world.at(at_ns, Event::Wipe);
        }
        if world.plan.faults.change_ns_mean > 0 {
            let at_ns = world.change_rng.exponential(world.plan.faults.change_ns_mean);
            world.at(at_ns + 50_000_000, Event::Reconfigure);
        }
        if world.plan.faults.move_ns_mean > 0 {
            let at_ns = world.move_rng.exponential(world.plan.faults.move_ns_mean);
            world.at(at_ns, Event::Move);
        }
        world
    }

    /// A client of its own address; the number of its place.
    pub fn new_client(&mut self, patience_ns: u64) -> usize {
        let endpoint = self.net.borrow_mut().enter();
        self.clients_made += 1;
        let mut rng = self.rng.fork(1_000 + self.clients_made);
        let known = self.addresses(self.plan.machines());
        let mut config = ClientConfig::new(CLUSTER, known.clone(), rng.number());
        config.patience_ns = patience_ns;
        config.session_idle_ns_max = self.plan.work.session_idle_ns;
        config.stripe_bytes = self.plan.node.value_bytes_max;
        config.window = *rng.pick(&[1, 4, 64]);
        let link = SimLink::new(self.net.clone(), endpoint);
        let pool = self.client_pool.clone();
        self.clients.push(SimClient::new(link, endpoint, known, pool, config, rng));
        self.clients.len() - 1
    }

    /// Puts an event into the queue; never into the past.
    pub fn at(&mut self, at_ns: u64, event: Event) {
        self.queue.insert(at_ns.max(self.now_ns), event);
    }

    pub fn fail(&mut self, what: String) {
        self.problem.get_or_insert(what);
    }

    /// Handles events until `done` says so, or a time. Returns whether `done` did.
    pub fn run(&mut self, until_ns: u64, mut done: impl FnMut(&World) -> bool) -> bool {
        while self.problem.is_none() {
            if done(self) {
                return true;
            }
            let Some((at_ns, event)) = self.queue.pop_until(until_ns) else {
                self.now_ns = self.now_ns.max(until_ns);
                return false;
            };
            self.now_ns = at_ns;
            self.handle(event);
            if self.problem.is_none() {
                self.problem = self.oracle.borrow().problem().map(str::to_owned);
            }
        }
        false
    }

    fn handle(&mut self, event: Event) {
        self.load.handled += 1;
        match event {
            Event::Arrive(packet) => self.arrive(packet),
            Event::Node(index) => {
                if self.hosts[index].wake_ns == Some(self.now_ns) {
                    self.hosts[index].wake_ns = None;
                    self.turn(index);
                } else {
                    self.load.void += 1;
                }
            }
            Event::Disk(index) => {
                if self.hosts[index].disk_ns == Some(self.now_ns) {
                    self.hosts[index].disk_ns = None;
                    self.disk_completes(index);
                } else {
                    self.load.void += 1;
                }
            }
            Event::Client(index) => {
                if self.clients[index].wake_ns == Some(self.now_ns) {
                    self.clients[index].wake_ns = None;
                    self.client_turn(index);
                } else {
                    self.load.void += 1;
                }
            }
            Event::Guest => self.guest_turn(),
            Event::Fault => self.fault(),
            Event::Spoil => self.spoil(),
            Event::Replace => self.replace(),
            Event::Reconfigure => self.reconfigure(),
            Event::Move => self.think_of_move(),
            Event::Moving(index) => self.moving(index),
            Event::Replacing(index) => self.replacing(index),
            Event::Lag => self.lag(),
            Event::Wipe => self.wipe(),
            Event::Lagging(index) => self.lagging(index),
            Event::Start(index) => self.start(index),
            Event::Thaw(index) => self.thaw(index),
            Event::HealCuts => self.heal_cuts(),
            Event::Room(index) => self.make_room(index),
        }
    }

    fn arrive(&mut self, packet: Packet) {
        self.load.packets += 1;
        let (from, at, len) = (packet.from, number(packet.to_address), packet.bytes.len());
        let hash = crc32fast::hash(&packet.bytes);
        self.trace.note(self.now_ns, &[1, from as u64, at as u64, len as u64, hash.into()]);
        let Some(to) = self.net.borrow_mut().arrive(packet) else { return };
        if to < self.plan.machines() {
            return self.wake_node(to, self.now_ns);
        }
        if let Some(client) = self.clients.iter().position(|client| client.endpoint == to) {
            self.wake_client(client, self.now_ns);
        }
    }

    /// A node gets a turn at this time, or as soon after it as it can.
    pub fn wake_node(&mut self, index: usize, at_ns: u64) {
        let host = &mut self.hosts[index];
        let at_ns = at_ns.max(host.busy_until_ns).max(host.frozen_until_ns).max(self.now_ns);
        if host.node.is_some() && host.wake_ns.is_none_or(|wake_ns| at_ns < wake_ns) {
            host.wake_ns = Some(at_ns);
            self.at(at_ns, Event::Node(index));
        }
    }

    fn wake_client(&mut self, index: usize, at_ns: u64) {
        let client = &mut self.clients[index];
        let at_ns = at_ns.max(self.now_ns);
        if client.wake_ns.is_none_or(|wake_ns| at_ns < wake_ns) {
            client.wake_ns = Some(at_ns);
            self.at(at_ns, Event::Client(index));
        }
    }

    fn start(&mut self, index: usize) {
        if self.hosts[index].state != State::Down {
            return;
        }
        // A process that starts waits for its disk.
        if self.hosts[index].disk.borrow().is_frozen() {
            self.at(self.hosts[index].stalled_until_ns, Event::Start(index));
            return;
        }
        let witness = Witness::new(index, self.oracle.clone(), self.contents.clone());
        self.net.borrow_mut().now_ns = self.now_ns;
        self.hosts[index].disk.borrow_mut().advance(self.now_ns);
        let guest = self.guest.is_some();
        match self.hosts[index].start(&self.net, witness, guest, self.now_ns) {
            Ok(()) => {
                let host = &self.hosts[index];
                let exec = host.node.as_ref().map_or(0, |node| node.exec());
                let boots = host.boots;
                self.trace.say(self.now_ns, || format!("node {index}: boot {boots}, exec {exec}"));
                self.trace.note(self.now_ns, &[2, index as u64, exec]);
                self.wake_node(index, self.now_ns);
            }
            // A promise on it has rotten, or a sector beside one cannot be read, and no checkpoint has
            // made it needless yet: such a node must refuse. It is one of those that may be lost.
            Err(what) if self.spoiled.contains(&index) && is_refused(&what) => {
                self.trace.say(self.now_ns, || format!("{what}: it is lost"));
                self.hosts[index].stop(&self.net, State::Lost);
                // One that is moving counts already, and is not moved any more.
                let counted = self.hosts[index].is_moving();
                self.hosts[index].moving = None;
                self.lost += usize::from(!counted);
            }
            Err(what) => self.fail(what),
        }
    }

    /// One turn of a node.
    fn turn(&mut self, index: usize) {
        let now_ns = self.now_ns;
        self.net.borrow_mut().now_ns = now_ns;
        let host = &mut self.hosts[index];
        let Some(node) = &mut host.node else { return };
        host.disk.borrow_mut().advance(now_ns);
        let before = node.exec();
        let (jumps, held) = (node.jumps(), held_before_jump(node));
        let is_busy = node.poll(host.clock.local(now_ns));
        self.load.turns += 1;
        let is_silent = self.net.borrow().is_silent();
        self.load.turns_idle += u64::from(!is_busy && is_silent);
        host.busy_until_ns = now_ns + self.plan.node.turn_ns;
        let exec = node.exec();
        let deadline_ns = match is_busy {
            true => Some(now_ns),
            false => node.deadline().map(|local| host.clock.virtual_of(local)),
        };
        let failed = node.failed().map(str::to_owned);
        let mut unfit = unfit(node, &self.plan);
        if node.takes_part() && host.is_wiped {
            unfit = Some("it takes part with an empty disk in the place of one that did".into());
        }
        host.took_part |= node.takes_part();
        if node.jumps() > jumps && !self.spoiled.contains(&index) {
            unfit = unfit.or_else(|| dropped_by_jump(node, &held));
        }
        if exec != before {
            self.trace.note(now_ns, &[3, index as u64, exec]);
            self.trace.say(now_ns, || format!("node {index}: exec {before} -> {exec}"));
        }
        self.deliver_sent();
        if let Some(why) = failed {
            return self.node_stopped(index, &why);
        }
        if let Some(what) = unfit {
            return self.fail(format!("node {index}: {what}"));
        }
        if let Some(at_ns) = deadline_ns {
            self.wake_node(index, at_ns);
        }
        self.watch_disk(index);
    }

    fn node_stopped(&mut self, index: usize, why: &str) {
        self.trace.say(self.now_ns, || format!("node {index} stopped itself: {why}"));
        let host = &self.hosts[index];
        if host.is_wiped && !host.flush_fails {
            return self.wiped_stopped(index, why);
        }
        let is_replaced = host.replacement.as_ref().is_some_and(|new| !new.is_in);
        if is_replaced && why.contains("was replaced") {
            self.kill(index, false);
            return self.hosts[index].state = State::Lost;
        }
        if self.leaving.contains(&index) && why.contains("was removed") {
            self.kill(index, false);
            return self.hosts[index].state = State::Gone;
        }
        if !self.hosts[index].flush_fails {
            return self.fail(format!("node {index} stopped itself: {why}"));
        }
        self.kill(index, false);
        self.start_later(index);
    }

    fn deliver_sent(&mut self) {
        let net = self.net.clone();
        let mut net = net.borrow_mut();
        net.take_sent(|at_ns, packet| self.queue.insert(at_ns, Event::Arrive(packet)));
    }

    /// Has the next completion of a disk in the queue.
    pub fn watch_disk(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let Some(due_ns) = host.disk.borrow().next_due_ns() else { return };
        let due_ns = due_ns.max(self.now_ns);
        if host.disk_ns.is_none_or(|at_ns| due_ns < at_ns) {
            host.disk_ns = Some(due_ns);
            self.at(due_ns, Event::Disk(index));
        }
    }

    fn disk_completes(&mut self, index: usize) {
        self.load.disk += 1;
        let before = self.hosts[index].disk.borrow().in_flight();
        self.hosts[index].disk.borrow_mut().advance(self.now_ns);
        let after = self.hosts[index].disk.borrow().in_flight();
        if before != after {
            self.trace.note(self.now_ns, &[4, index as u64, before as u64, after as u64]);
            self.wake_node(index, self.now_ns);
        }
        self.watch_disk(index);
    }

    fn client_turn(&mut self, index: usize) {
        self.load.client += 1;
        let now_ns = self.now_ns;
        self.net.borrow_mut().now_ns = now_ns;
        let client = &mut self.clients[index];
        let (book, trace) = (&mut self.book, &mut self.trace);
        let (oracle, contents) = (self.oracle.borrow(), &self.contents);
        let polled = client.poll(now_ns, |deed, completion| {
            let contents = contents.borrow();
            trace.note(now_ns, &[5, index as u64, deed as u64, completion.result.is_ok().into()]);
            trace.say(now_ns, || {
                let what = book.what(deed);
                format!("client {index}: {what:?} -> {}", describe(&completion))
            });
            book.respond(deed, &completion.result, now_ns, &oracle, &contents)
        });
        drop(oracle);
        if let Err(what) = polled {
            self.fail(format!("client {index}: {what}"));
        }
        let client = &mut self.clients[index];
        let most = self.plan.node.value_bytes_max;
        let contents = self.contents.clone();
        client.issue(now_ns, &self.plan.work, most, &mut self.book, &mut contents.borrow_mut());
        self.after_client(index);
    }

    /// The guest looks at what has come, and asks.
    fn guest_turn(&mut self) {
        let Some(mut guest) = self.guest.take() else { return };
        let hosts = self.hosts.iter().filter(|host| host.node.is_some());
        let doors: Vec<Door<'_>> = hosts
            .filter_map(|host| {
                let handle = host.handle.as_ref()?;
                Some(Door { node: host.index, boot: host.boots, handle })
            })
            .collect();
        let mut woken = Vec::new();
        let result = guest.turn(self.now_ns, &doors, &mut woken);
        drop(doors);
        self.trace.note(self.now_ns, &[6, guest.done, guest.outstanding() as u64]);
        self.guest = Some(guest);
        if let Err(what) = result {
            self.fail(what);
        }
        woken.into_iter().for_each(|node| self.wake_node(node, self.now_ns));
        self.at(self.now_ns + guest::STEP_NS, Event::Guest);
    }

    /// What a client sent leaves, and its next turn is in the queue.
    pub fn after_client(&mut self, index: usize) {
        self.deliver_sent();
        let deadline_ns = self.clients[index].deadline_ns();
        if let Some(at_ns) = deadline_ns {
            // A turn takes a microsecond, so that time goes on whatever the deadline says.
            self.wake_client(index, at_ns.max(self.now_ns + 1_000));
        }
    }

    /// Nodes that run.
    pub fn up(&self) -> impl Iterator<Item = usize> {
        self.hosts.iter().filter(|host| host.state == State::Up).map(|host| host.index)
    }
}

fn describe(completion: &racos_client::Completion) -> String {
    use racos_client::Answer;
    match &completion.result {
        Ok(Answer::Value { revision, bytes }) => format!("{} B at {revision}", bytes.len()),
        Ok(Answer::Keys { entries, more }) => format!("{} keys, more: {more}", entries.len()),
        Ok(answer) => format!("{answer:?} (node {})", completion.endpoint),
        Err(error) => format!("failed: {error}"),
    }
}

/// What is stored here and in use, if a state that a peer told may be in place soon.
fn held_before_jump(node: &SimNode) -> Vec<OpId> {
    if !node.takes_state() {
        return Vec::new();
    }
    let ops = node.machine().values().map(|used| used.value.op);
    ops.filter(|op| node.has_fragment(*op)).collect()
}

/// PROTOCOL 9.3-f: a fragment that was here, is still in use, and is not here any more.
fn dropped_by_jump(node: &SimNode, held: &[OpId]) -> Option<String> {
    let gone = |op: &&OpId| node.machine().value(**op).is_some() && !node.has_fragment(**op);
    let op = held.iter().find(gone)?;
    Some(format!("the fragment of {op} was dropped though the state taken names it"))
}

/// Cases M, T and Q of the recovery table.
fn is_refused(what: &str) -> bool {
    what.contains("lost promises") || what.contains("unreadable sector")
}

/// What of a node is out of its bounds.
fn unfit(node: &SimNode, plan: &Plan) -> Option<String> {
    let (exec, seen) = (node.core().exec(), node.core().seen());
    if seen > exec + plan.node.alpha {
        return Some(format!("slots up to {seen} in use at exec {exec}: beyond the window"));
    }
    let junk = node.net().junk_total();
    // PROTOCOL 1-c: exactly what was damaged is dropped.
    let damaged = node.net().link().damaged_received;
    if junk != damaged {
        return Some(format!("{damaged} damaged datagrams received, {junk} refused"));
    }
    None
}

/// The place of a kind of fault in [`KINDS`].
pub fn place(kind: Kind) -> usize {
    KINDS.iter().position(|other| *other == kind).expect("every kind is listed")
}
