//! The OpenAPI document, made from the table of routes.

use super::schema::{filters, schemas, ty};
use super::spec::Route;
use super::{Answer, Api};
use axum::extract::State as Ext;
use axum::response::IntoResponse;
use axum::Json;
use serde_json::{json, Map, Value};

pub fn routes() -> Vec<Route> {
    vec![Route::get("/openapi.json", "This document", document).gives(200, "object").open()]
}

async fn document(Ext(api): Ext<Api>) -> Answer {
    Ok(Json(&*api.document).into_response())
}

/// The document of a table.
pub fn of(routes: &[Route]) -> Value {
    let mut paths = Map::new();
    for r in routes {
        let at = paths.entry(r.path.to_string()).or_insert_with(|| json!({}));
        at[r.method] = operation(r);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Quarry", "version": "1",
            "description": "Software-defined block storage: the interface of the metadata manager (MDM).",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn operation(r: &Route) -> Value {
    let tag = r.path.trim_start_matches('/').split('/').next().filter(|t| !t.is_empty());
    let id: String = r.path.replace(['{', '}'], "").replace('/', "_");
    let mut v = json!({
        "summary": r.summary,
        "operationId": format!("{}{}", r.method, if id == "_" { "_root" } else { &id }),
        "tags": [tag.unwrap_or("cluster")],
        "responses": responses(r),
    });
    let parameters = parameters(r);
    if !parameters.is_empty() {
        v["parameters"] = Value::Array(parameters);
    }
    if let Some((schema, needed)) = &r.body {
        v["requestBody"] =
            json!({ "required": needed, "content": { "application/json": { "schema": schema } } });
    }
    if r.open {
        v["security"] = json!([]);
    }
    v
}

fn parameters(r: &Route) -> Vec<Value> {
    let mut out = Vec::new();
    for name in r.path.split('/').filter_map(|p| p.strip_prefix('{')?.strip_suffix('}')) {
        let schema = json!({ "type": "string", "minLength": 1 });
        let doc = if name == "kind" { "kind of object" } else { "id or name" };
        out.push(json!({ "name": name, "in": "path", "required": true, "description": doc, "schema": schema }));
    }
    let query = |name: &str, schema: Value, doc: &str| json!({ "name": name, "in": "query", "description": doc, "schema": schema });
    for (name, kind, doc) in &r.query {
        let mut p = query(name, ty(kind), doc);
        if r.needs.contains(name) {
            p["required"] = json!(true);
        }
        out.push(p);
    }
    if let Some(object) = r.rows {
        let number = || json!({ "type": "integer", "minimum": 0 });
        out.push(query("limit", number(), "rows at most"));
        out.push(query("offset", number(), "rows to leave out at the beginning"));
        for (name, kind) in filters(object) {
            if !r.query.iter().any(|q| q.0 == name) {
                out.push(query(name, ty(kind.trim_end_matches('?')), "only rows with this value"));
            }
        }
    }
    if r.keyed {
        let schema =
            json!({ "type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$" });
        let doc = "the same key with the same request gives the first answer again";
        out.push(json!({ "name": "Idempotency-Key", "in": "header", "description": doc, "schema": schema }));
    }
    out
}

fn responses(r: &Route) -> Value {
    let mut all = Map::new();
    for (status, what) in &r.answers {
        let content = r.text.unwrap_or("application/json");
        let text = match status {
            200 => "done",
            201 => "made",
            202 => "begun: a task goes on",
            _ => "see the body",
        };
        let key = status.to_string();
        let schema = match all
            .get(&key)
            .and_then(|v: &Value| v.pointer("/content/application~1json/schema"))
        {
            Some(other) => json!({ "anyOf": [other, ty(what)] }),
            None => ty(what),
        };
        all.insert(
            key,
            json!({ "description": text, "content": { content: { "schema": schema } } }),
        );
    }
    for status in errors(r) {
        let text = match status {
            400 => "malformed request",
            401 => "token missing or wrong",
            404 => "no such object",
            409 => "another object or state stands in the way",
            413 => "the body is too large",
            422 => "not possible",
            503 => "no MDM that takes changes",
            _ => "refused",
        };
        all.entry(status.to_string()).or_insert_with(|| {
            json!({ "description": text,
            "content": { "application/json": { "schema": ty("Error") } } })
        });
    }
    Value::Object(all)
}

fn errors(r: &Route) -> Vec<u16> {
    let mut out = vec![400];
    if !r.open {
        out.push(401);
    }
    if r.path.contains('{') || r.body.is_some() || !r.query.is_empty() {
        out.push(404);
    }
    if r.method != "get" {
        out.extend([409, 413, 422, 503]);
    }
    out
}
