//! The same nodes without a simulated world: the test says what is flushed, delivered and lost.

use super::host::{Host, Mail, Outbox, Packet};
use super::oracle::Oracle;
use super::story;
use super::{MS, config};
use racos_protocol::{BatchInfo, Class, Config, Core, Input, Message, Nanos, Node, Policy, Slot};

pub struct Lab {
    pub now: Nanos,
    pub hosts: Vec<Host>,
    pub oracle: Oracle,
    /// Sent and neither delivered nor lost.
    pub mail: Vec<Mail>,
    /// Own batches executed by their owners, in order.
    pub acknowledged: Vec<Slot>,
    /// What happened, a line each, for those who want the whole trace.
    pub story: Vec<String>,
    batches: u64,
}

impl Lab {
    /// All nodes up and idle, their first reservation flushed.
    pub fn new(shape: (usize, usize, usize)) -> Lab {
        Lab::with(shape, |_| {})
    }

    pub fn with(shape: (usize, usize, usize), change: impl Fn(&mut Config)) -> Lab {
        let configs: Vec<Config> = (0..shape.0 as Node)
            .map(|me| {
                let mut config = config(shape, me, 7);
                change(&mut config);
                config
            })
            .collect();
        let mut oracle = Oracle::new(configs[0].thresholds().expect("a possible configuration"));
        oracle.is_queue = configs[0].policy == Policy::Queue;
        let mut lab = Lab {
            now: MS,
            hosts: configs.into_iter().map(Host::new).collect(),
            oracle,
            mail: Vec::new(),
            acknowledged: Vec::new(),
            story: Vec::new(),
            batches: 0,
        };
        for node in lab.nodes() {
            lab.restart(node);
        }
        lab.settle();
        lab
    }

    pub fn nodes(&self) -> std::ops::Range<Node> {
        0..self.hosts.len() as Node
    }

    pub fn core(&self, node: Node) -> &Core {
        self.hosts[usize::from(node)].core()
    }

    pub fn exec(&self, node: Node) -> Slot {
        self.core(node).exec()
    }

    fn act(&mut self, node: Node, what: impl FnOnce(&mut Host, Nanos, &mut Oracle, &mut Outbox)) {
        let mut out = Outbox::default();
        let host = &mut self.hosts[usize::from(node)];
        let before = story::Before::of(host);
        what(host, self.now, &mut self.oracle, &mut out);
        before.tell(host, &out, &mut self.story);
        self.mail.append(&mut out.mail);
        self.acknowledged.append(&mut out.acknowledged);
    }

    pub fn input(&mut self, node: Node, input: Input) {
        self.act(node, |host, now, oracle, out| host.input(input, now, oracle, out));
    }

    /// SPREAD of a slot arrives; `room` says whether the log can take the fragments.
    pub fn spread(&mut self, to: Node, slot: Slot, batch: BatchInfo, room: bool) {
        let from = self.core(to).owner(slot);
        self.act(to, |host, now, oracle, out| {
            host.spread(from, slot, batch, room, now, oracle, out);
        });
    }

    pub fn message(&mut self, from: Node, to: Node, message: Message) {
        self.input(to, Input::Message { from, message });
    }

    /// A batch that was never used before and touches `key`.
    pub fn batch(&mut self, key: u64) -> BatchInfo {
        self.batches += 1;
        BatchInfo { digest: u128::from(self.batches), touches: [key].into(), is_change: false }
    }

    /// Opens a batch that touches key 0.
    pub fn open(&mut self, node: Node) -> Slot {
        self.open_key(node, 0).expect("the node can open a slot")
    }

    /// Opens a batch that touches `key`, if the node can open a slot now.
    pub fn open_key(&mut self, node: Node, key: u64) -> Option<Slot> {
        self.open_class(node, key, Class::Eager)
    }

    /// The same of a class; what is stored before it has a slot is stored already.
    pub fn open_class(&mut self, node: Node, key: u64, class: Class) -> Option<Slot> {
        let mut batch = self.batch(key);
        batch.digest = class.mark(batch.digest);
        let mut slot = None;
        self.act(node, |host, now, oracle, out| slot = host.open(batch, now, oracle, out));
        slot
    }

    /// Queue policy: an operation that touches `key` is stored.
    pub fn offer_key(&mut self, node: Node, key: u64) {
        let mut batch = self.batch(key);
        batch.digest = Class::Ready.mark(u128::from(node) << 96 | batch.digest);
        self.act(node, |host, _, oracle, out| host.offer(batch, oracle, out));
    }

    pub fn is_up(&self, node: Node) -> bool {
        self.hosts[usize::from(node)].core.is_some()
    }

    /// One flush at a node, with everything appended so far. False: nothing to flush.
    pub fn flush(&mut self, node: Node) -> bool {
        let begun = self.hosts[usize::from(node)].log.begin_flush();
        self.act(node, |host, now, oracle, out| host.flushed(now, oracle, out));
        begun
    }

    /// Flushes until nothing is waiting for the disk of this node.
    pub fn flush_all(&mut self, node: Node) {
        while self.flush(node) {}
    }

    /// The same at every node.
    pub fn flush_each(&mut self) {
        self.nodes().for_each(|node| self.flush_all(node));
    }

    /// Delivers, in order, what is on the way now and is chosen; how many that were.
    pub fn deliver(&mut self, chosen: impl Fn(&Mail) -> bool) -> usize {
        let (now, later) = std::mem::take(&mut self.mail).into_iter().partition(chosen);
        self.mail = later;
        let now: Vec<Mail> = now;
        let count = now.len();
        for mail in now {
            if self.hosts[usize::from(mail.to)].core.is_some() {
                self.act(mail.to, |host, now, oracle, out| host.receive(mail, now, oracle, out));
            }
        }
        count
    }

    /// Loses what is on the way and is chosen; how many that were.
    pub fn lose(&mut self, chosen: impl Fn(&Mail) -> bool) -> usize {
        let before = self.mail.len();
        self.mail.retain(|mail| !chosen(mail));
        before - self.mail.len()
    }

    /// Flushes and delivers everything until all is quiet. No time passes.
    pub fn settle(&mut self) {
        self.settle_among(&self.nodes().collect::<Vec<_>>());
    }

    /// The same with these nodes only; what others are sent or send stays on the way.
    pub fn settle_among(&mut self, some: &[Node]) {
        loop {
            let mut busy = false;
            for node in some {
                busy |= self.hosts[usize::from(*node)].core.is_some() && self.flush(*node);
            }
            busy |= self.deliver(|mail| some.contains(&mail.from) && some.contains(&mail.to)) > 0;
            if !busy {
                return;
            }
        }
    }

    /// Lets time pass in steps of a tenth of a millisecond; timers that are due run, nothing is
    /// flushed or delivered.
    pub fn pass(&mut self, time: Nanos) {
        self.pass_with(time, |_| {});
    }

    /// Lets time pass while these nodes flush and hear each other.
    pub fn pass_among(&mut self, time: Nanos, some: &[Node]) {
        self.pass_with(time, |lab| lab.settle_among(some));
    }

    fn pass_with(&mut self, time: Nanos, then: impl Fn(&mut Lab)) {
        let end = self.now + time;
        while self.now < end {
            self.now = (self.now + MS / 10).min(end);
            for node in self.nodes() {
                let core = self.hosts[usize::from(node)].core.as_ref();
                if core.is_some_and(|core| core.deadline().is_some_and(|due| due <= self.now)) {
                    self.input(node, Input::Tick);
                }
            }
            then(self);
        }
    }

    /// Power is cut at one node: what is not flushed is lost.
    pub fn crash(&mut self, node: Node) {
        self.hosts[usize::from(node)].crash(false, &mut self.oracle);
    }

    pub fn restart(&mut self, node: Node) {
        self.act(node, |host, now, oracle, out| host.start(now, oracle, out));
    }

    /// What a node has on its way to another.
    pub fn sent(&self, from: Node, to: Node) -> Vec<Message> {
        let between = self.mail.iter().filter(|mail| mail.from == from && mail.to == to);
        between
            .filter_map(|mail| match mail.packet {
                Packet::Message(message) => Some(message),
                _ => None,
            })
            .collect()
    }
}

/// Chooses the PROPOSEs for a batch.
pub fn is_hold(mail: &Mail) -> bool {
    matches!(
        mail.packet,
        Packet::Message(Message::Propose { value: racos_protocol::Value::Batch(_), .. })
    )
}

pub fn is_vote(mail: &Mail) -> bool {
    matches!(mail.packet, Packet::Message(Message::Vote { .. }))
}

pub fn is_spread(mail: &Mail) -> bool {
    matches!(mail.packet, Packet::Spread { .. })
}
