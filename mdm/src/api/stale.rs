//! The operator's decision where only stale copies are left (R26): what would be lost, then the decision.

use super::change::unexpected;
use super::input::{flag, Body, Params, Ref};
use super::nodes::find_pg;
use super::pools::find_pool;
use super::servers::find_sds;
use super::spec::{body, Route};
use super::{tasks, Answer, Api, ApiError, ADMIN};
use crate::stale::{self, Plan};
use crate::state::{self, Op};
use axum::extract::{Path, Query, State as Ext};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::Json;
use quarry_base::{PgId, PoolId};
use serde_json::{json, Value};

/// Groups and volumes named in a refusal at most.
const NAMED: usize = 10;

pub fn routes() -> Vec<Route> {
    vec![Route::post(
        "/pool/{id}/accept_stale",
        "Let stale copies count where the good ones are gone: what was written since is lost",
        accept,
    )
    .body::<StaleBody>()
    .query("dry_run", "boolean", "say what would be lost, do nothing")
    .gives(200, "StaleLoss")
    .gives(202, "Task")]
}

body! {
    struct StaleBody {
        /// The groups; left out: all of which only stale copies are left.
        pg_ids: Option<Vec<String>>,
        /// The server whose copies are to count; left out: the newest copy of each group.
        sds: Option<Ref>,
        /// The loss is accepted. Without it nothing is done.
        accept_loss: Option<bool>,
        /// `plan` of the answer that said what would be lost: nothing is done if that has changed. Left out: whatever is so now.
        plan: Option<String>,
        /// The servers with the good copies are switched off, so that no client has to confirm that it leaves them alone.
        old_server_is_off: Option<bool>,
        /// Say what would be lost, do nothing.
        dry_run: Option<bool>,
    }
}

async fn accept(
    Ext(api): Ext<Api>,
    Path(id): Path<String>,
    Query(q): Query<Params>,
    Body(b): Body<StaleBody>,
) -> Answer {
    let pool = find_pool(&api, &Ref::path(&id))?;
    let sds = b.sds.as_ref().map(|r| find_sds(&api, r)).transpose()?;
    let dry = flag(&q, "dry_run")? || b.dry_run == Some(true);
    let pgs = wanted(&api, pool, b.pg_ids.as_deref())?;
    let plan = {
        let hub = api.hub.lock();
        stale::plan(&api.state.read(), &hub, &pgs, sds)
    };
    if dry {
        return Ok(Json(loss(&api, pool, &plan, true)).into_response());
    }
    unchanged(&plan, b.plan.as_deref())?;
    refuse(&plan, b.pg_ids.is_some(), b.accept_loss == Some(true))?;
    let report = loss(&api, pool, &plan, false);
    let server_off = b.old_server_is_off.unwrap_or(false);
    let op = Op::AcceptStale { pool, choices: plan.choices, server_off };
    match api.engine.submit(ADMIN, None, op).await?.answer {
        state::Answer::Pool(_) => Ok(Json(report).into_response()),
        state::Answer::Task(id) => {
            Ok((StatusCode::ACCEPTED, Json(tasks::task_json(&api, id)?)).into_response())
        }
        _ => Err(unexpected()),
    }
}

/// The groups that are meant; each must have nothing but stale copies.
fn wanted(api: &Api, pool: PoolId, ids: Option<&[String]>) -> Result<Vec<PgId>, ApiError> {
    let Some(ids) = ids else { return Ok(stale::groups(&api.state.read(), pool)) };
    let mut pgs = ids.iter().map(|id| find_pg(api, id)).collect::<Result<Vec<PgId>, ApiError>>()?;
    pgs.sort_unstable();
    pgs.dedup();
    let s = api.state.read();
    match pgs.iter().find(|pg| pg.pool() != pool || !s.only_stale(**pg)) {
        None => Ok(pgs),
        Some(pg) => Err(ApiError::new(
            409,
            "not_stale",
            format!("{pg} is not a group of this pool of which only stale copies are left"),
            "GET /explain/pg/{id} says how it is",
        )),
    }
}

/// Nothing is given up but what was shown (promise 5).
fn unchanged(plan: &Plan, shown: Option<&str>) -> Result<(), ApiError> {
    if shown.is_none_or(|s| s == plan.token()) {
        return Ok(());
    }
    Err(ApiError::new(
        409,
        "plan_changed",
        "what would be given up is not what was shown any more; nothing was done",
        "dry_run=true says what would be lost now",
    ))
}

fn refuse(plan: &Plan, named: bool, accepted: bool) -> Result<(), ApiError> {
    let short = |all: Vec<String>| {
        let more = all.len().saturating_sub(NAMED);
        let text = all.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        if more > 0 {
            format!("{text} and {more} more")
        } else {
            text
        }
    };
    if !plan.without_copy.is_empty() && (named || plan.choices.is_empty()) {
        let ids = short(plan.without_copy.iter().map(PgId::to_string).collect());
        return Err(ApiError::new(
            409,
            "no_copy",
            format!("no server that is there has a copy of {ids}"),
            "start the servers that had copies; with sds given, one without any counts as empty",
        ));
    }
    if !accepted && !plan.choices.is_empty() {
        return Err(ApiError::new(
            422,
            "loss_not_accepted",
            format!(
                "{} placement groups would go back to an older state; volumes: {}",
                plan.choices.len(),
                short(plan.volumes.clone())
            ),
            "dry_run=true says what would be lost; send accept_loss: true to accept it",
        ));
    }
    Ok(())
}

fn loss(api: &Api, pool: PoolId, plan: &Plan, dry: bool) -> Value {
    let name = api.state.read().pools.get(&pool).map(|p| p.name.clone());
    json!({
        "dry_run": dry, "plan": plan.token(), "pool_id": pool, "pool": name, "groups": plan.rows, "volumes": plan.volumes,
        "records_lost": plan.records,
        "without_copy": plan.without_copy.iter().map(PgId::to_string).collect::<Vec<_>>(),
    })
}
