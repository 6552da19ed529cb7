// What programs written in Go do through etcd's own library clientv3, against the endpoints given.
//
// Ends with status 0 if every answer was the one expected. Any server that speaks etcd's API will do.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
	"go.etcd.io/etcd/clientv3/namespace"
	"go.etcd.io/etcd/etcdserver/api/v3rpc/rpctypes"
	"go.etcd.io/etcd/mvcc/mvccpb"
)

var ctx = context.Background()

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func check(holds bool, what ...interface{}) {
	if !holds {
		panic(fmt.Sprint(what...))
	}
}

// The library turns an error's text into a value of its own; programs compare with it.
func refused(err error, with error) {
	check(err == with, "wanted ", with, ", got ", err)
}

func keys(client *clientv3.Client) {
	first, err := client.Put(ctx, "go/a", "1")
	must(err)
	again, err := client.Put(ctx, "go/a", "2", clientv3.WithPrevKV())
	must(err)
	check(again.Header.Revision == first.Header.Revision+1 && string(again.PrevKv.Value) == "1", again)
	got, err := client.Get(ctx, "go/a")
	must(err)
	kv := got.Kvs[0]
	check(kv.CreateRevision == first.Header.Revision && kv.Version == 2, kv)
	old, err := client.Get(ctx, "go/a", clientv3.WithRev(first.Header.Revision))
	must(err)
	check(string(old.Kvs[0].Value) == "1", old)
	for _, size := range []int{0, 100, 1300, 133000, 1300000} {
		value := strings.Repeat("v", size)
		_, err = client.Put(ctx, "go/sized", value)
		must(err)
		got, err = client.Get(ctx, "go/sized")
		must(err)
		check(string(got.Kvs[0].Value) == value, size)
	}
	for at := 0; at < 9; at++ {
		_, err = client.Put(ctx, fmt.Sprint("go/many/", at), fmt.Sprint(8-at))
		must(err)
	}
	page, err := client.Get(ctx, "go/many/", clientv3.WithPrefix(), clientv3.WithLimit(4))
	must(err)
	check(page.More && page.Count == 9 && len(page.Kvs) == 4, page)
	sorted, err := client.Get(ctx, "go/many/", clientv3.WithPrefix(),
		clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend))
	must(err)
	check(string(sorted.Kvs[0].Key) == "go/many/8", sorted)
	count, err := client.Get(ctx, "go/many/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	must(err)
	check(count.Count == 9 && len(count.Kvs) == 0, count)
	deleted, err := client.Delete(ctx, "go/many/", clientv3.WithPrefix(), clientv3.WithPrevKV())
	must(err)
	check(deleted.Deleted == 9 && len(deleted.PrevKvs) == 9, deleted)
	inside := namespace.NewKV(client.KV, "go/inside/")
	_, err = inside.Put(ctx, "a", "b")
	must(err)
	got, err = client.Get(ctx, "go/inside/a")
	must(err)
	check(len(got.Kvs) == 1, got)
	_, err = client.Get(ctx, "go/a", clientv3.WithRev(1<<40))
	refused(err, rpctypes.ErrFutureRev)
	_, err = client.Put(ctx, "", "")
	refused(err, rpctypes.ErrEmptyKey)
	_, err = client.Put(ctx, "go/none", "", clientv3.WithIgnoreLease())
	refused(err, rpctypes.ErrKeyNotFound)
}

func transactions(client *clientv3.Client) {
	_, err := client.Put(ctx, "go/t", "old")
	must(err)
	done, err := client.Txn(ctx).
		If(clientv3.Compare(clientv3.Value("go/t"), "=", "old"),
			clientv3.Compare(clientv3.Version("go/none").WithPrefix(), "=", 0)).
		Then(clientv3.OpPut("go/t", "new"), clientv3.OpGet("go/t")).
		Else(clientv3.OpDelete("go/t")).Commit()
	must(err)
	check(done.Succeeded && len(done.Responses) == 2, "where no key is, the version is 0: ", done)
	_, err = client.Put(ctx, "go/t", "old")
	must(err)
	done, err = client.Txn(ctx).
		If(clientv3.Compare(clientv3.Value("go/t"), "=", "old")).
		Then(clientv3.OpPut("go/t", "new"), clientv3.OpTxn(
			[]clientv3.Cmp{clientv3.Compare(clientv3.Value("go/t"), "=", "old")},
			[]clientv3.Op{clientv3.OpGet("go/t")}, nil)).Commit()
	must(err)
	inner := done.Responses[1].GetResponseTxn()
	check(done.Succeeded && inner.Succeeded, done)
	check(string(inner.Responses[0].GetResponseRange().Kvs[0].Value) == "new", inner)
	_, err = client.Txn(ctx).Then(clientv3.OpPut("go/t", ""), clientv3.OpPut("go/t", "")).Commit()
	refused(err, rpctypes.ErrDuplicateKey)
	many := make([]clientv3.Op, 129)
	for at := range many {
		many[at] = clientv3.OpPut(fmt.Sprint("go/t/", at), "")
	}
	_, err = client.Txn(ctx).Then(many...).Commit()
	refused(err, rpctypes.ErrTooManyOps)
}

// Every event of a prefix from a revision on, until enough have come.
func told(client *clientv3.Client, prefix string, from int64, count int) []string {
	watching, stop := context.WithTimeout(ctx, 20*time.Second)
	defer stop()
	var events []string
	for answer := range client.Watch(watching, prefix, clientv3.WithPrefix(),
		clientv3.WithRev(from), clientv3.WithPrevKV(), clientv3.WithFragment()) {
		must(answer.Err())
		for _, event := range answer.Events {
			before := ""
			if event.PrevKv != nil {
				before = string(event.PrevKv.Value)
			}
			events = append(events, fmt.Sprint(event.Type == mvccpb.DELETE, " ",
				string(event.Kv.Key), " ", string(event.Kv.Value), " ", before))
		}
		if len(events) >= count {
			return events
		}
	}
	panic(fmt.Sprint("the watch ended after ", events))
}

func watches(client *clientv3.Client) {
	first, err := client.Put(ctx, "go/w/1", "a")
	must(err)
	_, err = client.Put(ctx, "go/w/2", "b")
	must(err)
	go func() {
		time.Sleep(300 * time.Millisecond)
		_, err := client.Delete(ctx, "go/w/1")
		must(err)
	}()
	events := told(client, "go/w/", first.Header.Revision, 3)
	check(reflect.DeepEqual(events, []string{
		"false go/w/1 a ", "false go/w/2 b ", "true go/w/1  a"}), events)
	// Many watches on one stream.
	var all sync.WaitGroup
	ready := make(chan bool, 100)
	for at := 0; at < 100; at++ {
		key := fmt.Sprint("go/each/", at)
		all.Add(1)
		go func() {
			defer all.Done()
			watching, stop := context.WithTimeout(ctx, 20*time.Second)
			defer stop()
			channel := client.Watch(watching, key, clientv3.WithCreatedNotify())
			check((<-channel).Created, key)
			ready <- true
			answer := <-channel
			check(len(answer.Events) == 1 && string(answer.Events[0].Kv.Key) == key, answer)
		}()
	}
	for at := 0; at < 100; at++ {
		<-ready
	}
	for at := 0; at < 100; at++ {
		_, err = client.Put(ctx, fmt.Sprint("go/each/", at), "")
		must(err)
	}
	all.Wait()
	last, err := client.Put(ctx, "go/w/3", "d")
	must(err)
	_, err = client.Compact(ctx, last.Header.Revision, clientv3.WithCompactPhysical())
	must(err)
	_, err = client.Compact(ctx, last.Header.Revision)
	refused(err, rpctypes.ErrCompacted)
	_, err = client.Get(ctx, "go/w/1", clientv3.WithRev(first.Header.Revision))
	refused(err, rpctypes.ErrCompacted)
	answer := <-client.Watch(ctx, "go/w/1", clientv3.WithRev(first.Header.Revision))
	refused(answer.Err(), rpctypes.ErrCompacted)
	check(answer.CompactRevision == last.Header.Revision, answer)
}

func leases(client *clientv3.Client) {
	lease, err := client.Grant(ctx, 3)
	must(err)
	_, err = client.Put(ctx, "go/leased", "for a while", clientv3.WithLease(lease.ID))
	must(err)
	keeping, stop := context.WithCancel(ctx)
	kept, err := client.KeepAlive(keeping, lease.ID)
	must(err)
	go func() {
		for range kept {
		}
	}()
	time.Sleep(5 * time.Second)
	left, err := client.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
	must(err)
	check(left.GrantedTTL == 3 && left.TTL > 0 && len(left.Keys) == 1, "renewed: ", left)
	all, err := client.Leases(ctx)
	must(err)
	check(len(all.Leases) >= 1, all)
	stop()
	gone := <-client.Watch(ctx, "go/leased")
	check(gone.Events[0].Type == mvccpb.DELETE, gone)
	_, err = client.Revoke(ctx, lease.ID)
	refused(err, rpctypes.ErrLeaseNotFound)
	_, err = client.KeepAliveOnce(ctx, lease.ID)
	refused(err, rpctypes.ErrLeaseNotFound)
	_, err = client.Put(ctx, "go/leased", "", clientv3.WithLease(lease.ID))
	refused(err, rpctypes.ErrLeaseNotFound)
	lease, err = client.Grant(ctx, 100)
	must(err)
	left, err = client.TimeToLive(ctx, lease.ID+1)
	must(err)
	check(left.TTL == -1, left)
}

// The recipes that Go programs use: each side is a session with a lease of its own.
func recipes(client *clientv3.Client) {
	inside, count := 0, 0
	var all sync.WaitGroup
	for at := 0; at < 5; at++ {
		all.Add(1)
		go func() {
			defer all.Done()
			session, err := concurrency.NewSession(client, concurrency.WithTTL(10))
			must(err)
			defer session.Close()
			mutex := concurrency.NewMutex(session, "go-door")
			for round := 0; round < 5; round++ {
				must(mutex.Lock(ctx))
				inside++
				check(inside == 1, "only one holds the lock")
				count++
				inside--
				must(mutex.Unlock(ctx))
			}
		}()
	}
	all.Wait()
	check(count == 25, count)

	first, err := concurrency.NewSession(client, concurrency.WithTTL(10))
	must(err)
	second, err := concurrency.NewSession(client, concurrency.WithTTL(10))
	must(err)
	one := concurrency.NewElection(first, "go-office")
	other := concurrency.NewElection(second, "go-office")
	must(one.Campaign(ctx, "one"))
	elected := make(chan error)
	go func() { elected <- other.Campaign(ctx, "other") }()
	leader, err := one.Leader(ctx)
	must(err)
	check(string(leader.Kvs[0].Value) == "one", leader)
	must(one.Resign(ctx))
	must(<-elected)
	observed := <-other.Observe(ctx)
	check(string(observed.Kvs[0].Value) == "other", observed)

	_, err = concurrency.NewSTM(client, func(stm concurrency.STM) error {
		stm.Put("go/stm", stm.Get("go/stm")+"x")
		return nil
	})
	must(err)
	got, err := client.Get(ctx, "go/stm")
	must(err)
	check(string(got.Kvs[0].Value) == "x", got)
}

func maintenance(client *clientv3.Client, endpoints []string) {
	members, err := client.MemberList(ctx)
	must(err)
	check(len(members.Members) == len(endpoints), members)
	for _, endpoint := range endpoints {
		status, err := client.Status(ctx, endpoint)
		must(err)
		check(strings.HasPrefix(status.Version, "3.") && status.Leader != 0, status)
		_, err = client.HashKV(ctx, endpoint, 0)
		must(err)
	}
	alarms, err := client.AlarmList(ctx)
	must(err)
	check(len(alarms.Alarms) == 0, alarms)
	saved, err := client.Snapshot(ctx)
	must(err)
	var held bytes.Buffer
	_, err = io.Copy(&held, saved)
	must(err)
	check(held.Len() > 1000, held.Len())
	must(client.Sync(ctx))
	check(len(client.Endpoints()) == len(endpoints), client.Endpoints())
	_, err = client.Get(ctx, "go/a")
	must(err)
}

func main() {
	endpoints := os.Args[1:]
	client, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints, DialTimeout: 10 * time.Second,
		MaxCallRecvMsgSize: 64 << 20, MaxCallSendMsgSize: 64 << 20,
	})
	must(err)
	defer client.Close()
	keys(client)
	transactions(client)
	watches(client)
	leases(client)
	recipes(client)
	maintenance(client, endpoints)
	fmt.Println("go: all answers as expected")
}
