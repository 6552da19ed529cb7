//! Faults: what is done to nodes, disks and network, and how it ends.
//!
//! Invariant: everything done here is within the promise, and all of it but the nodes lost for ever
//! is undone by [`World::calm`].

use crate::host::{DISK_BYTES, State};
use crate::plan::{Kind, MS};
use crate::world::{Event, World, place};

/// Additional loss while a burst lasts, in a million.
const BURST_LOSS_PPM: u32 = 700_000;
const SECTOR: u64 = 512;
/// Fragments from this length on lie in sectors of their own, apart from any promise.
const SPOILED_BYTES_MIN: u32 = 16 << 10;

impl World {
    /// Draws a fault and has the next one in the queue.
    pub fn fault(&mut self) {
        if !self.is_faulty {
            return;
        }
        let next_ns = self.now_ns + self.rng.exponential(self.plan.faults.every_ns_mean).max(MS);
        self.at(next_ns, Event::Fault);
        let kind = *self.rng.pick(&self.plan.faults.kinds.clone());
        let index = self.rng.below(self.plan.machines() as u64) as usize;
        if self.inject(kind, index) {
            self.faults[place(kind)] += 1;
            self.trace.note(self.now_ns, &[6, place(kind) as u64, index as u64]);
            self.trace.say(self.now_ns, || format!("fault: {kind:?}, node {index}"));
        }
    }

    /// Returns whether there was anything to do.
    fn inject(&mut self, kind: Kind, index: usize) -> bool {
        let is_up = self.hosts[index].state == State::Up;
        match kind {
            Kind::Kill if is_up => {
                self.kill(index, false);
                self.start_later(index);
            }
            Kind::PowerCut if is_up => {
                self.kill(index, true);
                self.start_later(index);
            }
            Kind::PowerCutAll => {
                for index in self.up().collect::<Vec<_>>() {
                    self.kill(index, true);
                    self.start_later(index);
                }
            }
            Kind::Lose if is_up && self.plan.faults.lost_max > 0 && self.may_lose(index) => {
                self.lost += 1;
                self.kill(index, true);
                self.hosts[index].state = State::Lost;
            }
            Kind::Freeze if is_up => {
                let until_ns = self.end_of_fault();
                self.hosts[index].frozen_until_ns = until_ns;
                self.hosts[index].wake_ns = None;
                self.wake_node(index, until_ns);
            }
            Kind::Cut => self.cut(index),
            Kind::Split => self.split(),
            Kind::LossBurst => {
                self.net.borrow_mut().extra_loss_ppm = BURST_LOSS_PPM;
                self.heal_cuts_later();
            }
            Kind::DiskStall => {
                let until_ns = self.end_of_fault();
                self.hosts[index].disk.borrow_mut().freeze(true);
                self.hosts[index].stalled_until_ns = until_ns;
                self.at(until_ns, Event::Thaw(index));
            }
            Kind::DiskFull => {
                let until_ns = self.end_of_fault();
                self.hosts[index].disk.borrow_mut().set_capacity(0);
                self.hosts[index].full_until_ns = until_ns;
                self.at(until_ns, Event::Room(index));
            }
            Kind::FlushError if is_up => {
                let after = self.rng.below(20);
                self.hosts[index].disk.borrow_mut().fail_flush_after(after);
                self.hosts[index].flush_fails = true;
            }
            Kind::ClockJump => {
                let jump_ns = self.rng.exponential(200 * MS);
                self.hosts[index].clock.offset_ns += jump_ns;
                self.guest.iter_mut().for_each(|guest| guest.jumped_ns += jump_ns);
                self.wake_node(index, self.now_ns);
            }
            Kind::ClientRestart => return self.restart_client(),
            _ => return false,
        }
        true
    }

    /// PROTOCOL 9.5-e: a node with rotten fragments counts as lost for what they were part of.
    pub fn may_lose(&self, index: usize) -> bool {
        let others = self.spoiled.iter().filter(|node| **node != index);
        let others = others.filter(|node| !self.counts_as_lost(**node));
        let bears = self.lost + others.count() < self.plan.f;
        bears && !self.counts_as_lost(index) && self.is_founded()
    }

    /// Lost, on an empty disk, replaced and not whole again, or on its way to another address.
    fn counts_as_lost(&self, index: usize) -> bool {
        let host = &self.hosts[index];
        let is_away = host.replacement.is_some() || host.is_moving() || host.is_wiped;
        host.state == State::Lost || is_away
    }

    /// Something rots on the disk of a node, long enough ago not to be taken for a torn write: a
    /// fragment in sectors of its own, as only large ones are, or a sector anywhere in the log.
    pub fn spoil(&mut self) {
        if !self.is_faulty || self.plan.f == 0 {
            return;
        }
        let wait_ns = self.spoil_rng.exponential(self.plan.faults.spoil_ns_mean).max(MS);
        self.at(self.now_ns + wait_ns, Event::Spoil);
        let index = self.spoil_rng.below(self.plan.n as u64) as usize;
        let others = self.spoiled.iter().filter(|node| **node != index);
        let others = others.filter(|node| !self.counts_as_lost(**node)).count();
        if self.counts_as_lost(index) {
            return;
        }
        let Some(node) = &self.hosts[index].node else { return };
        if self.lost + others >= self.plan.f || !self.is_founded() {
            return;
        }
        let contents = self.contents.borrow();
        let keys = (0..contents.keys()).map(|key| contents.key(key));
        let versions = keys.flat_map(|key| node.machine().history(key));
        let values = versions.flat_map(|version| version.values().collect::<Vec<_>>());
        let places: Vec<_> = values.filter_map(|value| node.fragment_place(value.op)).collect();
        let newest = node.log().replayed().1.segment;
        let fit: Vec<_> = places
            .iter()
            .filter(|place| place.segment < newest && place.len >= SPOILED_BYTES_MIN)
            .collect();
        if fit.is_empty() {
            return;
        }
        let place = *fit[self.spoil_rng.below(fit.len() as u64) as usize];
        let offset = u64::from(place.offset) + self.spoil_rng.below(u64::from(place.len));
        let others: Vec<_> = fit.into_iter().copied().collect();
        drop(contents);
        let manner = self.spoil_rng.below(8);
        let mut disk = self.hosts[index].disk.borrow_mut();
        match manner {
            0..=3 => disk.corrupt(place.segment, offset),
            4 | 5 => disk.make_unreadable(place.segment, offset),
            6 => {
                // A write of another fragment that landed here: its first whole sector.
                let first = |offset: u32| u64::from(offset).next_multiple_of(SECTOR);
                let from = others[self.spoil_rng.below(others.len() as u64) as usize];
                let from = (from.segment, first(from.offset));
                disk.misdirect(from, (place.segment, first(place.offset)), SECTOR as usize);
            }
            // Perhaps a promise: then the node outlives it, or is lost at its next start.
            _ => {
                let at = self.spoil_rng.below(u64::from(self.plan.node.segment_bytes));
                disk.corrupt(place.segment, at);
            }
        }
        drop(disk);
        self.spoiled.insert(index);
        self.faults[crate::world::place(Kind::Spoil)] += 1;
        self.trace.note(self.now_ns, &[8, index as u64, offset]);
        self.trace.say(self.now_ns, || format!("fault: Spoil, node {index}, byte {offset}"));
    }

    /// A client begins anew at another address; what the old one asked stays unanswered.
    fn restart_client(&mut self) -> bool {
        let client = self.rng.below(self.clients.len() as u64) as usize;
        self.renew_client(client)
    }

    /// This client begins anew. Returns whether it was still asking.
    pub fn renew_client(&mut self, client: usize) -> bool {
        if !self.clients[client].is_issuing {
            return false;
        }
        self.net.borrow_mut().listen(self.clients[client].endpoint, false);
        let issued = self.clients[client].issued;
        let fresh = self.new_client(self.plan.work.patience_ns);
        self.clients.swap_remove(client);
        debug_assert_eq!(self.clients.len(), fresh, "the new one has taken the place");
        (self.clients[client].is_issuing, self.clients[client].issued) = (true, issued);
        self.after_client(client);
        true
    }

    fn end_of_fault(&mut self) -> u64 {
        self.now_ns + MS + self.rng.exponential(self.plan.faults.last_ns_mean)
    }

    /// Ends the process of a node, or the power of its machine.
    pub fn kill(&mut self, index: usize, power: bool) {
        let seed = self.rng.number();
        self.hosts[index].stop(&self.net, State::Down);
        let mut disk = self.hosts[index].disk.borrow_mut();
        match power {
            true => disk.power_cut(seed),
            false => disk.kill(seed),
        }
    }

    pub fn start_later(&mut self, index: usize) {
        let at_ns = self.end_of_fault();
        self.at(at_ns, Event::Start(index));
    }

    /// Nothing gets from one node to another, or out of, or into, one.
    fn cut(&mut self, index: usize) {
        let n = self.plan.machines() as u64;
        let other = self.rng.below(n) as usize;
        let way = self.rng.below(4);
        {
            let mut net = self.net.borrow_mut();
            for peer in (0..self.plan.machines()).filter(|peer| *peer != index) {
                match way {
                    0 if peer == other => net.cut(index, peer, true),
                    1 => net.cut(index, peer, true),
                    2 => net.cut(peer, index, true),
                    3 => {
                        net.cut(index, peer, true);
                        net.cut(peer, index, true);
                    }
                    _ => {}
                }
            }
        }
        self.heal_cuts_later();
    }

    fn split(&mut self) {
        let left = self.rng.number();
        let n = self.plan.machines();
        {
            let mut net = self.net.borrow_mut();
            let is_left = |node: usize| left >> node & 1 == 1;
            for from in 0..n {
                (0..n).filter(|to| is_left(from) != is_left(*to)).for_each(|to| {
                    net.cut(from, to, true);
                });
            }
        }
        self.heal_cuts_later();
    }

    fn heal_cuts_later(&mut self) {
        let at_ns = self.end_of_fault();
        self.at(at_ns, Event::HealCuts);
    }

    pub fn heal_cuts(&mut self) {
        self.net.borrow_mut().heal_all();
    }

    /// A disk that stood still goes on.
    pub fn thaw(&mut self, index: usize) {
        if self.now_ns >= self.hosts[index].stalled_until_ns {
            self.hosts[index].disk.borrow_mut().freeze(false);
            self.watch_disk(index);
        }
    }

    pub fn make_room(&mut self, index: usize) {
        if self.now_ns >= self.hosts[index].full_until_ns {
            self.hosts[index].disk.borrow_mut().set_capacity(DISK_BYTES);
        }
    }

    /// All machines lose power, and f in all are lost for ever: what was acknowledged is still there
    /// (PROTOCOL 4.1).
    pub fn blackout(&mut self) {
        for index in self.up().collect::<Vec<_>>() {
            self.kill(index, true);
        }
        while self.lost < self.plan.f && self.is_founded() {
            let spoiled = self.spoiled.iter().find(|node| !self.counts_as_lost(**node));
            let index = match spoiled {
                Some(node) => *node,
                None => self.rng.below(self.plan.n as u64) as usize,
            };
            if !self.counts_as_lost(index) {
                self.hosts[index].state = State::Lost;
                self.lost += 1;
                self.faults[place(Kind::Lose)] += 1;
            }
        }
        self.faults[place(Kind::PowerCutAll)] += 1;
        self.trace.note(self.now_ns, &[7]);
        self.trace.say(self.now_ns, || "blackout".into());
    }

    /// Ends all faults: what is down starts, what is cut heals. Lost nodes stay lost.
    pub fn calm(&mut self) {
        self.is_faulty = false;
        self.heal_cuts();
        {
            let mut net = self.net.borrow_mut();
            net.plan.lose_ppm = 0;
            net.plan.damage_ppm = 0;
        }
        for index in 0..self.plan.machines() {
            self.hosts[index].stalled_until_ns = 0;
            self.hosts[index].full_until_ns = 0;
            self.thaw(index);
            self.make_room(index);
            self.hosts[index].disk.borrow_mut().fail_flush_after(u64::MAX);
            let host = &mut self.hosts[index];
            if std::mem::take(&mut host.frozen_until_ns) > self.now_ns {
                host.wake_ns = None;
                self.wake_node(index, self.now_ns);
            }
            if self.hosts[index].state == State::Down {
                self.at(self.now_ns, Event::Start(index));
            }
        }
    }
}
