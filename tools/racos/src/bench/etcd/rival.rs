//! A local etcd cluster of three members to compare with.

use crate::exit::{Failure, failed};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MEMBERS: usize = 3;
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// Processes that end when this is dropped.
pub struct Etcd {
    children: Vec<Child>,
    pub endpoints: Vec<String>,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Only one that has ended already cannot be killed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Etcd {
    /// Starts fresh members with their data in `dir` and waits until they listen.
    pub fn start(dir: &Path) -> Result<Etcd, Failure> {
        // All are held until all are chosen, so that none is chosen twice.
        let held: std::io::Result<Vec<_>> =
            (0..2 * MEMBERS).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
        let held = held.map_err(|error| failed(format!("no free ports: {error}")))?;
        let urls: Vec<String> = held
            .iter()
            .filter_map(|held| held.local_addr().ok())
            .map(|address| format!("http://{address}"))
            .collect();
        drop(held);
        let (clients, peers) = urls.split_at(MEMBERS);
        let cluster: Vec<String> =
            peers.iter().enumerate().map(|(at, peer)| format!("m{at}={peer}")).collect();
        let mut etcd = Etcd { children: Vec::new(), endpoints: clients.to_vec() };
        for at in 0..MEMBERS {
            let name = format!("m{at}");
            let log = std::fs::File::create(dir.join(format!("{name}.log")));
            let log = log.map_err(|error| failed(format!("{}: {error}", dir.display())))?;
            let child = Command::new("etcd")
                .args(["--name", &name, "--data-dir"])
                .arg(dir.join(&name))
                .args(["--listen-client-urls", &clients[at]])
                .args(["--advertise-client-urls", &clients[at]])
                .args(["--listen-peer-urls", &peers[at]])
                .args(["--initial-advertise-peer-urls", &peers[at]])
                .args(["--initial-cluster", &cluster.join(",")])
                .args(["--log-level", "error", "--quota-backend-bytes", "8589934592"])
                .args(["--max-request-bytes", "67108864"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .map_err(|error| {
                    failed(format!("cannot start etcd: {error}; apt-get install etcd-server"))
                })?;
            etcd.children.push(child);
        }
        etcd.wait()?;
        Ok(etcd)
    }

    fn wait(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + READY_PATIENCE;
        for endpoint in &self.endpoints {
            let address = endpoint.trim_start_matches("http://");
            while TcpStream::connect(address).is_err() {
                if Instant::now() > deadline {
                    return Err(failed(format!("etcd does not listen on {address}")));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }
}
