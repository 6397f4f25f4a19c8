//! Reading requests: bodies, ids and names, paging.

use super::error::ApiError;
use super::schema::filters;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use serde::de::DeserializeOwned;
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;

/// Largest request body, bytes.
pub const MAX_BODY: usize = 256 << 10;
/// Longest `Idempotency-Key`.
const MAX_KEY: usize = 200;
/// Rows of a list without `limit`, and the most with it.
const ROWS: usize = 10_000;

/// A JSON body; an empty one is `{}`.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(req: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(req, state).await.map_err(|e| {
            let status = e.status().as_u16();
            let code = if status == 413 { "too_large" } else { "bad_body" };
            ApiError::new(status, code, e.body_text(), format!("at most {MAX_BODY} bytes"))
        })?;
        let text: &[u8] = if bytes.iter().all(u8::is_ascii_whitespace) { b"{}" } else { &bytes };
        let malformed = |why: String| {
            let hint = "send a JSON object with the fields of this request";
            ApiError::new(400, "malformed", format!("the body is not understood: {why}"), hint)
        };
        // A list of the fields' values would be taken for the object by serde.
        if !text.trim_ascii_start().starts_with(b"{") {
            return Err(malformed("it is no JSON object".into()));
        }
        read(text).map(Body).map_err(|e| malformed(e.to_string()))
    }
}

/// Reads a body. To JSON 3.0 is an integer as 3 is; serde takes only the latter for one.
fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(text).or_else(|first| {
        let mut value: Value = serde_json::from_slice(text)?;
        whole_numbers(&mut value);
        serde_json::from_value(value).map_err(|_| first)
    })
}

/// Writes numbers that are whole, and exact as such, without a fraction.
fn whole_numbers(value: &mut Value) {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(n) if n.is_f64() => {
            let whole = n.as_f64().filter(|f| f.fract() == 0.0 && f.abs() <= EXACT);
            if let Some(f) = whole {
                *value = Value::from(f as i64);
            }
        }
        Value::Array(all) => all.iter_mut().for_each(whole_numbers),
        Value::Object(all) => all.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

/// An id or a name.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Ref {
    Id(u32),
    Name(String),
}

impl Ref {
    /// From a path: digits are an id.
    pub fn path(text: &str) -> Ref {
        text.parse().map_or_else(|_| Ref::Name(text.into()), Ref::Id)
    }
    pub fn fits(&self, id: u32, name: &str) -> bool {
        match self {
            Ref::Id(i) => *i == id,
            Ref::Name(n) => n == name || n.parse() == Ok(id),
        }
    }
}

impl std::fmt::Display for Ref {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ref::Id(i) => i.fmt(f),
            Ref::Name(n) => write!(f, "'{}'", n.chars().take(80).collect::<String>()),
        }
    }
}

/// One of several fields that name the same thing.
pub fn one_of(what: &str, given: [&Option<Ref>; 3]) -> Result<Ref, ApiError> {
    let mut all = given.into_iter().flatten();
    match (all.next(), all.next()) {
        (Some(r), None) => Ok(r.clone()),
        (None, _) => Err(ApiError::new(
            400,
            "malformed",
            format!("{what} is missing"),
            format!("give {what} or {what}_id"),
        )),
        _ => Err(ApiError::new(
            400,
            "malformed",
            format!("{what} is given more than once"),
            "give one of them",
        )),
    }
}

/// A size given in GiB or in bytes.
pub fn size(gb: Option<f64>, bytes: Option<u64>) -> Result<u64, ApiError> {
    match (gb, bytes) {
        (None, Some(b)) => Ok(b),
        (Some(g), None) if g.is_finite() && (0.0..8e9).contains(&g) => {
            Ok((g * (1u64 << 30) as f64).round() as u64)
        }
        (Some(g), None) => Err(ApiError::new(
            422,
            "bad_size",
            format!("{g} GiB is not a size"),
            "give a multiple of 1 MiB",
        )),
        _ => Err(ApiError::new(
            400,
            "malformed",
            "give size_gb (GiB) or size_bytes, one of them",
            "",
        )),
    }
}

pub fn idempotency_key(h: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(v) = h.get("idempotency-key") else { return Ok(None) };
    match v.to_str() {
        Ok(k) if (1..=MAX_KEY).contains(&k.len()) && k.bytes().all(|b| b.is_ascii_graphic()) => {
            Ok(Some(k.into()))
        }
        _ => Err(ApiError::new(
            400,
            "malformed",
            "the Idempotency-Key is not usable",
            format!("1 to {MAX_KEY} printable characters without blanks"),
        )),
    }
}

pub type Params = HashMap<String, String>;

/// A number among the query parameters.
pub fn number(p: &Params, name: &str) -> Result<Option<u64>, ApiError> {
    let Some(t) = p.get(name) else { return Ok(None) };
    t.parse().map(Some).map_err(|_| {
        ApiError::new(
            400,
            "malformed",
            format!("{name}={t} is not a number"),
            "give a whole number",
        )
    })
}

/// A yes or no among the query parameters; left out: no.
pub fn flag(p: &Params, name: &str) -> Result<bool, ApiError> {
    match p.get(name).map(String::as_str) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(ApiError::new(
            400,
            "malformed",
            format!("{name} must be true or false"),
            format!("{name}=true, or leave it out"),
        )),
    }
}

/// Digits alone would be taken for an id where an object is named in a path, by a request that destroys it too.
pub fn new_name(name: &str) -> Result<(), ApiError> {
    if name.is_empty() || name.bytes().any(|b| !b.is_ascii_digit()) {
        return Ok(());
    }
    Err(ApiError::new(
        422,
        "bad_name",
        format!(
            "'{}' is no name: digits alone are an id",
            name.chars().take(80).collect::<String>()
        ),
        "add a letter: v7",
    ))
}

/// The id of the object that is meant. A name wins over an id, as objects may be named by digits.
pub fn find<'a>(
    kind: &str,
    r: &Ref,
    all: impl Iterator<Item = (u32, &'a str)> + Clone,
) -> Result<u32, ApiError> {
    let named = match r {
        Ref::Name(n) => all.clone().find(|x| x.1 == n),
        Ref::Id(_) => None,
    };
    let hit = named.or_else(|| all.clone().find(|x| r.fits(x.0, x.1)));
    hit.map(|x| x.0).ok_or_else(|| ApiError::not_found(kind, r))
}

/// Only fields that rows have may be filtered by; their values must be of the field's kind.
fn check_filters(p: &Params, object: &str) -> Result<(), ApiError> {
    let known = filters(object);
    for (name, value) in p.iter().filter(|(k, _)| *k != "limit" && *k != "offset") {
        let Some((_, kind)) = known.iter().find(|f| f.0 == name) else {
            let names: Vec<&str> = known.iter().map(|f| f.0).collect();
            return Err(ApiError::new(
                400,
                "malformed",
                format!(
                    "rows have no field '{}' to filter by",
                    name.chars().take(80).collect::<String>()
                ),
                format!("limit, offset, {}", names.join(", ")),
            ));
        };
        let kind = kind.trim_end_matches('?');
        let good = match kind {
            // One that is too large is that of no row.
            "integer" => !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()),
            "number" => value.parse::<f64>().is_ok_and(f64::is_finite),
            "boolean" => matches!(value.as_str(), "true" | "false"),
            "string" => true,
            _ => super::schema::one_of(kind, value),
        };
        if !good {
            return Err(ApiError::new(
                400,
                "malformed",
                format!("{name}={} is not possible", value.chars().take(80).collect::<String>()),
                format!("{name} is: {}", super::schema::words(kind)),
            ));
        }
    }
    Ok(())
}

/// Filters rows by equal fields and cuts the page asked for.
pub fn page(rows: Vec<Value>, p: &Params, object: &str) -> Result<Value, ApiError> {
    check_filters(p, object)?;
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let limit = number(p, "limit")?.map_or(ROWS, |n| size(n).min(ROWS));
    let offset = size(number(p, "offset")?.unwrap_or(0));
    let fits = |row: &Value| {
        p.iter().filter(|(k, _)| *k != "limit" && *k != "offset").all(|(k, v)| match row.get(k) {
            Some(Value::String(s)) => s == v,
            Some(Value::Number(n)) => v.parse().ok() == n.as_f64(),
            Some(other) => serde_json::from_str::<Value>(v).is_ok_and(|v| v == *other),
            None => true,
        })
    };
    Ok(Value::Array(rows.into_iter().filter(fits).skip(offset).take(limit).collect()))
}
