//! etcdctl's everyday commands, as people type them.
//!
//! Where no etcdctl is installed this says so and is skipped.

use crate::servers::{Server, fresh_dir};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};

pub struct Etcdctl {
    endpoints: String,
}

impl Etcdctl {
    /// `None`, with a message, where no etcdctl is installed.
    pub fn of(server: &Server) -> Option<Etcdctl> {
        if Command::new("etcdctl").arg("version").output().is_err() {
            eprintln!("etcdctl: skipped: it is not in PATH (apt-get install etcd-client)");
            return None;
        }
        Some(Etcdctl { endpoints: server.endpoints.join(",").replace("http://", "") })
    }

    /// One that asks this endpoint only, `HOST:PORT`.
    pub fn at(endpoint: &str) -> Etcdctl {
        Etcdctl { endpoints: endpoint.replace("http://", "") }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoints]).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str], input: &str) -> Output {
        let mut child = self.command(args).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Standard output of a command that must succeed.
    pub fn good(&self, args: &[&str]) -> String {
        self.good_with(args, "")
    }

    fn good_with(&self, args: &[&str], input: &str) -> String {
        let output = self.run(args, input);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command that must fail says.
    pub fn bad(&self, args: &[&str]) -> String {
        let output = self.run(args, "");
        assert!(!output.status.success(), "{args:?} must fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// A command that goes on; killed when dropped.
    fn start(&self, args: &[&str]) -> Running {
        let mut child = self.command(args).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Running { child, lines }
    }
}

struct Running {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Running {
    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.lines.read_line(&mut line).unwrap() > 0, "it goes on telling");
        line.trim_end().to_string()
    }

    /// Asks it to end, as Ctrl-C does.
    fn interrupt(&self) {
        use rustix::process::{Pid, Signal, kill_process};
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn everyday_commands_of_etcdctl_work() {
    let racos = Server::racos("etcdctl");
    let Some(ctl) = Etcdctl::of(&racos) else { return };
    keys(&ctl);
    transactions(&ctl);
    watches(&ctl);
    leases(&ctl);
    locks_and_elections(&ctl);
    maintenance(&ctl);
    snapshots(&racos);
}

fn keys(ctl: &Etcdctl) {
    assert_eq!(ctl.good(&["put", "greeting", "hello"]), "OK\n");
    assert_eq!(ctl.good(&["get", "greeting"]), "greeting\nhello\n");
    assert_eq!(ctl.good(&["put", "--prev-kv", "greeting", "again"]), "OK\ngreeting\nhello\n");
    assert_eq!(ctl.good(&["get", "--rev=2", "greeting"]), "greeting\nhello\n");
    ctl.good(&["put", "greeting2", "other"]);
    assert_eq!(ctl.good(&["get", "--prefix", "--keys-only", "greet"]), "greeting\n\ngreeting2\n\n");
    assert_eq!(
        ctl.good(&["get", "--prefix", "--print-value-only", "--order=DESCEND", "greet"]),
        "other\nagain\n"
    );
    assert_eq!(ctl.good(&["get", "--prefix", "--limit=1", "greet"]), "greeting\nagain\n");
    assert_eq!(ctl.good(&["get", "--from-key", "greeting2"]), "greeting2\nother\n");
    // Read from standard input.
    assert_eq!(ctl.good_with(&["put", "piped"], "from a pipe"), "OK\n");
    assert_eq!(ctl.good(&["get", "--print-value-only", "piped"]), "from a pipe\n");
    assert_eq!(ctl.good(&["del", "--prev-kv", "piped"]), "1\npiped\nfrom a pipe\n");
    assert_eq!(ctl.good(&["del", "piped"]), "0\n");
    assert!(ctl.bad(&["put", "--ignore-value", "nokey"]).contains("etcdserver: key not found"));
    assert!(ctl.bad(&["get", "--rev=999", "x"]).contains("required revision is a future revision"));
}

fn transactions(ctl: &Etcdctl) {
    let txn = "value(\"greeting\") = \"again\"\n\nput greeting third\nget greeting2\n\nput greeting no\n\n";
    assert_eq!(ctl.good_with(&["txn"], txn), "SUCCESS\n\nOK\n\ngreeting2\nother\n");
    assert_eq!(ctl.good_with(&["txn"], txn), "FAILURE\n\nOK\n");
    assert_eq!(ctl.good(&["get", "--print-value-only", "greeting"]), "no\n");
}

fn watches(ctl: &Etcdctl) {
    let mut watch = ctl.start(&["watch", "--prefix", "--rev=2", "--prev-kv", "greet"]);
    let told: Vec<String> = (0..3).map(|_| watch.line()).collect();
    assert_eq!(told, ["PUT", "greeting", "hello"]);
    let told: Vec<String> = (0..5).map(|_| watch.line()).collect();
    assert_eq!(told, ["PUT", "greeting", "hello", "greeting", "again"]);
    drop(watch);
    assert!(ctl.good(&["compact", "4"]).starts_with("compacted revision 4"));
    assert!(ctl.bad(&["get", "--rev=2", "greeting"]).contains("has been compacted"));
    assert!(ctl.bad(&["watch", "--rev=2", "greeting"]).contains("has been compacted"));
}

fn leases(ctl: &Etcdctl) {
    let granted = ctl.good(&["lease", "grant", "300"]);
    let id = granted.split(' ').nth(1).unwrap().to_string();
    assert!(granted.contains("granted with TTL(300s)"), "{granted}");
    ctl.good(&["put", "--lease", &id, "leased", "for a while"]);
    let left = ctl.good(&["lease", "timetolive", "--keys", &id]);
    assert!(left.contains("granted with TTL(300s)") && left.contains("[leased]"), "{left}");
    let renewed = ctl.good(&["lease", "keep-alive", "--once", &id]);
    assert!(renewed.contains("keepalived with TTL(300)"), "{renewed}");
    assert!(ctl.good(&["lease", "list"]).contains(&id));
    ctl.good(&["lease", "revoke", &id]);
    assert_eq!(ctl.good(&["get", "leased"]), "");
    assert!(ctl.bad(&["lease", "revoke", &id]).contains("requested lease not found"));
    // One that nobody renews goes, with what is attached to it.
    let granted = ctl.good(&["lease", "grant", "2"]);
    let id = granted.split(' ').nth(1).unwrap().to_string();
    let mut watch = ctl.start(&["watch", "--rev=5", "brief"]);
    ctl.good(&["put", "--lease", &id, "brief", "gone soon"]);
    let told: Vec<String> = (0..5).map(|_| watch.line()).collect();
    assert_eq!(told, ["PUT", "brief", "gone soon", "DELETE", "brief"]);
}

fn locks_and_elections(ctl: &Etcdctl) {
    let mut first = ctl.start(&["lock", "door"]);
    let key = first.line();
    assert!(key.starts_with("door/"), "{key}");
    let mut second = ctl.start(&["lock", "door"]);
    let waiting = ctl.good(&["get", "--prefix", "--keys-only", "door/"]);
    assert!(waiting.contains(&key), "{waiting}");
    first.interrupt();
    let other = second.line();
    assert!(other.starts_with("door/") && other != key, "{other}");
    drop(second);

    let mut leader = ctl.start(&["elect", "office", "one"]);
    assert!(leader.line().starts_with("office/"));
    assert_eq!(leader.line(), "one");
    let mut observer = ctl.start(&["elect", "--listen", "office"]);
    assert!(observer.line().starts_with("office/"));
    assert_eq!(observer.line(), "one");
    let mut next = ctl.start(&["elect", "office", "two"]);
    leader.interrupt();
    assert!(next.line().starts_with("office/"));
    assert_eq!(next.line(), "two");
}

/// What `etcdctl snapshot save` stores is what `racos snapshot` takes.
fn snapshots(racos: &Server) {
    let dir = fresh_dir("etcdctl-snapshot");
    let file = dir.join("saved");
    // It takes one endpoint only.
    let ctl = Etcdctl { endpoints: racos.endpoints[1].replace("http://", "") };
    let said = ctl.run(&["snapshot", "save", file.to_str().unwrap()], "");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let revision = ctl.good(&["get", "--write-out=fields", "greeting"]);
    let revision = revision.lines().find_map(|line| line.strip_prefix("\"Revision\" : ")).unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_racos"))
        .args(["snapshot", "status", file.to_str().unwrap()])
        .output()
        .unwrap();
    let told = String::from_utf8(status.stdout).unwrap();
    assert!(told.starts_with(&format!("revision {revision} of cluster ")), "{told}");
    std::fs::remove_dir_all(dir).unwrap();
}

/// etcdctl's own measurement. Its shortest takes a minute: only where that is asked for. What counts is
/// that every request is answered, and that they are all made; how fast is shown, as machines differ.
#[test]
fn etcdctls_own_measurement_meets_no_error() {
    if std::env::var_os("RACOS_TEST_SLOW").is_none() {
        eprintln!("etcdctl check perf: skipped: it takes a minute (RACOS_TEST_SLOW=1 runs it)");
        return;
    }
    let racos = Server::racos("etcdctl-perf");
    let Some(ctl) = Etcdctl::of(&racos) else { return };
    let output = ctl.run(&["check", "perf", "--load=s"], "");
    let told = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = told.lines().filter(|line| line.contains("PASS")).collect();
    // Shown though the test passes.
    let _ = writeln!(std::io::stderr(), "etcdctl check perf: {lines:?}");
    assert!(!told.to_lowercase().contains("error"), "{told}");
    // 9000 requests are asked for in a minute; fewer than half of them is no matter of the machine.
    let rate = told.lines().find_map(|line| {
        let (_, rest) = line.split_once("Throughput ")?;
        rest.split(' ').find_map(|word| word.parse::<u32>().ok())
    });
    assert!(rate.is_some_and(|rate| rate >= 75), "{told}");
}

fn maintenance(ctl: &Etcdctl) {
    let members = ctl.good(&["member", "list"]);
    assert_eq!(members.lines().count(), 5, "{members}");
    assert!(members.contains(", started, node0, udp://"), "{members}");
    let health = ctl.run(&["endpoint", "health"], "");
    assert!(health.status.success());
    assert_eq!(ctl.good(&["endpoint", "status"]).lines().count(), 5);
    let hashes = ctl.good(&["endpoint", "hashkv", "--rev=6"]);
    let hash = |line: &str| line.rsplit(", ").next().unwrap().to_string();
    let first = hash(hashes.lines().next().unwrap());
    assert!(hashes.lines().count() == 5 && hashes.lines().all(|line| hash(line) == first));
    assert_eq!(ctl.good(&["alarm", "list"]), "");
    assert!(ctl.good(&["defrag"]).contains("Finished defragmenting"));
    assert!(ctl.bad(&["move-leader", "1"]).contains("leader"));
}
