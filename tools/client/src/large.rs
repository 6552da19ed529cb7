//! Values of several stripes, stored and fetched as one.
//!
//! Invariant: a key shows a large value only once all its stripes are stored, by one operation that
//! names them all; what is fetched has exactly the bytes that this operation named.

use crate::core::ClientCore;
use crate::endpoints::Class;
use crate::error::ClientError;
use crate::op::{Answer, Route, Ticket};
use crate::pending::Origin;
use racos_buffer::{Buf, Slice};
use racos_engine::wire::client::{Request, put_stripes};
use racos_machine::{SessionId, Stamp, Value};
use racos_net::Link;

/// How often a fetch starts again because the value was replaced meanwhile.
const RESTARTS_MAX: u32 = 5;
/// Part number of the operation that names all parts, or that asks for their names.
const WHOLE: usize = usize::MAX;

enum Work {
    Put { value: Slice, stored: Vec<Option<Value>> },
    Get { revision: u64, stripes: Vec<Value>, buffer: Buf, restarts: u32 },
}

/// A large value on its way.
pub struct Job {
    number: u64,
    ticket: Ticket,
    key: Vec<u8>,
    route: Route,
    work: Work,
    /// Next part to begin, parts under way, parts and bytes done, bytes in all.
    next: usize,
    in_flight: usize,
    parts_done: usize,
    bytes_done: u64,
    bytes: u64,
}

/// The large values on their way.
#[derive(Default)]
pub struct Jobs {
    list: Vec<Job>,
    numbers: u64,
}

impl Jobs {
    fn add(&mut self, mut job: Job) -> u64 {
        self.numbers += 1;
        job.number = self.numbers;
        self.list.push(job);
        self.numbers
    }

    fn find(&mut self, number: u64) -> Option<&mut Job> {
        self.list.iter_mut().find(|job| job.number == number)
    }

    fn remove(&mut self, number: u64) -> Option<Job> {
        let place = self.list.iter().position(|job| job.number == number)?;
        Some(self.list.swap_remove(place))
    }

    /// Whether some parts of a value are stored that no key shows yet.
    pub fn any_stored(&self) -> bool {
        let is_put = |job: &Job| matches!(job.work, Work::Put { .. });
        self.list.iter().any(|job| is_put(job) && job.parts_done > 0)
    }

    pub fn remove_ticket(&mut self, ticket: Ticket) {
        self.list.retain(|job| job.ticket != ticket);
    }
}

impl Job {
    fn new(ticket: Ticket, key: Vec<u8>, route: Route, work: Work, bytes: u64) -> Job {
        Job {
            number: 0,
            ticket,
            key,
            route,
            work,
            next: 0,
            in_flight: 0,
            parts_done: 0,
            bytes_done: 0,
            bytes,
        }
    }

    fn parts(&self) -> usize {
        match &self.work {
            Work::Put { stored, .. } => stored.len(),
            Work::Get { stripes, .. } => stripes.len(),
        }
    }
}

impl<L: Link> ClientCore<L> {
    /// Bytes of a large value done, and in all.
    pub fn progress(&self, ticket: Ticket) -> Option<(u64, u64)> {
        let job = self.jobs.list.iter().find(|job| job.ticket == ticket)?;
        Some((job.bytes_done, job.bytes))
    }

    pub(crate) fn begin_large_put(
        &mut self,
        ticket: Ticket,
        key: Vec<u8>,
        value: Slice,
        route: Route,
        now_ns: u64,
    ) {
        let stored = vec![None; value.len().div_ceil(self.config.stripe_bytes)];
        let bytes = value.len() as u64;
        let job = Job::new(ticket, key, route, Work::Put { value, stored }, bytes);
        let number = self.jobs.add(job);
        self.job_pump(number, now_ns);
    }

    pub(crate) fn begin_large_get(
        &mut self,
        ticket: Ticket,
        key: Vec<u8>,
        revision: u64,
        stripes: Vec<Value>,
        route: Route,
        now_ns: u64,
    ) {
        match self.get_work(revision, stripes, 0) {
            Ok((work, bytes)) => {
                let number = self.jobs.add(Job::new(ticket, key, route, work, bytes));
                self.job_pump(number, now_ns);
            }
            Err(error) => self.finish(ticket, 0, Err(error), key, Slice::empty()),
        }
    }

    fn get_work(
        &self,
        revision: u64,
        stripes: Vec<Value>,
        restarts: u32,
    ) -> Result<(Work, u64), ClientError> {
        let bytes: u64 = stripes.iter().map(|stripe| u64::from(stripe.len)).sum();
        let buffer = usize::try_from(bytes).ok().and_then(|bytes| self.pool.get(bytes));
        let Some(buffer) = buffer else {
            let text =
                format!("a value of {bytes} bytes: fetch it in pieces, there is no room here");
            return Err(ClientError::Limit { text });
        };
        Ok((Work::Get { revision, stripes, buffer, restarts }, bytes))
    }

    /// Begins parts until enough are under way, and the last step when all are done.
    fn job_pump(&mut self, number: u64, now_ns: u64) {
        loop {
            let stripe_bytes = self.config.stripe_bytes;
            let in_flight_max = self.config.stripes_in_flight_max.max(1);
            let Some(job) = self.jobs.find(number) else { return };
            if job.parts_done == job.parts() {
                return self.job_close(number, now_ns);
            }
            if job.next == job.parts() || job.in_flight >= in_flight_max {
                return;
            }
            let part = job.next;
            job.next += 1;
            job.in_flight += 1;
            let (request, body) = match &job.work {
                Work::Put { value, .. } => {
                    let from = part * stripe_bytes;
                    let body = value.slice(from..value.len().min(from + stripe_bytes));
                    (Request::Part { stamp: unstamped() }, body)
                }
                Work::Get { stripes, .. } => {
                    (Request::GetStripe { value: stripes[part] }, Slice::empty())
                }
            };
            let (ticket, route) = (job.ticket, job.route);
            let origin = Origin::Job { job: number, part };
            self.start(ticket, origin, request, body, Class::Large, route, now_ns);
        }
    }

    /// All parts are there.
    fn job_close(&mut self, number: u64, now_ns: u64) {
        let job = self.jobs.find(number).expect("the caller has found it");
        if let Work::Put { stored, .. } = &job.work {
            let stripes: Vec<Value> = stored.iter().flatten().copied().collect();
            let mut body = Vec::new();
            put_stripes(&mut body, &stripes);
            job.parts_done = WHOLE;
            let request = Request::PutStripes { stamp: unstamped(), key: job.key.clone() };
            let (ticket, route) = (job.ticket, job.route);
            let origin = Origin::Job { job: number, part: WHOLE };
            match self.pool.copy(&body) {
                Some(body) => {
                    self.start(ticket, origin, request, body, Class::Large, route, now_ns);
                }
                None => self.job_fail(number, no_buffers()),
            }
            return;
        }
        let job = self.jobs.remove(number).expect("the caller has found it");
        if let Work::Get { revision, buffer, .. } = job.work {
            let answer = Answer::Value { revision, bytes: buffer.freeze() };
            self.finish(job.ticket, 0, Ok(answer), job.key, Slice::empty());
        }
    }

    /// An operation of a job is over.
    pub(crate) fn job_step(
        &mut self,
        number: u64,
        part: usize,
        result: Result<Answer, ClientError>,
        now_ns: u64,
    ) {
        let stripe_bytes = self.config.stripe_bytes;
        let Some(job) = self.jobs.find(number) else { return };
        job.in_flight = job.in_flight.saturating_sub(1);
        match (&mut job.work, result) {
            (Work::Put { value, stored }, Ok(Answer::Stored { value: stripe })) => {
                let from = part * stripe_bytes;
                let len = value.len().min(from + stripe_bytes) - from;
                if stripe.len as usize != len {
                    let text = format!("stored {} bytes of a stripe of {len}", stripe.len);
                    return self.job_fail(number, ClientError::BadAnswer { text });
                }
                stored[part] = Some(stripe);
                job.parts_done += 1;
                job.bytes_done += len as u64;
                self.job_pump(number, now_ns);
            }
            (Work::Put { .. }, Ok(done @ Answer::Done { .. })) => {
                let job = self.jobs.remove(number).expect("found above");
                let Work::Put { value, .. } = job.work else { unreachable!("matched above") };
                self.finish(job.ticket, 0, Ok(done), job.key, value);
            }
            (Work::Get { .. }, Ok(whole @ (Answer::Value { .. } | Answer::NotFound)))
                if part == WHOLE =>
            {
                let job = self.jobs.remove(number).expect("found above");
                self.finish(job.ticket, 0, Ok(whole), job.key, Slice::empty());
            }
            (Work::Get { stripes, buffer, .. }, Ok(Answer::Value { bytes, .. })) => {
                let from: usize = stripes[..part].iter().map(|stripe| stripe.len as usize).sum();
                buffer[from..from + bytes.len()].copy_from_slice(&bytes);
                job.parts_done += 1;
                job.bytes_done += bytes.len() as u64;
                self.job_pump(number, now_ns);
            }
            (Work::Get { .. }, Ok(Answer::NotFound)) => self.job_restart(number, now_ns),
            (Work::Get { restarts, .. }, Ok(Answer::Stripes { revision, stripes })) => {
                let restarts = *restarts;
                let (ticket, route, key) = (job.ticket, job.route, std::mem::take(&mut job.key));
                self.jobs.remove(number);
                match self.get_work(revision, stripes, restarts) {
                    Ok((work, bytes)) => {
                        let number = self.jobs.add(Job::new(ticket, key, route, work, bytes));
                        self.job_pump(number, now_ns);
                    }
                    Err(error) => self.finish(ticket, 0, Err(error), key, Slice::empty()),
                }
            }
            (_, Ok(answer)) => {
                let text = format!("{answer:?} to a part of a large value");
                self.job_fail(number, ClientError::BadAnswer { text });
            }
            (_, Err(error)) => self.job_fail(number, error),
        }
    }

    /// A stripe is gone: the value was replaced after it was described. Asks for the new one.
    fn job_restart(&mut self, number: u64, now_ns: u64) {
        self.drop_parts(number);
        let job = self.jobs.find(number).expect("the caller has found it");
        let Work::Get { restarts, .. } = &mut job.work else {
            unreachable!("only fetches restart")
        };
        *restarts += 1;
        if *restarts > RESTARTS_MAX {
            let text = format!("the value was replaced {RESTARTS_MAX} times while it was fetched");
            return self.job_fail(number, ClientError::Refused { text });
        }
        let request = Request::Get { key: job.key.clone() };
        let (ticket, route) = (job.ticket, job.route);
        let origin = Origin::Job { job: number, part: WHOLE };
        self.start(ticket, origin, request, Slice::empty(), Class::Large, route, now_ns);
    }

    fn job_fail(&mut self, number: u64, error: ClientError) {
        self.drop_parts(number);
        let Some(job) = self.jobs.remove(number) else { return };
        let value = match job.work {
            Work::Put { value, .. } => value,
            Work::Get { .. } => Slice::empty(),
        };
        self.finish(job.ticket, 0, Err(error), job.key, value);
    }

    fn drop_parts(&mut self, number: u64) {
        let is_part = |origin: Origin| matches!(origin, Origin::Job { job, .. } if job == number);
        let places = self.table.iter().filter(|(_, pending)| is_part(pending.origin));
        let places: Vec<_> = places.map(|(place, _)| place).collect();
        places.into_iter().for_each(|place| self.drop_pending(place));
    }
}

fn unstamped() -> Stamp {
    Stamp { session: SessionId::default(), sequence: 0, low: 0 }
}

fn no_buffers() -> ClientError {
    ClientError::Limit { text: "every buffer of this client is in use: wait, or give more".into() }
}
