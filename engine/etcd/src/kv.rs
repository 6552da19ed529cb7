//! The service KV: keys, values, transactions, compaction.

use crate::errors::known;
use crate::face::{Face, answer, reply};
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::kv_server::Kv;
use crate::{check, convert};
use pb::request_op;
use racos_engine::api::Handle;
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl Kv for Face {
    async fn range(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<pb::RangeResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        check::range(&asked).map_err(known)?;
        let serializable = asked.serializable;
        let found = answer(face.node.range(convert::range(asked), serializable)).await?;
        reply(convert::range_answer(self.header(found.revision), found))
    }

    async fn put(
        &self,
        request: Request<pb::PutRequest>,
    ) -> Result<Response<pb::PutResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        check::put(&asked).map_err(known)?;
        let done = face.ask(convert::put(asked), Handle::put).await?;
        reply(convert::put_answer(self.header(done.revision), done))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        check::delete(&asked).map_err(known)?;
        let done = face.ask(convert::delete(asked), Handle::delete).await?;
        reply(convert::delete_answer(self.header(done.revision), done))
    }

    async fn txn(
        &self,
        request: Request<pb::TxnRequest>,
    ) -> Result<Response<pb::TxnResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        check::txn(&asked).map_err(known)?;
        let serializable = is_serializable(&asked);
        let txn = convert::txn(asked)?;
        let done = face.ask(txn, |node, txn| node.txn(txn, serializable)).await?;
        reply(convert::txn_answer(self.header(done.revision), done))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let ask = |node: &Handle, (revision, physical)| node.compact(revision, physical);
        let done = face.ask((asked.revision, asked.physical), ask).await?;
        reply(pb::CompactionResponse { header: self.header(done.revision) })
    }
}

/// A transaction of nothing but serializable reads is one itself. One without any operation is not:
/// whoever compares only, wants to know how things are.
fn is_serializable(asked: &pb::TxnRequest) -> bool {
    let mut ops = asked.success.iter().chain(&asked.failure).peekable();
    ops.peek().is_some() && ops.all(|op| {
        matches!(&op.request, Some(request_op::Request::RequestRange(range)) if range.serializable)
    })
}
