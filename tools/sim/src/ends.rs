//! After the faults: clients issue what is left of their share, and whatever was asked ends.
//!
//! Purpose: two things that may fail are told apart. An operation has an age, and ends within a time of its
//! own whatever else goes on; how long clients take for their share follows from how many operations one
//! makes in a row.
//! Invariant: no operation is open for longer than [`ENDS_NS`] without being found, wherever the run stands.
//! What would break it: a wait for anything here that does not go through [`work_until`].

use crate::host::{Host, State};
use crate::plan::{MS, Plan};
use crate::run::{DONE_MIN, problem};
use crate::world::World;
use racos_protocol::Policy;

/// How long after the faults clients go on.
const WORK_ON_NS: u64 = 400 * MS;
/// Operations that each client submits at least.
const OPS_MIN: usize = 12;
/// An operation ends within this, from its submission or from the end of the faults on. The longest that
/// anything waits for a dead node is the five seconds of the transport and of a read.
const ENDS_NS: u64 = 12_000 * MS;
/// Clients issue what is left of their share within this, where nothing is late. A slot of it takes
/// milliseconds, so that what this bounds is again the wait for dead nodes.
const SHARE_NS: u64 = 12_000 * MS;

/// Messages to or from the late node, one after the other, that an operation waits for if no quorum is without
/// it: the request and the answer; a batch, STATE and VOTE for the slot that its node has open already, since
/// a node may have no other; and the same for its own.
const LATE_MESSAGES: u64 = 2 + 3 + 3;
/// Packets keep their order, so that each arrives with the slowest of those that were sent shortly before. Of
/// ten delays drawn from an exponential distribution the longest is 2.93 times the mean.
const LATE_MEANS: u64 = 3;

/// Clients do what is left of their share and then wait for their answers.
pub fn finish_work(world: &mut World) -> Result<(), String> {
    let calm_ns = world.now_ns;
    work_until(world, calm_ns, calm_ns + WORK_ON_NS, |_| false)?;
    let bound_ns = share_ns(&world.plan, is_late_needed(world));
    let has_share = |world: &World| {
        world.clients.iter().all(|client| client.issued >= OPS_MIN)
            && world.guest.iter().all(|guest| guest.done >= DONE_MIN)
    };
    if !work_until(world, calm_ns, world.now_ns + bound_ns, has_share)? {
        let issued: Vec<usize> = world.clients.iter().map(|client| client.issued).collect();
        let answered: Vec<u64> = world.guest.iter().map(|guest| guest.done).collect();
        return Err(format!(
            "liveness: clients that do not come to issue {OPS_MIN} operations within {} ms, by client: \
             {issued:?}; or a guest that is not given {DONE_MIN} answers: {answered:?}",
            bound_ns / MS
        ));
    }
    world.clients.iter_mut().for_each(|client| client.is_issuing = false);
    world.guest.iter_mut().for_each(|guest| guest.is_issuing = false);
    let all_ended = |world: &World| {
        world.clients.iter().all(|client| client.outstanding() == 0)
            && world.guest.iter().all(|guest| guest.outstanding() == 0)
    };
    work_until(world, calm_ns, u64::MAX, all_ended)?;
    Ok(())
}

/// Runs until `done` says so, or a time; whether `done` did. No operation may become too old meanwhile.
fn work_until(
    world: &mut World,
    calm_ns: u64,
    until_ns: u64,
    done: impl Fn(&World) -> bool,
) -> Result<bool, String> {
    let ends_ns = ENDS_NS * sequential(&world.plan);
    let due_ns = |asked_ns: u64| asked_ns.max(calm_ns) + ends_ns;
    loop {
        // What is asked from now on is due later than this.
        let oldest_ns = ages(world).flatten().min().unwrap_or(world.now_ns);
        let is_done = world.run(due_ns(oldest_ns).min(until_ns), &done);
        problem(world)?;
        if is_done {
            return Ok(true);
        }
        let now_ns = world.now_ns;
        let late = |ages: Vec<u64>| ages.iter().filter(|asked| due_ns(**asked) <= now_ns).count();
        let late: Vec<usize> = ages(world).map(late).collect();
        if late.iter().any(|late| *late > 0) {
            return Err(format!(
                "liveness: operations that do not end within {} ms, by client: {late:?}",
                ends_ns / MS
            ));
        }
        if now_ns >= until_ns {
            return Ok(false);
        }
    }
}

/// When the open operations were submitted: of each client, and last of the guest.
fn ages(world: &World) -> impl Iterator<Item = Vec<u64>> {
    let of_clients = world.clients.iter().map(|client| client.open_since(&world.book).collect());
    let of_guest = world.guest.iter().map(|guest| guest.open_since().collect());
    of_clients.chain(of_guest)
}

/// How long clients may take for their share. One that has one operation under way at a time, or a session with
/// room for one, makes them one after the other. A late node that is needed in every quorum makes each of them
/// wait for its messages.
fn share_ns(plan: &Plan, is_late_needed: bool) -> u64 {
    let late_ns = match is_late_needed {
        true => OPS_MIN as u64 * LATE_MESSAGES * LATE_MEANS * plan.net.late_ns_mean,
        false => 0,
    };
    SHARE_NS * sequential(plan) + late_ns
}

/// Whether so many are lost that there is no quorum without the late node. Who is about to come back is not.
fn is_late_needed(world: &World) -> bool {
    let is_there = |host: &&Host| host.state == State::Up && !host.is_wiped && !host.is_moving();
    let there: Vec<usize> = world.hosts.iter().filter(is_there).map(|host| host.index).collect();
    let quorum = world.plan.n - world.plan.f;
    world.plan.net.late_node.is_some_and(|late| there.contains(&late) && there.len() <= quorum)
}

/// How much longer everything may take if one operation comes after the other: many wait for one slot each,
/// and each slot for a node that is late.
fn sequential(plan: &Plan) -> u64 {
    match plan.policy {
        Policy::OwnerSlots => 1,
        Policy::Queue => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Fixed, NetPlan};
    use crate::run::caught;

    fn calm_plan() -> Plan {
        let fixed = Fixed { code: Some((3, 1, 1)), calm: true, ..Fixed::default() };
        let mut plan = Plan::draw(1, &fixed);
        (plan.work.patience_ns, plan.work.outstanding_max) = (60_000 * MS, 4);
        plan
    }

    /// Finishes the work of a world to which something was done after 100 ms; how long that took.
    fn finish(plan: Plan, change: impl FnOnce(&mut World)) -> Result<u64, String> {
        caught(|| {
            let mut world = World::new(plan, false);
            world.run(100 * MS, |_| false);
            change(&mut world);
            finish_work(&mut world).map(|()| world.now_ns - 100 * MS)
        })
    }

    fn cut_off(world: &mut World, client: usize) {
        let endpoint = world.clients[client].endpoint;
        (0..3).for_each(|node| world.net.borrow_mut().cut(node, endpoint, true));
    }

    #[test]
    fn work_that_nothing_is_in_the_way_of_ends_soon() {
        let took_ns = finish(calm_plan(), |_| {}).expect("nothing is in the way");
        assert!((WORK_ON_NS..2 * WORK_ON_NS).contains(&took_ns), "{took_ns}");
    }

    #[test]
    fn an_operation_that_never_ends_is_found_by_its_age() {
        let told = finish(calm_plan(), |world| cut_off(world, 0)).unwrap_err();
        assert!(told.contains("operations that do not end within 12000 ms"), "{told}");
    }

    /// However long the share may take, and though the client goes on.
    #[test]
    fn an_operation_that_never_ends_is_found_while_others_are_issued() {
        let mut plan = calm_plan();
        // So rarely that a client takes longer for its share than an operation may for its end.
        plan.work.think_ns_mean = 2_000 * MS;
        let mut world = World::new(plan, false);
        world.run(1_000 * MS, |_| false);
        assert_eq!(world.clients[0].outstanding(), 0, "the next is asked some time later");
        cut_off(&mut world, 0);
        let calm_ns = world.now_ns;
        let told = work_until(&mut world, calm_ns, 100_000 * MS, |_| false).unwrap_err();
        assert!(told.contains("operations that do not end within 12000 ms"), "{told}");
        assert!(world.now_ns < calm_ns + ENDS_NS + 6_000 * MS, "at {}", world.now_ns);
    }

    #[test]
    fn a_client_that_does_not_issue_is_found_with_words_of_its_own() {
        let mut plan = calm_plan();
        plan.work.think_ns_mean = 100_000 * MS;
        let told = finish(plan, |_| {}).unwrap_err();
        assert!(told.contains("do not come to issue 12 operations within 12000 ms"), "{told}");
    }

    /// What it asked may have waited for nodes that were away all the time.
    #[test]
    fn a_guest_goes_on_asking_until_it_has_its_share_of_answers() {
        let fixed = Fixed { code: Some((3, 1, 1)), calm: true, guest: true, ..Fixed::default() };
        let finish = |asks: bool| {
            caught(|| {
                let mut world = World::new(Plan::draw(1, &fixed), false);
                world.run(1_000 * MS, |_| false);
                let guest = world.guest.as_mut().expect("asked for");
                assert!(guest.done > DONE_MIN);
                // As if of all that nothing had been answered in time, and what is open neither.
                (guest.done, guest.is_issuing) = (0, asks);
                world.run(1_020 * MS, |_| false);
                world.guest.as_mut().expect("asked for").done = 0;
                finish_work(&mut world)
            })
        };
        assert_eq!(finish(true), Ok(()));
        let told = finish(false).unwrap_err();
        assert!(told.contains("a guest that is not given 10 answers: [0]"), "{told}");
    }

    #[test]
    fn only_a_late_node_in_every_quorum_gives_clients_longer_for_their_share() {
        let mut plan = calm_plan();
        assert_eq!(share_ns(&plan, false), 12_000 * MS);
        plan.net.late_ns_mean = 10 * MS;
        assert_eq!(share_ns(&plan, false), 12_000 * MS);
        assert_eq!(share_ns(&plan, true), (12_000 + 12 * 8 * 3 * 10) * MS);
        let net = |late_node| NetPlan { late_node, ..plan.net.clone() };
        let needed = |late, lost: usize| {
            let mut world = World::new(Plan { net: net(late), ..plan.clone() }, false);
            world.run(100 * MS, |_| false);
            assert!(!is_late_needed(&world), "all three are there");
            world.kill(lost, false);
            is_late_needed(&world)
        };
        assert!(needed(Some(0), 2));
        assert!(!needed(Some(0), 0), "it is itself what is lost");
        assert!(!needed(None, 2));
    }
}
