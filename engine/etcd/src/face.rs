//! What all services of a node share.

use crate::convert;
use crate::errors::{INVALID_TOKEN, NO_LEADER, REQUEST_TOO_LARGE, known, status_of};
use crate::metrics::Metrics;
use crate::password::Passwords;
use crate::pb::etcdserverpb as pb;
use crate::token::{self, Checked};
use racos_engine::api::{Error, Handle, Pending};
use racos_machine::Refusal;
use std::sync::Arc;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

/// How this node presents itself; see `node.example.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where clients reach each node, `HOST:PORT`, by number.
    pub endpoints: Vec<String>,
    /// Where clients reach this node, if it joined and has no place among them: it tells the others.
    pub advertise: Option<String>,
    /// Bytes of a request; larger ones are refused.
    pub request_bytes_max: usize,
}

/// One for a node; cheap to clone.
#[derive(Clone)]
pub struct Face {
    pub node: Handle,
    pub settings: Arc<Settings>,
    pub metrics: Arc<Metrics>,
    pub passwords: Passwords,
}

/// What a client shows for who it is, if anything.
#[derive(Clone, Default)]
pub struct Token(Option<Box<str>>);

/// Users or roles change so often before a request is done that it is given up.
const TRIES_MAX: u32 = 16;
/// Where clients put a token: gRPC's, and those of the gateway.
const TOKEN_FIELDS: [&str; 2] = ["token", "authorization"];

impl Face {
    /// Takes the message of a request, once what every request is checked for holds.
    pub fn open<T: prost::Message>(&self, request: Request<T>) -> Result<T, Status> {
        self.check_leader(request.metadata())?;
        let message = request.into_inner();
        match message.encoded_len() > self.settings.request_bytes_max {
            true => Err(known(REQUEST_TOO_LARGE)),
            false => Ok(message),
        }
    }

    /// [`Face::open`], with the face of whoever it is that asks.
    pub async fn enter<T: prost::Message>(&self, request: Request<T>) -> Result<(Face, T), Status> {
        let token = Token::of(request.metadata());
        let message = self.open(request)?;
        Ok((self.of(&token).await?, message))
    }

    /// The face of who shows a token; without one, of nobody.
    ///
    /// # Errors
    /// The token is not good.
    pub async fn of(&self, token: &Token) -> Result<Face, Status> {
        let Some(text) = &token.0 else { return Ok(self.clone()) };
        let mut has_caught_up = false;
        loop {
            let view = self.node.auth_view();
            match token::check(text, &view, token::now()) {
                Checked::Good(caller) => {
                    return Ok(Face { node: self.node.on_behalf_of(caller), ..self.clone() });
                }
                Checked::NotNeeded => return Ok(self.clone()),
                // Another node gave it: by what this one will know, too.
                Checked::Ahead if !has_caught_up => {
                    answer(self.node.catch_up()).await?;
                    has_caught_up = true;
                }
                Checked::Ahead if !view.enabled => return Ok(self.clone()),
                Checked::Ahead | Checked::Bad => return Err(known(INVALID_TOKEN)),
            }
        }
    }

    /// Asks the node, again while users or roles change between that it looks at them and that the
    /// request is done: then nothing was done. Nobody is refused only by a node that knows whether
    /// authentication was switched off meanwhile.
    pub async fn ask<Q: Clone, T>(
        &self,
        asked: Q,
        ask: impl Fn(&Handle, Q) -> Pending<T>,
    ) -> Result<T, Status> {
        let is_of_user = self.node.is_of_user();
        if !is_of_user && !self.node.auth_enabled() {
            return answer(ask(&self.node, asked)).await;
        }
        let mut has_caught_up = is_of_user;
        for _ in 1..TRIES_MAX {
            match ask(&self.node, asked.clone()).await {
                Err(Error::Auth(Refusal::AuthRevision)) => {}
                Err(Error::Auth(Refusal::UserEmpty)) if !has_caught_up => {
                    answer(self.node.catch_up()).await?;
                    has_caught_up = true;
                }
                result => return result.map_err(status_of),
            }
        }
        answer(ask(&self.node, asked)).await
    }

    /// Clients that ask for a leader want to hear at once if this node is cut off.
    pub fn check_leader(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let asks = metadata.get("hasleader").is_some_and(|value| value.as_bytes() == b"true");
        match asks && !self.node.identity().hears_quorum {
            true => Err(known(NO_LEADER)),
            false => Ok(()),
        }
    }

    pub fn header(&self, revision: i64) -> Option<pb::ResponseHeader> {
        convert::header(self.node.identity(), revision)
    }
}

impl Token {
    pub fn of(metadata: &MetadataMap) -> Token {
        let mut found = TOKEN_FIELDS.iter().filter_map(|field| metadata.get(*field));
        // What is not text is no token of ours.
        Token(found.next().map(|value| value.to_str().unwrap_or_default().into()))
    }
}

/// Waits for a node's answer.
pub async fn answer<T>(pending: Pending<T>) -> Result<T, Status> {
    pending.await.map_err(status_of)
}

/// An answer on its way out.
pub fn reply<T>(message: T) -> Result<Response<T>, Status> {
    Ok(Response::new(message))
}
