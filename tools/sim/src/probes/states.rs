//! A node whose state machine came apart from the others' (PROTOCOL 9.2-a).

use crate::plan::{Fixed, MS, Plan};
use crate::run::caught;
use crate::world::World;

/// PROTOCOL 9.2-a: a bit of one node's memory flips; the node stops, those that have the same state go on,
/// and the node is one of them again once it has read its state from its disk.
pub fn a_node_with_another_state_stops() -> Result<(), String> {
    caught(|| {
        let fixed = Fixed { code: Some((5, 1, 3)), calm: true, ..Fixed::default() };
        let mut world = World::new(Plan::draw(1, &fixed), false);
        world.run(500 * MS, |_| false);
        world.clients.iter_mut().for_each(|client| client.is_issuing = false);
        world.run(4_000 * MS, |_| false);
        world.problem.take().map_or(Ok(()), Err)?;
        world.hosts[2].node.as_mut().ok_or("node 2 is down")?.harm_state();
        let until_ns = world.now_ns + 3_000 * MS;
        world.run(until_ns, |_| false);
        let why = world.problem.take().ok_or("a node with another state goes on")?;
        if !(why.contains("node 2 stopped itself") && why.contains("not that of the others")) {
            return Err(why);
        }
        world.kill(2, false);
        world.start_later(2);
        let until_ns = world.now_ns + 5_000 * MS;
        world.run(until_ns, |_| false);
        world.problem.take().map_or(Ok(()), Err)?;
        let nodes = world.hosts.iter().filter_map(|host| host.node.as_ref());
        match nodes.filter(|node| node.status().states.differing.is_empty()).count() {
            5 => Ok(()),
            same => Err(format!("{same} nodes say that all have the same state")),
        }
    })
}
