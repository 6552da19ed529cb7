//! One run from beginning to end: faults, then calm, then the account.
//!
//! Purpose: first anything may happen; then faults stop, and within bounded virtual time every
//! operation must end, all nodes must be equal, and everything acknowledged must be readable
//! through every node, with no exemption.

use crate::client::What;
use crate::ends::finish_work;
use crate::host::{Host, SimNode, State, Upkeep};
use crate::net::NetCounts;
use crate::plan::{Fixed, KINDS, Kind, MS, Plan};
use crate::world::{Load, World};
use racos_client::Route;
use racos_engine::UnderWay;
use racos_linear::Reason;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

/// Operations that must succeed in a whole run, and as many of a guest's.
pub(crate) const DONE_MIN: u64 = 10;
/// Bounds of the calm phase, in virtual time.
const CONVERGES_NS: u64 = 10_000 * MS;
const SCRUB_NS: u64 = 60_000 * MS;
const WHOLE_NS: u64 = 20_000 * MS;
/// Leases of three seconds, counted anew after restarts, and what their ends take.
const GUEST_NS: u64 = 20_000 * MS;
/// Sessions are idle once nodes have watched them for so long.
const SESSIONS_NS: u64 = 5_000 * MS;
const AUDIT_NS: u64 = 30_000 * MS;
const AUDIT_PATIENCE_NS: u64 = 20_000 * MS;
/// The transport gives a message to a dead node up after five seconds. From then on nodes without
/// work only tell each other where they are, twice a second.
const IDLE_NS: u64 = 6_000 * MS;
/// What was stored without a late node is still on its way to it.
const DELIVERS_NS: u64 = 60_000 * MS;
/// Half a message from a client that is gone is given up after ten.
const HALF_MESSAGE_NS: u64 = 10_000 * MS;
const SILENT_NS: u64 = 1_000 * MS;
const SILENT_DATAGRAMS_MAX: u64 = 3;
/// Most bytes that an idle node's log and transport keep ready, and that idle datagrams take.
const REST_BYTES_MAX: usize = 2 << 20;

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub seed: u64,
    pub trace_hash: u64,
    pub events: u64,
    pub virtual_ns: u64,
    /// From the end of the faults until every operation had ended and all nodes were equal.
    pub settled_ns: u64,
    pub slots: u64,
    pub batches: u64,
    pub fast: u64,
    pub slow: u64,
    pub told: u64,
    pub null: u64,
    pub skipped: u64,
    pub puts: u64,
    pub gets: u64,
    pub deletes: u64,
    pub lists: u64,
    pub failed: u64,
    pub boots: u64,
    /// Values re-coded, and RECODEs that were void.
    pub recoded: [u64; 2],
    /// Values that lay in fewer fragments than configured when the faults had stopped.
    pub narrow: u64,
    pub upkeep: Upkeep,
    /// In the order of [`KINDS`].
    pub faults: [u64; KINDS.len()],
    pub net: NetCounts,
    /// The linearizability checker gave up: nothing is known of that part.
    pub undecided: u64,
    pub load: Load,
}

impl Report {
    /// The whole of what the run of a seed did: everything that is in here but what it cost.
    pub fn hash(&self, seed: u64) -> u64 {
        crate::trace::hash_of(&(seed, Report { load: Load::default(), ..self.clone() }))
    }

    /// Adds another run's counts; keeps the longest time to settle, and its seed.
    pub fn add(&mut self, other: &Report) {
        if other.settled_ns > self.settled_ns {
            (self.settled_ns, self.seed) = (other.settled_ns, other.seed);
        }
        let pairs = [
            (&mut self.events, other.events),
            (&mut self.virtual_ns, other.virtual_ns),
            (&mut self.slots, other.slots),
            (&mut self.batches, other.batches),
            (&mut self.fast, other.fast),
            (&mut self.slow, other.slow),
            (&mut self.told, other.told),
            (&mut self.null, other.null),
            (&mut self.skipped, other.skipped),
            (&mut self.puts, other.puts),
            (&mut self.gets, other.gets),
            (&mut self.deletes, other.deletes),
            (&mut self.lists, other.lists),
            (&mut self.failed, other.failed),
            (&mut self.boots, other.boots),
            (&mut self.narrow, other.narrow),
            (&mut self.net.sent, other.net.sent),
            (&mut self.net.delivered, other.net.delivered),
            (&mut self.net.lost, other.net.lost),
            (&mut self.net.duplicated, other.net.duplicated),
            (&mut self.net.damaged, other.net.damaged),
            (&mut self.net.cut, other.net.cut),
            (&mut self.net.unheard, other.net.unheard),
            (&mut self.undecided, other.undecided),
        ];
        pairs.into_iter().for_each(|(sum, more)| *sum += more);
        self.upkeep = self.upkeep.and(other.upkeep);
        self.load.add(&other.load);
        for (sum, more) in self.faults.iter_mut().zip(other.faults) {
            *sum += more;
        }
        for (sum, more) in self.recoded.iter_mut().zip(other.recoded) {
            *sum += more;
        }
    }
}

thread_local! {
    /// What the panic of the run on this thread said; `None` while there is no run.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps the words of panics of runs instead of printing them.
fn catch_words() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let is_run = PANIC.with_borrow_mut(|words| match words {
                Some(words) => {
                    *words = info.to_string().replace('\n', " ");
                    true
                }
                None => false,
            });
            if !is_run {
                usual(info);
            }
        }));
    });
}

/// Runs one seed. `print`: a line for everything that happens.
///
/// # Errors
/// What went wrong, in words.
pub fn run(seed: u64, fixed: &Fixed, print: bool) -> Result<Report, String> {
    let fixed = *fixed;
    caught(move || {
        let mut world = World::new(Plan::draw(seed, &fixed), print);
        let account = whole_run(&mut world)?;
        Ok(report(&world, &account))
    })
}

/// A calm cluster without clients for so long; its load. `scrubs`: as in all other runs the disks are gone
/// over within seconds, not within days.
///
/// # Errors
/// As [`run`].
pub fn run_idle(seed: u64, fixed: &Fixed, virtual_ns: u64, scrubs: bool) -> Result<Load, String> {
    let fixed = Fixed { calm: true, ..*fixed };
    caught(move || {
        let mut plan = Plan::draw(seed, &fixed);
        plan.work.clients = 0;
        plan.node.scrub_ns *= u64::from(scrubs);
        let mut world = World::new(plan, false);
        world.run(virtual_ns, |_| false);
        problem(&world)?;
        Ok(world.load)
    })
}

/// A run of little but large values whose fragments rot.
///
/// # Errors
/// As [`run`].
pub fn run_rotting(seed: u64) -> Result<Report, String> {
    caught(move || {
        let fixed = Fixed { code: Some((3, 1, 1)), ..Fixed::default() };
        let mut plan = Plan::draw(seed, &fixed);
        plan.ends_in_blackout = false;
        plan.faults.kinds = vec![Kind::ClockJump];
        (plan.faults.every_ns_mean, plan.faults.spoil_ns_mean) = (1_000 * MS, 20 * MS);
        (plan.faults.replace_ns_mean, plan.faults.wipe_ns_mean) = (0, 0);
        plan.faults.move_ns_mean = 0;
        plan.faults_end_ns = 2_000 * MS;
        (plan.node.segment_bytes, plan.node.value_bytes_max) = (256 << 10, 40 << 10);
        (plan.node.cache_bytes_max, plan.node.scrub_ns) = (0, 500 * MS);
        (plan.work.families, plan.work.family_keys) = (6, 4);
        (plan.work.hot_ppm, plan.work.delete_ppm, plan.work.get_ppm) = (0, 0, 0);
        (plan.work.large_ppm, plan.work.striped_ppm) = (900_000, 0);
        let mut world = World::new(plan, false);
        let account = whole_run(&mut world)?;
        Ok(report(&world, &account))
    })
}

/// What a run came to; a panic in it is an error with the words of the panic.
pub(crate) fn caught<T>(body: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_words();
    PANIC.set(Some(String::new()));
    let outcome = catch_unwind(AssertUnwindSafe(body));
    let words = PANIC.take().unwrap_or_default();
    outcome.unwrap_or(Err(words))
}

/// What only the run itself knows.
struct Account {
    settled_ns: u64,
    undecided: u64,
}

fn whole_run(world: &mut World) -> Result<Account, String> {
    let end_ns = world.plan.faults_end_ns;
    world.run(end_ns, |_| false);
    problem(world)?;
    if world.plan.ends_in_blackout {
        world.blackout();
    }
    world.trace.say(world.now_ns, || "faults stop".into());
    world.calm();
    let calm_ns = world.now_ns;
    finish_work(world)?;
    finish_wiping(world)?;
    finish_moving(world)?;
    finish_replacing(world)?;
    finish_recoding(world)?;
    finish_widening(world)?;
    // Without any traffic but what nodes say of themselves, and again after a write through each.
    converge(world)?;
    let settled_ns = world.now_ns - calm_ns;
    dismiss_guest(world)?;
    // What a scrub finds just now is not made again yet: counted is after it.
    scrub(world)?;
    count_holders(world)?;
    close(world)?;
    converge(world)?;
    audit(world)?;
    end_sessions(world)?;
    rest(world)?;
    Ok(Account { settled_ns, undecided: check(world)? })
}

pub(crate) fn problem(world: &World) -> Result<(), String> {
    world.problem.clone().map_or(Ok(()), Err)
}

/// Nodes on empty disks in the place of others are refused.
fn finish_wiping(world: &mut World) -> Result<(), String> {
    let limit_ns = world.now_ns + WHOLE_NS;
    let done = |world: &World| world.hosts.iter().all(|host| !host.is_wiped);
    let refused = world.run(limit_ns, done);
    problem(world)?;
    let open =
        || "liveness: a node on an empty disk is not told that it must not begin anew".into();
    if refused { Ok(()) } else { Err(open()) }
}

/// PROTOCOL 10-am: where nodes have moved to they are looked for, by all.
fn finish_moving(world: &mut World) -> Result<(), String> {
    let limit_ns = world.now_ns + WHOLE_NS;
    let over = world.run(limit_ns, |world| world.hosts.iter().all(|host| host.moving.is_none()));
    problem(world)?;
    if over {
        return Ok(());
    }
    let left: Vec<_> = world.hosts.iter().filter_map(|host| host.moving.as_ref()).collect();
    Err(format!("liveness: nodes are not looked for where they have moved to: {left:?}"))
}

/// New disks come to hold everything.
fn finish_replacing(world: &mut World) -> Result<(), String> {
    let limit_ns = world.now_ns + WHOLE_NS;
    let done = |world: &World| world.hosts.iter().all(|host| host.replacement.is_none());
    let whole = world.run(limit_ns, done);
    problem(world)?;
    if !whole {
        let nodes = world.hosts.iter().filter_map(|host| host.node.as_ref());
        let told: Vec<_> = nodes.map(|node| (node.exec(), node.status().repair)).collect();
        return Err(format!("liveness: a replaced node does not become whole: {told:?}"));
    }
    Ok(())
}

/// PROTOCOL 10-aa, 10-ad: all that versions use comes to lie in the newest layout, and whoever has left and
/// has nothing of use is released.
fn finish_recoding(world: &mut World) -> Result<(), String> {
    let limit_ns = world.now_ns + WHOLE_NS;
    let nodes = |world: &World| -> Vec<(u64, usize, Vec<u64>)> {
        let nodes = world.hosts.iter().filter_map(|host| host.node.as_ref());
        let told = nodes.map(|node| {
            let machine = node.machine();
            let old = machine.older_values_from(0, usize::MAX).count();
            let members = node.member_status();
            let left = members.iter().filter(|it| !it.is_member && !it.is_lost && !it.is_released);
            (node.exec(), old, left.map(|member| member.values).collect())
        });
        told.collect()
    };
    // A stripe that waits for its put keeps its layout.
    let done = |world: &World| {
        let mut running = world.hosts.iter().filter_map(|host| host.node.as_ref());
        // Looked at after every event: first whatever costs little.
        running.all(|node| node.machine().older_values_from(0, usize::MAX).next().is_none())
            && nodes(world)
                .iter()
                .all(|(_, old, left)| *old == 0 && left.iter().all(|held| *held > 0))
    };
    let over = world.run(limit_ns, done);
    problem(world)?;
    if !over {
        let told = nodes(world);
        return Err(format!("liveness: values of older layouts are not re-coded: {told:?}"));
    }
    Ok(())
}

/// PROTOCOL 9.6-a: what was cut into fewer fragments while nodes were missing is cut as configured again, unless
/// some are for ever.
fn finish_widening(world: &mut World) -> Result<(), String> {
    let inline = world.plan.node.inline_bytes_max as u32;
    let left = |world: &World| -> usize {
        let nodes = world.hosts.iter().filter_map(|host| host.node.as_ref());
        let narrow = nodes.map(|node| {
            let machine = node.machine();
            let newest = machine.members().newest().expect("a cluster has members");
            let values = machine.values().filter(|used| used.uses > 0);
            let narrow = values.map(|used| used.value).filter(|value| {
                let is_inline = value.k == 1 && value.len <= inline;
                value.layout == newest.number && value.k < newest.data && !is_inline
            });
            narrow.count()
        });
        narrow.sum()
    };
    let all_up = |world: &World| {
        let nodes = world.hosts.iter().filter_map(|host| host.node.as_ref());
        let mut members = nodes.clone().filter(|node| node.core().is_active());
        let newest = members.next().map_or(0, |node| node.core().newest().members.len());
        nodes.filter(|node| node.core().is_active()).count() == newest
    };
    if !world.plan.node.keeps_margin {
        return match left(world) {
            0 => Ok(()),
            some => Err(format!("margin: {some} values are in fewer fragments, and nobody asked")),
        };
    }
    world.narrow = world.narrow.max(left(world) as u64);
    if !all_up(world) {
        return Ok(());
    }
    let limit_ns = world.now_ns + WHOLE_NS;
    let over = world.run(limit_ns, |world| left(world) == 0);
    problem(world)?;
    match over {
        true => Ok(()),
        false => Err(format!("liveness: {} values stay in fewer fragments", left(world))),
    }
}

/// The guest's leases end, its watches tell the rest, and all of it is true.
fn dismiss_guest(world: &mut World) -> Result<(), String> {
    if world.guest.is_none() {
        return Ok(());
    }
    let until_ns = world.now_ns + GUEST_NS;
    let settled = |world: &World| {
        let nodes = world.hosts.iter().filter_map(|host| host.node.as_ref());
        let guest = world.guest.as_ref().expect("looked at above");
        nodes
            .map(SimNode::machine)
            .all(|machine| machine.leases().count() == 0 && guest.has_seen_all(machine))
    };
    world.run(until_ns, settled);
    problem(world)?;
    let guest = world.guest.take().expect("looked at above");
    for host in &world.hosts {
        if let Some(node) = &host.node {
            guest.check(node.machine())?;
        }
    }
    Ok(())
}

/// One write through every node.
fn close(world: &mut World) -> Result<(), String> {
    // Clients may have given up before what they asked was done, a change of the members perhaps.
    let limit_ns = world.now_ns + AUDIT_NS;
    world.run(limit_ns, |world| {
        let mut nodes = world.hosts.iter().filter_map(|host| host.node.as_ref());
        nodes.all(|node| node.under_way().batches == 0)
    });
    problem(world)?;
    converge(world)?;
    let auditor = world.new_client(AUDIT_PATIENCE_NS);
    let up = world.up().count();
    let away = |host: &&Host| matches!(host.state, State::Lost | State::Gone);
    let down = world.hosts.len() - world.hosts.iter().filter(away).count() - up;
    if down > 0 {
        return Err(format!("liveness: {down} nodes are still down after the faults"));
    }
    for node in active(world) {
        let key = node % world.contents.borrow().keys();
        let (number, value) = world.contents.borrow_mut().new_put(key, 100);
        submit(world, auditor, What::Put { key, number }, value, node);
    }
    wait_for_auditor(world, auditor, "closing write")
}

/// Nodes that take clients' work: all members that are up.
fn active(world: &World) -> Vec<usize> {
    let is_active = |host: &&Host| host.node.as_ref().is_some_and(|node| node.core().is_active());
    world.hosts.iter().filter(is_active).map(|host| host.index).collect()
}

pub(crate) fn submit(world: &mut World, auditor: usize, what: What, value: Vec<u8>, node: usize) {
    let contents = world.contents.clone();
    let route = Route::Only(node);
    let now_ns = world.now_ns;
    world.net.borrow_mut().now_ns = now_ns;
    let client = &mut world.clients[auditor];
    client.submit(what, value, route, now_ns, &mut world.book, &contents.borrow());
    world.after_client(auditor);
}

fn wait_for_auditor(world: &mut World, auditor: usize, what: &str) -> Result<(), String> {
    let failed = world.book.failed;
    let until_ns = world.now_ns + AUDIT_NS;
    let over = world.run(until_ns, |world| world.clients[auditor].outstanding() == 0);
    problem(world)?;
    if !over || world.book.failed > failed {
        let late = world.clients[auditor].outstanding();
        let failed = world.book.failed - failed;
        return Err(format!("liveness: {what}: {failed} failed, {late} without an answer"));
    }
    Ok(())
}

/// All nodes that are not lost reach the same slot and state.
/// PROTOCOL 3.3-b, 9.1-e, 9.3-b: what they lack the others tell them.
fn converge(world: &mut World) -> Result<(), String> {
    let until_ns = world.now_ns + CONVERGES_NS;
    let equal = |world: &World| {
        let mut nodes = world.hosts.iter().filter_map(|host| host.node.as_ref());
        let Some(first) = nodes.next() else { return true };
        let exec = world.oracle.borrow().slots();
        first.exec() == exec
            && first.under_way().missing == 0
            && nodes.all(|node| {
                node.exec() == exec
                    && node.machine().state_hash() == first.machine().state_hash()
                    && node.under_way().missing == 0
            })
    };
    let converged = world.run(until_ns, equal);
    problem(world)?;
    if !converged {
        let nodes = world.hosts.iter().map(|host| host.node.as_ref().map(SimNode::exec));
        let execs: Vec<_> = nodes.collect();
        let slots = world.oracle.borrow().slots();
        let nodes = world.hosts.iter().filter_map(|host| host.node.as_ref());
        let missing: Vec<_> = nodes.map(|node| node.status().repair).collect();
        return Err(format!(
            "liveness: nodes at {execs:?} of {slots} slots do not converge; {missing:?}"
        ));
    }
    for host in &world.hosts {
        let Some(node) = &host.node else { continue };
        if node.machine().full_hash() != node.machine().state_hash() {
            let index = host.index;
            return Err(format!("node {index}: the hash kept along is not that of the state"));
        }
    }
    Ok(())
}

/// PROTOCOL 6.2, 9.5, L6: of every value in use k+f nodes hold their fragment durably, of those at most
/// the lost ones are gone, and the others have made theirs again.
fn count_holders(world: &World) -> Result<(), String> {
    let nodes: Vec<&SimNode> = world.hosts.iter().filter_map(|host| host.node.as_ref()).collect();
    let Some(first) = nodes.first() else { return Ok(()) };
    let members = first.machine().members();
    let contents = world.contents.borrow();
    for key in 0..contents.keys() {
        for version in first.machine().history(contents.key(key)) {
            for value in version.values().filter(|value| value.len > 0) {
                let (name, op) = (contents.name(key), value.op);
                let Some(layout) = members.layout(value.layout) else {
                    return Err(format!("value {op} of {name} has a layout that nobody knows"));
                };
                let here =
                    nodes.iter().filter(|node| layout.place(node.core().config().me).is_some());
                let (least, lost) =
                    (here.clone().count(), layout.members.len() - here.clone().count());
                let holders = here.filter(|node| node.has_fragment(op)).count();
                if holders < least || lost > usize::from(layout.lost_max) {
                    return Err(format!(
                        "durability: {holders} nodes hold fragments of value {op} of {name}; with \
                         {lost} lost it must be {least}"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// PROTOCOL 9.5-h: within two rounds whatever has rotten was found and made again: what the disks hold is
/// what the checksums say.
fn scrub(world: &mut World) -> Result<(), String> {
    if world.spoiled.is_empty() {
        return Ok(());
    }
    let rounds = |host: &Host| host.node.as_ref().map(|node| node.scrub_status().rounds);
    let goals: Vec<Option<u64>> = world.hosts.iter().map(rounds).collect();
    let until_ns = world.now_ns + SCRUB_NS.max(4 * world.plan.node.scrub_ns);
    let over = world.run(until_ns, |world| {
        world.hosts.iter().zip(&goals).all(|(host, goal)| match (&host.node, goal) {
            (Some(node), Some(goal)) => {
                node.scrub_status().rounds >= goal + 2 && node.under_way().missing == 0
            }
            _ => true,
        })
    });
    problem(world)?;
    if !over {
        let told = world.hosts.iter().filter_map(|host| host.node.as_ref());
        let told: Vec<_> = told.map(|node| (node.status().scrub, node.status().repair)).collect();
        return Err(format!("liveness: scrubs that do not end: {told:?}"));
    }
    for host in &world.hosts {
        let Some(node) = &host.node else { continue };
        for used in node.machine().values() {
            let Some((place, crc)) = node.fragment_stored(used.value.op) else { continue };
            let disk = host.disk.borrow();
            if disk.checksum(place.segment, place.offset.into(), place.len) != Some(crc) {
                let (index, op) = (host.index, used.value.op);
                return Err(format!("node {index}: the rotten fragment of {op} was not found"));
            }
        }
    }
    Ok(())
}

/// Every key is read through every node, and every family listed.
/// PROTOCOL 3.1-e, 8.1-j: whichever node gathers the fragments.
fn audit(world: &mut World) -> Result<(), String> {
    let auditor = world.clients.len() - 1;
    let nodes = active(world);
    let keys = world.contents.borrow().keys();
    let start = world.book.deeds();
    for node in nodes {
        for key in 0..keys {
            submit(world, auditor, What::Get { key }, Vec::new(), node);
            if (key as u64).is_multiple_of(world.plan.work.family_keys) {
                submit(world, auditor, What::List { key }, Vec::new(), node);
            }
        }
        wait_for_auditor(world, auditor, &format!("reads through node {node}"))?;
    }
    // Nothing is written any more: each key shows the same through every node.
    let mut shown = BTreeMap::new();
    for (key, outcome) in world.book.gets_since(start) {
        if *shown.entry(key).or_insert(outcome) != outcome {
            let name = world.contents.borrow().name(key);
            return Err(format!("{name} reads differently through different nodes"));
        }
    }
    Ok(())
}

/// PROTOCOL 11-i: sessions that nobody uses any more come to their end, at all nodes.
fn end_sessions(world: &mut World) -> Result<(), String> {
    let idle_ns = world.plan.node.session_idle_ns;
    if idle_ns == 0 {
        return Ok(());
    }
    // Looked at after every event.
    let are_over = |world: &World| {
        let mut nodes = world.hosts.iter().filter_map(|host| host.node.as_ref());
        nodes.all(|node| node.machine().sessions_by_last_use().next().is_none())
    };
    let until_ns = world.now_ns + 4 * idle_ns + SESSIONS_NS;
    world.run(until_ns, are_over);
    problem(world)?;
    if are_over(world) {
        return converge(world);
    }
    let nodes = world.hosts.iter().filter_map(|host| host.node.as_ref());
    let left = nodes.map(|node| node.machine().sessions_by_last_use().count()).max();
    Err(format!("liveness: {left:?} sessions that nobody uses do not end"))
}

/// A cluster without work falls silent and holds on to nothing.
fn rest(world: &mut World) -> Result<(), String> {
    let sending = |world: &World| -> usize {
        let nodes = world.hosts.iter().filter_map(|host| host.node.as_ref());
        nodes.map(|node| node.under_way().sending).sum()
    };
    let until_ns = world.now_ns + DELIVERS_NS;
    let is_delivered = world.run(until_ns, |world| sending(world) == 0);
    problem(world)?;
    if !is_delivered {
        return Err(format!("idle nodes send for ever: {} bytes are left", sending(world)));
    }
    let began_ns = world.now_ns;
    world.run(began_ns + IDLE_NS, |_| false);
    let sent = world.net.borrow().counts.sent;
    let until_ns = world.now_ns + SILENT_NS;
    world.run(until_ns, |_| false);
    problem(world)?;
    let sent = world.net.borrow().counts.sent - sent;
    let pairs = (world.hosts.len() * (world.hosts.len() - 1)) as u64;
    if sent > pairs * SILENT_DATAGRAMS_MAX {
        return Err(format!("an idle cluster sent {sent} datagrams in a second"));
    }
    for host in &world.hosts {
        let Some(node) = &host.node else { continue };
        let (index, under_way) = (host.index, node.under_way());
        if under_way != (UnderWay { copies: under_way.copies, ..UnderWay::default() }) {
            return Err(format!("node {index} is idle and holds on to {under_way:?}"));
        }
    }
    // Copies of what is of use go on, and each of them comes to an end.
    let copying = |world: &World| {
        let nodes = world.hosts.iter().filter_map(|host| host.node.as_ref());
        nodes.map(|node| node.under_way().copies).collect::<Vec<_>>()
    };
    let until_ns = world.now_ns + SILENT_NS;
    let is_over = world.run(until_ns, |world| copying(world).iter().all(|copies| *copies == 0));
    problem(world)?;
    if !is_over {
        return Err(format!("idle nodes copy for ever: {:?}", copying(world)));
    }
    world.run(began_ns + HALF_MESSAGE_NS + SILENT_NS, |_| false);
    problem(world)?;
    for host in world.hosts.iter().filter(|host| host.node.is_some()) {
        let (index, used) = (host.index, host.pool.used());
        // The fragments of small batches pin a page each, whatever they count for.
        let most = REST_BYTES_MAX + 2 * world.plan.node.cache_bytes_max;
        if used > most {
            return Err(format!("node {index} is idle and holds {used} bytes of buffers"));
        }
    }
    let held = world.net.borrow().held_bytes();
    if held > REST_BYTES_MAX {
        return Err(format!("all is idle and {held} bytes of datagrams are held"));
    }
    Ok(())
}

/// What clients were told can be true, and enough was done to mean something.
fn check(world: &mut World) -> Result<u64, String> {
    let changes = world.oracle.borrow().changes();
    let first = world.hosts.iter().find_map(|host| host.node.as_ref());
    let revision = first.map_or(1, |node| node.machine().revision());
    if revision != changes as u64 + 1 {
        return Err(format!("revision {revision} after {changes} changes"));
    }
    if world.book.done() < DONE_MIN || world.oracle.borrow().batches() == 0 {
        let (done, batches) = (world.book.done(), world.oracle.borrow().batches());
        return Err(format!("too little to mean anything: {done} operations, {batches} batches"));
    }
    // PROTOCOL 7-f, 8.1-b, 8.1-d, 8.1-j, 8.1-l, 8.1-r: keys and ranges, by real time.
    match racos_linear::check(&world.book.history(&world.contents.borrow())) {
        Ok(()) => Ok(0),
        Err(violation) if matches!(violation.reason, Reason::Undecided { .. }) => Ok(1),
        Err(violation) => Err(format!("not linearizable: {violation}")),
    }
}

fn report(world: &World, account: &Account) -> Report {
    let counters = || {
        let nodes = world.hosts.iter().filter_map(|host| host.node.as_ref());
        nodes.map(|node| node.core().counters())
    };
    let book = &world.book;
    Report {
        seed: world.plan.seed,
        trace_hash: world.trace.hash(),
        events: world.trace.events(),
        virtual_ns: world.now_ns,
        settled_ns: account.settled_ns,
        slots: world.oracle.borrow().slots(),
        batches: world.oracle.borrow().batches() as u64,
        fast: counters().map(|counters| counters.fast).sum(),
        slow: counters().map(|counters| counters.slow).sum(),
        told: counters().map(|counters| counters.told).sum(),
        null: counters().map(|counters| counters.null).sum(),
        skipped: counters().map(|counters| counters.skipped).sum(),
        puts: book.puts,
        gets: book.gets,
        deletes: book.deletes,
        lists: book.lists,
        failed: book.failed,
        boots: world.hosts.iter().map(|host| u64::from(host.boots)).sum(),
        recoded: world.oracle.borrow().recoded(),
        narrow: world.narrow,
        upkeep: world.hosts.iter().map(Host::upkeep).fold(Upkeep::default(), Upkeep::and),
        faults: world.faults,
        net: world.net.borrow().counts,
        undecided: account.undecided,
        load: world.load,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_run_is_of_all_that_it_did_and_not_of_what_it_cost() {
        let report = Report { slots: 7, ..Report::default() };
        let load = Load { turns: 1, ..Load::default() };
        assert_eq!(report.hash(1), Report { load, ..report.clone() }.hash(1));
        assert_ne!(report.hash(1), report.hash(2));
        let net = NetCounts { unheard: 1, ..NetCounts::default() };
        for other in [
            Report { trace_hash: 1, ..report.clone() },
            Report { undecided: 1, ..report.clone() },
            Report { net, ..report.clone() },
        ] {
            assert_ne!(report.hash(1), other.hash(1), "{other:?}");
        }
    }

    #[test]
    fn an_idle_cluster_goes_on_and_says_little() {
        let fixed = Fixed { code: Some((3, 1, 1)), ..Fixed::default() };
        let of = |scrubs| run_idle(1, &fixed, 5_000 * MS, scrubs).expect("nothing is in the way");
        let (load, quiet) = (of(true), of(false));
        for load in [load, quiet] {
            // Six pairs tell each other where they are twice a second; the start takes some more.
            assert!(load.turns > 0 && (60..180).contains(&load.packets), "{load}");
            assert_eq!(load.client, 0);
        }
        assert!(quiet.disk < load.disk, "{quiet}; {load}");
        assert_eq!(of(true), load, "the same again");
    }
}
