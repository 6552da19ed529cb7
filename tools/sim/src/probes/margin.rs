//! Values written while a node is missing (PROTOCOL 9.6).

use crate::client::What;
use crate::host::State;
use crate::plan::{Fixed, MS, Plan};
use crate::run::{caught, submit};
use crate::world::World;

const KEYS: usize = 8;

/// PROTOCOL 9.6-a: with one of five missing, four hold what is written, and two of these may lose it, as two of
/// five may at other times.
pub fn what_is_written_while_a_node_is_missing_can_lose_as_many() -> Result<(), String> {
    caught(|| {
        let fixed = Fixed { code: Some((5, 1, 3)), calm: true, ..Fixed::default() };
        let mut plan = Plan::draw(1, &fixed);
        plan.work.clients = 0;
        (plan.work.families, plan.work.family_keys) = (1, KEYS as u64);
        (plan.node.keeps_margin, plan.node.inline_bytes_max) = (true, 128);
        let mut world = World::new(plan, false);
        let client = world.new_client(5_000 * MS);
        world.run(200 * MS, |_| false);
        world.kill(4, false);
        world.run(3_000 * MS, |_| false);
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
