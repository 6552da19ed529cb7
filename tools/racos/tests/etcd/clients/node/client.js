// What programs written for Node.js do through the library etcd3, against the endpoints given.
//
// Ends with status 0 if every answer was the one expected. Any server that speaks etcd's API will do.
'use strict';

const assert = require('node:assert/strict');
const { once } = require('node:events');
const { Etcd3, EtcdLeaseInvalidError, EtcdLockFailedError, GRPCOutOfRangeError } =
  require('etcd3');

const PATIENCE_MS = 60_000;

async function keys(client) {
  assert.equal(await client.get('js/none'), null);
  const first = await client.put('js/a').value('1').exec();
  const previous = await client.put('js/a').value(Buffer.from([0, 255])).getPrevious();
  assert.deepEqual(previous.value, Buffer.from('1'));
  assert.equal(BigInt(previous.header.revision), BigInt(first.header.revision) + 1n);
  const [found] = (await client.get('js/a').exec()).kvs;
  assert.deepEqual(found.value, Buffer.from([0, 255]));
  const revisions = [found.create_revision, found.mod_revision, found.version];
  assert.deepEqual(revisions, [first.header.revision, previous.header.revision, '2']);
  assert.equal(await client.get('js/a').revision(first.header.revision).string(), '1');
  // Coded values, small and large, and an empty one.
  for (const size of [0, 100, 1300, 133_000, 1_300_000]) {
    const value = Buffer.alloc(size, size % 251);
    await client.put('js/sized').value(value);
    assert.ok(value.equals(await client.get('js/sized').buffer()), `${size} bytes`);
  }
  const many = client.namespace('js/many/');
  await Promise.all([...Array(9).keys()].map((at) => many.put(String(at)).value(at * 10)));
  assert.equal(await client.getAll().prefix('js/many/').count(), 9);
  const last = await client.getAll().prefix('js/many/').sort('Key', 'Descend').limit(2).keys();
  assert.deepEqual(last, ['js/many/8', 'js/many/7']);
  assert.equal((await many.getAll().numbers())['3'], 30);
  const gone = await many.delete().inRange({ start: '3', end: '6' }).getPrevious();
  assert.deepEqual(gone.map((kv) => String(kv.value)), ['30', '40', '50']);
  assert.equal((await many.delete().all()).deleted, '6');
  const future = client.get('js/a').revision('999999999').exec();
  await assert.rejects(future, (error) => {
    return error instanceof GRPCOutOfRangeError && /required revision is a future/.test(error);
  });
}

async function transactions(client) {
  await client.put('js/t').value('old');
  const taken = await client
    .if('js/t', 'Value', '==', 'old')
    .and('js/t', 'Version', '>', 0)
    .then(client.put('js/t').value('new'), client.get('js/t'))
    .else(client.delete().key('js/t'))
    .commit();
  assert.ok(taken.succeeded);
  assert.equal(String(taken.responses[1].response_range.kvs[0].value), 'new');
  const other = await client.if('js/t', 'Create', '==', 0).then().else(client.get('js/t')).commit();
  assert.ok(!other.succeeded);
  assert.equal(other.responses[0].response_range.count, '1');
  // Two that change the same key: the one that lost is done again.
  const add = () =>
    client.stm().transact(async (tx) => {
      await tx.put('js/sum').value(((await tx.get('js/sum').number()) ?? 0) + 1);
    });
  await Promise.all([add(), add(), add()]);
  assert.equal(await client.get('js/sum').number(), 3);
}

async function watches(client) {
  const { header } = await client.put('js/w/1').value('a');
  await client.put('js/w/2').value('b');
  await client.delete().key('js/w/1');
  const builder = client.watch().prefix('js/w/').startRevision(header.revision).withPreviousKV();
  const watcher = builder.watcher();
  const told = [];
  const three = new Promise((resolve) => {
    const note = (kind) => (kv, before) => {
      const text = (some) => (some ? String(some.value) : null);
      told.push([kind, String(kv.key), text(kv), text(before)]);
      if (told.length === 3) {
        client.put('js/w/2').value('c').exec();
      }
      if (told.length === 4) {
        resolve();
      }
    };
    watcher.on('put', note('put')).on('delete', note('delete'));
  });
  await three;
  assert.deepEqual(told, [
    ['put', 'js/w/1', 'a', null],
    ['put', 'js/w/2', 'b', null],
    ['delete', 'js/w/1', '', 'a'],
    ['put', 'js/w/2', 'c', 'b'],
  ]);
  await watcher.cancel();
  // One on the same stream, of one key and one kind of change.
  const ends = await client.watch().key('js/w/2').only('delete').create();
  const end = once(ends, 'delete');
  await client.put('js/w/2').value('d');
  await client.delete().key('js/w/2');
  assert.equal(String((await end)[0].key), 'js/w/2');
  await ends.cancel();
}

async function leases(client) {
  const lease = client.lease(300, { autoKeepAlive: false });
  await lease.put('js/leased').value('for a while').exec();
  const id = await lease.grant();
  const asked = { ID: id, keys: true };
  const left = await client.leaseClient.leaseTimeToLive(asked);
  assert.equal(left.grantedTTL, '300');
  assert.deepEqual(left.keys.map(String), ['js/leased']);
  await lease.keepaliveOnce();
  await lease.revoke();
  assert.equal(await client.get('js/leased'), null);
  const refused = client.put('js/leased').lease(id).value('').exec();
  await assert.rejects(refused, EtcdLeaseInvalidError);
  // One that nobody renews goes.
  const brief = client.lease(2, { autoKeepAlive: false });
  const watcher = await client.watch().key('js/brief').create();
  const gone = once(watcher, 'delete');
  await brief.put('js/brief').value('gone soon').exec();
  assert.equal(String((await gone)[0].key), 'js/brief');
  await watcher.cancel();
  brief.release();
}

async function locks(client) {
  const held = await client.lock('js-door').ttl(30).acquire();
  await assert.rejects(client.lock('js-door').acquire(), EtcdLockFailedError);
  await held.release();
  assert.equal(await client.lock('js-door').do(() => 'inside'), 'inside');
  const election = client.election('js-office', 30);
  const [one, two] = ['one', 'two'].map((name) => election.campaign(name));
  for (const campaign of [one, two]) {
    campaign.on('error', (error) => assert.fail(error));
  }
  // Asked for at once: whoever asks after an election waits for ever, and the second may be elected
  // before the first is told that its resignation counts.
  const elected = new Map([one, two].map((campaign) => [campaign, campaign.wait()]));
  const first = await Promise.race(elected.values());
  const second = first === one ? two : one;
  const name = first === one ? 'one' : 'two';
  assert.equal(await election.leader(), name);
  await first.resign();
  await elected.get(second);
  assert.equal(await election.leader(), first === one ? 'two' : 'one');
  await second.resign();
}

async function maintenance(client) {
  const { members } = await client.cluster.memberList({});
  assert.ok(members.length > 0 && members.every((member) => member.clientURLs.length > 0));
  assert.match((await client.maintenance.status({})).version, /^3\./);
  assert.deepEqual((await client.maintenance.alarm({ action: 'GET' })).alarms, []);
}

async function main() {
  // What is not answered at all must not hang who waits for this program.
  setTimeout(() => process.exit(3), PATIENCE_MS).unref();
  const client = new Etcd3({ hosts: process.argv.slice(2) });
  for (const part of [keys, transactions, watches, leases, locks, maintenance]) {
    await part(client);
    console.log('node:', part.name);
  }
  client.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
