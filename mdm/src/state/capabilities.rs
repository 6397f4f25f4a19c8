//! What nodes may do: capabilities come from the node file, and the operator may take them away and give them back.
//!
//! A capability that data or mappings depend on is not taken away: the request is refused, or (SDS, when asked) the
//! copies are moved off first while the node gets no new ones.

use super::{Answer, Ctx, Reject, State};
use quarry_base::{NodeId, SdsId};
use quarry_control::Capability;
use std::collections::BTreeSet;

impl State {
    /// Servers that run on a node.
    pub fn sds_of(&self, node: NodeId) -> Vec<SdsId> {
        self.sds.values().filter(|s| s.node == Some(node)).map(|s| s.id).collect()
    }

    pub(crate) fn set_capabilities(
        &mut self,
        ctx: &mut Ctx,
        node: NodeId,
        wanted: &[Capability],
        drain: bool,
    ) -> Result<Answer, Reject> {
        let n = self.nodes.get(&node).ok_or_else(|| Reject::not_found("node", node))?;
        let name = n.name.clone();
        let declared: BTreeSet<Capability> = n.capabilities.iter().copied().collect();
        let wanted: BTreeSet<Capability> = wanted.iter().copied().collect();
        if let Some(c) = wanted.difference(&declared).next() {
            return Err(Reject::invalid(
                "capability_not_declared",
                format!("node {name} does not declare the capability {c}"),
                format!("add \"{c}\" to capabilities in its node file and start that daemon there"),
            ));
        }
        let off: BTreeSet<Capability> = declared.difference(&wanted).copied().collect();
        // All of it is looked at before anything begins: what is refused changes nothing.
        for c in &off {
            self.check_let_go(node, &name, *c, drain)?;
        }
        let mut answer = Answer::Done;
        if off.contains(&Capability::Sds) {
            for sds in self.sds_of(node) {
                if self.copies_on_sds(sds) > 0 {
                    answer = self.drain_sds(ctx, sds)?;
                }
            }
        }
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(answer) };
        let new: Vec<Capability> = off.into_iter().collect();
        if n.disabled != new {
            let list =
                |l: &[Capability]| l.iter().map(|c| c.to_string()).collect::<Vec<_>>().join(", ");
            let text = if new.is_empty() {
                "all that it declares".to_string()
            } else {
                format!("without {}", list(&new))
            };
            let back = n.disabled.contains(&Capability::Sds) && !new.contains(&Capability::Sds);
            n.disabled = new;
            ctx.event("capabilities_set", format!("node {name}"), text);
            if back {
                for sds in self.sds_of(node) {
                    self.undrain_sds(ctx, sds);
                }
            }
        }
        Ok(answer)
    }

    /// May a capability be taken away? What depends on it is in the way, or (copies, with `drain`) can be moved off.
    fn check_let_go(
        &self,
        node: NodeId,
        name: &str,
        c: Capability,
        drain: bool,
    ) -> Result<(), Reject> {
        match c {
            Capability::Mdm => {
                if self.nodes.values().any(|n| n.id != node && n.can(c)) {
                    return Ok(());
                }
                Err(Reject::conflict(
                    "last_mdm",
                    format!("node {name} is the only one with the capability MDM"),
                    "metadata operations need an MDM node",
                ))
            }
            Capability::Sdc => {
                let mut here = self.sdcs.values().filter(|s| s.node == Some(node));
                here.try_for_each(|s| self.refuse_mapped(s.id, &format!("node {name}")))
            }
            Capability::Sds => {
                for sds in self.sds_of(node) {
                    let n = self.copies_on_sds(sds);
                    if n > 0 && !drain {
                        return Err(Reject::conflict(
                            "capability_in_use",
                            format!("node {name} holds copies of {n} placement groups"),
                            "drain it first, or give drain=true to have them moved off",
                        ));
                    }
                    if n > 0 {
                        self.check_drain_sds(sds)?;
                    }
                }
                Ok(())
            }
        }
    }
}
