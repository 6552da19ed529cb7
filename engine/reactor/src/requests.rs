//! What clients ask.
//!
//! Invariant: a request is answered at most once per time it is taken in; a repeated one is ignored
//! while the first is under way; writes are taken in only while there is room for them.

use crate::batch::{Name, Payload, Waiter};
use crate::lanes::lane_of;
use crate::node::Node;
use crate::status::{
    CatchUpStatus, DiskStatus, MemberStatus, NetStatus, PeerStatus, RepairStatus, SlotCounts,
    Status,
};
use crate::wire::client::{ErrorCode, LIST_LIMIT_MAX, Reply, Request, RequestError};
use crate::wire::node::Query;
use racos_buffer::Slice;
use racos_machine::{Action, Content, Op, OpId, Refusal, Stamp};
use racos_net::{Lane, Link, Message as Frame};
use racos_storage::device::Device;
use racos_storage::{Class, Full};

/// PROTOCOL 9.4-e. Batches waiting for an own slot; beyond this, writes are answered "busy".
const SEALED_MAX: usize = 64;
/// PROTOCOL 9.4-e. Requests under way; beyond this, new ones are answered "busy".
const REQUESTS_MAX: usize = 65_536;

const NO_BUFFERS: &str = "the node's buffers are in use; try again";

impl<L: Link, D: Device> Node<L, D> {
    pub(crate) fn on_request(&mut self, frame: Frame) {
        let Ok((client, request, asked)) = Request::get(&frame.head) else { return };
        let waiter = Waiter::Client { to: frame.from.address, client, request };
        if self.requests.len() >= REQUESTS_MAX {
            return self.refuse_request(&waiter, ErrorCode::Busy, "too many requests under way");
        }
        if !self.requests.insert((client, request)) {
            return;
        }
        if let Some(why) = self.strange_lane(&asked, frame.from.knows_lanes) {
            return self.refuse_request(&waiter, ErrorCode::BadRequest, &why);
        }
        // PROTOCOL 10-r, 10-t
        if asked != Request::Status
            && let Some(why) = self.idle_reason()
        {
            return self.refuse_request(&waiter, ErrorCode::Unavailable, &why);
        }
        let is_read = matches!(asked, Request::Get { .. } | Request::List { .. });
        if is_read && self.machine.is_restoring() {
            let text = Refusal::Restoring.to_string();
            return self.refuse_request(&waiter, ErrorCode::Unavailable, &text);
        }
        // Who has no name may do nothing. Members are an operator's to change, here at the nodes' own
        // ports: whoever reaches those can do as a node does.
        let is_open = matches!(
            asked,
            Request::Status
                | Request::Members { .. }
                | Request::AtRisk { .. }
                | Request::CloseSession { .. }
        );
        if self.machine.auth().is_enabled() && !is_open {
            let text = Refusal::UserEmpty.to_string();
            return self.refuse_request(&waiter, ErrorCode::BadRequest, &text);
        }
        match asked {
            Request::OpenSession { window } => {
                self.write(waiter, None, Action::OpenSession { window }, None)
            }
            Request::CloseSession { session } => {
                self.write(waiter, None, Action::CloseSession { session }, None)
            }
            Request::Put { stamp, key } => self.put(waiter, stamp, Some(key), frame.body),
            Request::Part { stamp } => self.put(waiter, stamp, None, frame.body),
            Request::PutStripes { stamp, key } => {
                let Ok(stripes) = crate::wire::client::get_stripes(&frame.body) else {
                    return self.refuse_request(
                        &waiter,
                        ErrorCode::BadRequest,
                        "malformed stripes",
                    );
                };
                let content = Content::Stripes(stripes.into());
                let action = Action::Put { key: key.into(), content };
                self.write(waiter, Some(stamp), action, None)
            }
            Request::Delete { stamp, key } => {
                self.write(waiter, Some(stamp), Action::Delete { key: key.into() }, None)
            }
            Request::Get { key } => self.start_read(waiter, Query::Key(key)),
            Request::GetStripe { value } => self.start_fetch(waiter, value),
            Request::List { from, to, limit } => {
                let limit = limit.clamp(1, LIST_LIMIT_MAX);
                self.start_read(waiter, Query::Range { from, to, limit })
            }
            Request::Status => self.status_request(&waiter),
            Request::AtRisk { action, after } => self.tell_at_risk(&waiter, &action, after),
            Request::Members { action } => match self.check_change(&action) {
                Ok(()) => self.propose_alone(action, Some(waiter)),
                Err(why) => self.refuse_request(&waiter, ErrorCode::BadRequest, &why),
            },
        }
    }

    /// PROTOCOL 3.1-j: why this lane is not the one to ask. Who does not know how many there are may ask
    /// that only.
    fn strange_lane(&self, asked: &Request, knows_lanes: bool) -> Option<String> {
        let Lane { number, count } = self.config.lane;
        if !knows_lanes && *asked != Request::Status {
            return Some(format!("this cluster has {count} lane(s), and the client has not asked"));
        }
        if count == 1 {
            return None;
        }
        let key = match asked {
            Request::Put { key, .. }
            | Request::PutStripes { key, .. }
            | Request::Delete { key, .. }
            | Request::Get { key } => key,
            _ => return None,
        };
        let lane = lane_of(key, count);
        (lane != number).then(|| format!("the key belongs to lane {lane} of {count}, not {number}"))
    }

    fn refuse_request(&mut self, waiter: &Waiter, code: ErrorCode, text: &str) {
        let error = RequestError { code, text: text.into() };
        self.reply(waiter, &Reply::Error(error), &[]);
    }

    /// PROTOCOL 3.1-b, 11-d: every request taken in is a new op, a retry too.
    pub(crate) fn next_op_id(&mut self) -> OpId {
        self.next_op += 1;
        let boot = if mutant!("operations named without the boot") { 1 } else { self.boot };
        OpId::new(u16::from(self.me), self.config.incarnation, boot, self.next_op)
    }

    /// The names after the last one are used up: the values of a transaction have them.
    pub(crate) fn skip_op_ids(&mut self, names: u64) {
        self.next_op += names;
    }

    fn put(&mut self, waiter: Waiter, stamp: Stamp, key: Option<Vec<u8>>, body: Slice) {
        let most = self.config.bounds.value_bytes_max;
        if body.len() > most {
            let text = format!(
                "the value has {} bytes; one request carries at most {most}: send \
                 larger values as stripes",
                body.len()
            );
            return self.refuse_request(&waiter, ErrorCode::TooLarge, &text);
        }
        let id = self.next_op_id();
        let value = self.builder.describe(id, &body);
        let action = match key {
            Some(key) => Action::Put { key: key.into(), content: Content::Whole(value) },
            None => Action::Part { value },
        };
        self.write_op(
            waiter,
            Op { id, author: None, stamp: Some(stamp), action },
            Payload::Value(body),
        );
    }

    fn write(&mut self, waiter: Waiter, stamp: Option<Stamp>, action: Action, body: Option<Slice>) {
        let id = self.next_op_id();
        self.write_op(
            waiter,
            Op { id, author: None, stamp, action },
            body.map_or(Payload::None, Payload::Value),
        );
    }

    pub(crate) fn write_op(&mut self, waiter: Waiter, op: Op, payload: Payload) {
        if let Err(error) = op.check() {
            return self.refuse_request(&waiter, ErrorCode::BadRequest, &error.to_string());
        }
        if self.sealed.len().max(self.assign.waiting()) >= SEALED_MAX {
            return self.refuse_request(&waiter, ErrorCode::Busy, "too many writes are waiting");
        }
        let bytes = match &payload {
            Payload::None => 0,
            Payload::Value(value) => value.len(),
            Payload::Small(values) => values.iter().map(|value| value.len()).sum(),
        };
        // Deletes and session ends may use the reserve: they are how space comes back.
        let class = match op.action {
            Action::Put { .. } | Action::Part { .. } => Class::Ordinary,
            _ if bytes > 0 => Class::Ordinary,
            _ => Class::Urgent,
        };
        if let Err(full @ (Full::Disk | Full::Stopped)) = self.log.accepts(128, bytes, class) {
            let text = format!("node {}: {full}", self.me);
            return self.refuse_request(&waiter, ErrorCode::NoSpace, &text);
        }
        let is_large = matches!(&payload, Payload::Value(value)
            if !value.is_empty() && value.len() >= self.config.bounds.ready_bytes_min);
        if is_large || self.is_queue() {
            let born = self.is_queue().then(|| self.core.born_now());
            let name = Name { id: self.next_op_id(), born };
            return match self.builder.ready(name, op, payload, waiter) {
                Ok(parcel) => self.assign.push(parcel),
                Err(_) => self.refuse_request(&waiter, ErrorCode::Busy, NO_BUFFERS),
            };
        }
        match self.builder.add(op, payload, waiter) {
            Ok(sealed) => self.sealed.extend(sealed),
            Err(_) => self.refuse_request(&waiter, ErrorCode::Busy, NO_BUFFERS),
        }
    }

    fn status_request(&mut self, waiter: &Waiter) {
        let mut status = self.status();
        // A file system that cannot tell is shown as full of nothing, not as an error.
        status.disk.free_bytes = self.log.device_mut().free_bytes().unwrap_or(0);
        let json = serde_json::to_vec(&status).expect("a status has no maps with odd keys");
        match self.pool.copy(&json) {
            Some(body) => self.reply(waiter, &Reply::Status, &[body]),
            None => self.refuse_request(waiter, ErrorCode::Busy, "the node's buffers are in use"),
        }
    }

    fn disk_status(&self) -> DiskStatus {
        let log = self.log.counters();
        DiskStatus {
            log_bytes: self.log.bytes_used(),
            file_bytes: self.log.file_bytes(),
            free_bytes: 0,
            flushes: log.flushes,
            flushed_bytes: log.bytes_flushed,
            full: self.log.is_disk_full(),
            hangs_ms: self.disk_hangs_ns().unwrap_or(0) / 1_000_000,
            cache_hits: self.fragments.cache_counts().hits,
            cache_misses: self.fragments.cache_counts().misses,
            live_bytes: self.fragments.needed_bytes(),
            wanted_bytes: self.space().bound,
            reserve_bytes: self.config.bounds.space_reserve_bytes,
            checkpoints: self.checkpoints.written,
            checkpoint_exec: self.checkpoints.newest().exec,
            checkpoint_bytes: self.checkpoints.newest().bytes,
            copied_bytes: self.reclaim.copied_bytes,
            segments_back: log.segments_back,
            segments_recycled: log.segments_recycled,
        }
    }

    /// The first slot of which this node can tell what was in it.
    pub fn history_from(&self) -> racos_protocol::Slot {
        self.history.first()
    }

    fn catch_up_status(&self) -> CatchUpStatus {
        CatchUpStatus {
            history_from: self.history_from(),
            ranges_told: self.facts.told,
            fetching: self.snaps.fetching(),
            installed: self.snaps.installed,
            pieces_sent: self.snaps.pieces_sent,
            refused: self.snaps.refused.clone(),
        }
    }

    /// All that is, or was, a member, as [`Node::status`] says it.
    pub fn member_status(&self) -> Vec<MemberStatus> {
        let members = self.machine.members();
        let seats = members.seats().iter().enumerate();
        let members = seats.map(|(node, seat)| MemberStatus {
            is_member: members.is_member(node as u8),
            is_lost: seat.is_lost,
            is_released: seat.is_released,
            values: self.values_on(node as u8),
            node: node as u8,
            address: self.address_text(node as u8),
            incarnation: seat.incarnation,
            from: seat.from,
            disk: format!("{:032x}", seat.disk),
            is_rebuilding: seat.is_rebuilding,
        });
        members.collect()
    }

    /// Values in use of layouts other than the newest that have fragments on a node.
    fn values_on(&self, node: u8) -> u64 {
        let members = self.machine.members();
        let older = members.layouts().split_last().map_or(&[][..], |(_, older)| older);
        let holding = older.iter().filter(|layout| layout.place(node).is_some());
        holding.map(|layout| self.machine.values_of_layout(layout.number)).sum()
    }

    /// What this node tells about itself. CPU and memory are the runtime's to fill in.
    pub fn status(&self) -> Status {
        let counters = self.core.counters();
        let net = self.net.counters();
        let suspected = self.core.suspected();
        let newest = self.core.newest().thresholds;
        let peers = self.others().iter().map(|node| PeerStatus {
            node,
            address: self.address_text(node),
            exec: self.core.peer_exec(node),
            suspected: suspected.contains(node),
            heard_ms_ago: self.heard_at[usize::from(node)]
                .map(|at| self.now.saturating_sub(at) / 1_000_000),
        });
        let usage = (self.usage)();
        Status {
            node: self.me,
            cluster: self.config.cluster,
            lane: self.config.lane.number,
            lanes: self.config.lane.count,
            incarnation: self.config.incarnation,
            disk_id: format!("{:032x}", self.log.disk_id()),
            boot: self.boot,
            version: env!("CARGO_PKG_VERSION").into(),
            n: newest.n,
            f: newest.f,
            k: newest.k,
            policy: self.config.policy.to_string(),
            fast: self.config.fast.to_string(),
            exec: self.core.exec(),
            seen: self.core.seen(),
            revision: self.machine.revision(),
            keys: self.machine.keys_len() as u64,
            sessions: self.machine.sessions_by_last_use().count() as u64,
            peers: peers.collect(),
            slots: SlotCounts {
                fast: counters.fast,
                slow: counters.slow,
                told: counters.told,
                null: counters.null,
                skipped: counters.skipped,
            },
            net: NetStatus {
                datagrams_sent: net.datagrams_sent,
                datagrams_received: net.datagrams_received,
                datagrams_junk: net.junk_total(),
                retransmissions: net.chunks_retransmitted,
            },
            repair: RepairStatus {
                missing: self.repair.missing.len() as u64,
                under_way: self.repair.under_way() as u64,
                lost: self.repair.missing.lost() as u64,
                repaired: self.repair.repaired,
                from_hosts: self.repair.from_hosts,
                odd: self.repair.odd,
            },
            scrub: self.scrub.status(),
            recode: self.recode_status(),
            margin: self.margin_status(),
            problem: self.problem(),
            catch_up: self.catch_up_status(),
            states: self.states_status(),
            epoch: self.core.epoch(),
            is_active: self.core.is_active(),
            effect: self.machine.members().effect(),
            members: self.member_status(),
            disk: self.disk_status(),
            requests: self.counts,
            cpu_us: usage.cpu_us,
            memory_bytes: usage.memory_bytes,
            uptime_ms: self.now.saturating_sub(self.started) / 1_000_000,
            runtime: self.runtime_words.clone(),
        }
    }
}
