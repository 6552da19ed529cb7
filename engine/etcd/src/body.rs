//! Bodies of requests, counted while they are held.
//!
//! Invariant: the bytes of all requests that are being received at a node stay below
//! [`Budget::bytes_max`]; a request that would exceed it is refused. A body that must end does not
//! keep its bytes for ever: between two of its pieces no more than [`PIECE_PATIENCE`] may pass.

use crate::errors::{TOO_MANY_REQUESTS, known};
use crate::metrics::Metrics;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Sleep, sleep};
use tonic::Status;

/// Longest time between two pieces of a body that must end.
pub const PIECE_PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of requests under way.
pub struct Budget {
    pub held: AtomicUsize,
    pub bytes_max: usize,
}

/// A body whose bytes are counted until it is dropped.
pub struct Metered {
    body: Incoming,
    budget: Arc<Budget>,
    metrics: Arc<Metrics>,
    bytes: usize,
    /// Streams may stay silent as long as they like.
    is_stream: bool,
    patience: Option<Pin<Box<Sleep>>>,
}

impl Metered {
    pub fn new(
        body: Incoming,
        budget: Arc<Budget>,
        metrics: Arc<Metrics>,
        is_stream: bool,
    ) -> Metered {
        Metered { body, budget, metrics, bytes: 0, is_stream, patience: None }
    }

    /// A stream's pieces are gone when the next is taken, a single request's are kept.
    fn take(&mut self, bytes: usize) -> Result<(), Status> {
        if self.is_stream {
            self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
            self.bytes = 0;
        }
        self.bytes += bytes;
        self.metrics.count(&self.metrics.received_bytes, bytes as u64);
        let held = self.budget.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match held > self.budget.bytes_max {
            true => Err(known(TOO_MANY_REQUESTS)),
            false => Ok(()),
        }
    }

    fn is_too_slow(&mut self, context: &mut Context<'_>) -> bool {
        if self.is_stream {
            return false;
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(PIECE_PATIENCE)));
        patience.as_mut().poll(context).is_ready()
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Body for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                this.patience = None;
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                Poll::Ready(Some(this.take(bytes).map(|()| frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                Poll::Ready(Some(Err(Status::cancelled(format!("the request broke off: {error}")))))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending if this.is_too_slow(context) => {
                let text = "racos: the request did not go on arriving";
                Poll::Ready(Some(Err(Status::deadline_exceeded(text))))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
