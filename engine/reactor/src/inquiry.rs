//! Before an empty directory is formatted: do the others know the node already?
//!
//! Purpose: a node whose directory was lost is refused before anything is written in its place. That
//! two disks of a node never both take part rests on `admission` alone; here nothing is promised, so a
//! node that nobody answers goes on and is judged there.
//! Invariant: nothing that is asked or answered here is noted anywhere.

use crate::admission::{known_otherwise, replaced, vouchers};
use crate::config::NodeConfig;
use crate::wire::cursor::Reader;
use crate::wire::node::{Hello, Known, KnownAs, kind};
use racos_buffer::Pool;
use racos_net::{Identity, Link, Message, Transport, TransportConfig};
use racos_protocol::{Nanos, NodeSet};

/// How long the others are asked, and how often.
const PATIENCE_NS: Nanos = 1_000_000_000;
const AGAIN_NS: Nanos = 50_000_000;

/// What was learned so far.
pub(crate) struct Inquiry<L: Link> {
    net: Transport<L>,
    config: NodeConfig,
    /// Who has said that it knows of no disk of this node.
    nothing_known: NodeSet,
    ask_at: Nanos,
    ends_at: Nanos,
    inbox: Vec<Message>,
}

impl<L: Link> Inquiry<L> {
    pub fn new(config: NodeConfig, link: L, pool: Pool, now: Nanos) -> Inquiry<L> {
        let node = Some(u16::from(config.node));
        let NodeConfig { cluster, incarnation, lane, .. } = config;
        let identity = Identity { cluster, node, incarnation, boot: 0, lane };
        let net = Transport::new(link, identity, pool, TransportConfig::default());
        let (nothing_known, ends_at) = (NodeSet::EMPTY, now + PATIENCE_NS);
        Inquiry { net, config, nothing_known, ask_at: now, ends_at, inbox: Vec::new() }
    }

    /// Asks and listens; true once there is nothing more to wait for.
    ///
    /// # Errors
    /// Why the node must not begin anew.
    pub fn turn(&mut self, now: Nanos) -> Result<bool, String> {
        let n = self.config.members.len();
        if now >= self.ask_at {
            self.ask_at = now + AGAIN_NS;
            let mut head = Vec::with_capacity(17);
            Hello::question(self.config.terms()).put(&mut head);
            for node in (0..n).filter(|node| *node != usize::from(self.config.node)) {
                let _ = self.net.send(self.config.members[node], kind::HELLO, &head, &[], now);
            }
        }
        let mut inbox = std::mem::take(&mut self.inbox);
        self.net.receive(now, &mut inbox);
        let heard = inbox.drain(..).try_for_each(|frame| self.hear(&frame));
        self.inbox = inbox;
        self.net.flush(now);
        heard?;
        Ok(now >= self.ends_at || self.nothing_known.len() >= vouchers(n, self.config.f))
    }

    fn hear(&mut self, frame: &Message) -> Result<(), String> {
        let me = self.config.node;
        let peer = frame.from.node.and_then(|node| u8::try_from(node).ok());
        let known_peer = |node: &u8| *node != me && usize::from(*node) < self.config.members.len();
        let Some(from) = peer.filter(known_peer) else { return Ok(()) };
        match frame.kind {
            kind::KNOWN => match Known::get(&frame.head) {
                Ok(Known { disk: 0, known: KnownAs::Nothing, .. }) => {
                    self.nothing_known.insert(from);
                }
                // PROTOCOL 10-al: nothing is written in the place of what was there.
                Ok(Known { disk: 0, known: KnownAs::Other(other), .. }) => {
                    return Err(known_otherwise(me, from, other, ""));
                }
                _ => {}
            },
            kind::REPLACED => {
                if let Ok(newer) = Reader::new(&frame.head).u32("incarnation")
                    && newer > self.config.incarnation
                {
                    return Err(replaced(me, newer, ""));
                }
            }
            // One that asks the same remembers nothing either.
            kind::HELLO if Hello::get(&frame.head).is_ok_and(|hello| hello.disk == 0) => {
                self.nothing_known.insert(from);
            }
            _ => {}
        }
        Ok(())
    }
}
