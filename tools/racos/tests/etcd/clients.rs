//! Clients of other languages and libraries, each a program of its own in `clients/`.
//!
//! They are run against five racos nodes and, where one is installed, against a real etcd: what they
//! expect is what etcd does. A client whose toolchain is not here is skipped with a message.

use crate::servers::Server;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/etcd/clients");
/// What compilers leave, from one run to the next.
const BUILT: &str = env!("CARGO_TARGET_TMPDIR");
/// Where Debian's packages put the sources of Go libraries.
const GO_SOURCES: &str = "/usr/share/gocode";

fn source(name: &str) -> PathBuf {
    Path::new(SOURCES).join(name)
}

fn works(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

fn skipped(client: &str, reason: &str) -> Option<Client> {
    eprintln!("{client}: skipped: {reason}");
    None
}

/// Runs a compiler, which must succeed.
fn build(client: &str, command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{client}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A client that can be run: its name, and the command without the endpoints.
type Client = (&'static str, Vec<PathBuf>);

/// Python's etcd3, which takes the first endpoint.
fn python() -> Option<Client> {
    let has_library = |name: &&&str| works(Command::new(name).args(["-c", "import etcd3"]));
    let Some(interpreter) = ["python3", "/usr/bin/python3"].iter().find(has_library) else {
        return skipped("Python", "there is no etcd3 for it (apt-get install python3-etcd3)");
    };
    // Nothing is written beside the sources.
    Some(("python", vec![interpreter.into(), "-B".into(), source("python.py")]))
}

/// Go's clientv3: etcd's own.
fn go() -> Option<Client> {
    let library = Path::new(GO_SOURCES).join("src/go.etcd.io/etcd/clientv3");
    if !works(Command::new("go").arg("version")) || !library.exists() {
        let reason = "no compiler or library (apt-get install golang-go golang-etcd-server-dev)";
        return skipped("Go", reason);
    }
    let program = Path::new(BUILT).join("etcd-client-go");
    let mut compiler = Command::new("go");
    compiler.env("GO111MODULE", "off").env("GOPATH", GO_SOURCES);
    compiler.env("GOCACHE", Path::new(BUILT).join("go-cache"));
    build("Go", compiler.args(["build", "-o"]).arg(&program).arg(source("go/client.go")));
    Some(("go", vec![program]))
}

/// Rust's etcd-client. It needs protoc to be built, so it is no dependency of ours.
fn rust() -> Option<Client> {
    if !works(Command::new("protoc").arg("--version")) {
        return skipped("Rust", "no protoc (apt-get install protobuf-compiler)");
    }
    let built = Path::new(BUILT).join("etcd-client-rust");
    let cargo = |command: &str| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([command, "--quiet", "--locked", "--manifest-path"]);
        cargo.arg(source("rust/Cargo.toml"));
        cargo
    };
    let mut fetch = cargo("fetch");
    if !works(fetch.env("CARGO_NET_RETRY", "1").env("CARGO_HTTP_TIMEOUT", "10")) {
        return skipped(
            "Rust",
            "`cargo fetch --locked` fails: its library cannot be had (network?)",
        );
    }
    build("Rust", cargo("build").arg("--offline").arg("--target-dir").arg(&built));
    Some(("rust", vec![built.join("debug/racos-etcd-client-check")]))
}

/// Node.js's etcd3, as the lock file beside the program names it.
fn node() -> Option<Client> {
    if !works(Command::new("node").arg("--version")) || !works(Command::new("npm").arg("--version"))
    {
        return skipped("Node.js", "no node or npm (apt-get install nodejs npm)");
    }
    // The library is looked for beside the program.
    let built = Path::new(BUILT).join("etcd-client-node");
    std::fs::create_dir_all(&built).unwrap();
    for file in ["package.json", "package-lock.json", "client.js"] {
        std::fs::copy(source("node").join(file), built.join(file)).unwrap();
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]);
    npm.args(["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=10000"]);
    if !works(npm.current_dir(&built)) {
        return skipped("Node.js", "`npm ci` fails: its library cannot be had (network?)");
    }
    Some(("node", vec!["node".into(), built.join("client.js")]))
}

/// Jetcd comes from Maven only: there is no package of it to build with.
fn java() -> Option<Client> {
    skipped("Java", "the distribution has no jetcd")
}

fn run_all(server: &Server, clients: &[Client]) {
    let endpoints = server.endpoints.iter().map(|at| at.trim_start_matches("http://"));
    let endpoints: Vec<&str> = endpoints.collect();
    for (client, command) in clients {
        let mut program = Command::new(&command[0]);
        program.args(&command[1..]).args(&endpoints).stdin(Stdio::null());
        let output = program.output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{client} at {endpoints:?}: {told}\n{error}");
        assert!(told.contains(client), "{client} says what it has done: {told}");
    }
}

#[test]
fn clients_of_other_languages_get_what_they_expect() {
    let makers = [go as fn() -> Option<Client>, rust, java, node, python];
    let builders = makers.map(std::thread::spawn);
    let clients = builders.map(|builder| builder.join().unwrap());
    let clients: Vec<Client> = clients.into_iter().flatten().collect();
    if clients.is_empty() {
        return;
    }
    let same = clients.clone();
    let beside = std::thread::spawn(move || {
        Server::etcd("clients").iter().for_each(|etcd| run_all(etcd, &same));
    });
    run_all(&Server::racos("clients"), &clients);
    beside.join().unwrap();
}
