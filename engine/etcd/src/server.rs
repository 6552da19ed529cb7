//! The thread that talks to etcd's clients.
//!
//! Purpose: one port for gRPC, the JSON gateway and the pages, on a runtime and thread of its own,
//! so that the reactor never waits for a client.
//! Invariant: connections, the time to their first bytes, header sizes, streams of a connection and
//! bytes of requests under way are all bounded; a peer that is gone is noticed.

use crate::body::{Budget, Metered};
use crate::face::{Face, Settings};
use crate::gateway::Gateway;
use crate::http::Pages;
use crate::metrics::Metrics;
use crate::password::Passwords;
use crate::services::Services;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use racos_engine::api::Handle;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tonic::body::Body;
use tonic::codegen::Service;

/// Connections at once; more are closed at once.
const CONNECTIONS_MAX: i64 = 20_000;
/// Longest time to the first bytes of a connection, and to the end of a request's head.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// How often a silent peer is asked whether it is there, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(60);
const PING_PATIENCE: Duration = Duration::from_secs(20);
/// Calls under way on one connection.
const STREAMS_MAX: u32 = 4096;
/// What a client may send before it is taken: of one call, and of all of a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// What a client may send of one call before another's turn: a value of usual size comes in few pieces.
const FRAME_BYTES: u32 = 256 << 10;
const HEADER_BYTES_MAX: u32 = 64 << 10;
/// Requests under way may hold this many times the largest request, and at least `HELD_BYTES_MIN`.
const HELD_REQUESTS: usize = 8;
const HELD_BYTES_MIN: usize = 256 << 20;
/// What every HTTP/2 connection begins with.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Where and how to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub listen: SocketAddr,
    pub settings: Settings,
}

/// A port that is bound and not served yet: whether it is free is known before the node starts.
pub struct Bound {
    listener: TcpListener,
    settings: Settings,
}

impl Bound {
    /// # Errors
    /// The address is in use, or not one of this host's.
    pub fn new(options: Options) -> io::Result<Bound> {
        let listener = TcpListener::bind(options.listen)?;
        listener.set_nonblocking(true)?;
        Ok(Bound { listener, settings: options.settings })
    }

    /// Serves from a thread of its own until the server is dropped.
    ///
    /// # Errors
    /// The thread or its runtime cannot be started.
    pub fn serve(self, node: Handle) -> io::Result<Server> {
        if let Some(clients) = &self.settings.advertise {
            node.announce(clients);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("etcd-api".into()).spawn(move || {
            runtime.block_on(async {
                let accepting = tokio::spawn(accept(self.listener, self.settings, node));
                // An error means that the server was dropped, which is the word to stop too.
                let _ = stopped.await;
                accepting.abort();
            });
            // Connections end here, in the middle of what they do.
            runtime.shutdown_background();
        })?;
        Ok(Server { stop: Some(stop), thread: Some(thread) })
    }
}

/// A running server; it ends when this is dropped.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed already.
            let _ = thread.join();
        }
    }
}

/// What all connections share.
struct Shared {
    face: Face,
    services: Services,
    pages: Pages,
    budget: Arc<Budget>,
}

async fn accept(listener: TcpListener, settings: Settings, node: Handle) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("it is non-blocking");
    let bytes_max = (settings.request_bytes_max * HELD_REQUESTS).max(HELD_BYTES_MIN);
    let (settings, metrics) = (Arc::new(settings), Arc::new(Metrics::default()));
    let face = Face { node, settings, metrics, passwords: Passwords::default() };
    tokio::spawn(face.node.ringer());
    let services = Services::new(face.clone());
    let gateway = Gateway::new();
    let pages = Pages { face: face.clone(), services: services.clone(), gateway };
    let budget = Arc::new(Budget { held: AtomicUsize::new(0), bytes_max });
    let shared = Arc::new(Shared { face, services, pages, budget });
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: some come back when connections end.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let metrics = &shared.face.metrics;
        if metrics.connections.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            metrics.count(&metrics.connections_refused, 1);
            continue;
        }
        tokio::spawn(connection(stream, Counted::new(shared.clone())));
    }
}

/// A connection that is counted for as long as it lives.
struct Counted(Arc<Shared>);

impl Counted {
    fn new(shared: Arc<Shared>) -> Counted {
        shared.face.metrics.connections.fetch_add(1, Ordering::Relaxed);
        Counted(shared)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.face.metrics.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connection(mut stream: TcpStream, counted: Counted) {
    // Answers are small and waited for. Without it they are late, not wrong.
    let _ = stream.set_nodelay(true);
    let Ok(Some(first)) = timeout(HEAD_PATIENCE, first_bytes(&mut stream)).await else { return };
    let is_http2 = first == HTTP2_PREFACE;
    let io = TokioIo::new(Replay { first, taken: 0, stream });
    let shared = counted.0.clone();
    let service = service_fn(move |request| answer(shared.clone(), request));
    // An error is the end of a connection; nobody is left to be told.
    if is_http2 {
        let _ = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(PING_EVERY))
            .keep_alive_timeout(PING_PATIENCE)
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEADER_BYTES_MAX)
            .max_frame_size(FRAME_BYTES)
            .serve_connection(io, service)
            .await;
    } else {
        let _ = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_PATIENCE)
            .max_buf_size(HEADER_BYTES_MAX as usize)
            .serve_connection(io, service)
            .await;
    }
    drop(counted);
}

/// Reads until it is clear which HTTP is spoken: all of the preface of HTTP/2, or less that is not
/// the beginning of it. `None` if the peer ends before that.
async fn first_bytes(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut first = Vec::with_capacity(HTTP2_PREFACE.len());
    while first.len() < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(&first) {
        let missing = (HTTP2_PREFACE.len() - first.len()) as u64;
        if stream.take(missing).read_buf(&mut first).await.ok()? == 0 {
            return None;
        }
    }
    Some(first)
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let kind = request.headers().get(http::header::CONTENT_TYPE);
    let is_grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let is_stream = is_grpc && is_stream(request.uri().path());
    let (budget, metrics) = (shared.budget.clone(), shared.face.metrics.clone());
    let request = request.map(|body| Metered::new(body, budget, metrics, is_stream));
    if is_grpc {
        return shared.services.clone().call(request.map(Body::new)).await;
    }
    Ok(shared.pages.serve(request).await)
}

/// Methods whose requests need not come to an end.
fn is_stream(path: &str) -> bool {
    path == "/etcdserverpb.Watch/Watch"
        || path == "/etcdserverpb.Lease/LeaseKeepAlive"
        || path == "/racospb.Backup/Restore"
        || path.starts_with("/grpc.reflection.")
}

/// A connection whose first bytes have been read already.
struct Replay {
    first: Vec<u8>,
    taken: usize,
    stream: TcpStream,
}

impl AsyncRead for Replay {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.taken < this.first.len() {
            let rest = &this.first[this.taken..];
            let taken = rest.len().min(into.remaining());
            into.put_slice(&rest[..taken]);
            this.taken += taken;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Replay {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
