//! `racos salvage`: a backup from the directories of too few survivors (PROTOCOL 10-af).
//!
//! Invariant: the directories are only read. The file appears under its name when it is whole, checked and
//! on disk, and a new cluster would take it; what it lacks of what the logs show has been printed, and the
//! exit status says so.
//! What would break it: a value left out in silence, or an older one in its place.

use crate::exit::{Failure, LEFT_OUT, Outcome, failed, usage};
use crate::snapshot::{about, sync_parent};
use crate::{keys, output};
use clap::Args;
use racos_buffer::Pool;
use racos_engine::salvage::{
    Cut, Deed, Founded, Lost, Open, Rehearsal, Salvage, Shown, Survivor, Undecided,
};
use racos_etcd::backup::{Piece, Writer};
use racos_etcd::pb::racospb::{
    BackupAuth, BackupEnd, BackupHead, BackupLease, BackupLeases, BackupVersion, BackupVersions,
};
use racos_storage::device::picture::PictureDevice;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Memory for what is being looked at.
const POOL_BYTES: usize = 1 << 30;
/// A chunk of versions ends with the one that reaches one of these.
const CHUNK_BYTES: usize = 1 << 20;
const CHUNK_VERSIONS: usize = 1000;
const LEASES_CHUNK: usize = 10_000;
/// Lines of damage that are printed of one directory.
const DAMAGE_LINES: usize = 20;

/// After the loss of more nodes than f: write a backup of what the data directories of those that are left
/// hold, from which `racos snapshot restore` makes a new cluster.
#[derive(Args, Debug)]
#[command(
    after_help = "The nodes must not run; their directories are only read. Without --out nothing is \
        written, and all that would be left out is printed.\n\n\
        Examples:\n  racos salvage n0 n2 n4                          # what is there?\n  \
        racos salvage n0 n2 n4 --out saved.racos\n  \
        racos snapshot restore saved.racos --dir ./new\n\n\
        Exit status: 0 if all is whole; 5 if something is left out, which was printed (undecided writes, \
        or, with --leave-out, lost values); 1 if there is no backup: values are lost and --leave-out was \
        not given, or the directories do not make a state."
)]
pub struct SalvageArgs {
    /// `data_dir` of each node that is left (of a node with lanes: of one lane).
    #[arg(value_name = "DIR", required = true)]
    dirs: Vec<PathBuf>,
    /// Write the backup to this file.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace the file if it exists.
    #[arg(long)]
    force: bool,
    /// Leave out keys whose newest value is lost, and the history up to the last older value that is.
    #[arg(long)]
    leave_out: bool,
    /// Let writes take effect that nothing proves to be decided: those of the last moments may have been
    /// acknowledged.
    #[arg(long)]
    with_undecided: bool,
    /// How the cluster was founded, for one that has never written a checkpoint: number of nodes.
    #[arg(long, value_name = "N", requires_all = ["f", "k"])]
    nodes: Option<usize>,
    /// With --nodes: nodes that might be down at the same time.
    #[arg(long, requires = "nodes")]
    f: Option<usize>,
    /// With --nodes: data fragments of a value.
    #[arg(long, requires = "nodes")]
    k: Option<usize>,
}

pub fn run(args: &SalvageArgs) -> Outcome {
    if let Some(out) = args.out.as_ref().filter(|out| out.exists() && !args.force) {
        return Err(usage(format!("{} exists; --force replaces it", out.display())));
    }
    let pool = Pool::new(POOL_BYTES);
    let survivors: Result<Vec<_>, _> = args.dirs.iter().map(|dir| read(dir, &pool)).collect();
    let founded = match (args.nodes, args.f, args.k) {
        (Some(nodes), Some(f), Some(k)) => Some(Founded { nodes, f, k }),
        _ => None,
    };
    let undecided = if args.with_undecided { Undecided::Take } else { Undecided::Leave };
    let salvage = Salvage::execute(survivors?, founded, undecided, pool);
    let mut salvage = salvage.map_err(failed)?;
    tell_state(&salvage);
    let undecided = tell_undecided(&salvage.open, args.with_undecided);
    let bar = output::transfer_bar(None);
    let found = salvage.find_fragments(&mut |_, done, _| bar.set_position(done));
    bar.finish_and_clear();
    found.map_err(failed)?;
    let (done, lost) = write_whole_or_cut(args, &mut salvage)?;
    conclude(args, &done, &lost, undecided)
}

/// What became of the values, and how many versions are lost.
struct Done {
    end: BackupEnd,
    revision: u64,
    cut: Cut,
    /// Revision from which on all can be read, if more had to go than was compacted.
    shortened: Option<u64>,
}

fn read(dir: &Path, pool: &Pool) -> Result<Survivor<PictureDevice>, Failure> {
    let name = dir.display().to_string();
    if dir.join("lane-0").exists() {
        return Err(usage(format!(
            "{name} has several lanes, each with an order of its own: salvage one lane at a time, \
             {name}/lane-0 and those of the other nodes first"
        )));
    }
    let picture = PictureDevice::open(dir)
        .map_err(|error| failed(format!("cannot look at {name}: {error}")))?;
    if picture.in_use() {
        return Err(failed(format!(
            "a node runs on {name}: stop it first; a cluster of which n - f nodes can be started needs \
             no salvage"
        )));
    }
    let bar = output::transfer_bar(Some(picture.bytes()));
    let survivor = Survivor::read(&name, picture, pool, &mut |done, _| bar.set_position(done));
    bar.finish_and_clear();
    let survivor = survivor.map_err(failed)?;
    for damage in survivor.damage.iter().take(DAMAGE_LINES) {
        let (segment, offset) = (damage.at.segment, damage.at.offset);
        output::line(&format!(
            "DAMAGED: {name}, segment-{segment:08}.log at byte {offset}: {}; the rest of it is used",
            damage.what
        ));
    }
    let more = survivor.damage.len().saturating_sub(DAMAGE_LINES);
    if more > 0 {
        output::line(&format!("{name}: and {more} more; `racos inspect --json` lists all"));
    }
    Ok(survivor)
}

fn tell_state(salvage: &Salvage<PictureDevice>) {
    for unusable in &salvage.base.unusable {
        output::line(&format!("DAMAGED: {unusable}"));
    }
    let (members, quorum) = salvage.members();
    let here =
        salvage.survivors().iter().filter(|it| members.iter().any(|m| u16::from(*m) == it.node()));
    let here = here.count();
    let base = salvage.base.of.clone().unwrap_or_else(|| "the beginning".into());
    output::line(&format!(
        "cluster {:016x}: {here} of {} members are here; the state is that of {base}, and of {} slots \
         executed behind it",
        salvage.survivors()[0].owner.identity.cluster,
        members.len(),
        salvage.exec - salvage.base.exec,
    ));
    if here >= quorum {
        output::line(&format!(
            "NOTE: {quorum} members make a quorum: started, they may go on as the cluster that they are, \
             and lose nothing"
        ));
    }
}

fn deed_text(Deed { what, key }: &Deed) -> String {
    key.as_ref().map_or_else(|| (*what).to_string(), |key| format!("{what} {}", keys::show(key)))
}

/// Prints what is not proven; how many batches that is.
fn tell_undecided(open: &[Open], is_taken: bool) -> usize {
    let verb = if is_taken { "TAKEN UNDECIDED" } else { "UNDECIDED" };
    let mut left_out = 0;
    for Open { slot, is_decided, nodes, deeds } in open {
        if deeds.as_ref().is_some_and(Vec::is_empty) {
            continue;
        }
        let nodes: Vec<String> = nodes.iter().map(u16::to_string).collect();
        let by = match nodes.is_empty() {
            true => String::new(),
            false => format!(", held by node {}", nodes.join(", ")),
        };
        let place = match (slot, is_decided) {
            (None, _) => "stored, in no slot that is known".to_string(),
            (Some(slot), true) => format!("slot {slot}, decided, behind one that may not be"),
            (Some(slot), false) => format!("slot {slot}"),
        };
        let deeds = match deeds {
            Some(deeds) => deeds.iter().map(deed_text).collect::<Vec<_>>().join(", "),
            None => "what it does only lost nodes know".into(),
        };
        let has_taken = is_taken && slot.is_some();
        let verb = if has_taken { verb } else { "UNDECIDED" };
        left_out += usize::from(!has_taken);
        output::line(&format!("{verb}: {place}{by}: {deeds}"));
    }
    left_out
}

/// Puts everything together once, into the file if there is to be one; if some of it is lost and may be,
/// once more without it.
fn write_whole_or_cut(
    args: &SalvageArgs,
    salvage: &mut Salvage<PictureDevice>,
) -> Result<(Done, Vec<Lost>), Failure> {
    let cut = salvage.uncut();
    let (mut lost, mut sink) = (Vec::new(), Sink::begin(args.out.as_deref(), salvage)?);
    let passed = salvage.each_version(&cut, &mut |shown| {
        match shown.bytes {
            Ok(_) if lost.is_empty() => return sink.version(shown),
            Ok(_) => {}
            Err(why) => lost.push(shown.lost(why)),
        }
        Ok(())
    });
    passed?;
    let revision = salvage.machine().revision();
    lost.iter().for_each(tell_lost);
    if lost.is_empty() {
        let whole = salvage.machine().hash_kv(0).map(|(hash, _)| hash);
        let end = sink.end(cut.compacted)?;
        if whole != Ok(end.hash) {
            return Err(failed(
                "what was put together is not what the logs say: a bug, please report",
            ));
        }
        return Ok((Done { end, revision, cut, shortened: None }, lost));
    }
    drop(sink);
    if !args.leave_out && args.out.is_some() {
        return Err(failed(format!(
            "{} values are lost, as listed, and no backup was written; --leave-out writes one without \
             them: keys whose newest value is lost are not in it",
            lost.len()
        )));
    }
    let cut = salvage.without(&lost);
    let mut sink = Sink::begin(args.out.as_deref(), salvage)?;
    let passed = salvage.each_version(&cut, &mut |shown| sink.version(shown));
    passed?;
    let end = sink.end(cut.compacted)?;
    let shortened = cut.compacted.filter(|_| cut.compacted != salvage.machine().compact_revision());
    Ok((Done { end, revision, cut, shortened }, lost))
}

fn tell_lost(lost: &Lost) {
    let which = match lost.next {
        None => "its newest value".to_string(),
        Some(next) => format!("an older value, until revision {}", next.main),
    };
    let (key, revision) = (keys::show(&lost.key), lost.modified.main);
    output::line(&format!("LOST: {key} at revision {revision}, {which}: {}", lost.why));
}

/// The last line, and the exit status.
fn conclude(args: &SalvageArgs, done: &Done, lost: &[Lost], undecided: usize) -> Outcome {
    let Done { end, revision, cut, shortened } = done;
    let mut left_out = Vec::new();
    if !cut.keys.is_empty() {
        left_out.push(format!("{} keys", cut.keys.len()));
    }
    if let Some(revision) = shortened {
        left_out.push(format!("the history before revision {revision}"));
    }
    if undecided > 0 {
        left_out.push(format!("{undecided} undecided batches"));
    }
    let is_whole = left_out.is_empty() && lost.is_empty();
    let left_out = match is_whole {
        true => "nothing is left out".to_string(),
        false => format!("left out, as listed: {}", left_out.join(", ")),
    };
    let to = match &args.out {
        Some(out) => format!("{}: ", out.display()),
        None => "nothing was written (no --out); there would be ".into(),
    };
    output::line(&format!(
        "{to}revision {revision}, {} keys, {} versions, {} of values, {} leases; {left_out}",
        end.keys,
        end.versions,
        output::bytes(end.value_bytes),
        end.leases,
    ));
    if is_whole { Ok(()) } else { Err(Failure { code: LEFT_OUT, text: String::new() }) }
}

/// The backup on its way to a file, which goes if it is not ended; and its restore, rehearsed.
struct Sink {
    /// The file, under a name that says that it is not whole, and the name that it will have.
    file: Option<(BufWriter<File>, PathBuf, PathBuf)>,
    writer: Writer,
    rehearsal: Rehearsal,
    chunk: Vec<BackupVersion>,
    chunk_bytes: usize,
    value_bytes: u64,
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Some((_, partial, _)) = &self.file {
            // What is there is of no use; the failure is what matters.
            let _ = fs::remove_file(partial);
        }
    }
}

impl Sink {
    fn begin(out: Option<&Path>, salvage: &Salvage<PictureDevice>) -> Result<Sink, Failure> {
        let machine = salvage.machine();
        let file = out.map(|out| {
            let mut partial = out.to_path_buf().into_os_string();
            partial.push(".part");
            let partial = PathBuf::from(partial);
            let file = File::create(&partial).map_err(|error| about(&partial, error))?;
            Ok::<_, Failure>((BufWriter::new(file), partial, out.to_path_buf()))
        });
        let mut sink = Sink {
            file: file.transpose()?,
            writer: Writer::default(),
            rehearsal: Rehearsal::begin(machine.revision()).map_err(failed)?,
            chunk: Vec::new(),
            chunk_bytes: 0,
            value_bytes: 0,
        };
        let saved_at = SystemTime::now().duration_since(UNIX_EPOCH);
        sink.put(&Piece::Head(BackupHead {
            cluster_id: salvage.survivors()[0].owner.identity.cluster,
            revision: machine.revision() as i64,
            saved_by: format!("racos {} salvage", env!("CARGO_PKG_VERSION")),
            saved_at: saved_at.map_or(0, |since| since.as_secs() as i64),
        }))?;
        let leases: Vec<(i64, i64)> = machine.leases().collect();
        for leases in leases.chunks(LEASES_CHUNK) {
            for (id, ttl) in leases {
                sink.rehearsal.lease(*id, *ttl).map_err(failed)?;
            }
            let leases = leases.iter().map(|(id, ttl)| BackupLease { id: *id, ttl: *ttl });
            sink.put(&Piece::Leases(BackupLeases { leases: leases.collect() }))?;
        }
        let mut after = None;
        loop {
            let (page, next) = machine.auth_entries_behind(after);
            let entries: Vec<_> = page.iter().map(|entry| entry.encoded().into()).collect();
            if !entries.is_empty() {
                sink.put(&Piece::Auth(BackupAuth { entries }))?;
            }
            for entry in page {
                sink.rehearsal.auth(entry).map_err(failed)?;
            }
            match next {
                Some(next) => after = Some(next),
                None => return Ok(sink),
            }
        }
    }

    fn put(&mut self, piece: &Piece) -> Outcome {
        let bytes = self.writer.write(piece);
        let Some((file, partial, _)) = &mut self.file else { return Ok(()) };
        file.write_all(&bytes).map_err(|error| about(partial, error))
    }

    fn version(&mut self, shown: Shown<'_>) -> Outcome {
        let Shown { key, version, bytes, .. } = shown;
        let bytes = bytes.map_err(|why| {
            failed(format!("{} could be read, and cannot any more: {why}", keys::show(key)))
        })?;
        self.rehearsal.version(key, &version, bytes.as_deref()).map_err(failed)?;
        let len = bytes.as_ref().map_or(0, Vec::len);
        self.value_bytes += len as u64;
        if self.chunk_bytes > 0 && self.chunk_bytes + len > CHUNK_BYTES {
            self.flush()?;
        }
        self.chunk_bytes += len + key.len();
        self.chunk.push(BackupVersion {
            key: key.to_vec().into(),
            main: version.modified().main,
            sub: version.modified().sub,
            create_revision: version.created(),
            version: version.number(),
            lease: version.lease(),
            is_delete: bytes.is_none(),
            value: bytes.unwrap_or_default().into(),
        });
        let is_full = self.chunk_bytes >= CHUNK_BYTES || self.chunk.len() >= CHUNK_VERSIONS;
        if is_full { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Outcome {
        let versions = std::mem::take(&mut self.chunk);
        self.chunk_bytes = 0;
        if versions.is_empty() {
            return Ok(());
        }
        self.put(&Piece::Versions(BackupVersions { versions }))
    }

    fn end(mut self, compacted: Option<u64>) -> Result<BackupEnd, Failure> {
        self.flush()?;
        let end = self.rehearsal.end(compacted).map_err(failed)?;
        let end = BackupEnd {
            keys: end.keys,
            versions: end.versions,
            leases: end.leases,
            compact_revision: end.compacted.map_or(-1, |revision| revision as i64),
            hash: end.hash,
            value_bytes: self.value_bytes,
        };
        self.put(&Piece::End(end))?;
        let Some((file, partial, out)) = &mut self.file else { return Ok(end) };
        let synced = file.flush().and_then(|()| file.get_ref().sync_all());
        synced.map_err(|error| about(partial, error))?;
        fs::rename(&*partial, &*out).map_err(|error| about(out, error))?;
        let out = std::mem::take(out);
        // It has its name: there is nothing to remove any more.
        self.file = None;
        sync_parent(&out)?;
        Ok(end)
    }
}
