//! Values written while a node is missing (PROTOCOL 9.6).

use crate::client::What;
use crate::host::State;
use crate::plan::{Fixed, MS, NodePlan, Plan};
use crate::run::{caught, submit};
use crate::world::World;

const KEYS: usize = 8;

/// Five nodes of which the last is missing, and the others know; and who may write.
fn world_without_4(change: impl FnOnce(&mut NodePlan)) -> (World, usize) {
    let fixed = Fixed { code: Some((5, 1, 3)), calm: true, ..Fixed::default() };
    let mut plan = Plan::draw(1, &fixed);
    plan.work.clients = 0;
    (plan.work.families, plan.work.family_keys) = (1, KEYS as u64);
    plan.node.inline_bytes_max = 128;
    change(&mut plan.node);
    let mut world = World::new(plan, false);
    let client = world.new_client(5_000 * MS);
    world.run(200 * MS, |_| false);
    world.kill(4, false);
    world.run(3_000 * MS, |_| false);
    (world, client)
}

/// PROTOCOL 9.6-a: with one of five missing, four hold what is written, and two of these may lose it, as two of
/// five may at other times.
pub fn what_is_written_while_a_node_is_missing_can_lose_as_many() -> Result<(), String> {
    caught(|| {
        let (mut world, client) = world_without_4(|node| node.keeps_margin = true);
        for key in 0..KEYS {
            let (number, value) = world.contents.borrow_mut().new_put(key, 2_000);
            submit(&mut world, client, What::Put { key, number }, value, key % 4);
            let until_ns = world.now_ns + 3_000 * MS;
            world.run(until_ns, |world| world.clients[client].outstanding() == 0);
        }
        world.problem.take().map_or(Ok(()), Err)?;
        let up = world.hosts.iter().filter(|host| host.state == State::Up);
        let nodes: Vec<_> = up.filter_map(|host| host.node.as_ref()).collect();
        let contents = world.contents.borrow();
        for key in 0..KEYS {
            let written = nodes[0].machine().get(contents.key(key)).ok_or("nothing was written")?;
            for value in written.values() {
                let holders = nodes.iter().filter(|node| node.has_fragment(value.op)).count();
                if holders < 4 || holders - usize::from(value.k) < 2 {
                    let k = value.k;
                    return Err(format!("{holders} nodes hold a value that {k} fragments make"));
                }
            }
        }
        Ok(())
    })
}

/// PROTOCOL 9.6-b: node 0 keeps the fragments of node 4, which is missing. When its own have rotten, it lacks
/// them as if it kept nothing.
pub fn who_hosts_a_fragment_still_makes_its_own_again() -> Result<(), String> {
    caught(|| {
        let (mut world, client) = world_without_4(|node| {
            (node.keeps_margin, node.hosting_bytes_max, node.cache_bytes_max) = (false, 1 << 20, 0);
        });
        let ask = |world: &mut World, what, value| {
            submit(world, client, what, value, 0);
            let until_ns = world.now_ns + 3_000 * MS;
            world.run(until_ns, |world| world.clients[client].outstanding() == 0);
        };
        for key in 0..KEYS {
            let (number, value) = world.contents.borrow_mut().new_put(key, 2_000);
            ask(&mut world, What::Put { key, number }, value);
        }
        let until_ns = world.now_ns + 500 * MS;
        world.run(until_ns, |_| false);
        let mut ops = Vec::new();
        for key in 0..KEYS {
            let node = world.hosts[0].node.as_ref().ok_or("node 0 is up")?;
            let contents = world.contents.borrow();
            let written = node.machine().get(contents.key(key)).ok_or("nothing was written")?;
            let op = written.values().next().ok_or("it has a value")?.op;
            node.hosted_place(op, 4).ok_or("nothing is kept for the node that is missing")?;
            let place = node.fragment_place(op).ok_or("the own fragment is on disk")?;
            let mut disk = world.hosts[0].disk.borrow_mut();
            disk.corrupt(place.segment, u64::from(place.offset) + 5);
            ops.push(op);
        }
        for key in 0..KEYS {
            ask(&mut world, What::Get { key }, Vec::new());
        }
        let until_ns = world.now_ns + 3_000 * MS;
        world.run(until_ns, |_| false);
        world.problem.take().map_or(Ok(()), Err)?;
        let node = world.hosts[0].node.as_ref().ok_or("node 0 is up")?;
        match ops.iter().filter(|op| !node.has_fragment(**op)).count() {
            0 if node.status().repair.repaired > 0 => Ok(()),
            0 => Err("no damage was met".into()),
            lacks => Err(format!("{lacks} of {KEYS} fragments of its own are not made again")),
        }
    })
}
