//! Which cluster a command talks to.
//!
//! Order: `--endpoint` and `--cluster`, then the environment, then the file that `racos up` leaves
//! in its directory.

use crate::config::parse_cluster;
use crate::exit::{Failure, usage};
use clap::Args;
use racos_client::{Client, ClientConfig, ClientError};
use std::fmt::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

/// Directory of a local cluster unless said otherwise.
pub const DIR_DEFAULT: &str = "racos-data";
/// First port of a local cluster unless said otherwise.
pub const PORT_DEFAULT: u16 = 7400;
/// Name of the file with cluster and endpoints.
const FILE: &str = "endpoints";

#[derive(Args, Debug, Clone)]
pub struct Connect {
    /// Node to talk to; repeat it, or separate by commas, for failover.
    #[arg(long, short = 'e', value_name = "HOST:PORT", value_delimiter = ',')]
    #[arg(env = "RACOS_ENDPOINTS", help_heading = "Cluster")]
    pub endpoint: Vec<String>,
    /// Number of the cluster, in hexadecimal digits, as in the nodes' configuration.
    #[arg(long, value_name = "HEX", env = "RACOS_CLUSTER", help_heading = "Cluster")]
    pub cluster: Option<String>,
    /// Directory of a cluster started by `racos up`, used if no endpoint is given.
    #[arg(long, value_name = "DIR", env = "RACOS_DIR", default_value = DIR_DEFAULT)]
    #[arg(help_heading = "Cluster")]
    pub dir: PathBuf,
    /// Give up an operation after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, help_heading = "Cluster")]
    pub timeout: f64,
}

/// A cluster's number and nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub cluster: u64,
    pub endpoints: Vec<SocketAddr>,
}

impl Connect {
    /// The cluster that is meant.
    pub fn target(&self) -> Result<Target, Failure> {
        let file = read_file(&self.dir)?;
        let cluster = match (&self.cluster, &file) {
            (Some(text), _) => parse_cluster(text).ok_or_else(|| {
                usage(format!("--cluster {text}: use 1 to 16 hexadecimal digits, not all zero"))
            })?,
            (None, Some(file)) => file.cluster,
            (None, None) => return Err(self.no_cluster()),
        };
        let endpoints = if !self.endpoint.is_empty() {
            self.endpoint
                .iter()
                .map(|text| resolve("--endpoint", text))
                .collect::<Result<_, _>>()?
        } else if let Some(file) = file.filter(|file| file.cluster == cluster) {
            file.endpoints
        } else {
            (0..5).map(|node| SocketAddr::from(([127, 0, 0, 1], PORT_DEFAULT + node))).collect()
        };
        Ok(Target { cluster, endpoints })
    }

    fn no_cluster(&self) -> Failure {
        usage(format!(
            "which cluster? There is no {} (start one with `racos up`); for another cluster give \
             --cluster and --endpoint, or set RACOS_CLUSTER and RACOS_ENDPOINTS",
            self.dir.join(FILE).display()
        ))
    }

    /// A client for it.
    pub fn client(&self) -> Result<Client, Failure> {
        let target = self.target()?;
        if !(0.001..=1e6).contains(&self.timeout) {
            return Err(usage(format!("--timeout {}: give 0.001 to 1000000 s", self.timeout)));
        }
        target.client(|config| config.patience_ns = (self.timeout * 1e9) as u64)
    }
}

impl Target {
    /// A client for this cluster.
    pub fn client(&self, change: impl FnOnce(&mut ClientConfig)) -> Result<Client, Failure> {
        Ok(self.connect(change)?)
    }

    /// [`Target::client`] that tells programs what is wrong.
    pub fn connect(&self, change: impl FnOnce(&mut ClientConfig)) -> Result<Client, ClientError> {
        let mut config = ClientConfig::new(self.cluster, self.endpoints.clone(), random_u64());
        change(&mut config);
        Client::connect(config)
    }

    /// Leaves a file for other commands to find this cluster.
    pub fn write_file(&self, dir: &Path) -> std::io::Result<()> {
        let mut text =
            String::from("# A racos cluster on this machine, for `racos put` and others.\n");
        writeln!(text, "cluster {:016x}", self.cluster).expect("writing to a string");
        for endpoint in &self.endpoints {
            writeln!(text, "endpoint {endpoint}").expect("writing to a string");
        }
        std::fs::write(dir.join(FILE), text)
    }
}

fn read_file(dir: &Path) -> Result<Option<Target>, Failure> {
    let path = dir.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(usage(format!("cannot read {}: {error}", path.display()))),
    };
    parse_file(&text).map(Some).map_err(|(line, what)| {
        usage(format!("{}:{line}: {what}; start `racos up` again to rewrite it", path.display()))
    })
}

fn parse_file(text: &str) -> Result<Target, (usize, String)> {
    let (mut cluster, mut endpoints) = (None, Vec::new());
    for (at, line) in text.lines().enumerate() {
        let refuse = || (at + 1, format!("`{line}` is not understood"));
        match line.split_once(' ') {
            _ if line.starts_with('#') || line.is_empty() => {}
            Some(("cluster", number)) => {
                cluster = Some(parse_cluster(number).ok_or_else(refuse)?);
            }
            Some(("endpoint", address)) => {
                endpoints.push(address.parse().map_err(|_| refuse())?);
            }
            _ => return Err(refuse()),
        }
    }
    match cluster {
        Some(cluster) if !endpoints.is_empty() => Ok(Target { cluster, endpoints }),
        _ => Err((1, "cluster or endpoints are missing".to_string())),
    }
}

pub fn resolve(option: &str, text: &str) -> Result<SocketAddr, Failure> {
    let refuse = |why: String| usage(format!("{option} {text}: {why}; write HOST:PORT"));
    let mut addresses = text.to_socket_addrs().map_err(|error| refuse(error.to_string()))?;
    addresses.next().ok_or_else(|| refuse("no address".to_string()))
}

/// A number that nobody else draws.
pub fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(&mut bytes[filled..], flags) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("the system gives no random numbers: {error}"),
        }
    }
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_back_as_written_and_damage_is_located() {
        let dir = std::env::temp_dir().join(format!("racos-connect-{:x}", random_u64()));
        std::fs::create_dir(&dir).unwrap();
        assert_eq!(read_file(&dir), Ok(None));
        let endpoints = vec!["127.0.0.1:7400".parse().unwrap(), "[::1]:7".parse().unwrap()];
        let target = Target { cluster: 0x12ab, endpoints };
        target.write_file(&dir).unwrap();
        assert_eq!(read_file(&dir), Ok(Some(target)));
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(parse_file("cluster 1\nendpoint x").unwrap_err().0, 2);
        assert!(parse_file("cluster 1\n").is_err());
    }
}
