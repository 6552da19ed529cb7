//! Watches: cursors into the list of changes, and responses built when a stream can take one.
//!
//! Invariant: a watch has delivered every event below its cursor that matches, once and in order, and
//! no response shows a revision above what was delivered with it. A stream waits for at most one
//! response being built, so what it delivers is in the order of the cursors' moves. A watch that is
//! *at the end* has looked at all changes up to `seen_revision`; its cursor stands still, and the first
//! later change that it tells finds it through the audience. So a change costs what it is told to, not
//! what there is.
//! What would break it: moving a cursor for a response that is not delivered in the end; a change that
//! is passed by while a watch is at the end and not in the audience.

use super::audience::Audience;
use super::auth::Who;
use super::convert::{key_value, span};
use super::gather::{Lost, Values};
use super::stream::{Command, StreamShared};
use super::told::{Asked, Filter, Look, Name, Shared, Told};
use super::types::*;
use crate::node::Node;
use bytes::Bytes;
use racos_machine::{Content, Item, Machine, Refusal};
use racos_net::Link;
use racos_protocol::Nanos;
use racos_storage::device::Device;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

/// A response is closed at the end of the revision that takes it beyond one of these.
const EVENTS_MAX: usize = 1000;
const BYTES_MAX: u64 = 1 << 20;
/// Changes looked at for one watch before others have their turn.
const SCAN_MAX: usize = 10_000;
/// How long a watch with `progress_notify` may have nothing to tell.
const PROGRESS_NS: Nanos = 600_000_000_000;
/// Responses that are ready and do not fit the stream; beyond this no commands of it are taken in.
const READY_MAX: usize = 1024;
/// Values that could not be fetched are tried again after this.
const RETRY_NS: Nanos = 100_000_000;

struct Watch {
    /// Tells it from another that had its id before.
    serial: u64,
    filter: Rc<Filter>,
    /// All changes below were delivered, or do not match; at the end, also those that were seen since.
    next: u64,
    at_end: bool,
    /// Its id stands in a queue of its stream.
    queued: bool,
    /// The revision asked for, if it was in the future.
    start: u64,
    /// The round of the stream for which it has told events; 0: none.
    round: u64,
    progress_notify: bool,
    /// When it last told something.
    told: Nanos,
}

impl Watch {
    /// Notes where it stands after its cursor was set.
    fn settle(&mut self, id: i64, seen_revision: u64, behind: &mut VecDeque<i64>) {
        self.at_end = self.next > seen_revision;
        if !self.at_end && !self.queued {
            self.queued = true;
            behind.push_back(id);
        }
    }
}

struct Stream {
    shared: Arc<StreamShared>,
    who: Who,
    /// It is found out whether a watch is permitted; what the client said later waits.
    checking: bool,
    watches: BTreeMap<i64, Watch>,
    /// Ids of watches that are not at the end, in the order in which they fell behind, and of those that
    /// have told something in this round already. Some may have ended, or come to the end, since.
    behind: VecDeque<i64>,
    paused: Vec<i64>,
    round: u64,
    next_id: i64,
    /// Responses that are ready, in order, before any that is built from now on.
    ready: VecDeque<WatchResponse>,
    /// The client has said more than was taken in.
    says_more: bool,
    /// The client wants to know when all is delivered.
    progress: u32,
    building: bool,
    retry_at: Nanos,
}

pub(super) struct Watches {
    streams: FxHashMap<u64, Stream>,
    audience: Audience,
    /// Streams whose client waits for progress.
    asking: BTreeSet<u64>,
    shared: Shared,
    /// Watches on all streams, and how many there ever were.
    watches: usize,
    made: u64,
    /// Streams to look at.
    due: VecDeque<u64>,
    /// The audience was told of all changes up to this revision.
    seen_revision: u64,
    seen_compacted: Option<u64>,
    progress_at: Nanos,
    /// Streams whose fetches failed, to be looked at again.
    retry_at: Option<Nanos>,
}

/// One event before its values are there.
struct Draft {
    key: Bytes,
    modified: u64,
    item: Option<Item>,
    previous: Option<Item>,
}

impl Draft {
    fn contents(&self) -> impl Iterator<Item = &Content> {
        self.item.iter().chain(&self.previous).map(|item| &item.content)
    }

    fn event(self, values: &Values) -> Event {
        let with = |item: &Item| key_value(item, values.bytes(&item.content));
        let kv = match &self.item {
            Some(item) => with(item),
            None => {
                KeyValue { key: self.key, modified: self.modified as i64, ..KeyValue::default() }
            }
        };
        Event { is_delete: self.item.is_none(), kv, previous: self.previous.as_ref().map(with) }
    }
}

/// What a walk over the changes came to.
struct Walk {
    drafts: Vec<Draft>,
    /// The last revision looked at whole.
    last: u64,
    bytes: u64,
    /// There is more, but no room in one response.
    is_full: bool,
}

impl Walk {
    /// Takes whole revisions from `next` on.
    fn new(machine: &Machine, next: u64, filter: &Filter) -> Walk {
        let last = machine.revision();
        let mut walk = Walk { drafts: Vec::new(), last, bytes: 0, is_full: false };
        let mut main = 0;
        for (scanned, changed) in machine.changes_since(next).enumerate() {
            let full = walk.drafts.len() >= EVENTS_MAX || walk.bytes >= BYTES_MAX;
            if changed.modified.main != main && (full || scanned >= SCAN_MAX) {
                walk.last = changed.modified.main - 1;
                walk.is_full = true;
                break;
            }
            main = changed.modified.main;
            if !filter.wants(changed) {
                continue;
            }
            let (item, mut previous) = match changed.is_delete && !filter.prev_kv {
                true => (None, None),
                false => machine.made_at(&changed.key, changed.modified),
            };
            let item = item.filter(|_| !changed.is_delete);
            // What came before is what was there before the revision, not inside of it.
            while let Some(within) = previous.as_ref().filter(|item| item.modified.main == main) {
                previous = machine.made_at(&changed.key, within.modified).1;
            }
            let previous = previous.filter(|_| filter.prev_kv);
            let draft =
                Draft { key: Bytes::copy_from_slice(&changed.key), modified: main, item, previous };
            walk.bytes +=
                draft.contents().map(Content::len).sum::<u64>() + changed.key.len() as u64;
            walk.drafts.push(draft);
        }
        walk
    }

    fn told(self, values: &Values) -> Told {
        let events = self.drafts.into_iter().map(|draft| draft.event(values)).collect();
        let Walk { last, bytes, is_full, .. } = self;
        Told { events: Arc::new(Events::new(events)), last, bytes, is_full }
    }
}

impl Watches {
    pub(super) fn new(seed: u64) -> Watches {
        Watches {
            streams: FxHashMap::default(),
            audience: Audience::new(seed),
            asking: BTreeSet::new(),
            shared: Shared::default(),
            watches: 0,
            made: 0,
            due: VecDeque::new(),
            seen_revision: 0,
            seen_compacted: None,
            progress_at: 0,
            retry_at: None,
        }
    }

    pub(super) fn open(&mut self, shared: Arc<StreamShared>, who: Who) {
        let stream = Stream {
            shared: shared.clone(),
            who,
            checking: false,
            watches: BTreeMap::new(),
            behind: VecDeque::new(),
            paused: Vec::new(),
            round: 0,
            next_id: 0,
            ready: VecDeque::new(),
            says_more: false,
            progress: 0,
            building: false,
            retry_at: 0,
        };
        self.streams.insert(shared.number, stream);
    }

    pub(super) fn are_watched(&self) -> bool {
        self.watches > 0
    }

    pub(super) fn has_news(&self) -> bool {
        !self.due.is_empty()
    }

    pub(super) fn deadline(&self) -> Option<Nanos> {
        let progress = (self.watches > 0).then_some(self.progress_at);
        [progress, self.retry_at].into_iter().flatten().min()
    }

    /// The node stops: streams end.
    pub(super) fn end(&mut self) {
        self.streams.values().for_each(|stream| stream.shared.end());
        self.streams.clear();
    }

    fn close(&mut self, number: u64) {
        self.asking.remove(&number);
        if let Some(stream) = self.streams.remove(&number) {
            self.watches -= stream.watches.len();
            for (id, watch) in &stream.watches {
                self.audience.remove(&watch.filter.span, (number, *id, watch.serial));
            }
            stream.shared.end();
        }
    }

    fn add(&mut self, number: u64, id: i64, mut watch: Watch) {
        self.audience.add(&watch.filter.span, (number, id, watch.serial));
        self.watches += 1;
        let stream = self.streams.get_mut(&number).expect("a watch is added to a stream");
        watch.settle(id, self.seen_revision, &mut stream.behind);
        stream.watches.insert(id, watch);
    }

    /// Takes a watch out, if it is there.
    fn remove(&mut self, number: u64, id: i64) -> Option<Watch> {
        let stream = self.streams.get_mut(&number)?;
        let watch = stream.watches.remove(&id)?;
        self.audience.remove(&watch.filter.span, (number, id, watch.serial));
        self.watches -= 1;
        Some(watch)
    }

    /// Ends a watch that needs what was compacted.
    fn compacted(&mut self, number: u64, id: i64, compact_revision: i64) {
        let next = self.remove(number, id).map_or(1, |watch| watch.next);
        let stream = self.streams.get_mut(&number).expect("the caller found it");
        let (revision, what) = (next as i64 - 1, WatchNews::Compacted { compact_revision });
        stream.ready.push_back(WatchResponse { revision, id, what });
    }

    /// Tells the audience of the changes since it was told last; how many spans and watches were
    /// looked at.
    fn see(&mut self, machine: &Machine) -> u64 {
        let (first, revision) = (self.seen_revision + 1, machine.revision());
        self.seen_revision = revision;
        let (mut looked, mut due, mut last) = (0, BTreeSet::new(), None);
        if machine.compact_revision().is_some_and(|compacted| compacted > first) {
            // Changes went before they were seen: every watch that may have missed one ends.
            for (number, stream) in &mut self.streams {
                looked += stream.watches.len() as u64;
                stream.all_from(first, revision);
                due.insert(*number);
            }
        }
        for changed in machine.changes_since(first).take_while(|_| self.watches > 0) {
            let main = changed.modified.main;
            looked += self.audience.of(&changed.key, &mut |&(number, id, _)| {
                let stream = self.streams.get_mut(&number).expect("a stream of the audience");
                let watch = stream.watches.get_mut(&id).expect("a watch of the audience");
                if watch.at_end && main >= watch.next && watch.filter.wants(changed) {
                    watch.next = main;
                    watch.settle(id, revision, &mut stream.behind);
                    // Watches of one stream stand together.
                    if last.replace(number) != Some(number) {
                        due.insert(number);
                    }
                }
            });
        }
        due.extend(&self.asking);
        self.due.extend(due);
        looked
    }

    fn list(&mut self, number: u64) {
        self.due.push_back(number);
    }

    fn list_all(&mut self) {
        let mut all: Vec<u64> = self.streams.keys().copied().collect();
        all.sort_unstable();
        self.due = all.into();
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// A stream has new commands, or room.
    pub(super) fn stream_says(&mut self, number: u64) {
        let Some(stream) = self.api.watches.streams.get(&number) else { return };
        if stream.shared.is_dropped() {
            return self.api.watches.close(number);
        }
        self.take_commands(number);
        self.api.watches.list(number);
    }

    /// Takes in what the client has said, as far as there is room for the answers.
    fn take_commands(&mut self, number: u64) {
        let mut commands = VecDeque::new();
        let is_checked = self.machine.auth().is_enabled();
        loop {
            let Some(stream) = self.api.watches.streams.get_mut(&number) else { return };
            if stream.checking {
                return;
            }
            let room = READY_MAX.saturating_sub(stream.ready.len());
            let most = if is_checked { room.min(1) } else { room };
            stream.says_more = stream.shared.take_commands(most, &mut commands);
            let again = is_checked && stream.says_more && most > 0;
            for command in commands.drain(..) {
                match command {
                    Command::Create(create) if is_checked => self.check_watch(number, create),
                    command => self.stream_command(number, command),
                }
            }
            if !again {
                return;
            }
        }
    }

    /// Creates a watch if its keys may be read, by the users and roles that every change completed before
    /// has left.
    fn check_watch(&mut self, number: u64, create: WatchCreate) {
        if let Some(stream) = self.api.watches.streams.get_mut(&number) {
            stream.checking = true;
        }
        self.at_pin(Box::new(move |node, pinned| {
            let Some(stream) = node.api.watches.streams.get_mut(&number) else { return };
            if pinned.is_err() {
                // Whether it is permitted is not known yet.
                let again = node.now + RETRY_NS;
                let job = move |node: &mut Node<L, D>| node.check_watch(number, create);
                return node.api.later(again, Box::new(job));
            }
            stream.checking = false;
            let who = stream.who.clone();
            let permit = node.machine_permit(&who);
            let allowed = permit.and_then(|permit| permit.read(&span(&create.keys)));
            match allowed {
                Ok(()) => node.stream_command(number, Command::Create(create)),
                Err(reason) => node.refuse_watch(number, reason),
            }
            node.take_commands(number);
            node.api.watches.list(number);
        }));
    }

    fn refuse_watch(&mut self, number: u64, reason: Refusal) {
        let revision = self.machine.revision() as i64;
        let Some(stream) = self.api.watches.streams.get_mut(&number) else { return };
        let what = WatchNews::Refused(WatchRefusal::Auth(reason));
        stream.ready.push_back(WatchResponse { revision, id: -1, what });
    }

    fn stream_command(&mut self, number: u64, command: Command) {
        let (revision, now) = (self.machine.revision(), self.now);
        let watches = &mut self.api.watches;
        let Some(stream) = watches.streams.get_mut(&number) else { return };
        let respond = |id, what| WatchResponse { revision: revision as i64, id, what };
        match command {
            Command::Create(create) => {
                let refusal = stream.refuses(&create);
                if let Some(refusal) = refusal {
                    return stream.ready.push_back(respond(-1, WatchNews::Refused(refusal)));
                }
                let id = stream.new_id(create.id);
                // A negative start is before everything.
                let start = match create.start_revision {
                    0 => 0,
                    asked => asked.max(1) as u64,
                };
                let next = if start == 0 { revision + 1 } else { start };
                watches.made += 1;
                let filter = Filter {
                    span: span(&create.keys),
                    no_put: create.no_put,
                    no_delete: create.no_delete,
                    prev_kv: create.prev_kv,
                };
                let watch = Watch {
                    serial: watches.made,
                    filter: Rc::new(filter),
                    next,
                    start,
                    at_end: true,
                    queued: false,
                    round: 0,
                    progress_notify: create.progress_notify,
                    told: now,
                };
                stream.ready.push_back(respond(id, WatchNews::Created));
                if watches.watches == 0 {
                    watches.progress_at = now + PROGRESS_NS;
                }
                watches.add(number, id, watch);
            }
            Command::Cancel(id) => {
                if watches.remove(number, id).is_some()
                    && let Some(stream) = watches.streams.get_mut(&number)
                {
                    stream.ready.push_back(respond(id, WatchNews::Cancelled));
                }
            }
            Command::Progress => {
                stream.progress += 1;
                watches.asking.insert(number);
            }
        }
    }

    /// Builds what streams can take; whether anything was done.
    pub(super) fn turn_watches(&mut self) -> bool {
        // What a restore brings is told when it is whole.
        if self.machine.is_restoring() {
            return false;
        }
        let (revision, compacted) = (self.machine.revision(), self.machine.compact_revision());
        let watches = &mut self.api.watches;
        if watches.retry_at.is_some_and(|at| at <= self.now) {
            watches.retry_at = None;
            watches.list_all();
        }
        if revision != watches.seen_revision {
            self.counts.watch_steps += watches.see(&self.machine);
        }
        if compacted != watches.seen_compacted {
            watches.seen_compacted = compacted;
            watches.list_all();
        }
        if watches.watches > 0 && self.now >= watches.progress_at {
            self.tell_progress();
        }
        let due = std::mem::take(&mut self.api.watches.due);
        let any = !due.is_empty();
        due.into_iter().for_each(|number| self.pump(number));
        any
    }

    /// PROGRESS on the interval, for watches that had nothing to tell.
    fn tell_progress(&mut self) {
        let (now, revision) = (self.now, self.machine.revision());
        let watches = &mut self.api.watches;
        watches.progress_at = now + PROGRESS_NS / 8;
        let has_room = |stream: &&mut Stream| !stream.building && stream.ready.len() < READY_MAX;
        for stream in watches.streams.values_mut().filter(has_room) {
            for (&id, watch) in &mut stream.watches {
                let quiet = watch.progress_notify && now >= watch.told + PROGRESS_NS;
                if quiet && watch.at_end && watch.start <= revision {
                    watch.told = now;
                    let (revision, what) = (revision as i64, WatchNews::Progress);
                    stream.ready.push_back(WatchResponse { revision, id, what });
                }
            }
        }
        watches.list_all();
    }

    /// Delivers and builds responses while the stream takes them.
    fn pump(&mut self, number: u64) {
        loop {
            let Some(stream) = self.api.watches.streams.get_mut(&number) else { return };
            if stream.building {
                return;
            }
            let Some(round) = stream.shared.room() else { return };
            if let Some(response) = stream.ready.pop_front() {
                stream.shared.deliver(response, 0);
                continue;
            }
            if stream.says_more && !stream.checking {
                // Others have their turn between.
                self.take_commands(number);
                return self.api.watches.list(number);
            }
            if self.now < stream.retry_at {
                return;
            }
            let revision = self.machine.revision();
            match stream.next_behind(round) {
                Behind::One(id) => {
                    self.counts.watch_steps += 1;
                    if !self.move_on(number, id, round) {
                        return;
                    }
                }
                Behind::ToldThisRound => {
                    if stream.shared.wait_for_round(round) {
                        return;
                    }
                }
                Behind::Nobody => {
                    if stream.progress == 0 {
                        self.api.watches.asking.remove(&number);
                        return;
                    }
                    let future = stream.watches.values().any(|watch| watch.start > revision);
                    if future || stream.watches.is_empty() {
                        return;
                    }
                    stream.progress -= 1;
                    let (revision, what) = (revision as i64, WatchNews::Progress);
                    stream.shared.deliver(WatchResponse { revision, id: -1, what }, 0);
                }
            }
        }
    }

    /// Moves a watch on; false if the stream must wait.
    fn move_on(&mut self, number: u64, id: i64, round: u64) -> bool {
        let compact_revision = self.compact_revision();
        let watches = &mut self.api.watches;
        let stream = watches.streams.get_mut(&number).expect("the caller found it");
        let watch = stream.watches.get_mut(&id).expect("the caller found it");
        if (watch.next as i64) < compact_revision {
            watches.compacted(number, id, compact_revision);
            return true;
        }
        let asked: Asked = (watch.next, watch.filter.clone());
        let who: Name = (number, id, watch.serial);
        match watches.shared.look(&asked, who, self.machine.revision()) {
            Look::Tell(told) => {
                stream.tell(id, told, round, self.now, watches.seen_revision);
                return true;
            }
            Look::Wait => {
                stream.building = true;
                return false;
            }
            Look::Build => {}
        }
        let walk = Walk::new(&self.machine, asked.0, &asked.1);
        if walk.drafts.is_empty() {
            watch.next = watch.next.max(walk.last + 1);
            watch.settle(id, watches.seen_revision, &mut stream.behind);
            if watch.at_end {
                return true;
            }
            // There was nothing in all that one walk looks at: others have their turn.
            stream.behind.rotate_left(1);
            watches.list(number);
            return false;
        }
        stream.building = true;
        watches.shared.begin(asked.clone(), who);
        let wanted: Vec<Content> = walk.drafts.iter().flat_map(Draft::contents).cloned().collect();
        self.gather(
            wanted.iter(),
            Box::new(move |node, gathered| {
                let told = gathered.map(|values| walk.told(&values));
                for who in node.api.watches.shared.end(&asked, told.as_ref().ok()) {
                    node.finish_response(who, told.clone());
                    node.api.watches.list(who.0);
                }
            }),
        );
        false
    }

    fn finish_response(&mut self, (number, id, serial): Name, told: Result<Told, Lost>) {
        let (now, compact_revision) = (self.now, self.compact_revision());
        let watches = &mut self.api.watches;
        let Some(stream) = watches.streams.get_mut(&number) else { return };
        stream.building = false;
        // It may have been cancelled meanwhile.
        let same = stream.watches.get_mut(&id).filter(|watch| watch.serial == serial);
        let Some(watch) = same else { return };
        match told {
            Ok(told) => {
                let round = stream.shared.round();
                // Before what became ready meanwhile: a cancellation of it removed the watch.
                stream.tell(id, told, round, now, watches.seen_revision);
            }
            Err(Lost::Failed(error @ Error::DataLoss(_))) => {
                let revision = watch.next as i64 - 1;
                let what = WatchNews::Failed(error);
                stream.ready.push_back(WatchResponse { revision, id, what });
                watches.remove(number, id);
            }
            // What it needs was compacted away, or will be known to be so.
            Err(Lost::Gone) if (watch.next as i64) < compact_revision => {
                watches.compacted(number, id, compact_revision);
            }
            Err(_) => {
                stream.retry_at = now + RETRY_NS;
                watches.retry_at = Some(now + RETRY_NS);
            }
        }
    }
}

/// Who has not looked at all changes.
enum Behind {
    One(i64),
    /// Only watches that have told something in this round.
    ToldThisRound,
    Nobody,
}

impl Stream {
    fn refuses(&self, create: &WatchCreate) -> Option<WatchRefusal> {
        if let Keys::Span { from, to: Some(to) } = &create.keys
            && from >= to
        {
            return Some(WatchRefusal::EmptyRange);
        }
        let taken = create.id != 0 && self.watches.contains_key(&create.id);
        taken.then_some(WatchRefusal::DuplicateId)
    }

    fn new_id(&mut self, asked: i64) -> i64 {
        if asked != 0 {
            return asked;
        }
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    /// A watch that is not at the end; they take turns.
    fn next_behind(&mut self, round: u64) -> Behind {
        self.enter(round);
        while let Some(&id) = self.behind.front() {
            match self.watches.get_mut(&id) {
                Some(watch) if watch.at_end => watch.queued = false,
                Some(watch) if watch.round == round => self.paused.push(id),
                Some(_) => return Behind::One(id),
                None => {}
            }
            self.behind.pop_front();
        }
        if self.paused.is_empty() { Behind::Nobody } else { Behind::ToldThisRound }
    }

    /// Who told something in the round before may tell more.
    fn enter(&mut self, round: u64) {
        if round != self.round {
            self.round = round;
            self.behind.extend(self.paused.drain(..));
        }
    }

    /// Moves the cursors of watches at the end to a revision, if they are not further.
    fn all_from(&mut self, first: u64, seen_revision: u64) {
        let at_end = self.watches.iter_mut().filter(|(_, watch)| watch.at_end);
        at_end.for_each(|(&id, watch)| {
            watch.next = watch.next.max(first);
            watch.settle(id, seen_revision, &mut self.behind);
        });
    }

    fn tell(&mut self, id: i64, told: Told, round: u64, now: Nanos, seen_revision: u64) {
        self.enter(round);
        let watch = self.watches.get_mut(&id).expect("the caller found it");
        let Told { events, last, bytes, .. } = told;
        (watch.next, watch.round, watch.told) = (last + 1, round, now);
        watch.settle(id, seen_revision, &mut self.behind);
        let (revision, what) = (last as i64, WatchNews::Events(events));
        self.shared.deliver(WatchResponse { revision, id, what }, bytes);
    }
}
