//! Clients and watchers over etcd's API, in one thread.

use super::Measured;
use crate::bench::worker::{Phase, Shared, Values, histogram, write_key};
use crate::bench::{BenchArgs, Kind};
use crate::exit::{Failure, failed, usage};
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use racos_etcd::pb::etcdserverpb as pb;
use racos_etcd::pb::etcdserverpb::kv_client::KvClient;
use racos_etcd::pb::etcdserverpb::watch_client::WatchClient;
use racos_etcd::pb::etcdserverpb::watch_request::RequestUnion;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// Connections that the clients share, at most.
const CONNECTIONS_MAX: usize = 16;
/// Watches of one stream.
const WATCHES_PER_STREAM: u32 = 100;
const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// How long events may still arrive after the last put.
const EVENT_PATIENCE: Duration = Duration::from_secs(30);
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// What all tasks of the thread share.
struct Common {
    shared: Arc<Shared>,
    values: Values,
    keys: u32,
    kind: Kind,
    read_percent: u32,
    /// Puts a second of all clients, if the rate is given.
    every: Option<Duration>,
    tally: RefCell<Tally>,
}

struct Tally {
    latency_ns: Histogram<u64>,
    delivery_ns: Histogram<u64>,
    done: u64,
    errors: u64,
    first_error: Option<String>,
    events: u64,
    /// When the put of a revision began; of revisions that are not known yet, by value number.
    begun: BTreeMap<u64, Instant>,
    puts: u64,
}

pub async fn measure(
    args: &BenchArgs,
    endpoints: &[String],
    shared: Arc<Shared>,
    stop: &AtomicBool,
    bar: &ProgressBar,
) -> Result<Measured, Failure> {
    let channels = connect(endpoints, args.clients as usize).await?;
    let rate = args.rate.map(|rate| Duration::from_secs_f64(f64::from(args.clients) / rate));
    let common = Rc::new(Common {
        shared: shared.clone(),
        values: Values::new(args.value_size as usize),
        keys: args.keys,
        kind: args.op,
        read_percent: args.read_percent,
        every: rate,
        tally: RefCell::new(Tally::new()),
    });
    if args.op != Kind::Put {
        preload(&common, &channels, bar).await?;
    }
    let watchers = watch_all(&common, &channels, args.watchers).await?;
    let clients: Vec<_> = (0..args.clients as usize)
        .map(|at| spawn_local(client(common.clone(), channels[at % channels.len()].clone(), at)))
        .collect();
    pause(args.warm, "warming up", &shared, stop, bar).await?;
    shared.set_phase(Phase::Measured);
    let since = Instant::now();
    let outcome = pause(args.seconds, "measuring", &shared, stop, bar).await;
    let seconds = since.elapsed().as_secs_f64();
    shared.set_phase(Phase::Over);
    for client in clients {
        client.await.map_err(|error| failed(format!("a client broke off: {error}")))?;
    }
    outcome?;
    let expected = common.tally.borrow().puts * u64::from(args.watchers);
    let arriving = async {
        while common.tally.borrow().events < expected {
            sleep(Duration::from_millis(5)).await;
        }
    };
    // Too few events are told as such.
    let _ = timeout(EVENT_PATIENCE, arriving).await;
    watchers.iter().for_each(JoinHandle::abort);
    let tally = common.tally.replace(Tally::new());
    Ok(Measured {
        seconds,
        latency_ns: tally.latency_ns,
        done: tally.done,
        errors: tally.errors,
        first_error: tally.first_error,
        delivery_ns: tally.delivery_ns,
        events: tally.events,
        events_expected: expected,
    })
}

async fn connect(endpoints: &[String], clients: usize) -> Result<Vec<Channel>, Failure> {
    let count = clients.clamp(endpoints.len(), CONNECTIONS_MAX.max(endpoints.len()));
    let mut channels = Vec::new();
    for at in 0..count {
        let named = &endpoints[at % endpoints.len()];
        let url = if named.contains("://") { named.clone() } else { format!("http://{named}") };
        let endpoint = Endpoint::from_shared(url)
            .map_err(|error| usage(format!("--endpoint {named}: {error}")))?
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .tcp_nodelay(true);
        let channel = endpoint.connect().await;
        channels.push(channel.map_err(|error| failed(format!("{named}: {error}")))?);
    }
    Ok(channels)
}

fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

async fn pause(
    seconds: f64,
    what: &str,
    shared: &Shared,
    stop: &AtomicBool,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let since = Instant::now();
    let mut done = shared.done();
    while since.elapsed().as_secs_f64() < seconds {
        let left = Duration::from_secs_f64((seconds - since.elapsed().as_secs_f64()).max(0.0));
        let step = left.min(PROGRESS_EVERY);
        sleep(step).await;
        if stop.load(Ordering::Relaxed) {
            return Err(failed("stopped"));
        }
        let rate = (shared.done() - done) as f64 / step.as_secs_f64().max(0.001);
        done = shared.done();
        bar.set_message(format!("{what}: {rate:.0} ops/s"));
    }
    Ok(())
}

async fn preload(
    common: &Rc<Common>,
    channels: &[Channel],
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let next = Rc::new(Cell::new(0));
    bar.set_length(u64::from(common.keys));
    let tasks: Vec<_> = channels
        .iter()
        .map(|channel| {
            let (common, next, mut kv) = (common.clone(), next.clone(), kv(channel.clone()));
            let bar = bar.clone();
            spawn_local(async move {
                while next.get() < common.keys {
                    let key = next.replace(next.get() + 1);
                    let value = common.values.bytes(key).into();
                    let put = pb::PutRequest { key: name(key).into(), value, ..Default::default() };
                    kv.put(put).await?;
                    bar.set_position(u64::from(key));
                }
                Ok::<(), tonic::Status>(())
            })
        })
        .collect();
    for task in tasks {
        let stored = task.await.map_err(|error| failed(error.to_string()))?;
        stored.map_err(|status| failed(format!("keys cannot be stored: {status}")))?;
    }
    Ok(())
}

fn name(key: u32) -> Vec<u8> {
    let mut name = Vec::new();
    write_key(&mut name, key);
    name
}

/// One client of the closed loop, or of a given rate.
async fn client(common: Rc<Common>, channel: Channel, at: usize) {
    let mut kv = kv(channel);
    let mut random = (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut draw = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    };
    let mut ticks = common.every.map(interval);
    while common.shared.phase() != Phase::Over {
        if let Some(ticks) = &mut ticks {
            ticks.tick().await;
        }
        let key = (draw() % u64::from(common.keys)) as u32;
        let is_read = match common.kind {
            Kind::Put => false,
            Kind::Get => true,
            Kind::Mix => draw() % 100 < u64::from(common.read_percent),
        };
        let begun = Instant::now();
        let outcome = match is_read {
            true => get(&common, &mut kv, key).await,
            false => put(&common, &mut kv, key, begun).await,
        };
        common.tally.borrow_mut().end(&common.shared, outcome, begun);
    }
}

async fn get(common: &Common, kv: &mut KvClient<Channel>, key: u32) -> Result<(), String> {
    let asked = pb::RangeRequest { key: name(key).into(), ..Default::default() };
    let answer = kv.range(asked).await.map_err(|status| status.to_string())?.into_inner();
    match answer.kvs.first() {
        Some(found) => common.values.check(&found.value, key),
        None => Err(format!("key {key}: not there")),
    }
}

async fn put(
    common: &Common,
    kv: &mut KvClient<Channel>,
    key: u32,
    begun: Instant,
) -> Result<(), String> {
    let value = common.values.bytes(key).into();
    let asked = pb::PutRequest { key: name(key).into(), value, ..Default::default() };
    let answer = kv.put(asked).await.map_err(|status| status.to_string())?.into_inner();
    let revision = answer.header.map_or(0, |header| header.revision);
    let mut tally = common.tally.borrow_mut();
    tally.puts += 1;
    tally.begun.insert(revision as u64, begun);
    // Watchers are not that far behind, or the figure says so anyway.
    if tally.begun.len() > 1 << 16 {
        tally.begun.pop_first();
    }
    Ok(())
}

impl Tally {
    fn new() -> Tally {
        Tally {
            latency_ns: histogram(),
            delivery_ns: histogram(),
            done: 0,
            errors: 0,
            first_error: None,
            events: 0,
            begun: BTreeMap::new(),
            puts: 0,
        }
    }

    fn end(&mut self, shared: &Shared, outcome: Result<(), String>, begun: Instant) {
        match outcome {
            Err(text) => {
                self.errors += 1;
                self.first_error.get_or_insert(text);
            }
            Ok(()) => {
                shared.count(1);
                if shared.phase() == Phase::Measured {
                    self.done += 1;
                    self.latency_ns.saturating_record(begun.elapsed().as_nanos() as u64);
                }
            }
        }
    }
}

/// Opens all watches of the whole key prefix; a task for each stream counts what arrives.
async fn watch_all(
    common: &Rc<Common>,
    channels: &[Channel],
    watchers: u32,
) -> Result<Vec<JoinHandle<()>>, Failure> {
    let mut tasks = Vec::new();
    let streams = watchers.div_ceil(WATCHES_PER_STREAM);
    for stream in 0..streams {
        let count = (watchers - stream * WATCHES_PER_STREAM).min(WATCHES_PER_STREAM);
        let (sender, receiver) = tokio::sync::mpsc::channel(count as usize);
        for _ in 0..count {
            let create = pb::WatchCreateRequest {
                key: "bench/".into(),
                range_end: "bench0".into(),
                ..Default::default()
            };
            let request_union = Some(RequestUnion::CreateRequest(create));
            let sent = sender.send(pb::WatchRequest { request_union }).await;
            sent.map_err(|_| failed("a watch stream ended"))?;
        }
        let channel = channels[stream as usize % channels.len()].clone();
        let mut client = WatchClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let failure = |status: tonic::Status| failed(format!("watches cannot be made: {status}"));
        let mut answers =
            client.watch(ReceiverStream::new(receiver)).await.map_err(failure)?.into_inner();
        let mut created = 0;
        while created < count {
            let answer = answers.message().await.map_err(failure)?;
            created += u32::from(answer.is_some_and(|answer| answer.created));
        }
        let common = common.clone();
        tasks.push(spawn_local(async move {
            // Held, so that the server does not think that the client is gone.
            let _sender = sender;
            while let Ok(Some(answer)) = answers.message().await {
                let mut tally = common.tally.borrow_mut();
                for event in answer.events {
                    tally.events += 1;
                    let revision = event.kv.map_or(0, |kv| kv.mod_revision as u64);
                    // An event that comes before the answer to its put took no longer than that.
                    let Some(begun) = tally.begun.get(&revision).copied() else { continue };
                    tally.delivery_ns.saturating_record(begun.elapsed().as_nanos() as u64);
                }
            }
        }));
    }
    Ok(tasks)
}
