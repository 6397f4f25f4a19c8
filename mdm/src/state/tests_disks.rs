//! Disks that go and come: removed and put to use again, moved to another server; and orders that are refused as a whole.

use super::tests::{map_first, pool, registration, Lab};
use super::tests_ops::move_all;
use super::*;
use quarry_control::Capability;

/// Server `i` registers with these devices.
fn register_with(l: &mut Lab, i: u32, uuids: &[&str]) -> Result<Applied, Reject> {
    let Op::Register(mut r) = registration(i, None, &[]) else { panic!("a registration") };
    let one = r.devices[0].clone();
    r.devices = uuids.iter().map(|u| RegDevice { uuid: (*u).into(), ..one.clone() }).collect();
    l.run(Op::Register(r))
}

fn drain(l: &mut Lab, i: u32) {
    l.ok(Op::DrainDevice { id: DeviceId(i) });
    move_all(l);
}

#[test]
fn a_removed_device_that_a_new_pool_is_given_is_a_device_like_any_other() {
    let mut l = Lab::cluster(3, 2);
    drain(&mut l, 3);
    l.ok(Op::DeleteDevice { id: DeviceId(3) });
    assert!(l.s.devices[&DeviceId(3)].removed);
    register_with(&mut l, 4, &["u4"]).unwrap();
    l.ok(Op::DeleteDevice { id: DeviceId(4) });
    let Op::AddPool(mut p) = pool("q", 2) else { panic!("a pool") };
    p.devices = Some(vec![DeviceId(3), DeviceId(4)]);
    l.ok(Op::AddPool(p));
    let on = l.s.copies_on(DeviceId(3));
    let d = &l.s.devices[&DeviceId(3)];
    assert!(on > 0 && !d.removed && !d.draining, "{on} copies");
    // Its server comes once without the disk: that is a device that is missing, with its copies, and not one that never was.
    register_with(&mut l, 3, &[]).unwrap();
    assert!(l.s.devices[&DeviceId(3)].missing);
    register_with(&mut l, 3, &["u3"]).unwrap();
    assert!(l.s.devices.values().any(|d| d.id == DeviceId(3) && d.uuid == "u3" && !d.missing));
}

#[test]
fn a_device_removed_while_its_server_is_away_does_not_join_again_by_itself() {
    let mut l = Lab::cluster(3, 2);
    drain(&mut l, 3);
    l.fail(3, &[1, 2]);
    l.ok(Op::DeleteDevice { id: DeviceId(3) });
    register_with(&mut l, 3, &["u3"]).unwrap();
    let d = l.s.devices.values().find(|d| d.uuid == "u3").unwrap();
    assert_eq!((d.id, d.pool, d.removed), (DeviceId(3), None, true));
}

#[test]
fn a_disk_does_not_move_to_a_server_with_another_copy_of_its_groups() {
    let mut l = Lab::cluster(3, 2);
    l.fail(1, &[2, 3]);
    let e = register_with(&mut l, 2, &["u2", "u1"]).unwrap_err();
    assert_eq!((e.status, e.code.as_str()), (409, "copies_together"));
    assert_eq!(l.s.devices[&DeviceId(1)].sds, SdsId(1));
    // A server of its own is as good as the one it came from.
    register_with(&mut l, 9, &["u1"]).unwrap();
    assert_eq!(l.s.devices[&DeviceId(1)].sds, l.id(9));
}

#[test]
fn capabilities_of_which_one_cannot_be_taken_are_all_left() {
    let mut l = Lab::cluster(4, 2);
    let Op::Register(mut r) = registration(1, None, &[]) else { panic!("a registration") };
    r.capabilities = vec![Capability::Sds, Capability::Sdc];
    l.ok(Op::Register(r.clone()));
    (r.role, r.devices) = (quarry_control::Role::Sdc, vec![]);
    l.ok(Op::Register(r));
    let node = l.s.sds[&SdsId(1)].node.unwrap();
    l.volume("v", 1 << 20).unwrap();
    l.ok(map_first(false, false));
    let e = l.run(Op::SetCapabilities { node, capabilities: vec![], drain: true }).unwrap_err();
    assert_eq!(e.status, 409);
    assert!(!l.s.sds[&SdsId(1)].draining && l.s.tasks.is_empty() && !l.s.moves_due());
}

#[test]
fn a_drain_for_a_capability_that_was_taken_is_not_cancelled_by_its_task() {
    let mut l = Lab::cluster(4, 2);
    let node = l.s.sds[&SdsId(1)].node.unwrap();
    let a = l.ok(Op::SetCapabilities { node, capabilities: vec![], drain: true });
    let Answer::Task(id) = a else { panic!("{a:?}") };
    assert_eq!(l.run(Op::CancelTask { id }).unwrap_err().code, "capability_taken");
    l.ok(Op::SetCapabilities { node, capabilities: vec![Capability::Sds], drain: false });
    assert_eq!(l.s.tasks[&id].state, TaskState::Cancelled);
    assert!(!l.s.moves_due());
}

#[test]
fn a_pool_has_valid_policies_and_all_groups_fit_into_one_message() {
    let mut l = Lab::cluster(2, 2);
    let Op::AddPool(p) = pool("q", 2) else { panic!("a pool") };
    let mut odd = p.clone();
    odd.rebuild_bytes_per_second = Some(5);
    assert_eq!(l.run(Op::AddPool(odd)).unwrap_err().code, "bad_limit");
    let mut large = p;
    large.pg_count = Some(65_536);
    l.ok(Op::AddPool(large.clone()));
    large.name = "r".into();
    assert_eq!(l.run(Op::AddPool(large)).unwrap_err().code, "limit");
}

#[test]
fn a_disk_that_failed_while_its_server_was_away_is_an_event() {
    let mut l = Lab::cluster(2, 2);
    let Op::Register(mut r) = registration(2, None, &[1]) else { panic!("a registration") };
    r.devices[0].failed = Some("it cannot be read".into());
    let events = |l: &Lab| l.s.events.iter().filter(|e| e.what == "device_failed").count();
    l.run(Op::Register(r.clone())).unwrap();
    assert_eq!(events(&l), 1);
    // Once: it is known from then on.
    l.run(Op::Register(r)).unwrap();
    assert_eq!(events(&l), 1);
}

/// The host's clock was hours ahead when the server was lost, and was set right: its copies would have been made anew hours later.
#[test]
fn a_clock_that_goes_back_does_not_put_a_rebuild_off_by_as_much() {
    let mut l = Lab::cluster(3, 2);
    let right = l.at_ms;
    l.at_ms += 8 * 3_600_000;
    l.fail(1, &[2, 3]);
    assert!(!l.s.rebuild_due(l.at_ms), "it may come back");
    l.at_ms = right;
    assert!(l.s.rebuild_due(l.at_ms));
    // Nor primaries that a client cannot reach.
    let pg = l.s.pgs.values().find(|p| p.config.in_sync.len() == 2).map(|p| p.config.pg);
    let pg = pg.unwrap_or_else(|| panic!("a group with two copies"));
    let lead = |l: &Lab| l.s.pgs[&pg].config.primary.unwrap();
    let late = right + 8 * 3_600_000;
    if let Some(p) = l.s.pgs.get_mut(&pg) {
        p.moved_ms = vec![late, late + 1];
        p.led_ms = None;
    }
    let device = lead(&l);
    assert!(l.run(Op::Unreachable { sdc: SdcId(1), pg, device }).is_ok());
    assert_ne!(lead(&l), device);
}

#[test]
fn a_disk_that_was_missing_once_has_its_grace_time_when_it_is_missing_again() {
    let mut l = Lab::cluster(3, 2);
    let grace = l.s.pools[&PoolId(1)].rebuild_grace_seconds * 1000;
    register_with(&mut l, 3, &[]).unwrap();
    register_with(&mut l, 3, &["u3"]).unwrap();
    assert!(!l.s.rebuild_due(l.at_ms));
    l.at_ms += 10 * grace;
    register_with(&mut l, 3, &[]).unwrap();
    assert!(l.s.devices[&DeviceId(3)].missing && !l.s.rebuild_due(l.at_ms));
    l.at_ms += grace;
    assert!(l.s.rebuild_due(l.at_ms));
}
