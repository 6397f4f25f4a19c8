//! `scli device` and `scli fault-set`.

use super::{called, Context};
use crate::args::{Device, FaultSet};
use crate::error::CliError;
use crate::select::{self, FAULT_SET, PD, POOL, SDS};
use crate::table::{Column, Show};
use serde_json::json;

const DEVICES: &[Column] = &[
    ("id", "ID", Show::Plain),
    ("sds", "SDS", Show::Plain),
    ("path", "PATH", Show::Plain),
    ("pool", "POOL", Show::Plain),
    ("state", "STATE", Show::Plain),
    ("copies", "COPIES", Show::Plain),
    ("capacity_bytes", "CAPACITY", Show::Size),
    ("used_bytes", "USED", Show::Size),
    ("error", "ERROR", Show::Plain),
];
const FAULT_SETS: &[Column] = &[
    ("id", "ID", Show::Plain),
    ("name", "NAME", Show::Plain),
    ("protection_domain_id", "DOMAIN-ID", Show::Plain),
    ("sds_ids", "SDS-IDS", Show::Plain),
];

pub fn device(cx: &Context<'_>, command: &Device) -> Result<(), CliError> {
    match command {
        Device::List => cx.out.list(&cx.client.get("/device/list")?, DEVICES, "devices"),
        Device::Get(d) => cx.out.object(&cx.client.get(&format!("/device/{}", d.id))?),
        Device::Add { device, pool } => {
            let pool_id = select::id_by_name(&cx.client, POOL, pool)?;
            let body = json!({ "device_id": device.id, "pool_id": pool_id });
            let answer = cx.client.post("/device/add", &body)?;
            cx.finish(answer, &format!("device {} belongs to pool '{pool}'", device.id))
        }
        Device::Drain(d) => {
            let answer = cx.post(&format!("/device/{}/drain", d.id), &json!({}))?;
            cx.finish(answer, &format!("device {} is empty", d.id))
        }
        Device::Delete(d) => cx.delete(
            &format!("/device/{}", d.id),
            &format!("Device {} will be taken out of its pool.", d.id),
            &format!("device {} removed", d.id),
        ),
    }
}

pub fn fault_set(cx: &Context<'_>, command: &FaultSet) -> Result<(), CliError> {
    match command {
        FaultSet::List => cx.out.list(&cx.client.get("/fault_set/list")?, FAULT_SETS, "fault sets"),
        FaultSet::Get(which) => cx.out.object(&select::find(&cx.client, FAULT_SET, which)?),
        FaultSet::Create { name, pd } => {
            let domain = select::id_by_name(&cx.client, PD, pd)?;
            let body = json!({ "name": select::check_name(name)?, "protection_domain_id": domain });
            let answer = cx.client.post("/fault_set/create", &body)?;
            cx.finish(answer, &format!("fault set '{name}' made"))
        }
        FaultSet::Assign { sds, fault_set } => {
            let id = select::id_by_name(&cx.client, SDS, sds)?;
            let set = match fault_set {
                Some(f) => Some(select::id_by_name(&cx.client, FAULT_SET, f)?),
                None => None,
            };
            let body = json!({ "fault_set_id": set });
            let answer = cx.client.post(&format!("/sds/{id}/fault_set"), &body)?;
            let to = fault_set.as_deref().unwrap_or("none");
            cx.finish(answer, &format!("SDS '{sds}' is in fault set {to}"))
        }
        FaultSet::Delete(which) => {
            let object = select::find(&cx.client, FAULT_SET, which)?;
            let (id, name) = (select::id_of(&object)?, called(&object));
            cx.delete(
                &format!("/fault_set/{id}"),
                &format!("Fault set {name} will be removed."),
                &format!("fault set {name} removed"),
            )
        }
    }
}
