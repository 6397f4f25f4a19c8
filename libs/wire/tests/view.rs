//! The cluster view: what changes do to it, and that it survives JSON.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use quarry_base::*;
use quarry_wire::*;

fn pg(epoch: u64) -> PgConfig {
    let member = |d| Member { device: DeviceId(d), sds: SdsId(d), start: StartNo(9) };
    PgConfig {
        pg: PgId::new(PoolId(1), 0),
        epoch: Epoch(epoch),
        index: ConfigIndex(epoch),
        primary: Some(DeviceId(1)),
        in_sync: vec![member(1)],
        syncing: vec![member(2)],
        listed: vec![DeviceId(1), DeviceId(2)],
        copies: 2,
        min_copies: 1,
        line: Epoch::ZERO,
    }
}

#[test]
fn a_configuration_never_goes_back_to_an_older_epoch() {
    let mut v = ClusterView::default();
    v.apply(Change::Pg(pg(5)));
    v.apply(Change::Pg(pg(4)));
    assert_eq!(v.pgs.values().next().unwrap().epoch, Epoch(5));
    v.apply(Change::Pg(pg(6)));
    assert_eq!(v.pgs.values().next().unwrap().epoch, Epoch(6));
}

#[test]
fn a_view_survives_json_with_its_integer_keys() {
    let mut v = ClusterView { index: ConfigIndex(3), ..ClusterView::default() };
    v.apply(Change::Pg(pg(5)));
    v.apply(Change::VolumeGone { id: VolumeId(1), vtree: VtreeId(7), pool: PoolId(1) });
    let text = serde_json::to_string(&v).unwrap();
    assert_eq!(serde_json::from_str::<ClusterView>(&text).unwrap(), v);
}

#[test]
fn deleted_trees_are_forgotten_with_their_pool() {
    let mut v = ClusterView::default();
    for pool in [1, 2] {
        v.apply(Change::VolumeGone {
            id: VolumeId(1),
            vtree: VtreeId(pool.into()),
            pool: PoolId(pool),
        });
    }
    v.apply(Change::PoolGone(PoolId(1)));
    assert_eq!(v.deleted.into_iter().collect::<Vec<_>>(), [(VtreeId(2), PoolId(2))]);
}

#[test]
fn roles_in_a_configuration_are_told_apart() {
    let c = pg(1);
    assert_eq!(c.primary_member().unwrap().device, DeviceId(1));
    assert!(c.is_in_sync(DeviceId(1)) && !c.is_in_sync(DeviceId(2)));
    assert!(c.member(DeviceId(2)).is_some() && c.member(DeviceId(3)).is_none());
    assert!(!c.is_complete());
    let stray = PgConfig { primary: Some(DeviceId(2)), ..c };
    assert!(stray.primary_member().is_none(), "a primary that is not in sync is none");
}

#[test]
fn a_hello_from_a_later_release_is_understood() {
    let text = r#"{"versions":[1,3],"cluster":"c","peer":{"sds":{"id":1,"start":2,"extra":5}},"device":0,"news":true}"#;
    let h: Hello = serde_json::from_str(text).unwrap();
    assert_eq!(h.peer, Peer::Sds { id: SdsId(1), start: StartNo(2) });
    assert_eq!((h.versions, h.auth), ((1, 3), None));
}
