//! Whole nodes two of which have full disks, one more than may be lost (PROTOCOL 6.3).

use crate::client::What;
use crate::host::SimNode;
use crate::plan::{Fixed, MS, Plan};
use crate::run::{caught, submit};
use crate::world::World;

/// So many that the files which every disk has prepared are full long before the last.
const PUTS: usize = 120;
/// Holders of a value without one of which it can still be read: k + f of (5, 1, 3).
const HOLDERS: usize = 4;

/// PROTOCOL 6.3-b: what three of five nodes have stored gets no slot: with one of them lost, and another
/// late, nobody could read what was acknowledged.
pub fn what_too_few_can_store_is_not_acknowledged() -> Result<(), String> {
    caught(|| {
        let mut world = World::new(plan(), false);
        let client = world.new_client(1_000 * MS);
        put(&mut world, client, 0, 100);
        for node in [1, 2] {
            world.hosts[node].disk.borrow_mut().set_capacity(0);
        }
        for key in 0..PUTS {
            put(&mut world, client, key, 30_000);
            enough_hold_it(&world, key)?;
        }
        match (world.book.done() as usize, world.book.failed) {
            (done, failed) if done < PUTS / 4 || failed == 0 => {
                Err(format!("{done} puts and {failed} refused: the disks did not fill up between"))
            }
            _ => Ok(()),
        }
    })
}

/// Large values alone, each under a key of its own, in small files, and no faults.
fn plan() -> Plan {
    let fixed = Fixed { code: Some((5, 1, 3)), calm: true, ..Fixed::default() };
    let mut plan = Plan::draw(1, &fixed);
    plan.work.clients = 0;
    (plan.work.families, plan.work.family_keys) = (1, PUTS as u64);
    (plan.node.ready_bytes_min, plan.node.value_bytes_max) = (300, 40 << 10);
    plan.node.segment_bytes = 256 << 10;
    plan
}

fn put(world: &mut World, client: usize, key: usize, len: usize) {
    let (number, value) = world.contents.borrow_mut().new_put(key, len);
    submit(world, client, What::Put { key, number }, value, 0);
    let until_ns = world.now_ns + 3_000 * MS;
    world.run(until_ns, |world| world.clients[client].outstanding() == 0);
}

fn enough_hold_it(world: &World, key: usize) -> Result<(), String> {
    let nodes: Vec<&SimNode> = world.hosts.iter().filter_map(|host| host.node.as_ref()).collect();
    let contents = world.contents.borrow();
    let Some(version) = nodes[0].machine().get(contents.key(key)) else { return Ok(()) };
    for value in version.values().filter(|value| value.len > 0) {
        match nodes.iter().filter(|node| node.has_fragment(value.op)).count() {
            HOLDERS.. => {}
            few => return Err(format!("{few} nodes hold fragments of a value that was written")),
        }
    }
    Ok(())
}
