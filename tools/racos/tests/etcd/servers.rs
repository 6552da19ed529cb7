//! The servers that are asked: a real etcd, and a cluster of racos.
//!
//! Invariant: every process started here ends with the test, however the test ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

const READY_PATIENCE: Duration = Duration::from_secs(60);

/// A server under test; its processes and data go when it is dropped.
pub struct Server {
    child: Child,
    /// Nodes that were started beside it.
    joined: Vec<Child>,
    pub dir: PathBuf,
    /// Where clients connect, `http://HOST:PORT`, one for each member.
    pub endpoints: Vec<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in self.joined.iter_mut().chain([&mut self.child]) {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Server {
    /// A fresh etcd of one member, or `None` with a message if none is installed.
    pub fn etcd(name: &str) -> Option<Server> {
        if Command::new("etcd").arg("--version").output().is_err() {
            eprintln!("{name}: skipped: no etcd in PATH (apt-get install etcd-server etcd-client)");
            return None;
        }
        let dir = fresh_dir(&format!("etcd-{name}"));
        let ports = free_ports(2);
        let client = format!("http://127.0.0.1:{}", ports[0]);
        let peer = format!("http://127.0.0.1:{}", ports[1]);
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let child = Command::new("etcd")
            .args(["--name", "m0", "--data-dir"])
            .arg(dir.join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("m0={peer}"), "--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Server { child, joined: Vec::new(), dir, endpoints: vec![client] };
        server.wait_until_it_serves();
        Some(server)
    }

    /// A fresh racos cluster of five nodes that speak etcd's API.
    pub fn racos(name: &str) -> Server {
        let dir = fresh_dir(&format!("racos-{name}"));
        let base = own_ports().to_string();
        let mut child = Command::new(env!("CARGO_BIN_EXE_racos"))
            .args(["up", "--port-base", &base, "--etcd-port-base", &base, "--segment-mib", "16"])
            .arg("--dir")
            .arg(dir.join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let endpoints = loop {
            let line = lines.next().expect("racos up says where etcd clients connect").unwrap();
            if let Some(list) = line.strip_prefix("etcd endpoints: ") {
                break list.split(',').map(|at| format!("http://{at}")).collect();
            }
        };
        // What it says later is of no interest, but must not fill the pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let server = Server { child, joined: Vec::new(), dir, endpoints };
        server.wait_until_it_serves();
        server
    }

    /// Starts another node of racos, which looks on and takes requests of a million bytes; where other
    /// nodes and where clients reach it.
    pub fn join(&mut self, node: usize) -> (String, String) {
        let dir = self.dir.join("data");
        let base = own_ports();
        let (peer, face) = (format!("127.0.0.1:{base}"), format!("127.0.0.1:{}", base + 1));
        let founder = std::fs::read_to_string(dir.join("node0.toml")).unwrap();
        let other = |line: &str| match line.split_once(" = ").map(|(key, _)| key) {
            Some("node") => format!("node = {node}"),
            Some("data_dir") => format!("data_dir = \"{}/node{node}\"", dir.display()),
            _ => line.to_string(),
        };
        let lines: Vec<String> = founder.lines().map(other).collect();
        // The last section is [etcd].
        let text = format!("listen = \"{peer}\"\n{}\nlisten = \"{face}\"\n", lines.join("\n"));
        let config = dir.join(format!("node{node}.toml"));
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_racos"))
            .arg("node")
            .arg("--config")
            .arg(config)
            .arg("--max-request-bytes=1000000")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        self.joined.push(child);
        let is_ready = |line: std::io::Result<String>| line.unwrap().starts_with("ready: ");
        assert!(lines.any(is_ready), "the node says when it is ready");
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        (peer, face)
    }

    /// Kills one node of racos, which `racos up` starts again some seconds later.
    pub async fn kill(&self, node: usize) {
        use rustix::process::{Pid, Signal, kill_process};
        let config = format!("{}/data/node{node}.toml", self.dir.display());
        let is_it = |process: &std::fs::DirEntry| {
            let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            command.split(|byte| *byte == 0).any(|word| word == config.as_bytes())
        };
        let process = std::fs::read_dir("/proc").unwrap().flatten().find(is_it);
        let process = process.expect("the node runs").file_name();
        let process = process.to_str().unwrap().parse().unwrap();
        kill_process(Pid::from_raw(process).unwrap(), Signal::KILL).unwrap();
    }

    /// Ends all processes, as a power cut would; the data stays. Returns once nobody holds it.
    pub fn halt(&mut self) {
        for child in self.joined.iter_mut().chain([&mut self.child]) {
            let _ = child.kill();
            let _ = child.wait();
        }
        let deadline = Instant::now() + READY_PATIENCE;
        for node in 0..self.endpoints.len() {
            let lock = std::fs::File::open(self.dir.join(format!("data/node{node}/lock"))).unwrap();
            while lock.try_lock_shared().is_err() {
                assert!(Instant::now() < deadline, "node {node} does not end");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Waits until a node that was killed answers a linearizable read again.
    pub async fn wait_for(&self, node: usize) {
        let deadline = Instant::now() + READY_PATIENCE;
        loop {
            let endpoint = tonic::transport::Endpoint::from_shared(self.endpoints[node].clone());
            if let Ok(channel) = endpoint.unwrap().connect().await {
                let mut kv = racos_etcd::pb::etcdserverpb::kv_client::KvClient::new(channel);
                let asked = racos_etcd::pb::etcdserverpb::RangeRequest {
                    key: "a".into(),
                    ..Default::default()
                };
                match kv.range(asked).await {
                    Ok(_) => return,
                    // Of no user, where one is needed: it has looked at a state that was agreed on.
                    Err(status) if status.code() == tonic::Code::InvalidArgument => return,
                    Err(_) => {}
                }
            }
            assert!(Instant::now() < deadline, "node {node} does not come back");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Every node says that it is healthy: one that has just started may have yet to hear a quorum.
    fn wait_until_it_serves(&self) {
        let deadline = Instant::now() + READY_PATIENCE;
        for endpoint in &self.endpoints {
            let address = endpoint.trim_start_matches("http://");
            while !is_healthy(address) {
                assert!(Instant::now() < deadline, "nobody serves on {address}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn is_healthy(address: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let asked = stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut answer = String::new();
    asked.and_then(|()| stream.read_to_string(&mut answer)).is_ok()
        && answer.starts_with("HTTP/1.1 200")
}

pub fn fresh_dir(name: &str) -> PathBuf {
    let name = format!("{name}-{}", std::process::id());
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// The first of five ports that no other cluster of this process is given, now or later, and that the
/// system gives nobody by itself: while a node is dead its port is free, and neither another test's
/// cluster nor a client's socket may take it.
fn own_ports() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id() as u16 % 200 * 60;
    loop {
        let base = 20_000 + (start + 5 * TAKEN.fetch_add(1, Ordering::Relaxed)) % 12_000;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (base..base + 5).all(free) {
            return base;
        }
    }
}

/// Ports that were free a moment ago; all are held until all are chosen.
fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|held| held.local_addr().unwrap().port()).collect()
}
