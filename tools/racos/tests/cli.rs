//! The command from outside: real processes, real sockets, real files.

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const RACOS: &str = env!("CARGO_BIN_EXE_racos");

/// A fresh directory of this test; removed when dropped.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let name = format!("{name}-{}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Dir(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_string()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process that serves; killed when dropped.
struct Server {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Server {
    /// Starts it and reads its lines until one begins like this.
    fn start(args: &[&str], until: &str) -> Server {
        let mut child = Command::new(RACOS)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with(until) {
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0, "{args:?} ended early");
        }
        Server { child, lines }
    }

    /// Asks it to stop, and tells its exit status.
    fn stop(mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(RACOS)
        .args(args)
        .env_remove("RACOS_ENDPOINTS")
        .env_remove("RACOS_CLUSTER")
        .env_remove("RACOS_DIR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// Runs a command that must succeed; its standard output.
fn good(args: &[&str]) -> Vec<u8> {
    let output = run(args, b"");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    output.stdout
}

/// Runs a command that must fail with this status; what it says.
fn bad(args: &[&str], status: i32) -> String {
    let output = run(args, b"");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {text}");
    text
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8).collect()
}

#[test]
fn one_node_stores_lists_deletes_and_finds_its_data_again() {
    let dir = Dir::new("one");
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "cluster = \"abc\"\nnode = 0\nmembers = [\"127.0.0.1:{port}\"]\nf = 0\nk = 1\n\
         data_dir = {:?}\n[limits]\nsegment_mib = 16\ndisk_reserve_mib = 64\n",
        dir.path("data")
    );
    fs::write(dir.path("node.toml"), config).unwrap();
    let config = dir.path("node.toml");
    assert_eq!(
        text(good(&["node", "--check", "--config", &config])),
        "the configuration is good\n"
    );
    let at = format!("127.0.0.1:{port}");
    let to = ["--endpoint", &at, "--cluster", "abc"];
    let with = |args: &[&'static str]| [args, &to[..]].concat().to_vec();

    let node = Server::start(&["node", "--config", &config], "ready: ");
    good(&with(&["put", "a", "first"]));
    good(&with(&["put", "b\\x00c", "second"]));
    assert_eq!(good(&with(&["get", "a"])), b"first");
    assert_eq!(good(&with(&["get", "--hex-key", "620063"])), b"second");
    good(&with(&["del", "a"]));
    bad(&with(&["get", "a"]), 3);
    bad(&with(&["del", "a"]), 3);
    assert_eq!(node.stop(Signal::TERM), Some(0));

    let lost = bad(&with(&["get", "--timeout", "0.3", "a"]), 4);
    assert!(lost.contains(&at), "names the endpoint: {lost}");
    let node = Server::start(&["node", "--config", &config], "ready: ");
    assert_eq!(text(good(&with(&["ls"]))), "b\\x00c\n");
    let data = dir.path("data");
    assert!(text(run(&["inspect", &data], b"").stdout).starts_with("a node uses this directory"));
    assert_eq!(node.stop(Signal::INT), Some(0));

    // What lies there, without a node; and that damage is found by its status.
    let seen: serde_json::Value =
        serde_json::from_slice(&good(&["inspect", "--verify", "--json", &data])).unwrap();
    assert_eq!((&seen["in_use"], &seen["start"]["possible"]), (&false.into(), &true.into()));
    assert_eq!(seen["superblock"]["newest"]["boot"], 2);
    assert!(seen["kinds"]["hold"]["records"].as_u64() >= Some(3), "{seen}");
    assert!(text(good(&["inspect", "--segments", &data])).contains("no damage found"));
    let segment = dir.path("data/segment-00000001.log");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[4096..8192].fill(0);
    fs::write(&segment, bytes).unwrap();
    let refused = bad(&["inspect", &data], 1);
    assert!(refused.contains("would not start") && refused.contains("member replace"), "{refused}");
}

#[test]
fn five_nodes_store_values_of_any_size_and_bytes() {
    let dir = Dir::new("five");
    let data = dir.path("cluster");
    let up = ["up", "--dir", &data, "--port-base", "0", "--segment-mib", "16"];
    let server = Server::start(&up, "Ctrl-C");
    let at = ["--dir", &data];
    let with = |args: &[&str]| -> Vec<String> {
        args.iter().chain(&at).map(|arg| arg.to_string()).collect()
    };
    let ok = |args: &[&str]| {
        let args = with(args);
        good(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };

    // Any bytes through standard input, any size through files.
    let all_bytes: Vec<u8> = (0..=255).collect();
    let args = with(&["put", "all bytes", "-"]);
    let output = run(&args.iter().map(String::as_str).collect::<Vec<_>>(), &all_bytes);
    assert!(output.status.success());
    assert_eq!(ok(&["get", "all bytes"]), all_bytes);
    for len in [0, 1, 100_000, 2 << 20, (2 << 20) + 1, 9_000_001] {
        let (file, back) = (dir.path("file"), dir.path("back"));
        fs::write(&file, pattern(len)).unwrap();
        let key = format!("size/{len:08}");
        ok(&["put", &key, "--file", &file]);
        ok(&["get", &key, "--file", &back]);
        assert!(fs::read(&back).unwrap() == pattern(len), "{len} bytes to a file");
        assert!(ok(&["get", &key]) == pattern(len), "{len} bytes to standard output");
    }

    let long = text(ok(&["ls", "--long", "size/"]));
    let sizes: Vec<_> = long.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(sizes, ["0", "1", "100000", "2097152", "2097153", "9000001"]);
    assert_eq!(text(ok(&["ls", "--limit", "2", "size/"])).lines().count(), 2);
    let first = text(ok(&["ls", "--json"])).lines().next().unwrap().to_string();
    let first: serde_json::Value = serde_json::from_str(&first).unwrap();
    assert_eq!((&first["key"], &first["size"]), (&"all bytes".into(), &256.into()));

    let status: serde_json::Value = serde_json::from_slice(&ok(&["status", "--json"])).unwrap();
    let nodes = status["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 5);
    assert!(nodes.iter().all(|node| node["reachable"] == true && node["n"] == 5));
    assert!(text(ok(&["status"])).lines().count() >= 7);

    ok(&["del", "size/00000001"]);
    assert_eq!(server.stop(Signal::INT), Some(0));
    let gone: Vec<String> = with(&["status", "--timeout", "0.3"]);
    bad(&gone.iter().map(String::as_str).collect::<Vec<_>>(), 4);

    // Started again it goes on where it ended; options that contradict it are refused.
    let asked = bad(&["up", "--dir", &data, "--nodes", "3"], 2);
    assert!(asked.contains("--nodes 3: the cluster in"), "{asked}");
    let server = Server::start(&["up", "--dir", &data], "Ctrl-C");
    assert!(ok(&["get", "size/09000001"]) == pattern(9_000_001));
    assert_eq!(text(ok(&["ls", "size/"])).lines().count(), 5);
    assert_eq!(server.stop(Signal::TERM), Some(0));
}

/// tests PROTOCOL 10-al: a node whose directory is gone, killed and started again under load, ends with
/// the command that brings it back, and has written nothing; the command brings it back.
#[test]
fn a_node_that_lost_its_directory_is_refused_until_it_is_replaced() {
    let dir = Dir::new("lost");
    let data = dir.path("cluster");
    let up = ["up", "--dir", &data, "--port-base", "0", "--segment-mib", "16"];
    let up = [&up[..], &["--etcd-port-base", "0"]].concat();
    let server = Server::start(&up, "Ctrl-C");
    good(&["put", "--dir", &data, "before", "1"]);
    assert_eq!(server.stop(Signal::INT), Some(0));
    let config = |node: usize| dir.path(&format!("cluster/node{node}.toml"));
    let start = |node: usize| Server::start(&["node", "--config", &config(node)], "ready: ");
    let mut nodes: Vec<Option<Server>> = (0..5).map(|node| Some(start(node))).collect();
    let load = dir.path("load");
    let filled: Vec<(String, String)> =
        (0..40).map(|index| (format!("{load}/{index}"), format!("value {index}"))).collect();
    let put = |(key, value): &(String, String)| good(&["put", "--dir", &data, key, value]);
    filled[..10].iter().for_each(|pair| drop(put(pair)));

    nodes[2] = None;
    fs::remove_dir_all(dir.path("cluster/node2")).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| filled[10..30].iter().for_each(|pair| drop(put(pair))));
        let why = bad(&["node", "--config", &config(2)], 1);
        assert!(why.contains("node 2 by another disk"), "{why}");
        assert!(why.contains("racos member replace 2`"), "{why}");
    });
    let left = fs::read_dir(dir.path("cluster/node2")).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).filter(|name| name != "lock").collect();
    assert!(left.is_empty(), "{left:?}");

    good(&["member", "replace", "2", "--dir", &data]);
    nodes[2] = Some(start(2));
    filled[30..].iter().for_each(|pair| drop(put(pair)));
    nodes[3] = None;
    for (key, value) in &filled {
        assert_eq!(text(good(&["get", "--dir", &data, key])), *value);
    }
    // Started all together: the others go on without the one that is refused.
    nodes.clear();
    fs::remove_dir_all(dir.path("cluster/node1")).unwrap();
    let server = Server::start(&["up", "--dir", &data], "node 1 ended before it was ready");
    assert_eq!(text(good(&["get", "--dir", &data, "before"])), "1");
    assert_eq!(server.stop(Signal::INT), Some(0));
}

/// tests PROTOCOL 10-am: a node goes on at another address, and a disk that replaces a lost one comes up at
/// one; nobody else's configuration is touched.
#[test]
fn nodes_come_back_at_other_addresses() {
    let dir = Dir::new("moved");
    let data = dir.path("cluster");
    let up = ["up", "--dir", &data, "--port-base", "0", "--segment-mib", "16"];
    assert_eq!(Server::start(&up, "Ctrl-C").stop(Signal::INT), Some(0));
    let config = |node: usize| dir.path(&format!("cluster/node{node}.toml"));
    let start = |node: usize| Server::start(&["node", "--config", &config(node)], "ready: ");
    let mut nodes: Vec<Option<Server>> = (0..5).map(|node| Some(start(node))).collect();
    let endpoints = fs::read_to_string(Path::new(&data).join("endpoints")).unwrap();
    let founded: Vec<&str> =
        endpoints.lines().filter_map(|line| line.strip_prefix("endpoint ")).collect();
    let free = || {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap().to_string()
    };
    let put = |key: &str| drop(good(&["put", "--dir", &data, key, key]));
    let get = |key: &str| assert_eq!(text(good(&["get", "--dir", &data, key])), key);
    put("before");

    let there = free();
    let wrong = bad(&["member", "move", "2", "nowhere", "--dir", &data], 2);
    assert!(wrong.contains("ADDRESS nowhere: ") && wrong.contains("write HOST:PORT"), "{wrong}");
    let taken = bad(&["member", "move", "2", founded[3], "--dir", &data], 1);
    assert!(taken.contains("node 3 is reached there"), "{taken}");
    for _ in 0..2 {
        let moved = text(good(&["member", "move", "2", &there, "--dir", &data]));
        assert!(moved.contains(&format!("node 2 is reached at {there} from now on")), "{moved}");
    }
    nodes[2] = None;
    edit(&config(2), founded[2], &there);
    nodes[2] = Some(start(2));
    // The others, as they were configured, know it from their logs.
    for node in [0, 1] {
        nodes[node] = None;
        nodes[node] = Some(start(node));
    }
    // Without any one of the others it is needed.
    nodes[3] = None;
    put("with it");
    let status = text(good(&["status", "--dir", &data]));
    assert!(status.contains(&there) && !status.contains(founded[2]), "{status}");
    nodes[3] = Some(start(3));

    nodes[1] = None;
    fs::remove_dir_all(dir.path("cluster/node1")).unwrap();
    let elsewhere = free();
    edit(&config(1), founded[1], &elsewhere);
    good(&["member", "replace", "1", "--address", &elsewhere, "--dir", &data]);
    nodes[1] = Some(start(1));
    put("with both");
    nodes[4] = None;
    ["before", "with it", "with both"].into_iter().for_each(get);
    put("once more");
    let listed = text(good(&["member", "list", "--dir", &data]));
    for (node, address, incarnation) in [("1", &elsewhere, "2"), ("2", &there, "1")] {
        let mut lines = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        assert!(lines.any(|line| line.starts_with(&[node, address, incarnation])), "{listed}");
    }
}

/// tests PROTOCOL 10-f
#[test]
fn what_a_directory_held_that_was_moved_away_is_taken_over() {
    let dir = Dir::new("adopted");
    let data = dir.path("cluster");
    let up = ["up", "--dir", &data, "--port-base", "0", "--segment-mib", "16"];
    let server = Server::start(&[&up[..], &["--etcd-port-base", "0"]].concat(), "Ctrl-C");
    assert_eq!(server.stop(Signal::INT), Some(0));
    let config = |node: usize| dir.path(&format!("cluster/node{node}.toml"));
    let start = |node: usize| Server::start(&["node", "--config", &config(node)], "ready: ");
    let mut nodes: Vec<Option<Server>> = (0..5).map(|node| Some(start(node))).collect();
    let (file, value) = (dir.path("file"), pattern(3_000_000));
    fs::write(&file, &value).unwrap();
    good(&["put", "--dir", &data, "large", "--file", &file]);
    let keys: Vec<String> = (0..40).map(|index| format!("key {index}")).collect();
    keys.iter().for_each(|key| drop(good(&["put", "--dir", &data, key, &key.repeat(40)])));

    nodes[2] = None;
    let (home, old) = (dir.path("cluster/node2"), dir.path("old"));
    fs::rename(&home, &old).unwrap();
    let refused =
        bad(&["member", "replace", "2", "--dir", &data, "--adopt", &dir.path("cluster/node1")], 1);
    assert!(refused.contains("a node runs on"), "{refused}");
    let told = text(good(&["member", "replace", "2", "--dir", &data, "--adopt", &old]));
    assert!(told.contains("taken over from") && told.contains("0 are not there"), "{told}");
    nodes[2] = Some(start(2));
    nodes[3] = None;
    for key in &keys {
        assert_eq!(text(good(&["get", "--dir", &data, key])), key.repeat(40));
    }
    assert_eq!(good(&["get", "--dir", &data, "large"]), value);
    let status: serde_json::Value =
        serde_json::from_slice(&good(&["status", "--dir", &data, "--json"])).unwrap();
    let of = |node: &&serde_json::Value| node["node"] == 2;
    let repair = &status["nodes"].as_array().unwrap().iter().find(of).unwrap()["repair"];
    // The last writes may not have been noted as decided in its log.
    let made_again = repair["repaired"].as_u64().unwrap() + repair["missing"].as_u64().unwrap();
    assert!(made_again <= 3, "{repair}");
}

/// Every place in the cluster's segment files where these bytes lie.
fn find(data: &Path, bytes: &[u8]) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(data).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(find(&path, bytes));
        } else if path.extension().is_some_and(|extension| extension == "log") {
            let file = fs::read(&path).unwrap();
            let sectors = file.chunks(512).enumerate();
            let hits = sectors.filter(|(_, sector)| sector.starts_with(bytes));
            found.extend(hits.map(|(index, _)| (path.clone(), index as u64 * 512)));
        }
    }
    found
}

#[test]
fn sectors_overwritten_behind_a_nodes_back_are_read_around_and_made_again() {
    let dir = Dir::new("rotten");
    let data = dir.path("cluster");
    let up = ["up", "--dir", &data, "--port-base", "0", "--segment-mib", "16"];
    let server = Server::start(&up, "Ctrl-C");
    let (file, value) = (dir.path("file"), pattern(300_000));
    fs::write(&file, &value).unwrap();
    good(&["put", "--dir", &data, "large", "--file", &file]);
    good(&["put", "--dir", &data, "after", "it"]);
    // Nothing is in memory any more.
    assert_eq!(server.stop(Signal::INT), Some(0));
    let server = Server::start(&["up", "--dir", &data], "Ctrl-C");
    let places = find(Path::new(&data), &value[..64]);
    let [(segment, at)] = &places[..] else { panic!("the first fragment lies at {places:?}") };
    let mut rotten = fs::OpenOptions::new().write(true).open(segment).unwrap();
    rotten.seek(SeekFrom::Start(*at)).unwrap();
    rotten.write_all(&[0xdb; 4096]).unwrap();
    rotten.sync_all().unwrap();
    assert!(good(&["get", "--dir", &data, "large"]) == value);
    // Whoever read it knows; it is made again without anybody's doing.
    let mut repaired = 0;
    for _ in 0..1000 {
        let status = good(&["status", "--dir", &data, "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
        let nodes = status["nodes"].as_array().unwrap();
        let sum = |name: &str| -> u64 {
            nodes.iter().map(|node| node["repair"][name].as_u64().unwrap()).sum()
        };
        repaired = sum("repaired");
        if repaired > 0 && sum("missing") == 0 {
            break;
        }
    }
    assert_eq!(repaired, 1);
    assert_eq!(find(Path::new(&data), &value[..64]).len(), 1, "at another place");
    assert_eq!(server.stop(Signal::INT), Some(0));
    let server = Server::start(&["up", "--dir", &data], "Ctrl-C");
    assert!(good(&["get", "--dir", &data, "large"]) == value);
    assert_eq!(server.stop(Signal::INT), Some(0));
}

#[test]
fn nodes_join_and_leave_a_running_cluster_and_f_and_k_change() {
    let dir = Dir::new("members");
    let data = dir.path("cluster");
    let up = ["up", "--dir", &data, "--port-base", "0", "--segment-mib", "16"];
    let code = ["--nodes", "3", "--f", "1", "--k", "1"];
    let server = Server::start(&[&up[..], &code[..]].concat(), "Ctrl-C");
    let with = |args: &[&'static str]| [args, &["--dir", &data]].concat();
    let ok = |args: &[&'static str]| text(good(&with(args)));
    let put = |round: usize| {
        for key in ["small", "middle", "large"] {
            let len = [7, 5_000, 200_000][key.len() % 3] + round;
            let output =
                run(&["put", "--dir", &data, &format!("{key}{round}"), "-"], &pattern(len));
            assert!(output.status.success(), "{output:?}");
        }
    };
    let all_there = |rounds: usize| {
        for round in 0..rounds {
            for key in ["small", "middle", "large"] {
                let len = [7, 5_000, 200_000][key.len() % 3] + round;
                let found = good(&["get", "--dir", &data, &format!("{key}{round}")]);
                assert!(found == pattern(len), "{key}{round}");
            }
        }
    };
    put(0);
    let refused = bad(&with(&["member", "set", "--k", "2"]), 2);
    assert!(refused.contains("n >= 2f + k") && refused.contains("--k 1"), "{refused}");

    // A fourth node looks on, and becomes a member.
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let refused = bad(&["member", "add", &address, "--dir", &data, "--timeout", "1"], 4);
    assert!(refused.contains("start it first"), "{refused}");
    let config = fs::read_to_string(Path::new(&data).join("node0.toml")).unwrap();
    let config = config.replace("node = 0", "node = 3").replace("node0", "node3");
    let file = dir.path("node3.toml");
    // Its etcd API is at a port of its own; [etcd] stands last.
    let etcd = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let lines = format!("listen = \"{address}\"\n{config}listen = \"{etcd}\"\n");
    fs::write(&file, lines).unwrap();
    let joiner = Server::start(&["node", "--config", &file], "ready: ");
    let added = text(good(&["member", "add", &address, "--dir", &data]));
    assert!(added.contains("n = 4, f = 1, k = 1") && added.contains("in effect"), "{added}");
    let again = text(good(&["member", "add", &address, "--dir", &data]));
    assert!(again.contains("is a member already"), "{again}");
    put(1);
    assert!(ok(&["member", "set", "--k", "2"]).contains("n = 4, f = 1, k = 2"));
    put(2);
    let listed = ok(&["member", "list"]);
    assert!(listed.contains(&address) && listed.contains("n = 4, f = 1, k = 2"), "{listed}");
    all_there(3);

    // It dies; everything is there, and it is removed as lost.
    drop(joiner);
    all_there(3);
    put(3);
    let refused = bad(&with(&["member", "remove", "3", "--lost"]), 2);
    assert!(refused.contains("3 members with f = 1 and k = 2"), "{refused}");
    let removed = ok(&["member", "remove", "3", "--lost", "--k", "1"]);
    assert!(removed.contains("n = 3, f = 1, k = 1") && removed.contains("in effect"), "{removed}");
    put(4);
    all_there(5);
    assert!(ok(&["member", "list"]).contains("removed as lost"));
    // What was written before is stored again for the members that there are now.
    let patience = Instant::now() + Duration::from_secs(60);
    while !ok(&["member", "list"]).contains("no value needs it") {
        assert!(Instant::now() < patience, "{}", ok(&["member", "list"]));
        std::thread::sleep(Duration::from_millis(50));
    }
    all_there(5);
    let refused = bad(&with(&["member", "remove", "3"]), 2);
    assert!(refused.contains("not a member any more"), "{refused}");
    assert_eq!(server.stop(Signal::INT), Some(0));
}

/// A change in the text of a configuration file.
fn edit(file: &str, from: &str, to: &str) {
    let config = fs::read_to_string(file).unwrap();
    assert!(config.contains(from), "{config}");
    fs::write(file, config.replace(from, to)).unwrap();
}

/// tests PROTOCOL 3.1-j: keys of several lanes are stored, listed and found after a restart; other lanes
/// than the directories were made for are refused before anything is written.
#[test]
fn nodes_of_two_lanes_keep_them() {
    let dir = Dir::new("lanes");
    let data = dir.path("cluster");
    let up = ["up", "--dir", &data, "--port-base", "0", "--segment-mib", "16", "--lanes", "2"];
    let up = [&up[..], &["--nodes", "3", "--f", "1", "--k", "1"]].concat();
    let refused = bad(&[&up[..], &["--etcd-port-base", "0"]].concat(), 2);
    assert!(refused.contains("more than one lane there are native clients only"), "{refused}");
    let server = Server::start(&up, "Ctrl-C");
    let to = ["--dir", &data];
    let keys: Vec<String> = (0..12).map(|key| format!("key{key:02}")).collect();
    for key in &keys {
        good(&[&["put", key, key], &to[..]].concat());
    }
    let large = pattern(5_000_000);
    assert!(run(&[&["put", "large", "-"], &to[..]].concat(), &large).status.success());
    good(&[&["del", "key03"], &to[..]].concat());
    let all_there = || {
        for key in &keys {
            match key.as_str() {
                "key03" => drop(bad(&[&["get", key], &to[..]].concat(), 3)),
                _ => assert_eq!(text(good(&[&["get", key], &to[..]].concat())), *key),
            }
        }
        assert!(good(&[&["get", "large"], &to[..]].concat()) == large);
        let listed = text(good(&[&["ls", "key"], &to[..]].concat()));
        let expected = keys.iter().filter(|key| *key != "key03");
        assert!(listed.lines().eq(expected), "{listed}");
    };
    all_there();
    let status = text(good(&[&["status"], &to[..]].concat()));
    assert!(status.contains(", 2 lanes") && status.contains(" 2.1 "), "{status}");
    let status = good(&[&["status", "--json"], &to[..]].concat());
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    let nodes = status["nodes"].as_array().unwrap();
    let of_lane = |lane: u64| nodes.iter().filter(move |node| node["lane"] == lane);
    let held = |lane| of_lane(lane).map(|node| node["keys"].as_u64().unwrap()).max().unwrap();
    assert_eq!(nodes.len(), 6, "{status}");
    // The one that was deleted is remembered.
    assert_eq!(held(0) + held(1), 13, "{status}");
    assert!(held(0) > 0 && held(1) > 0, "{status}");
    assert_eq!(server.stop(Signal::INT), Some(0));
    let looked = text(good(&["inspect", &dir.path("cluster/node0")]));
    assert!(looked.contains("lane 0:") && looked.contains("lane 1:"), "{looked}");

    // Another number, and directories that were swapped.
    let config = dir.path("cluster/node0.toml");
    let refused = bad(&["up", "--dir", &data, "--lanes", "4"], 2);
    assert!(refused.contains("--lanes 4") && refused.contains("has 2"), "{refused}");
    edit(&config, "lanes = 2\n", "");
    let refused = bad(&["node", "--config", &config], 1);
    assert!(refused.contains("lane-0") && refused.contains("set `lanes = 2`"), "{refused}");
    edit(&config, "policy", "lanes = 2\npolicy");
    let lane = |name: &str| dir.path(&format!("cluster/node0/{name}"));
    let swap = || {
        fs::rename(lane("lane-0"), lane("aside")).unwrap();
        fs::rename(lane("lane-1"), lane("lane-0")).unwrap();
        fs::rename(lane("aside"), lane("lane-1")).unwrap();
    };
    swap();
    let refused = bad(&["node", "--config", &config], 1);
    assert!(refused.contains("lane-0 holds the log of lane 1"), "{refused}");
    swap();
    let server = Server::start(&["up", "--dir", &data], "Ctrl-C");
    all_there();
    assert_eq!(server.stop(Signal::INT), Some(0));
}

/// A node with one lane has its log in `data_dir` itself, and is not taken for one with more.
#[test]
fn the_directory_of_one_lane_is_not_used_with_more() {
    let dir = Dir::new("one-lane");
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let port = port.min(65_000);
    let config = format!(
        "cluster = \"abc\"\nnode = 0\nmembers = [\"127.0.0.1:{port}\"]\nf = 0\nk = 1\n\
         data_dir = {:?}\n[limits]\nsegment_mib = 16\ndisk_reserve_mib = 64\n",
        dir.path("data")
    );
    fs::write(dir.path("node.toml"), config).unwrap();
    let config = dir.path("node.toml");
    let node = Server::start(&["node", "--config", &config], "ready: ");
    assert_eq!(node.stop(Signal::TERM), Some(0));
    edit(&config, "f = 0", "lanes = 3\nf = 0");
    let refused = bad(&["node", "--config", &config], 1);
    assert!(refused.contains("with one lane") && refused.contains("remove `lanes`"), "{refused}");
    let names = fs::read_dir(dir.path("data")).unwrap().flatten().map(|entry| entry.file_name());
    assert!(names.into_iter().all(|name| !name.to_string_lossy().starts_with("lane-")));
}

/// Each lane makes the same change; one that was cut off half way is completed when it is run again.
#[test]
fn members_of_lanes_change_in_all_of_them() {
    let dir = Dir::new("lane-members");
    let data = dir.path("cluster");
    let up = ["up", "--dir", &data, "--port-base", "0", "--segment-mib", "16", "--lanes", "2"];
    let up = [&up[..], &["--nodes", "3", "--f", "1", "--k", "1"]].concat();
    let server = Server::start(&up, "Ctrl-C");
    let ok = |args: &[&'static str]| text(good(&[args, &["--dir", &data]].concat()));
    let keys: Vec<String> = (0..8).map(|key| format!("key{key}")).collect();
    for key in &keys {
        good(&["put", "--dir", &data, key, key]);
    }
    let all_there = || {
        for key in &keys {
            assert_eq!(text(good(&["get", "--dir", &data, key])), *key);
        }
    };
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let free = free.port().min(65_000);
    let address = format!("127.0.0.1:{free}");
    let config = fs::read_to_string(Path::new(&data).join("node0.toml")).unwrap();
    let config = config.replace("node = 0", "node = 3").replace("node0", "node3");
    let file = dir.path("node3.toml");
    fs::write(&file, format!("listen = \"{address}\"\n{config}")).unwrap();
    let joiner = Server::start(&["node", "--config", &file], "ready: ");
    let added = text(good(&["member", "add", &address, "--dir", &data]));
    for lane in ["lane 0: admitted: n = 4", "lane 1: admitted: n = 4"] {
        assert!(added.contains(lane), "{added}");
    }
    let again = text(good(&["member", "add", &address, "--dir", &data]));
    assert!(again.contains("lane 1: node 3 is a member already"), "{again}");

    // Cut off after lane 0.
    let endpoints = fs::read_to_string(Path::new(&data).join("endpoints")).unwrap();
    set_k_in_lane_0(&endpoints, 2);
    let listed = ok(&["member", "list"]);
    assert!(listed.contains("k = 2") && listed.contains("k = 1"), "{listed}");
    let set = ok(&["member", "set", "--k", "2"]);
    assert!(set.contains("lane 0: n = 4, f = 1, k = 2 already"), "{set}");
    assert!(set.contains("lane 1: admitted: n = 4, f = 1, k = 2"), "{set}");
    all_there();
    drop(joiner);
    let removed = ok(&["member", "remove", "3", "--lost", "--k", "1"]);
    assert!(removed.contains("lane 1: admitted: n = 3, f = 1, k = 1"), "{removed}");
    let refused = bad(&["member", "remove", "3", "--dir", &data], 2);
    assert!(refused.contains("not a member any more"), "{refused}");
    all_there();
    assert_eq!(server.stop(Signal::INT), Some(0));

    // One lane's disk is lost: the node is refused whole, and only that disk is replaced.
    let nodes = [0, 1].map(|node| dir.path(&format!("cluster/node{node}.toml")));
    let _nodes = nodes.map(|config| Server::start(&["node", "--config", &config], "ready: "));
    fs::remove_dir_all(dir.path("cluster/node2/lane-1")).unwrap();
    let lost = dir.path("cluster/node2.toml");
    let why = bad(&["node", "--config", &lost], 1);
    assert!(why.contains("lane 1: ") && why.contains("racos member replace 2`"), "{why}");
    let replaced = ok(&["member", "replace", "2"]);
    assert!(replaced.contains("lane 0: node 2 has this disk already"), "{replaced}");
    assert!(replaced.contains("lane 1: node 2 is incarnation 2 now"), "{replaced}");
    let again = ok(&["member", "replace", "2"]);
    assert!(again.contains("lane 1: node 2 has this disk already"), "{again}");
    let back = Server::start(&["node", "--config", &lost], "ready: ");
    all_there();
    assert_eq!(back.stop(Signal::TERM), Some(0));
}

/// What a command that is cut off after its first lane has done.
fn set_k_in_lane_0(endpoints: &str, data: u8) {
    use racos_client::{Action, Client, ClientConfig, Op, Reconfigure, Route};
    let lines = |word: &'static str| {
        endpoints.lines().filter_map(move |line| line.strip_prefix(word)?.strip_prefix(' '))
    };
    let cluster = u64::from_str_radix(lines("cluster").next().unwrap(), 16).unwrap();
    let at = lines("endpoint").map(|line| line.parse().unwrap()).collect();
    let mut client = Client::connect(ClientConfig::new(cluster, at, 5)).unwrap();
    assert_eq!(client.lanes(), 2);
    let status = client.status(0).unwrap();
    let change = Reconfigure {
        expected: status.epoch,
        members: (0..4).collect(),
        joining: Vec::new(),
        lost_max: 1,
        data,
        lost: Vec::new(),
        is_forced: false,
    };
    let action = Action::Reconfigure(Box::new(change));
    client.run_in(0, Op::Members { action }, Route::Any).unwrap();
}

#[test]
fn mistakes_are_told_with_their_fix_and_the_status_for_usage() {
    let dir = Dir::new("mistakes");
    let config = dir.path("bad.toml");
    fs::write(&config, "cluster = \"1\"\nnode = 0\nspeed = 9\n").unwrap();
    let text = bad(&["node", "--config", &config], 2);
    assert!(text.contains("bad.toml:3: unknown key `speed`") && text.contains("fix:"), "{text}");
    let text = bad(&["up", "--dir", &dir.path("x"), "--nodes", "4"], 2);
    assert!(text.contains("(4,1,3) is impossible: n must be at least 2f+k = 5"), "{text}");
    let queue = ["--policy", "queue", "--etcd-port-base", "0"];
    let text = bad(&[&["up", "--dir", &dir.path("x")], &queue[..]].concat(), 2);
    assert!(text.contains("--policy queue there are native clients only"), "{text}");
    let text = bad(&["get", "--dir", &dir.path("none"), "key"], 2);
    assert!(text.contains("racos up"), "{text}");
    let text = bad(&["put", "--dir", &dir.path("none"), "a\\q", "x"], 2);
    assert!(text.contains("two hexadecimal digits"), "{text}");
    bad(&["put", "key"], 2);
    bad(&["nonsense"], 2);
}

#[test]
fn a_short_bench_of_its_own_cluster_checks_what_it_reads() {
    let dir = Dir::new("bench");
    for (name, more) in [
        ("owner", &["--policy", "owner"][..]),
        ("queue", &["--policy", "queue"]),
        ("lanes", &["--lanes", "2"]),
        ("queues", &["--lanes", "2", "--policy", "queue"]),
        ("least", &["--fast", "f*"]),
    ] {
        short_bench(&dir.path(name), more);
        let config = fs::read_to_string(dir.path(&format!("{name}/node0.toml"))).unwrap();
        let chosen = more.chunks(2).map(|pair| (pair[0].trim_start_matches('-'), pair[1]));
        for (name, value) in chosen {
            let said = [format!("{name} = {value}\n"), format!("{name} = \"{value}\"\n")];
            assert!(said.iter().any(|line| config.contains(line)), "{name}: {config}");
        }
    }
}

fn short_bench(keep: &str, more: &[&str]) {
    let sizes = ["--prepare", "64m", "--clients", "8", "--value-size", "3000", "--keys", "50"];
    let short = ["--seconds", "0.5", "--warm", "0.1", "--nodes", "3", "--f", "1", "--k", "1"];
    let base = ["bench", "--op", "mix", "--json", "--keep", keep];
    let out = good(&[&base[..], &sizes[..], &short[..], more].concat());
    let report: serde_json::Value = serde_json::from_slice(&out).unwrap();
    for key in ["ops_per_s", "mb_per_s", "p50_us", "p99_us", "p999_us", "cpu_s_per_1000_ops"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}: {report}");
    }
    assert!(report["flushed_per_value_byte"].as_f64().unwrap() >= 3.0, "{report}");
    assert_eq!(report["errors"], 0);
}

/// tests PROTOCOL 5.5-l: a node that was told otherwise is refused before anything is changed for it.
#[test]
fn nodes_decide_by_as_many_proposals_as_the_cluster_was_founded_with() {
    let dir = Dir::new("least");
    let data = dir.path("cluster");
    let ports = ["--port-base", "0", "--etcd-port-base", "0", "--segment-mib", "16"];
    let small = ["--nodes", "3", "--f", "1", "--k", "1", "--fast", "f*"];
    let server =
        Server::start(&[&["up", "--dir", &data], &ports[..], &small[..]].concat(), "Ctrl-C");
    let refused = bad(&["up", "--dir", &data, "--fast", "sup+f"], 2);
    assert!(refused.contains("--fast sup+f") && refused.contains("founded with f*"), "{refused}");
    good(&["put", "--dir", &data, "key", "value"]);

    let fast = "fast = \"f*\"";
    let config = |node: usize| dir.path(&format!("cluster/node{node}.toml"));
    edit(&config(2), &format!("{fast}\n"), "");
    let refused = bad(&["member", "replace", "2", "--erase", "--dir", &data], 2);
    assert!(refused.contains("node2.toml has") && refused.contains(fast), "{refused}");
    assert!(dir.0.join("cluster/node2/superblock").exists());

    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = format!("127.0.0.1:{port}");
    let other = fs::read_to_string(config(0)).unwrap();
    let other = other.split("\n[etcd]").next().unwrap().replace(&format!("{fast}\n"), "");
    let other = other.replace("node = 0\n", "node = 3\n").replace("cluster/node0", "cluster/node3");
    fs::write(config(3), format!("listen = \"{at}\"\n{other}")).unwrap();
    let why = bad(&["node", "--config", &config(3)], 1);
    assert!(why.contains(fast), "{why}");
    let refused = bad(&["member", "add", &at, "--dir", &data, "--timeout", "1"], 4);
    assert!(refused.contains(&at) && refused.contains(fast), "{refused}");

    // In its place it is welcome.
    edit(&config(3), "f = 1\n", &format!("f = 1\n{fast}\n"));
    let node = Server::start(&["node", "--config", &config(3)], "ready: ");
    good(&["member", "add", &at, "--dir", &data, "--k", "1"]);
    assert_eq!(good(&["get", "--dir", &data, "key"]), b"value");
    drop(node);
    assert_eq!(server.stop(Signal::INT), Some(0));
}
