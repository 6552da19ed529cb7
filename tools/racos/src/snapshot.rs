//! `racos snapshot`: backups of a running cluster, and new clusters made of them.
//!
//! Invariant: a file appears under its name when it is whole, checked and on disk; a cluster is begun
//! to be filled when the whole file has been checked, and is shown to nobody before all of it is
//! there.

use crate::cluster::{Cluster, Plan};
use crate::connect::PORT_DEFAULT;
use crate::exit::{FAILED, Failure, Outcome, UNAVAILABLE, failed, usage};
use crate::output;
use crate::tune::profile_here;
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use racos_etcd::backup::{Piece, Reader};
use racos_etcd::pb::etcdserverpb::auth_client::AuthClient;
use racos_etcd::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use racos_etcd::pb::etcdserverpb::{AuthenticateRequest, SnapshotRequest};
use racos_etcd::pb::racospb::backup_client::BackupClient;
use racos_etcd::pb::racospb::{BackupEnd, BackupHead, RestoreRequest, RestoreResponse};
use std::error::Error;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// The first of those that `racos up` serves.
const ETCD_ENDPOINTS: [&str; 3] = ["127.0.0.1:2379", "127.0.0.1:2380", "127.0.0.1:2381"];
const ETCD_PORT: u16 = 2379;
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Bytes read from the file, and sent, at a time; and how many wait to be sent.
const BLOB_BYTES: usize = 256 << 10;
const BLOBS_WAITING: usize = 4;

/// Save a running cluster into a file, or make a new cluster of one.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racos snapshot save backup.racos\n  \
    racos snapshot restore backup.racos --dir ./restored\n  racos up --dir ./restored\n\n\
    Backups go over etcd's API, which nodes of one lane serve.")]
pub struct SnapshotArgs {
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Subcommand, Debug)]
enum SnapshotCommand {
    Save(SaveArgs),
    Restore(RestoreArgs),
    Status(FileArgs),
}

/// Save the state of a running cluster; it goes on meanwhile.
#[derive(Args, Debug)]
struct SaveArgs {
    file: PathBuf,
    /// Where nodes serve etcd's API; repeat it, or separate by commas: the next one is asked where
    /// one does not answer.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', default_values = ETCD_ENDPOINTS)]
    endpoint: Vec<String>,
    /// Where authentication is on: a user with the role root.
    #[arg(long, value_name = "NAME:PASSWORD")]
    user: Option<String>,
    /// Replace the file if it exists.
    #[arg(long)]
    force: bool,
}

/// Fill a new cluster from a file: one that runs and was never written to, or one founded here.
#[derive(Args, Debug)]
struct RestoreArgs {
    file: PathBuf,
    /// Nodes of a new, running cluster: where they serve etcd's API; repeat it, or separate by commas. The
    /// first that answers is told.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', default_values = ETCD_ENDPOINTS)]
    #[arg(conflicts_with_all = ["dir", "nodes", "f", "k"])]
    endpoint: Vec<String>,
    /// Found a cluster on this machine, in this directory, which must not exist; start it with
    /// `racos up --dir` afterwards.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// With --dir: number of nodes.
    #[arg(long, value_name = "N", default_value_t = 5)]
    nodes: usize,
    /// With --dir: nodes that may be down at the same time.
    #[arg(long, default_value_t = 1)]
    f: usize,
    /// With --dir: data fragments of a value; N >= 2F + K.
    #[arg(long, default_value_t = 3)]
    k: usize,
    /// With --dir: first UDP port of the nodes; 0: any that are free.
    #[arg(long, value_name = "PORT", default_value_t = PORT_DEFAULT)]
    port_base: u16,
    /// With --dir: first port of etcd's API; 0: any that are free.
    #[arg(long, value_name = "PORT", default_value_t = ETCD_PORT)]
    etcd_port_base: u16,
}

/// Check a file and say what it holds.
#[derive(Args, Debug)]
struct FileArgs {
    file: PathBuf,
}

pub fn run(args: &SnapshotArgs) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(format!("no runtime: {error}")))?;
    match &args.command {
        SnapshotCommand::Save(args) => runtime.block_on(save(args)),
        SnapshotCommand::Restore(args) => restore(args, &runtime),
        SnapshotCommand::Status(args) => {
            let (head, end) = check(&args.file)?;
            output::line(&describe(&head, &end));
            Ok(())
        }
    }
}

fn describe(head: &BackupHead, end: &BackupEnd) -> String {
    format!(
        "revision {} of cluster {:016x}, saved by {}: {} keys, {} versions, {} of values, {} leases, \
         {}; hash {:08x}",
        head.revision,
        head.cluster_id,
        head.saved_by,
        end.keys,
        end.versions,
        output::bytes(end.value_bytes),
        end.leases,
        match end.compact_revision {
            -1 => "nothing compacted".into(),
            revision => format!("compacted up to revision {revision}"),
        },
        end.hash
    )
}

pub fn about(path: &Path, error: impl std::fmt::Display) -> Failure {
    failed(format!("{}: {error}", path.display()))
}

fn address(endpoint: &str) -> Result<Endpoint, Failure> {
    let url = match endpoint.contains("://") {
        true => endpoint.to_string(),
        false => format!("http://{endpoint}"),
    };
    let address = Endpoint::from_shared(url);
    let address = address.map_err(|error| usage(format!("--endpoint {endpoint}: {error}")))?;
    Ok(address.connect_timeout(CONNECT_PATIENCE))
}

/// The first of the nodes, from the place `next` on, that takes a connection; `next` is behind it then.
async fn connect<'a>(
    endpoints: &'a [String],
    next: &mut usize,
) -> Result<(&'a str, Channel), Failure> {
    let mut told = Vec::new();
    while let Some(endpoint) = endpoints.get(*next) {
        *next += 1;
        match address(endpoint)?.connect().await {
            Ok(channel) => return Ok((endpoint, channel)),
            Err(error) => told.push(format!("{endpoint}: {error}")),
        }
    }
    let text = format!("no node takes a connection ({}); is etcd's API there?", told.join("; "));
    Err(Failure { code: UNAVAILABLE, text })
}

/// A node's refusal, or that it does not answer: a connection that broke is the source of a status then.
fn refused(status: &Status, text: String) -> Failure {
    let is_silent = status.code() == Code::Unavailable || status.source().is_some();
    Failure { code: if is_silent { UNAVAILABLE } else { FAILED }, text }
}

async fn save(args: &SaveArgs) -> Outcome {
    let path = &args.file;
    if path.exists() && !args.force {
        return Err(usage(format!("{} exists; --force replaces it", path.display())));
    }
    let mut partial = path.clone().into_os_string();
    partial.push(".part");
    let partial = PathBuf::from(partial);
    match save_from_any(args, &partial).await {
        Ok((head, end)) => {
            fs::rename(&partial, path).map_err(|error| about(path, error))?;
            sync_parent(path)?;
            output::line(&format!("{}: {}", path.display(), describe(&head, &end)));
            Ok(())
        }
        Err(failure) => {
            // What is there is of no use; the failure is what matters.
            let _ = fs::remove_file(&partial);
            Err(failure)
        }
    }
}

/// Begins again at the next node where one does not answer, or goes away.
async fn save_from_any(
    args: &SaveArgs,
    partial: &Path,
) -> Result<(BackupHead, BackupEnd), Failure> {
    let mut next = 0;
    loop {
        let from = connect(&args.endpoint, &mut next).await?;
        match save_to(partial, from, args.user.as_deref()).await {
            Err(failure) if failure.code == UNAVAILABLE && next < args.endpoint.len() => {}
            saved => return saved,
        }
    }
}

/// A request that shows who asks.
async fn shown<T>(asked: T, channel: Channel, user: Option<&str>) -> Result<Request<T>, Failure> {
    let mut request = Request::new(asked);
    let Some(user) = user else { return Ok(request) };
    let (name, password) =
        user.split_once(':').ok_or_else(|| usage("--user is NAME:PASSWORD".to_string()))?;
    let (name, password) = (name.into(), password.into());
    let asked = AuthenticateRequest { name, password };
    let told = AuthClient::new(channel).authenticate(asked).await;
    let about_it = |text: &str| format!("logging in as the user of --user: {text}");
    let token = told.map_err(|status| refused(&status, about_it(status.message())))?;
    let token = token.into_inner().token.parse();
    let token = token.map_err(|_| failed(about_it("the token is not text")))?;
    request.metadata_mut().insert("token", token);
    Ok(request)
}

async fn save_to(
    partial: &Path,
    (endpoint, channel): (&str, Channel),
    user: Option<&str>,
) -> Result<(BackupHead, BackupEnd), Failure> {
    let asked = shown(SnapshotRequest {}, channel.clone(), user).await?;
    let mut client = MaintenanceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let broken = |status: Status| {
        let needs_user = user.is_none() && status.code() == Code::InvalidArgument;
        let advice = if needs_user { "; give --user NAME:PASSWORD" } else { "" };
        refused(&status, format!("{endpoint}: {}{advice}", status.message()))
    };
    let mut blobs = client.snapshot(asked).await.map_err(broken)?.into_inner();
    let mut file = File::create(partial).map_err(|error| about(partial, error))?;
    let bar = output::step_bar(0);
    let (mut reader, mut head) = (Reader::default(), BackupHead::default());
    while let Some(response) = blobs.message().await.map_err(broken)? {
        file.write_all(&response.blob).map_err(|error| about(partial, error))?;
        take(&mut reader, &response.blob, &mut head).map_err(|error| failed(error.to_string()))?;
        progress(&bar, &reader, "saved");
    }
    let end =
        reader.finish().map_err(|error| failed(format!("what came is no backup: {error}")))?;
    file.sync_all().map_err(|error| about(partial, error))?;
    bar.finish_and_clear();
    Ok((head, end))
}

/// Checks some more bytes.
fn take(
    reader: &mut Reader,
    bytes: &[u8],
    head: &mut BackupHead,
) -> Result<(), racos_etcd::backup::FormatError> {
    reader.push(bytes);
    while let Some(piece) = reader.next_piece()? {
        if let Piece::Head(it) = piece {
            *head = it;
        }
    }
    Ok(())
}

fn progress(bar: &ProgressBar, reader: &Reader, what: &str) {
    bar.set_position(reader.at());
    let (keys, versions) = (reader.seen().keys, reader.seen().versions);
    bar.set_message(format!("bytes {what}: {keys} keys, {versions} versions"));
}

pub fn sync_parent(path: &Path) -> Outcome {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let synced = File::open(parent).and_then(|dir| dir.sync_all());
    synced.map_err(|error| about(parent, error))
}

/// Reads the whole file, and says what it holds if it is good.
fn check(path: &Path) -> Result<(BackupHead, BackupEnd), Failure> {
    let mut file = File::open(path).map_err(|error| about(path, error))?;
    let len = file.metadata().map_err(|error| about(path, error))?.len();
    let bar = output::step_bar(len);
    let (mut reader, mut head) = (Reader::default(), BackupHead::default());
    let mut blob = vec![0; BLOB_BYTES];
    loop {
        let read = file.read(&mut blob).map_err(|error| about(path, error))?;
        if read == 0 {
            break;
        }
        take(&mut reader, &blob[..read], &mut head).map_err(|error| about(path, error))?;
        progress(&bar, &reader, "checked");
    }
    let end = reader.finish().map_err(|error| about(path, error))?;
    bar.finish_and_clear();
    Ok((head, end))
}

fn restore(args: &RestoreArgs, runtime: &tokio::runtime::Runtime) -> Outcome {
    let (head, _) = check(&args.file)?;
    let Some(dir) = &args.dir else {
        let restored = runtime.block_on(fill(&args.file, &args.endpoint))?;
        return told(&head, &restored);
    };
    if dir.exists() {
        return Err(usage(format!("{} exists; a cluster is founded in a new one", dir.display())));
    }
    match found(args, dir, runtime) {
        Ok(restored) => {
            told(&head, &restored)?;
            output::line(&format!("start it with `racos up --dir {}`", dir.display()));
            Ok(())
        }
        Err(failure) => {
            // All of it or nothing.
            if let Err(error) = fs::remove_dir_all(dir) {
                output::line(&format!("{} is to be removed: {error}", dir.display()));
            }
            Err(failure)
        }
    }
}

fn told(head: &BackupHead, restored: &RestoreResponse) -> Outcome {
    output::line(&format!(
        "cluster {:016x} holds what cluster {:016x} held at revision {}: {} keys, {} versions",
        restored.cluster_id, head.cluster_id, restored.revision, restored.keys, restored.versions
    ));
    Ok(())
}

/// Founds a cluster on this machine, fills it, and stops it.
fn found(
    args: &RestoreArgs,
    dir: &Path,
    runtime: &tokio::runtime::Runtime,
) -> Result<RestoreResponse, Failure> {
    let mut plan = Plan::new(args.nodes, args.f, args.k);
    plan.port_base = Some(args.port_base);
    plan.etcd_port_base = Some(args.etcd_port_base);
    plan.tuning = profile_here(dir, args.nodes).to_toml();
    let mut cluster = Cluster::create(dir, &plan)?;
    cluster.start_with_bar()?;
    let restored = runtime.block_on(fill(&args.file, &cluster.etcd));
    cluster.stop();
    restored
}

/// Sends the file, which has been checked, to a node of a new cluster.
async fn fill(path: &Path, endpoints: &[String]) -> Result<RestoreResponse, Failure> {
    let mut file = File::open(path).map_err(|error| about(path, error))?;
    let len = file.metadata().map_err(|error| about(path, error))?.len();
    let (endpoint, channel) = connect(endpoints, &mut 0).await?;
    let mut client = BackupClient::new(channel);
    let (sender, blobs) = tokio::sync::mpsc::channel(BLOBS_WAITING);
    let bar = output::step_bar(len);
    bar.set_message("bytes restored");
    let sending = async {
        loop {
            let mut blob = vec![0; BLOB_BYTES];
            let read = file.read(&mut blob).map_err(|error| about(path, error))?;
            blob.truncate(read);
            // An answer that comes early says why.
            if read == 0 || sender.send(RestoreRequest { blob: blob.into() }).await.is_err() {
                break;
            }
            bar.inc(read as u64);
        }
        drop(sender);
        Ok::<(), Failure>(())
    };
    let (restored, sent) = tokio::join!(client.restore(ReceiverStream::new(blobs)), sending);
    bar.finish_and_clear();
    sent?;
    let broken = |status: Status| {
        failed(format!(
            "{endpoint}: {}; what was restored so far is shown to nobody: stop the cluster, remove \
             its directories and begin again",
            status.message()
        ))
    };
    restored.map(tonic::Response::into_inner).map_err(broken)
}
