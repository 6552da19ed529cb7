//! Messages between nodes and with clients, as `wire` reads them. The first byte says which.
//!
//! Rule: what can be read is written again to something that reads the same, where there is a
//! writer for the whole; the rest is read without a panic.

use crate::input::Input;
use racos_engine::wire::client::{Reply, Request};
use racos_engine::wire::cursor::Reader;
use racos_engine::wire::{client, node, value};
use racos_protocol::Message;

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let written = |kind: u8, write: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = vec![kind];
        write(&mut bytes);
        bytes
    };
    let propose = Message::Propose { slot: 7, value: racos_protocol::Value::Null };
    let request = Request::Get { key: b"key".to_vec() };
    let reply = Reply::Found { revision: 9 };
    vec![
        written(0, &|out| node::put_message(out, &propose)),
        written(0, &|out| node::put_message(out, &Message::Seen { exec: 3, seen: 9 })),
        written(1, &|out| request.put(5, 6, out)),
        written(2, &|out| reply.put(5, 6, out)),
        written(7, &|out| node::put_keys(out, b"key", 3, 4)),
        written(9, &|out| node::put_segment(out, 3, 4, None)),
        written(10, &|out| node::put_facts_head(out, 3, 4)),
    ]
}

pub(crate) fn check(input: &[u8]) {
    let mut input = Input(input);
    let kind = input.below(14);
    let bytes = input.0;
    match kind {
        0 => messages(bytes),
        1 => request(bytes),
        2 => reply(bytes),
        3 => {
            if let Ok(head) = node::SpreadHead::get(bytes) {
                let sums = (0..300).filter_map(|at| head.crc(at)).count();
                assert!(sums <= bytes.len() / 4, "{sums} sums in {} bytes", bytes.len());
            }
        }
        4 => drop(node::get_question(bytes)),
        5 => drop(node::AnswerHead::get(bytes)),
        6 => drop(node::get_stripes(bytes)),
        7 => drop(node::get_keys(bytes)),
        8 => drop(node::get_segment_question(bytes)),
        9 => drop(node::get_segment_answer(bytes)),
        10 => drop(node::get_facts_head(bytes)),
        11 => drop(client::get_stripes(bytes)),
        12 => drop(value::get_values(bytes)),
        _ => {
            for phase in 0..2 {
                let _ = node::get_ballot(&mut Reader::new(bytes), phase);
            }
        }
    }
}

fn messages(bytes: &[u8]) {
    let mut from = Reader::new(bytes);
    while let Ok(message) = node::get_message(&mut from) {
        let mut again = Vec::new();
        node::put_message(&mut again, &message);
        let read = node::get_message(&mut Reader::new(&again));
        assert_eq!(read.ok(), Some(message), "a message survives the wire");
    }
}

fn request(bytes: &[u8]) {
    let Ok((client, number, request)) = Request::get(bytes) else { return };
    let mut again = Vec::new();
    request.put(client, number, &mut again);
    assert_eq!(Request::get(&again), Ok((client, number, request)), "a request survives the wire");
}

fn reply(bytes: &[u8]) {
    let Ok((client, number, reply)) = Reply::get(bytes) else { return };
    let mut again = Vec::new();
    reply.put(client, number, &mut again);
    assert_eq!(Reply::get(&again), Ok((client, number, reply)), "a reply survives the wire");
}
