//! Simulated clients: the shipped client core, what it is asked to do, and what came of it.
//!
//! Invariant: every operation is written down when it is submitted and once more when it ends; what
//! a client is told is compared with what nodes have executed.

use crate::content::{Contents, KeyId};
use crate::net::SimLink;
use crate::oracle::{Change, Oracle};
use crate::plan::WorkPlan;
use crate::rng::Rng;
use racos_buffer::Pool;
use racos_client::{Answer, ClientConfig, ClientCore, ClientError, Completion, Op, Route, Ticket};
use racos_linear::{History, Operation, Outcome};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// What a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Put {
        key: KeyId,
        number: u64,
    },
    Delete {
        key: KeyId,
    },
    Get {
        key: KeyId,
    },
    /// All keys of the family of this one.
    List {
        key: KeyId,
    },
}

/// One operation, from submission to end.
#[derive(Debug, Clone)]
struct Deed {
    client: u64,
    what: What,
    /// Where a list ended that did not show the whole family.
    list_end: Option<Vec<u8>>,
    invoked_ns: u64,
    responded_ns: Option<u64>,
    outcome: Outcome,
}

/// Everything that clients asked and were told.
#[derive(Default)]
pub struct Book {
    deeds: Vec<Deed>,
    /// Operations that succeeded, by kind, and that failed.
    pub puts: u64,
    pub gets: u64,
    pub deletes: u64,
    pub lists: u64,
    pub failed: u64,
}

impl Book {
    pub fn invoke(&mut self, client: u64, what: What, now_ns: u64) -> usize {
        let outcome = Outcome::Unknown;
        let (list_end, responded_ns) = (None, None);
        self.deeds.push(Deed { client, what, list_end, invoked_ns: now_ns, responded_ns, outcome });
        self.deeds.len() - 1
    }

    pub fn what(&self, deed: usize) -> What {
        self.deeds[deed].what
    }

    pub fn invoked_ns(&self, deed: usize) -> u64 {
        self.deeds[deed].invoked_ns
    }

    /// Operations submitted so far.
    pub fn deeds(&self) -> usize {
        self.deeds.len()
    }

    /// Operations that succeeded.
    pub fn done(&self) -> u64 {
        self.puts + self.gets + self.deletes + self.lists
    }

    /// Notes the end of an operation.
    ///
    /// # Errors
    /// What the client was told that cannot be true.
    pub fn respond(
        &mut self,
        deed: usize,
        result: &Result<Answer, ClientError>,
        now_ns: u64,
        oracle: &Oracle,
        contents: &Contents,
    ) -> Result<(), String> {
        let what = self.deeds[deed].what;
        let outcome = match result {
            Ok(answer) => self.judge(deed, answer, oracle, contents)?,
            Err(error) => {
                self.failed += 1;
                judge_error(what, error, contents)?
            }
        };
        let deed = &mut self.deeds[deed];
        deed.outcome = outcome;
        deed.responded_ns = Some(now_ns);
        Ok(())
    }

    fn judge(
        &mut self,
        deed: usize,
        answer: &Answer,
        oracle: &Oracle,
        contents: &Contents,
    ) -> Result<Outcome, String> {
        let what = self.deeds[deed].what;
        match (what, answer) {
            (What::Put { key, number }, Answer::Done { revision, .. }) => {
                self.puts += 1;
                let change = Change { key, put: Some(number) };
                expect(oracle, *revision, change, "acknowledged", contents)?;
                Ok(Outcome::Done)
            }
            (What::Delete { key }, Answer::Done { revision, changes }) => {
                self.deletes += 1;
                if *changes > 0 {
                    let change = Change { key, put: None };
                    expect(oracle, *revision, change, "acknowledged", contents)?;
                }
                Ok(Outcome::Done)
            }
            (What::Get { .. }, Answer::NotFound) => {
                self.gets += 1;
                Ok(Outcome::Found(None))
            }
            (What::Get { key }, Answer::Value { revision, bytes }) => {
                self.gets += 1;
                // PROTOCOL 8.1-n: bytes that somebody wrote under this key, whole.
                let Some(number) = contents.recognise(key, bytes) else {
                    let (name, len) = (contents.name(key), bytes.len());
                    return Err(format!("a get of {name} brought {len} bytes that no put wrote"));
                };
                let change = Change { key, put: Some(number) };
                expect(oracle, *revision, change, "read", contents)?;
                Ok(Outcome::Found(Some(number)))
            }
            (What::List { key }, Answer::Keys { entries, more }) => {
                self.lists += 1;
                let mut found = Vec::with_capacity(entries.len());
                for entry in entries {
                    let id = contents.key_id(&entry.key);
                    let change = oracle.change(entry.revision);
                    match (id, change) {
                        (Some(id), Some(Change { key, put: Some(number) })) if key == id => {
                            found.push((entry.key.clone(), number));
                        }
                        _ => {
                            return Err(format!(
                                "a list shows {:?} at revision {}, which made {change:?}",
                                String::from_utf8_lossy(&entry.key),
                                entry.revision
                            ));
                        }
                    }
                }
                if *more {
                    let end = found.last().map_or(contents.family(key).0, |(last, _)| {
                        let mut end = last.clone();
                        end.push(0);
                        end
                    });
                    self.deeds[deed].list_end = Some(end);
                }
                Ok(Outcome::FoundRange(found))
            }
            (what, answer) => Err(format!("{answer:?} in answer to {what:?}")),
        }
    }

    /// The history as the checker reads it.
    pub fn history(&self, contents: &Contents) -> History {
        let mut history = History::new();
        for deed in &self.deeds {
            let named = |key: KeyId| contents.key(key).to_vec();
            let operation = match deed.what {
                What::Put { key, number } => Operation::Put { key: named(key), value: number },
                What::Delete { key } => Operation::Delete { key: named(key) },
                What::Get { key } => Operation::Get { key: named(key) },
                What::List { key } => {
                    let (from, to) = contents.family(key);
                    Operation::RangeRead { from, to: Some(deed.list_end.clone().unwrap_or(to)) }
                }
            };
            let id = history.invoke(deed.client, operation, deed.invoked_ns);
            if let Some(responded_ns) = deed.responded_ns {
                history.respond(id, deed.outcome.clone(), responded_ns);
            }
        }
        history
    }

    /// What the gets from this operation on found.
    pub fn gets_since(&self, start: usize) -> impl Iterator<Item = (KeyId, &Outcome)> {
        self.deeds[start..].iter().filter_map(|deed| match deed.what {
            What::Get { key } => Some((key, &deed.outcome)),
            _ => None,
        })
    }
}

fn expect(
    oracle: &Oracle,
    revision: u64,
    change: Change,
    how: &str,
    contents: &Contents,
) -> Result<(), String> {
    let made = oracle.change(revision);
    if made == Some(change) {
        return Ok(());
    }
    let name = contents.name(change.key);
    Err(format!("{name}: {:?} was {how} at revision {revision}, which made {made:?}", change.put))
}

fn judge_error(what: What, error: &ClientError, contents: &Contents) -> Result<Outcome, String> {
    let is_read = matches!(what, What::Get { .. } | What::List { .. });
    match error {
        ClientError::DataLoss { .. }
        | ClientError::BadAnswer { .. }
        | ClientError::Refused { .. }
        | ClientError::Limit { .. }
        | ClientError::Io { .. } => {
            let (What::Put { key, .. }
            | What::Delete { key }
            | What::Get { key }
            | What::List { key }) = what;
            Err(format!("{what:?} of {} was answered: {error}", contents.name(key)))
        }
        error if is_read || error.may_have_happened() => Ok(Outcome::Unknown),
        _ => Ok(Outcome::Never),
    }
}

/// One client process.
pub struct SimClient {
    pub endpoint: usize,
    /// Where it was told that the nodes are.
    pub known: Vec<SocketAddr>,
    pub wake_ns: Option<u64>,
    pub is_issuing: bool,
    pub issued: usize,
    id: u64,
    core: ClientCore<SimLink>,
    pool: Pool,
    rng: Rng,
    under_way: BTreeMap<Ticket, usize>,
    next_issue_ns: u64,
    completions: Vec<Completion>,
}

impl SimClient {
    pub fn new(
        link: SimLink,
        endpoint: usize,
        known: Vec<SocketAddr>,
        pool: Pool,
        config: ClientConfig,
        rng: Rng,
    ) -> SimClient {
        SimClient {
            endpoint,
            known,
            wake_ns: None,
            is_issuing: false,
            issued: 0,
            id: config.client,
            core: ClientCore::new(link, pool.clone(), config),
            pool,
            rng,
            under_way: BTreeMap::new(),
            next_issue_ns: 0,
            completions: Vec::new(),
        }
    }

    pub fn outstanding(&self) -> usize {
        self.under_way.len()
    }

    /// When each of the operations without an answer was submitted.
    pub fn open_since(&self, book: &Book) -> impl Iterator<Item = u64> {
        self.under_way.values().map(|deed| book.invoked_ns(*deed))
    }

    pub fn link(&self) -> &SimLink {
        self.core.link()
    }

    /// One turn. Each operation that ended is given to `ended` with its number in the book.
    pub fn poll(
        &mut self,
        now_ns: u64,
        mut ended: impl FnMut(usize, Completion) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut completions = std::mem::take(&mut self.completions);
        self.core.poll(now_ns, &mut completions);
        for completion in completions.drain(..) {
            let Some(deed) = self.under_way.remove(&completion.ticket) else {
                return Err(format!("{:?} completed twice, or was never asked", completion.ticket));
            };
            ended(deed, completion)?;
        }
        self.completions = completions;
        Ok(())
    }

    /// When to poll again though nothing arrives.
    pub fn deadline_ns(&self) -> Option<u64> {
        let issue = self.is_issuing.then_some(self.next_issue_ns);
        [issue, self.core.deadline()].into_iter().flatten().min()
    }

    /// Submits what has become due by the plan.
    pub fn issue(
        &mut self,
        now_ns: u64,
        plan: &WorkPlan,
        most: usize,
        book: &mut Book,
        contents: &mut Contents,
    ) {
        if !self.is_issuing || now_ns < self.next_issue_ns {
            return;
        }
        self.next_issue_ns = now_ns + self.rng.exponential(plan.think_ns_mean);
        if self.under_way.len() < plan.outstanding_max {
            let (what, value) = draw(&mut self.rng, plan, most, contents);
            self.submit(what, value, Route::Any, now_ns, book, contents);
            self.issued += 1;
        }
        self.core.flush(now_ns);
    }

    /// Submits one operation.
    pub fn submit(
        &mut self,
        what: What,
        value: Vec<u8>,
        route: Route,
        now_ns: u64,
        book: &mut Book,
        contents: &Contents,
    ) {
        let named = |key: KeyId| contents.key(key).to_vec();
        let op = match what {
            What::Put { key, .. } => {
                let value = self.pool.copy(&value).expect("the clients' pool is large enough");
                Op::Put { key: named(key), value }
            }
            What::Delete { key } => Op::Delete { key: named(key) },
            What::Get { key } => Op::Get { key: named(key) },
            What::List { key } => {
                let (from, to) = contents.family(key);
                Op::List { from, to: Some(to), limit: 1 + self.rng.below(40) as u32 }
            }
        };
        let deed = book.invoke(self.id, what, now_ns);
        let ticket = self.core.submit(op, route, now_ns);
        self.under_way.insert(ticket, deed);
    }
}

/// The next operation of the mix. `most`: bytes of the largest value of one request.
fn draw(rng: &mut Rng, plan: &WorkPlan, most: usize, contents: &mut Contents) -> (What, Vec<u8>) {
    let key = match rng.chance(plan.hot_ppm) {
        true => 0,
        false => rng.below(contents.keys() as u64) as usize,
    };
    let at = rng.below(1_000_000) as u32;
    let shares = [plan.get_ppm, plan.delete_ppm, plan.list_ppm];
    let sums: Vec<u32> = shares
        .iter()
        .scan(0, |sum, share| {
            *sum += share;
            Some(*sum)
        })
        .collect();
    if at < sums[0] {
        return (What::Get { key }, Vec::new());
    } else if at < sums[1] {
        return (What::Delete { key }, Vec::new());
    } else if at < sums[2] {
        return (What::List { key }, Vec::new());
    }
    let len = if rng.chance(plan.striped_ppm) {
        rng.between(most as u64 + 1, (most as u64 * 4).max(200 << 10))
    } else if rng.chance(plan.large_ppm) {
        rng.between(32 << 10, most as u64)
    } else {
        match rng.below(8) {
            0 => rng.below(9),
            1..=3 => rng.between(9, 200),
            4..=6 => rng.between(200, 4_000),
            _ => rng.between(4_000, 32 << 10),
        }
    };
    let (number, value) = contents.new_put(key, len as usize);
    (What::Put { key, number }, value)
}
