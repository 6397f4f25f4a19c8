//! For tests: does an answer look as the OpenAPI document says? Stricter than the document: no field that it does
//! not name, no status that it does not list.

use serde_json::Value;

/// What is wrong with an answer to `method path`; `None`: nothing.
pub fn wrong(doc: &Value, method: &str, path: &str, status: u16, body: &Value) -> Option<String> {
    let path = path.split('?').next().unwrap_or(path);
    let Some(route) = route(doc, path) else {
        return (status != 404 && status != 405)
            .then(|| format!("{path} is not in the document and answers {status}"));
    };
    let Some(op) = route.get(method.to_lowercase()) else {
        return (status != 405).then(|| format!("{method} {path} answers {status}"));
    };
    let Some(answer) = op["responses"].get(status.to_string()) else {
        return Some(format!("{method} {path}: status {status} is not documented: {body}"));
    };
    let schema = answer.pointer("/content/application~1json/schema")?;
    check(doc, schema, body, "answer").map(|why| format!("{method} {path} {status}: {why}"))
}

/// The path of the document that fits best: fixed words beat parameters.
fn route<'a>(doc: &'a Value, path: &str) -> Option<&'a Value> {
    let parts: Vec<&str> = path.split('/').collect();
    let fits = |p: &str| {
        let q: Vec<&str> = p.split('/').collect();
        q.len() == parts.len()
            && q.iter().zip(&parts).all(|(a, b)| a == b || (a.starts_with('{') && !b.is_empty()))
    };
    let paths = doc["paths"].as_object()?;
    let all = paths.iter().filter(|(p, _)| fits(p));
    all.min_by_key(|(p, _)| p.matches('{').count()).map(|x| x.1)
}

fn check(doc: &Value, schema: &Value, v: &Value, at: &str) -> Option<String> {
    if let Some(r) = schema["$ref"].as_str() {
        return check(doc, doc.pointer(r.trim_start_matches('#'))?, v, at);
    }
    if let Some(any) = schema["anyOf"].as_array() {
        let all: Vec<String> = any.iter().map(|s| check(doc, s, v, at)).collect::<Option<_>>()?;
        return Some(all.join(" and "));
    }
    if let Some(list) = schema["enum"].as_array() {
        return (!list.contains(v)).then(|| format!("{at}: {v} is not one of {list:?}"));
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(t) => vec![t],
        Value::Array(a) => a.iter().filter_map(Value::as_str).collect(),
        _ => return None,
    };
    let kind = match v {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_u64() || n.is_i64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let number = kind == "integer" && types.contains(&"number");
    if !number && !types.contains(&kind) {
        return Some(format!("{at}: {v} is no {types:?}"));
    }
    if let Some(list) = v.as_array() {
        let item = |(i, x)| check(doc, &schema["items"], x, &format!("{at}[{i}]"));
        return list.iter().enumerate().find_map(item);
    }
    let (Some(o), Some(properties)) = (v.as_object(), schema["properties"].as_object()) else {
        return None;
    };
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !o.contains_key(name) {
            return Some(format!("{at}: {name} is missing"));
        }
    }
    o.iter().find_map(|(k, x)| match properties.get(k) {
        Some(s) => check(doc, s, x, &format!("{at}.{k}")),
        None => Some(format!("{at}: {k} is not documented")),
    })
}
