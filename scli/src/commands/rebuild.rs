//! `scli rebuild`.

use super::Context;
use crate::args::Rebuild;
use crate::error::CliError;
use crate::select::{self, POOL};
use serde_json::json;

pub fn run(cx: &Context<'_>, command: &Rebuild) -> Result<(), CliError> {
    let id = |name: &str| select::id_by_name(&cx.client, POOL, name);
    match command {
        Rebuild::Start(of) => {
            let path = format!("/rebuild/start/{}", id(&of.pool)?);
            let answer = cx.client.post(&path, &json!({}))?;
            cx.finish(answer, &format!("rebuild of pool '{}' begun", of.pool))
        }
        Rebuild::Status(of) => {
            let path = format!("/rebuild/status/{}", id(&of.pool)?);
            cx.out.object(&cx.client.get(&path)?)
        }
        Rebuild::Cancel(of) => {
            let path = format!("/rebuild/cancel/{}", id(&of.pool)?);
            let answer = cx.client.post(&path, &json!({}))?;
            cx.finish(answer, &format!("rebuild of pool '{}' stopped", of.pool))
        }
    }
}
