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
        fell: Epoch::ZERO,
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
    // As an MDM of an earlier release tells them.
    v.deleted.extend([(VtreeId(8), PoolId(1)), (VtreeId(9), PoolId(2))]);
    assert!(v.is_deleted(PoolId(1), VtreeId(1)) && v.is_deleted(PoolId(1), VtreeId(8)));
    assert!(!v.is_deleted(PoolId(1), VtreeId(2)), "of another pool");
    v.apply(Change::PoolGone(PoolId(1)));
    assert!(v.deleted_without(PoolId(1), &[]).is_empty());
    let one = |v| (VtreeId(v), VtreeId(v));
    assert_eq!(v.deleted_without(PoolId(2), &[]), [one(2), one(9)]);
    assert_eq!(v.deleted_without(PoolId(2), &[VtreeId(9)]), [one(2)]);
}

/// Makes volumes 1..=20 and deletes them in an order that differs from seed to seed; volumes of every third number are of
/// another pool.
fn deletions(seed: u64) -> (ClusterView, Vec<(PoolId, VtreeId)>) {
    let mut v = ClusterView::default();
    let pool = |n: u64| PoolId(if n.is_multiple_of(3) { 2 } else { 1 });
    let info = |n: u64| VolumeInfo {
        id: VolumeId(n as u32),
        name: format!("v{n}"),
        vtree: VtreeId(n),
        pool: pool(n),
        size_bytes: 1 << 20,
        generation: Generation(1),
        mappings: Vec::new(),
        thick: false,
    };
    (1..=20).for_each(|n| v.apply(Change::Volume(info(n))));
    let mut order: Vec<u64> = (1..=20).collect();
    order.sort_by_key(|n| pg_of(PoolId(1), 1 << 30, VtreeId(seed), Extent(*n as u32)));
    (v, order.into_iter().map(|n| (pool(n), VtreeId(n))).collect())
}

#[test]
fn deletions_are_never_forgotten_and_never_more_than_the_volumes_that_are_left() {
    for seed in 1..=50 {
        let (mut v, order) = deletions(seed);
        let mut done = Vec::new();
        for (pool, vtree) in order.clone() {
            v.apply(Change::VolumeGone { id: VolumeId(vtree.0 as u32), vtree, pool });
            done.push((pool, vtree));
            for x in &order {
                assert_eq!(v.is_deleted(x.0, x.1), done.contains(x), "seed {seed}: {x:?} {v:?}");
            }
            for pool in [PoolId(1), PoolId(2)] {
                let left = v.volumes.values().filter(|x| x.pool == pool).count();
                assert!(v.deleted_without(pool, &[]).len() <= left + 1, "seed {seed}: {v:?}");
            }
        }
        let text = serde_json::to_string(&v).unwrap();
        assert_eq!(serde_json::from_str::<ClusterView>(&text).unwrap(), v);
    }
}

#[test]
fn what_is_left_of_a_run_without_some_of_it_is_the_rest() {
    let mut d = Deleted::default();
    let pool = PoolId(1);
    (3..=9).for_each(|v| d.insert(pool, VtreeId(v), std::iter::empty()));
    let rest = |without: &[u64]| {
        let without: Vec<VtreeId> = without.iter().map(|v| VtreeId(*v)).collect();
        let runs = d.runs_without(pool, &without);
        runs.into_iter().map(|(a, b)| (a.0, b.0)).collect::<Vec<_>>()
    };
    assert_eq!(rest(&[]), [(3, 9)]);
    assert_eq!(rest(&[1, 5, 12]), [(3, 4), (6, 9)]);
    assert_eq!(rest(&[3, 9]), [(4, 8)]);
    assert_eq!(rest(&[3, 4, 5, 6, 7, 8, 9]), []);
    let last = VtreeId(u64::MAX);
    d.insert(PoolId(2), last, std::iter::empty());
    assert_eq!(d.runs_without(PoolId(2), &[last]), []);
    assert_eq!(d.runs_without(PoolId(2), &[VtreeId(7)]), [(last, last)]);
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

#[test]
fn a_configuration_says_when_its_group_fell_back_in_text_only_if_it_did() {
    let mut c = pg(7);
    assert!(!String::from_utf8(c.to_meta().to_vec()).unwrap().contains("fell"));
    assert_eq!(PgConfig::from_meta(&c.to_meta()), Some(c.clone()));
    c.fell = Epoch(5);
    assert!(String::from_utf8(c.to_meta().to_vec()).unwrap().ends_with("\"fell\":5}"));
    assert_eq!(PgConfig::from_meta(&c.to_meta()), Some(c.clone()));
    // It is not forgotten when somebody who does not know it tells the next one.
    let mut v = ClusterView::default();
    v.apply(Change::Pg(c));
    v.apply(Change::Pg(pg(8)));
    assert_eq!(
        v.pgs.values().map(|c| (c.epoch, c.fell)).collect::<Vec<_>>(),
        [(Epoch(8), Epoch(5))]
    );
}
