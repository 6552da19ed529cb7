//! Plain HTTP on the same port: pages, the JSON gateway, and what is wrong with requests.

use crate::servers::Server;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// Sends one request as it is and reads until the server ends the connection.
fn raw(endpoint: &str, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(endpoint.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // A server that refuses early may have ended before it has read everything.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// Status and body of one request.
pub fn ask(endpoint: &str, method: &str, path: &str, body: &[u8]) -> (u16, String) {
    ask_with(endpoint, method, path, "", body)
}

/// The same with more headers, each line ended.
fn ask_with(endpoint: &str, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    let answer = raw(endpoint, &[head.as_bytes(), body].concat());
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{path}: {answer}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_string())
}

fn call(endpoint: &str, path: &str, body: Value) -> (u16, Value) {
    let (status, text) = ask(endpoint, "POST", path, body.to_string().as_bytes());
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path}: {text}")))
}

/// What the gateway says to a few calls, without ids and terms; every server must say the same.
fn gateway(endpoint: &str) -> Vec<(u16, Value)> {
    let mut told = vec![
        call(endpoint, "/v3/kv/put", json!({"key": "Zm9v", "value": "YmFy"})),
        call(endpoint, "/v3/kv/put", json!({"key": "Zm9v", "value": "", "prev_kv": true})),
        call(endpoint, "/v3/kv/range", json!({"key": "Zm9v"})),
        call(endpoint, "/v3/kv/range", json!({"key": "AA==", "range_end": "AA=="})),
        call(endpoint, "/v3/kv/range", json!({"key": "Zm9v", "revision": "2"})),
        call(
            endpoint,
            "/v3/kv/txn",
            json!({
                "compare": [{"target": "VERSION", "result": "GREATER", "key": "Zm9v", "version": "1"}],
                "success": [{"request_range": {"key": "Zm9v"}}, {"request_put": {"key": "eA=="}}],
            }),
        ),
        call(endpoint, "/v3/kv/deleterange", json!({"key": "Zm9v", "prev_kv": true})),
        call(endpoint, "/v3/lease/grant", json!({"TTL": "100", "ID": "77"})),
        call(endpoint, "/v3/lease/revoke", json!({"ID": "77"})),
        call(endpoint, "/v3/kv/compaction", json!({"revision": 3})),
    ];
    for (_, value) in &mut told {
        let header = value.get_mut("header").expect("an answer has a header");
        for key in ["cluster_id", "member_id", "raft_term"] {
            assert!(header.as_object_mut().unwrap().remove(key).is_some_and(|id| id.is_string()));
        }
    }
    told
}

/// While authentication is on: a user's token in a header, as etcd's gateway takes it. Pages need none.
pub fn takes_tokens(endpoint: &str, name: &str, password: &str, key: &str) {
    let asked = json!({"name": name, "password": password});
    let (status, told) = call(endpoint, "/v3/auth/authenticate", asked);
    assert_eq!(status, 200, "{told}");
    let token = told["token"].as_str().unwrap();
    let range = json!({"key": key}).to_string();
    let read =
        |headers: &str| ask_with(endpoint, "POST", "/v3/kv/range", headers, range.as_bytes());
    for header in ["Authorization", "Grpc-Metadata-Token", "Grpc-Metadata-Authorization"] {
        let (status, text) = read(&format!("{header}: {token}\r\n"));
        assert_eq!((status, text.contains("\"count\":\"1\"")), (200, true), "{header}: {text}");
    }
    let (status, text) = read("");
    assert_eq!((status, text.contains("user name is empty")), (400, true), "{text}");
    for wrong in ["", "bad", &token[2..], &token.replace('0', "1")] {
        let (status, text) = read(&format!("Authorization: {wrong}\r\n"));
        assert_eq!((status, text.contains("invalid auth token")), (401, true), "{wrong}: {text}");
    }
    pages(endpoint);
    let (_, metrics) = ask(endpoint, "GET", "/metrics", b"");
    assert!(metrics.contains("\nracos_auth_enabled 1\n"), "{metrics}");
}

fn pages(endpoint: &str) {
    let (status, text) = ask(endpoint, "GET", "/health", b"");
    assert_eq!((status, text.contains("\"health\":\"true\"")), (200, true), "{text}");
    assert_eq!(ask(endpoint, "GET", "/livez", b""), (200, "ok\n".into()));
    let (status, text) = ask(endpoint, "GET", "/readyz?verbose", b"");
    assert_eq!((status, text.contains("[+]linearizable_read ok\n")), (200, true), "{text}");
    let (status, text) = ask(endpoint, "GET", "/version", b"");
    assert_eq!((status, text.contains("\"etcdserver\":\"3.6")), (200, true), "{text}");
    assert_eq!(ask(endpoint, "POST", "/health", b"").0, 405);
    assert_eq!(ask(endpoint, "GET", "/no/such/page", b"").0, 404);
    let (status, text) = ask(endpoint, "GET", "/metrics", b"");
    assert_eq!(status, 200);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(!name.is_empty() && value.parse::<f64>().is_ok(), "{line}");
    }
    for name in ["etcd_server_has_leader 1", "racos_revision ", "process_resident_memory_bytes "] {
        assert!(text.contains(name), "{name}");
    }
}

/// Each is refused with a reason, and the server goes on.
fn malformed(endpoint: &str) {
    let put = "/v3/kv/put";
    for body in
        [&b"{"[..], b"[]", b"{\"key\": \"\xff\xfe\"}", b"\xff", b"{\"key\": 7}", b"{\"nokey\":1}"]
    {
        let (status, text) = ask(endpoint, "POST", put, body);
        assert_eq!(status, 400, "{text}");
        assert!(text.contains("invalid JSON") && text.contains("\"code\":3"), "{text}");
    }
    let (status, text) = ask(endpoint, "POST", put, b"{}");
    assert_eq!(status, 400);
    assert!(text.contains("etcdserver: key is not provided"), "{text}");
    assert_eq!(ask(endpoint, "GET", put, b"").0, 501);
    for request in [
        &b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nthis is no frame of HTTP/2, is it",
        b"POST /v3/kv/put HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST /v3/kv/put HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ] {
        // The connection ends; what is said before is the library's.
        raw(endpoint, request);
    }
    let long = format!("GET /health HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    raw(endpoint, long.as_bytes());
    // A body larger than any request may be is refused before it is read to its end.
    let head = format!(
        "POST {put} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        3_u64 << 30
    );
    let answer =
        String::from_utf8_lossy(&raw(endpoint, &vec_of(head.as_bytes(), 120 << 20))).into_owned();
    assert!(answer.contains("request is too large") || answer.is_empty(), "{answer:.300}");
}

fn vec_of(head: &[u8], len: usize) -> Vec<u8> {
    let mut bytes = head.to_vec();
    bytes.extend_from_slice(b"{\"value\":\"");
    bytes.resize(len, b'A');
    bytes
}

/// Connections that stop in the middle of something, held while others are served.
fn half_open(endpoint: &str) -> Vec<TcpStream> {
    let beginnings: [&[u8]; 5] = [
        b"",
        b"PRI * HT",
        b"GET /health HTT",
        b"POST /v3/kv/put HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"key\":",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    ];
    let address = endpoint.trim_start_matches("http://");
    let open = |beginning: &&[u8]| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(beginning).unwrap();
        stream
    };
    let mut held: Vec<TcpStream> = beginnings.iter().map(open).collect();
    let gone = open(&beginnings[3]);
    gone.shutdown(Shutdown::Write).unwrap();
    held.push(gone);
    held
}

fn memory_bytes(endpoint: &str) -> u64 {
    let (_, text) = ask(endpoint, "GET", "/metrics", b"");
    let line = text.lines().find(|line| line.starts_with("process_resident_memory_bytes "));
    line.unwrap().rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// As many as this process may open, up to 10,000.
fn idle_connections(endpoint: &str) -> Vec<TcpStream> {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let address = endpoint.trim_start_matches("http://");
    let mut held = Vec::new();
    while held.len() < 10_000 {
        let Ok(mut stream) = TcpStream::connect(address) else { break };
        stream.write_all(preface).unwrap();
        held.push(stream);
    }
    held
}

#[test]
fn the_port_serves_pages_and_json_and_stands_bad_input() {
    let racos = Server::racos("http");
    let endpoint = &racos.endpoints[0];
    let told = gateway(endpoint);
    assert!(told.iter().all(|(status, _)| *status == 200), "{told:?}");
    if let Some(etcd) = Server::etcd("http") {
        assert_eq!(gateway(&etcd.endpoints[0]), told);
    }
    pages(endpoint);
    let before = memory_bytes(endpoint);
    malformed(endpoint);
    let held = half_open(endpoint);
    let idle = idle_connections(endpoint);
    println!("{} idle connections", idle.len());
    pages(endpoint);
    let after = memory_bytes(endpoint);
    let each = after.saturating_sub(before) / (idle.len() as u64).max(1);
    // Bytes of one request that was too large, and at most 32 KiB for each idle connection.
    assert!(after < before + (200 << 20) + idle.len() as u64 * (32 << 10), "{each} bytes each");
    drop((held, idle));
    let (status, _) = call(endpoint, "/v3/kv/put", json!({"key": "Zm9v"}));
    assert_eq!(status, 200);
    alarms_show(endpoint);
}

/// Alarms make a node unhealthy; a corrupt state, which nobody may use, not ready too.
fn alarms_show(endpoint: &str) {
    let set = |action: &str, alarm: &str| {
        let asked = json!({"action": action, "memberID": "1", "alarm": alarm});
        assert_eq!(call(endpoint, "/v3/maintenance/alarm", asked).0, 200);
    };
    let page = |path: &str| ask(endpoint, "GET", path, b"");
    set("ACTIVATE", "NOSPACE");
    let (status, text) = page("/health");
    assert_eq!((status, text.contains("ALARM NOSPACE")), (503, true), "{text}");
    assert_eq!(page("/health?exclude=NOSPACE").0, 200);
    assert_eq!(page("/readyz").0, 200);
    set("DEACTIVATE", "NOSPACE");
    set("ACTIVATE", "CORRUPT");
    let (status, text) = page("/readyz?verbose");
    let failed = text.contains("[-]data_corruption failed: alarm activated: CORRUPT");
    assert_eq!((status, failed), (503, true), "{text}");
    assert_eq!(page("/livez").0, 200);
    set("DEACTIVATE", "CORRUPT");
    assert_eq!((page("/health").0, page("/readyz").0), (200, 200));
}
