//! What a backup takes and what not.

use super::cluster::Cluster;
use super::long;
use racos_engine::api::types::*;

/// As many bytes as one value of a backup may have.
const MOST: usize = 128 << 20;

/// A chunk of a backup that were larger than its reader allows would make all of it useless.
#[test]
fn a_value_that_a_backup_cannot_hold_is_named_before_it_is_fetched() {
    let mut cluster = Cluster::new(5, 1, 3);
    cluster.put(0, "small", long(1, 5));
    let revision = cluster.put(1, "vast", long(2, MOST + 1));
    let page = |cluster: &mut Cluster, revision: i64| {
        let asked = cluster.handles[3].backup_page(revision as u64, BackupPlace::default());
        cluster.wait(asked)
    };
    let Err(Error::TooLarge(text)) = page(&mut cluster, revision) else {
        panic!("a backup would hold more than can be read again");
    };
    let names = format!("key vast at revision {revision} has {} bytes", MOST + 1);
    assert!(text.contains(&names), "{text}");
    // One of before it is written as ever.
    let before = page(&mut cluster, revision - 1).expect("a page of small values");
    assert_eq!(before.versions.len(), 1);
    assert_eq!(before.versions[0].key, "small");
}
