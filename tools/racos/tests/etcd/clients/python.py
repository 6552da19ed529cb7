"""What programs written in Python do through the library etcd3, against the endpoint given.

Ends with status 0 if every answer was the one expected. Any server that speaks etcd's API will do.
"""

import io
import sys
import threading

import etcd3
import grpc

PATIENCE = 20


def keys(client):
    assert client.get("py/none") == (None, None)
    first = client.put("py/a", "1").header.revision
    again = client.put("py/a", b"\x00\xff", prev_kv=True)
    assert again.header.revision == first + 1 and again.prev_kv.value == b"1"
    value, about = client.get("py/a")
    assert value == b"\x00\xff" and about.key == b"py/a"
    assert (about.create_revision, about.mod_revision, about.version) == (first, first + 1, 2)
    # Coded values, small and large, and an empty one.
    for size in (0, 100, 1300, 133_000, 1_300_000):
        value = bytes(size % 251 for _ in range(size))
        client.put("py/sized", value)
        assert client.get("py/sized")[0] == value, size
    assert client.put_if_not_exists("py/once", "first")
    assert not client.put_if_not_exists("py/once", "second")
    assert client.replace("py/once", "first", "third")
    assert not client.replace("py/once", "first", "fourth")
    for at in range(9):
        client.put("py/many/%d" % at, str(at))
    found = list(client.get_prefix("py/many/", sort_order="descend", sort_target="key"))
    assert [value for value, _ in found] == [b"%d" % at for at in reversed(range(9))]
    assert [about.key for _, about in client.get_prefix("py/many/", keys_only=True)] == [
        b"py/many/%d" % at for at in range(9)
    ]
    assert len(list(client.get_range("py/many/3", "py/many/6"))) == 3
    assert client.delete("py/many/0") and not client.delete("py/many/0")
    assert client.delete_prefix("py/many/").deleted == 8


def transactions(client):
    client.put("py/t", "old")
    tell = client.transactions
    done, answers = client.transaction(
        compare=[tell.value("py/t") == "old", tell.version("py/t") > 0],
        success=[tell.put("py/t", "new"), tell.get("py/t")],
        failure=[tell.delete("py/t")],
    )
    assert done and answers[1][0][0] == b"new"
    done, answers = client.transaction(
        compare=[tell.create("py/t") == 0],
        success=[],
        failure=[tell.txn([tell.mod("py/t") > 1], [tell.get("py/t")], [])],
    )
    inner = answers[0].response_txn
    assert not done and inner.succeeded
    assert inner.responses[0].response_range.kvs[0].value == b"new"


def watches(client):
    first = client.put("py/w/1", "a").header.revision
    client.put("py/w/2", "b")
    client.delete("py/w/1")
    events, cancel = client.watch_prefix("py/w/", start_revision=first, prev_kv=True)
    told = []
    for event in events:
        told.append((type(event).__name__, event.key, event.value, event.prev_value))
        if len(told) == 3:
            # What is written while the watch runs comes too.
            threading.Thread(target=lambda: client.put("py/w/2", "c")).start()
        if len(told) == 4:
            cancel()
    assert told == [
        ("PutEvent", b"py/w/1", b"a", b""),
        ("PutEvent", b"py/w/2", b"b", b""),
        ("DeleteEvent", b"py/w/1", b"", b"a"),
        ("PutEvent", b"py/w/2", b"c", b"b"),
    ], told
    last = client.put("py/w/3", "d").header.revision
    client.compact(last, physical=True)
    refused = threading.Event()

    def compacted(answer):
        assert isinstance(answer, etcd3.exceptions.RevisionCompactedError), answer
        assert answer.compacted_revision == last
        refused.set()

    client.add_watch_callback("py/w/1", compacted, start_revision=first)
    assert refused.wait(PATIENCE), "a watch of what was compacted is refused"


def leases(client):
    lease = client.lease(300)
    client.put("py/leased", "for a while", lease=lease)
    assert lease.granted_ttl == 300 and 290 < lease.remaining_ttl <= 300
    assert lease.keys == [b"py/leased"]
    assert lease.refresh()[0].TTL == 300
    lease.revoke()
    assert client.get("py/leased") == (None, None)
    refused(grpc.StatusCode.NOT_FOUND, "requested lease not found", lease.revoke)
    refused(
        grpc.StatusCode.NOT_FOUND,
        "requested lease not found",
        lambda: client.put("py/leased", "", lease=lease),
    )
    # One that nobody renews goes.
    lease = client.lease(2)
    client.put("py/brief", "gone soon", lease=lease)
    gone = client.watch_once("py/brief", timeout=PATIENCE)
    assert isinstance(gone, etcd3.events.DeleteEvent)


def refused(code, text, call):
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == code and text in error.details(), error
    else:
        raise AssertionError("refused with: " + text)


def locks(client):
    # Waiting for a lock is broken in the library as distributions pair it with its own libraries.
    with client.lock("py-door", ttl=30) as held:
        other = client.lock("py-door", ttl=30)
        assert held.is_acquired() and not other.is_acquired()
    assert not held.is_acquired() and other.acquire()
    assert other.release()


def maintenance(client):
    members = list(client.members)
    assert members and all(member.id and member.client_urls for member in members)
    status = client.status()
    assert status.version.startswith("3.") and status.leader is not None
    client.defragment()
    assert client.hash() >= 0
    assert list(client.list_alarms()) == []
    assert [alarm.alarm_type for alarm in client.create_alarm()] == [1]
    refused(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "mvcc: database space exceeded",
        lambda: client.put("py/full", "x"),
    )
    client.disarm_alarm()
    client.put("py/full", "x")
    saved = io.BytesIO()
    client.snapshot(saved)
    assert saved.tell() > 1000


def main():
    host, port = sys.argv[1].rsplit(":", 1)
    client = etcd3.client(
        host=host,
        port=int(port),
        timeout=PATIENCE,
        grpc_options=[("grpc.max_receive_message_length", 64 << 20)],
    )
    for part in (keys, transactions, watches, leases, locks, maintenance):
        part(client)
        print("python:", part.__name__)


main()
