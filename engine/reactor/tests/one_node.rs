//! One node among addresses that the test speaks for: what it asks, answers and refuses on the wire.
//!
//! Five nodes carry out a write; then the test takes the place of all but node 0, so that every
//! question of node 0 is seen and every answer is the test's own.

use racos_buffer::{Pool, Slice};
use racos_engine::wire::client::{self, Reply, Request};
use racos_engine::wire::cursor::Reader;
use racos_engine::wire::node::{
    AnswerForm, AnswerHead, Query, ReadQuestion, SegmentAnswer, SpreadHead, get_message,
    get_question, get_segment_answer, kind, put_message, put_segment,
};
use racos_engine::{Bounds, Node, NodeConfig};
use racos_machine::{OpId, SessionId, Stamp};
use racos_net::memory::{MemoryConfig, MemoryHub, MemoryLink};
use racos_net::{Identity, Lane, Message, Transport, TransportConfig};
use racos_protocol::{Message as Word, Slot, Value};
use racos_storage::device::memory::{Disk, MemoryDevice, Timing};
use std::net::SocketAddr;

const CLUSTER: u64 = 77;
const US: u64 = 1000;
const MS: u64 = 1000 * US;
const KEY: &[u8] = b"key";
/// So long that it is coded, with k = 3.
const VALUE_BYTES: usize = 3000;

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 4000 + node as u16))
}

type TestNode = Node<MemoryLink, MemoryDevice>;

struct World {
    hub: MemoryHub,
    pool: Pool,
    now: u64,
    nodes: Vec<TestNode>,
    client: Transport<MemoryLink>,
    session: SessionId,
    /// In place of nodes 1 to 4.
    stand_ins: Vec<Transport<MemoryLink>>,
}

impl World {
    /// Five nodes of 5,1,3 that hold one value; then nodes 1 to 4 are gone.
    fn new() -> World {
        let hub = MemoryHub::new(1, MemoryConfig::default());
        let pool = Pool::new(256 << 20);
        let members: Vec<SocketAddr> = (0..5).map(address).collect();
        let nodes = (0..5).map(|index| {
            let mut config = NodeConfig::new(CLUSTER, index as u8, members.clone(), 1, 3);
            config.bounds = Bounds {
                segment_bytes: 1 << 20,
                value_bytes_max: 64 << 10,
                disk_reserve_bytes: 0,
                ..Bounds::default()
            };
            let mut device = MemoryDevice::new(Disk::new(64 << 20, Timing::Immediate));
            TestNode::format(&config, &mut device, &pool, 9 + index as u128, &mut |_, _| {})
                .unwrap();
            let link = hub.link(address(index));
            TestNode::open(config, link, device, pool.clone(), 0).expect("a formatted device opens")
        });
        let nodes = nodes.collect();
        let client = transport(&hub, &pool, 100, None, 1);
        let session = SessionId::default();
        let mut world = World { hub, pool, now: 0, nodes, client, session, stand_ins: Vec::new() };
        // They vouch for each other.
        world.pass_until(1000 * MS, |world, _| world.nodes.iter().all(TestNode::takes_part));
        world.session = match world.ask(1, &Request::OpenSession { window: 8 }, &[]) {
            (Reply::SessionOpened { session }, _) => session,
            other => panic!("{other:?}"),
        };
        world.put(2, world.session, 1);
        world.pass(50 * MS, |_| {});
        world.nodes.truncate(1);
        world.stand_ins = (1..5)
            .map(|node| transport(&world.hub, &world.pool, node, Some(node as u16), 5))
            .collect();
        world
    }

    fn put(&mut self, request: u64, session: SessionId, sequence: u64) {
        let stamp = Stamp { session, sequence, low: sequence };
        let value = self.pool.copy(&[7; VALUE_BYTES]).unwrap();
        let put = Request::Put { stamp, key: KEY.to_vec() };
        let done = self.ask(request, &put, &[value]);
        assert!(matches!(done, (Reply::Done { changes: 1, .. }, _)), "{done:?}");
    }

    fn send(&mut self, request: u64, asked: &Request, body: &[Slice]) {
        let mut head = Vec::new();
        asked.put(7, request, &mut head);
        let kind = client::kind::REQUEST;
        self.client.send(address(0), kind, &head, body, self.now).unwrap();
        self.client.flush(self.now);
    }

    /// Sends a request to node 0 and waits for its reply.
    fn ask(&mut self, request: u64, asked: &Request, body: &[Slice]) -> (Reply, Slice) {
        self.send(request, asked, body);
        let mut reply = None;
        self.pass_until(2000 * MS, |_, to_client| {
            for message in to_client.drain(..) {
                let (_, number, answer) = Reply::get(&message.head).unwrap();
                if number == request {
                    reply = Some((answer, message.body.clone()));
                }
            }
            reply.is_some()
        });
        reply.expect("the node answers")
    }

    /// Lets time pass; what reaches the stand-ins is given to `see`, with their number.
    fn pass(&mut self, time: u64, mut see: impl FnMut((usize, Message))) {
        self.pass_until(time, |world, _| {
            world.receive().into_iter().for_each(&mut see);
            false
        });
    }

    fn pass_until(
        &mut self,
        time: u64,
        mut done: impl FnMut(&mut World, &mut Vec<Message>) -> bool,
    ) {
        let end = self.now + time;
        let mut to_client = Vec::new();
        while self.now < end {
            self.now += 50 * US;
            self.hub.advance(self.now);
            for node in &mut self.nodes {
                node.poll(self.now);
            }
            self.client.receive(self.now, &mut to_client);
            self.client.flush(self.now);
            if done(self, &mut to_client) {
                return;
            }
        }
    }

    fn receive(&mut self) -> Vec<(usize, Message)> {
        let mut all = Vec::new();
        for (index, stand_in) in self.stand_ins.iter_mut().enumerate() {
            let mut messages = Vec::new();
            stand_in.receive(self.now, &mut messages);
            stand_in.flush(self.now);
            all.extend(messages.into_iter().map(|message| (index + 1, message)));
        }
        all
    }

    /// A stand-in speaks to node 0.
    fn speak(&mut self, node: usize, kind: u8, head: &[u8]) {
        let stand_in = &mut self.stand_ins[node - 1];
        stand_in.send(address(0), kind, head, &[], self.now).unwrap();
        stand_in.flush(self.now);
    }

    /// What reaches a stand-in of one kind within a while.
    fn heard(&mut self, node: usize, wanted: u8, time: u64) -> Vec<Message> {
        let mut heard = Vec::new();
        self.pass(time, |(to, message)| {
            if (to, message.kind) == (node, wanted) {
                heard.push(message);
            }
        });
        heard
    }

    /// The name of the operation that stored the value.
    fn stored(&self) -> OpId {
        let version = self.nodes[0].machine().get(KEY).expect("the key is there");
        version.values().next().unwrap().op
    }
}

fn transport(
    hub: &MemoryHub,
    pool: &Pool,
    place: usize,
    node: Option<u16>,
    boot: u32,
) -> Transport<MemoryLink> {
    let identity = Identity { cluster: CLUSTER, node, incarnation: 1, boot, lane: Lane::ONLY };
    let link = hub.link(address(place));
    Transport::new(link, identity, pool.clone(), TransportConfig::default())
}

/// tests PROTOCOL 3.1-c, 8.1-h, 8.1-t, 12.2-i: first q-1 others, fragments of k with the own one; when they are
/// silent, everybody, again and again.
#[test]
fn a_read_asks_k_nodes_for_fragments() {
    let mut world = World::new();
    world.pass(5 * MS, |_| {});
    world.send(10, &Request::Get { key: KEY.to_vec() }, &[]);
    let mut questions = Vec::new();
    let note = |questions: &mut Vec<_>, to, message: &Message| {
        if message.kind == kind::READQ {
            let asked = get_question(&message.head).unwrap();
            questions.push((to, asked.read, asked.fragment));
        }
    };
    world.pass(3 * MS, |(to, message)| note(&mut questions, to, &message));
    assert_eq!(questions.len(), 3, "q-1 others: {questions:?}");
    assert_eq!(questions.iter().filter(|question| question.2).count(), 2, "{questions:?}");
    let data: Vec<usize> = questions.iter().filter(|q| q.2).map(|q| q.0).collect();
    assert_eq!(data, [1, 2], "those with data fragments");
    let mut again = Vec::new();
    world.pass(100 * MS, |(to, message)| note(&mut again, to, &message));
    assert!((1..5).all(|node| again.iter().filter(|q| q.0 == node).count() >= 2), "{again:?}");
    let first = questions[0].1;
    assert!(again.iter().all(|question| question.1 == first), "one read, one id");
    assert_eq!(first >> 40, 1, "read ids of a boot begin with its number");
    world.send(11, &Request::Get { key: KEY.to_vec() }, &[]);
    let mut next = Vec::new();
    world.pass(2 * MS, |(to, message)| note(&mut next, to, &message));
    assert!(next.iter().any(|question| question.1 > first), "another read, another id");
}

/// tests PROTOCOL 12.1-d, 12.1-g
#[test]
fn a_repeated_question_is_answered_again() {
    let mut world = World::new();
    let mut head = Vec::new();
    let query = Query::Key(KEY.to_vec());
    ReadQuestion { read: 99, fragment: false, guess: 0, query: &query }.put(&mut head);
    let exec = world.nodes[0].exec();
    for _ in 0..2 {
        world.speak(3, kind::READQ, &head);
        let answers = world.heard(3, kind::READR, 5 * MS);
        assert_eq!(answers.len(), 1);
        let answer = AnswerHead::get(&answers[0].head).unwrap();
        assert_eq!((answer.read, answer.exec), (99, exec));
        assert!(
            matches!(answer.form, AnswerForm::Value { value, .. } if value.op == world.stored())
        );
    }
    assert_eq!(world.nodes[0].exec(), exec);
}

/// tests PROTOCOL 7-h, 9.5-f
#[test]
fn fragments_are_given_by_op() {
    let mut world = World::new();
    let (op, exec) = (world.stored().0, world.nodes[0].exec());
    for (op, expected) in [(op, SegmentAnswer::Here), (12345, SegmentAnswer::Gone { exec })] {
        let mut head = Vec::new();
        put_segment(&mut head, 5, op, None);
        world.speak(4, kind::GETSEG, &head);
        let answers = world.heard(4, kind::SEG, 5 * MS);
        assert_eq!(answers.len(), 1);
        assert_eq!(get_segment_answer(&answers[0].head).unwrap(), (5, op, expected));
        let len = if expected == SegmentAnswer::Here { VALUE_BYTES / 3 } else { 0 };
        assert_eq!(answers[0].body.len(), len);
    }
}

/// What the five nodes hold of the value.
fn fragments() -> Vec<Vec<u8>> {
    let value = [7; VALUE_BYTES];
    let codec = racos_codec::Codec::new(3, 2).unwrap();
    let mut parity = vec![vec![0; VALUE_BYTES / 3]; 2];
    let mut outs: Vec<&mut [u8]> = parity.iter_mut().map(|part| &mut part[..]).collect();
    codec.encode_value(&value, &mut outs).unwrap();
    let data = value.chunks(VALUE_BYTES / 3).map(<[u8]>::to_vec);
    data.chain(parity).collect()
}

/// The stand-ins give node 0 these fragments when it asks; who was told that its own is bad, and who
/// was asked, comes back.
fn give_fragments(world: &mut World, given: &[Vec<u8>], time: u64) -> (Vec<usize>, Vec<usize>) {
    let (mut told, mut asked) = (Vec::new(), Vec::new());
    let op = world.stored().0;
    world.pass_until(time, |world, _| {
        for (from, message) in world.receive() {
            match message.kind {
                kind::GETSEG => {
                    asked.push(from);
                    let id = u64::from_le_bytes(message.head[..8].try_into().unwrap());
                    let mut head = Vec::new();
                    put_segment(&mut head, id, op, Some(SegmentAnswer::Here));
                    let body = world.pool.copy(&given[from]).unwrap();
                    let now = world.now;
                    let stand_in = &mut world.stand_ins[from - 1];
                    stand_in.send(address(0), kind::SEG, &head, &[body], now).unwrap();
                    stand_in.flush(now);
                }
                kind::BAD => told.push(from),
                _ => {}
            }
        }
        false
    });
    (told, asked)
}

/// tests PROTOCOL 9.5-a, 9.5-b: a node whose fragment is said to be bad makes it again from k others;
/// if one of those is bad in turn, it asks all, finds the ones that fit and tells the odd one.
#[test]
fn the_odd_fragment_is_found_and_its_node_is_told() {
    let right = fragments();
    for bad in [None, Some(1), Some(2), Some(4)] {
        let mut world = World::new();
        let op = world.stored().0.to_le_bytes();
        world.speak(3, kind::BAD, &op);
        let mut given = right.clone();
        if let Some(bad) = bad {
            given[bad][17] ^= 1;
        }
        let (told, asked) = give_fragments(&mut world, &given, 100 * MS);
        let repair = world.nodes[0].status().repair;
        assert_eq!((repair.repaired, repair.missing, repair.lost), (1, 0, 0), "{bad:?}: {asked:?}");
        // With all right, or with the bad one not among the first three asked, three suffice.
        let met = bad.filter(|bad| asked.contains(bad));
        assert_eq!(asked.len(), if met.is_some() { 4 } else { 3 });
        assert_eq!(told, met.into_iter().collect::<Vec<_>>());
        let mut head = Vec::new();
        put_segment(&mut head, 5, world.stored().0, None);
        world.speak(4, kind::GETSEG, &head);
        assert_eq!(world.heard(4, kind::SEG, 5 * MS)[0].body[..], right[0][..]);
    }
}

/// tests PROTOCOL 9.5-a: what does not have the digest is not stored.
#[test]
fn fragments_that_do_not_fit_repair_nothing() {
    let mut world = World::new();
    let op = world.stored().0.to_le_bytes();
    world.speak(3, kind::BAD, &op);
    let mut given = fragments();
    given.iter_mut().skip(1).take(2).for_each(|fragment| fragment[17] ^= 1);
    let (told, _) = give_fragments(&mut world, &given, 100 * MS);
    let repair = world.nodes[0].status().repair;
    assert_eq!((repair.repaired, repair.missing, repair.lost), (0, 1, 1));
    assert_eq!(told, [] as [usize; 0]);
}

/// Answers node 0's questions for the stand-ins: as guessed, and without any fragment.
fn read_without_fragments(world: &mut World, lacking: &[usize]) -> Option<Reply> {
    world.send(11, &Request::Get { key: KEY.to_vec() }, &[]);
    let mut reply = None;
    let (op, exec) = (world.stored().0, world.nodes[0].exec());
    world.pass_until(1000 * MS, |world, to_client| {
        for (to, message) in world.receive() {
            let mut head = Vec::new();
            if message.kind == kind::READQ {
                let read = get_question(&message.head).unwrap().read;
                AnswerHead { read, exec, mark: None, epoch: 1, form: AnswerForm::AsGuessed }
                    .put(&mut head);
                world.speak(to, kind::READR, &head);
                head.clear();
                put_segment(&mut head, read, op, Some(SegmentAnswer::Missing));
            } else if message.kind == kind::GETSEG {
                let read = u64::from_le_bytes(message.head[..8].try_into().unwrap());
                put_segment(&mut head, read, op, Some(SegmentAnswer::Missing));
            }
            if !head.is_empty() && lacking.contains(&to) {
                world.speak(to, kind::SEG, &head);
            }
        }
        reply = to_client.pop().map(|message| Reply::get(&message.head).unwrap().2);
        reply.is_some()
    });
    reply
}

/// tests PROTOCOL 8.1-o, 9.5-g: MISSING is asked of another node; once k are out of reach, the read
/// says so, and says it of nothing less.
#[test]
fn a_value_without_k_fragments_is_data_loss() {
    let mut world = World::new();
    match read_without_fragments(&mut world, &[1, 2, 3]) {
        Some(Reply::Error(error)) => assert_eq!(error.code, client::ErrorCode::DataLoss),
        other => panic!("{other:?}"),
    }
    let mut world = World::new();
    let undecided = read_without_fragments(&mut world, &[1, 2]);
    assert_eq!(undecided, None, "nodes 3 and 4 may still have theirs");
}

/// tests PROTOCOL 8.1-p, 9.5-g: a stripe that two nodes lack and one says has gone is lost only if that one is
/// not ahead; else it is looked for again, as of there.
#[test]
fn a_stripe_that_may_have_gone_is_not_lost() {
    for ahead in [0, 4] {
        let mut world = World::new();
        world.pass(50 * MS, |_| {});
        let value = world.nodes[0].machine().get(KEY).unwrap().values().next().unwrap();
        let exec = world.nodes[0].exec() + ahead;
        world.send(11, &Request::GetStripe { value }, &[]);
        let (mut reply, mut wanted) = (None, 0);
        world.pass_until(300 * MS, |world, to_client| {
            for (to, message) in world.receive() {
                if message.kind == kind::CORE {
                    wanted = wanted.max(last_pulled(&message.head));
                }
                let answer = match to {
                    1 => SegmentAnswer::Gone { exec },
                    2 | 3 => SegmentAnswer::Missing,
                    _ => continue,
                };
                if message.kind == kind::GETSEG {
                    let read = u64::from_le_bytes(message.head[..8].try_into().unwrap());
                    let mut head = Vec::new();
                    put_segment(&mut head, read, value.op.0, Some(answer));
                    world.speak(to, kind::SEG, &head);
                }
            }
            reply = to_client.pop().map(|message| Reply::get(&message.head).unwrap().2);
            reply.is_some()
        });
        match reply {
            Some(Reply::Error(error)) if ahead == 0 => {
                assert_eq!(error.code, client::ErrorCode::DataLoss)
            }
            None if ahead > 0 => assert_eq!(wanted, exec - 1, "the last slot below its exec"),
            other => panic!("{ahead} ahead: {other:?}"),
        }
    }
}

/// tests PROTOCOL 9.5-g: nor is one that is in no use here, though others, which are behind then, lack it.
#[test]
fn a_stripe_in_no_use_here_is_not_lost() {
    let mut world = World::new();
    world.pass(50 * MS, |_| {});
    let mut value = world.nodes[0].machine().get(KEY).unwrap().values().next().unwrap();
    value.op = OpId(value.op.0 + 1);
    world.send(11, &Request::GetStripe { value }, &[]);
    let mut reply = None;
    world.pass_until(300 * MS, |world, to_client| {
        for (to, message) in world.receive() {
            if message.kind == kind::GETSEG {
                let read = u64::from_le_bytes(message.head[..8].try_into().unwrap());
                let mut head = Vec::new();
                put_segment(&mut head, read, value.op.0, Some(SegmentAnswer::Missing));
                world.speak(to, kind::SEG, &head);
            }
        }
        reply = to_client.pop().map(|message| Reply::get(&message.head).unwrap().2);
        reply.is_some()
    });
    assert_eq!(reply, Some(Reply::NotFound), "the client looks for the key again");
}

/// tests PROTOCOL 8.1-g, 8.1-q, 10-y, 12.1-i: an answer of a node that has executed a change which the reader
/// has not: the reader asks for the slots up to there, and answers nothing meanwhile.
#[test]
fn a_reader_that_meets_a_newer_epoch_executes_the_change_first() {
    let mut world = World::new();
    world.pass(50 * MS, |_| {});
    world.send(11, &Request::Get { key: KEY.to_vec() }, &[]);
    let exec = world.nodes[0].exec();
    let mut wanted = 0;
    world.pass_until(300 * MS, |world, to_client| {
        assert!(to_client.is_empty(), "an answer from before the change");
        for (to, message) in world.receive() {
            if message.kind == kind::READQ {
                let read = get_question(&message.head).unwrap().read;
                let (exec, form) = (exec + 4, AnswerForm::AsGuessed);
                let mut head = Vec::new();
                AnswerHead { read, exec, mark: None, epoch: 2, form }.put(&mut head);
                world.speak(to, kind::READR, &head);
            } else if message.kind == kind::CORE {
                wanted = wanted.max(last_pulled(&message.head));
            }
        }
        false
    });
    assert_eq!(wanted, exec + 3);
}

/// The highest slot that the messages of a datagram ask for, or 0.
fn last_pulled(bytes: &[u8]) -> u64 {
    let mut words = Reader::new(bytes);
    let words = std::iter::from_fn(|| get_message(&mut words).ok());
    let last = |word| match word {
        Word::Pull { from, wanted, .. } if wanted != 0 => {
            Some(from + 63 - u64::from(wanted.leading_zeros()))
        }
        _ => None,
    };
    words.filter_map(last).max().unwrap_or(0)
}

/// tests PROTOCOL 8.1-p, 9.8-c: told that the value is gone as of a later slot, the reader asks for the slots
/// up to there and does not answer with what it knows.
#[test]
fn a_reader_that_meets_gone_executes_up_to_it() {
    let mut world = World::new();
    world.pass(50 * MS, |_| {});
    world.send(11, &Request::Get { key: KEY.to_vec() }, &[]);
    let (op, exec) = (world.stored().0, world.nodes[0].exec());
    let mut wanted = 0;
    world.pass_until(300 * MS, |world, to_client| {
        assert!(to_client.is_empty(), "an answer from before");
        for (to, message) in world.receive() {
            let mut head = Vec::new();
            if message.kind == kind::READQ {
                let read = get_question(&message.head).unwrap().read;
                AnswerHead { read, exec, mark: None, epoch: 1, form: AnswerForm::AsGuessed }
                    .put(&mut head);
                world.speak(to, kind::READR, &head);
                head.clear();
                put_segment(&mut head, read, op, Some(SegmentAnswer::Gone { exec: exec + 4 }));
                world.speak(to, kind::SEG, &head);
            } else if message.kind == kind::GETSEG {
                let read = u64::from_le_bytes(message.head[..8].try_into().unwrap());
                put_segment(&mut head, read, op, Some(SegmentAnswer::Gone { exec: exec + 4 }));
                world.speak(to, kind::SEG, &head);
            } else if message.kind == kind::CORE {
                wanted = wanted.max(last_pulled(&message.head));
            }
        }
        false
    });
    assert_eq!(wanted, exec + 3, "the last slot below the exec of GONE");
}

/// tests PROTOCOL 4.4-l, 9.1-b: a peer with an older boot than was heard is told so, and nothing of
/// it is taken in; a node that is told a higher boot than its own stops.
#[test]
fn an_older_boot_is_refused_and_a_higher_one_stops_the_node() {
    let mut world = World::new();
    let mut question = Vec::new();
    let query = Query::Key(KEY.to_vec());
    ReadQuestion { read: 1, fragment: false, guess: 0, query: &query }.put(&mut question);
    world.speak(2, kind::READQ, &question);
    assert_eq!(world.heard(2, kind::READR, 5 * MS).len(), 1, "boot 5 is heard");
    let old = transport(&world.hub, &world.pool, 2, Some(2), 4);
    world.stand_ins[1] = old;
    world.speak(2, kind::READQ, &question);
    let mut kinds = Vec::new();
    let mut boots = Vec::new();
    world.pass(5 * MS, |(to, message)| {
        if to == 2 {
            kinds.push(message.kind);
            boots.extend((message.kind == kind::BOOT).then(|| message.head.to_vec()));
        }
    });
    assert!(!kinds.contains(&kind::READR), "the question of an old boot is answered");
    let told = |boot: u32| [1u32.to_le_bytes(), boot.to_le_bytes()].concat();
    assert_eq!(boots, [told(5)]);
    world.speak(3, kind::BOOT, &told(1));
    world.pass(5 * MS, |_| {});
    assert_eq!(world.nodes[0].failed(), None, "its own boot is 1");
    world.speak(3, kind::BOOT, &told(2));
    world.pass(5 * MS, |_| {});
    assert!(world.nodes[0].failed().is_some_and(|why| why.contains("rolled back")));
}

/// SPREADs that reach the stand-ins within a while: to whom, slot and batch.
fn spreads(world: &mut World, time: u64) -> Vec<(usize, Slot, Vec<u8>)> {
    let mut seen = Vec::new();
    world.pass(time, |(to, message)| {
        if message.kind == kind::SPREAD {
            let head = SpreadHead::get(&message.head).unwrap();
            seen.push((to, head.slot, head.batch.to_vec()));
        }
    });
    seen
}

/// tests PROTOCOL 6.2-a, 6.2-h, 11-l: an operation without a session goes to all others, and into
/// another slot under the same name only once its slot is decided null.
#[test]
fn a_request_without_a_session_is_opened_again_only_after_null() {
    let mut world = World::new();
    world.send(20, &Request::OpenSession { window: 4 }, &[]);
    let first = spreads(&mut world, MS);
    let (slot, batch) = (first[0].1, first[0].2.clone());
    let mut receivers: Vec<usize> = first.iter().map(|spread| spread.0).collect();
    receivers.sort_unstable();
    assert_eq!(receivers, [1, 2, 3, 4]);
    let meanwhile = spreads(&mut world, 30 * MS);
    assert!(meanwhile.iter().all(|spread| spread.1 == slot), "opened twice: {meanwhile:?}");
    // Everybody skips what is below and refuses the slot.
    for node in 1..5 {
        let own = (0..slot).rev().find(|own| own % 5 == node as Slot);
        let mut words = Vec::new();
        if let Some(own) = own.filter(|own| *own >= world.nodes[0].exec()) {
            put_message(&mut words, &Word::Skip { from: own, to: own + 1 });
        }
        put_message(&mut words, &Word::Propose { slot, value: Value::Null });
        world.speak(node, kind::CORE, &words);
    }
    let again = spreads(&mut world, 5 * MS);
    assert!(world.nodes[0].exec() > slot, "decided null");
    let other: Vec<_> = again.iter().filter(|spread| spread.1 != slot).collect();
    assert_eq!(other.len(), 4);
    assert!(other.iter().all(|spread| spread.1 > slot && spread.2 == batch), "{other:?}");
}

/// tests PROTOCOL 3.1-g, 6.2-b: a fragment that does not have its checksum is not stored, and the
/// slot is not supported for it.
#[test]
fn a_damaged_fragment_is_not_promised() {
    let mut world = World::new();
    // The batch of a write of node 0, as the test saw it, in a slot of node 1.
    let stamp = Stamp { session: world.session, sequence: 2, low: 2 };
    let value = world.pool.copy(&[8; VALUE_BYTES]).unwrap();
    let put = Request::Put { stamp, key: KEY.to_vec() };
    world.send(30, &put, &[value]);
    let seen = world.heard(1, kind::SPREAD, MS).remove(0);
    let head = SpreadHead::get(&seen.head).unwrap();
    let slot = (head.slot..).find(|slot| slot % 5 == 1).unwrap();
    let SpreadHead { digest, batch, crcs, .. } = head;
    let mut moved = Vec::new();
    SpreadHead { slot, digest, batch, crcs }.put(&mut moved);
    for bad in [true, false] {
        let mut body = seen.body.to_vec();
        body[VALUE_BYTES / 6] ^= u8::from(bad);
        let body = world.pool.copy(&body).unwrap();
        let now = world.now;
        world.stand_ins[0].send(address(0), kind::SPREAD, &moved, &[body], now).unwrap();
        world.stand_ins[0].flush(now);
        let mut supported = false;
        for message in world.heard(1, kind::CORE, MS) {
            let mut words = Reader::new(&message.head);
            while let Ok(word) = get_message(&mut words) {
                supported |= word == Word::Propose { slot, value: Value::Batch(digest) };
            }
        }
        assert_eq!(supported, !bad);
    }
}

/// Memory and time of the process are of the machine it runs on: a simulation has none.
#[test]
fn a_node_that_is_no_process_reads_nothing_of_the_machine() {
    let world = World::new();
    let status = world.nodes[0].status();
    assert_eq!((status.cpu_us, status.memory_bytes), (0, 0));
}
