//! Fault sets: servers that are expected to fail together. Copies of a group go to different ones where there are
//! enough; a change moves copies that would fail together (rebalancing).

use super::nodes::check_name;
use super::{Answer, Ctx, FaultSet, Reject, State, MAX_OBJECTS};
use quarry_base::{DomainId, SdsId};

impl State {
    pub(crate) fn add_fault_set(
        &mut self,
        ctx: &mut Ctx,
        name: &str,
        domain: DomainId,
    ) -> Result<Answer, Reject> {
        check_name(name)?;
        let d = self.domains.get(&domain).ok_or_else(|| Reject::not_found("pd", domain))?;
        let domain_name = d.name.clone();
        if self.fault_sets.values().any(|f| f.name == name) {
            return Err(Reject::conflict(
                "name_taken",
                format!("fault set {name} exists"),
                "choose another name",
            ));
        }
        if self.fault_sets.len() >= MAX_OBJECTS {
            return Err(Reject::invalid("limit", "too many fault sets", ""));
        }
        self.next.fault_set += 1;
        let id = self.next.fault_set;
        self.fault_sets.insert(id, FaultSet { id, name: name.into(), domain });
        ctx.event("fault_set_create", format!("fault set {name}"), format!("domain {domain_name}"));
        Ok(Answer::FaultSet(id))
    }

    pub(crate) fn delete_fault_set(&mut self, ctx: &mut Ctx, id: u32) -> Result<Answer, Reject> {
        let f = self.fault_sets.get(&id).ok_or_else(|| Reject::not_found("fault_set", id))?;
        let name = f.name.clone();
        let has = self.sds.values().filter(|s| s.fault_set == Some(id));
        let servers: Vec<&str> = has.map(|s| s.name.as_str()).take(10).collect();
        if !servers.is_empty() {
            return Err(Reject::conflict(
                "not_empty",
                format!("fault set {name} has servers: {}", servers.join(", ")),
                "take them out first: scli fault-set assign --sds S without --fault-set (POST /sds/{id}/fault_set)",
            ));
        }
        self.fault_sets.remove(&id);
        ctx.event("fault_set_delete", format!("fault set {name}"), "");
        Ok(Answer::Done)
    }

    /// The fault set is there and of this domain.
    pub(crate) fn check_fault_set(&self, id: Option<u32>, domain: DomainId) -> Result<(), Reject> {
        let Some(id) = id else { return Ok(()) };
        let f = self.fault_sets.get(&id).ok_or_else(|| Reject::not_found("fault_set", id))?;
        if f.domain == domain {
            return Ok(());
        }
        Err(Reject::invalid(
            "other_domain",
            format!("fault set {} is in another protection domain", f.name),
            "GET /fault_set/list shows the domains",
        ))
    }

    pub(crate) fn assign_fault_set(
        &mut self,
        ctx: &mut Ctx,
        sds: SdsId,
        fault_set: Option<u32>,
    ) -> Result<Answer, Reject> {
        let s = self.sds.get(&sds).ok_or_else(|| Reject::not_found("sds", sds))?;
        self.check_fault_set(fault_set, s.domain)?;
        let to = fault_set.and_then(|f| self.fault_sets.get(&f)).map(|f| f.name.clone());
        if let Some(s) = self.sds.get_mut(&sds) {
            if s.fault_set != fault_set {
                s.fault_set = fault_set;
                let to = to.unwrap_or_else(|| "none".into());
                ctx.event("fault_set_assign", format!("sds {}", s.name), format!("fault set {to}"));
            }
        }
        Ok(Answer::Sds(sds))
    }
}
