//! Objects that the API answers with, for the OpenAPI document. The tests check every answer they get against it.

use serde_json::{json, Map, Value};

/// Name, and fields as (name, type); a `?` behind a name: may be missing.
type Object = (&'static str, &'static [(&'static str, &'static str)]);

/// All objects. Types are as [`ty`] reads them.
pub const OBJECTS: &[Object] = &[
    (
        "Error",
        &[("code", "string"), ("message", "string"), ("hint", "string"), ("leader?", "string?")],
    ),
    (
        "Root",
        &[
            ("name", "string"),
            ("version", "string"),
            ("api", "integer"),
            ("cluster_id", "string"),
            ("node", "string"),
            ("links", "[string]"),
        ],
    ),
    (
        "Node",
        &[
            ("id", "integer"),
            ("name", "string"),
            ("addresses", "[string]"),
            ("capabilities", "[string]"),
            ("removed_capabilities", "[string]"),
            ("state", "up|partial|down"),
            ("last_heartbeat_seconds", "number?"),
            ("version", "string"),
            ("sds_ids", "[integer]"),
            ("sdc_ids", "[integer]"),
        ],
    ),
    (
        "PoolHealth",
        &[
            ("pool_id", "integer"),
            ("pool", "string"),
            ("health", "Health"),
            ("bytes_degraded", "integer"),
            ("bytes_one_copy", "integer"),
            ("eta_seconds", "integer?"),
            ("rate_bytes_per_second", "integer?"),
            ("pgs", "integer"),
            ("pgs_ok", "integer"),
            ("pgs_degraded", "integer"),
            ("pgs_unavailable", "integer"),
            ("pgs_syncing", "integer"),
            ("pgs_moving", "integer"),
            ("bytes", "integer"),
            ("capacity_level", "Level"),
            ("waits_for_devices", "boolean"),
            ("reasons", "[string]"),
        ],
    ),
    (
        "Status",
        &[
            ("health", "Health"),
            ("bytes_degraded", "integer"),
            ("bytes_one_copy", "integer"),
            ("eta_seconds", "integer?"),
            ("reasons", "[string]"),
            ("warnings", "[string]"),
            ("cluster_id", "string"),
            ("index", "integer"),
            ("nodes", "integer"),
            ("sds", "integer"),
            ("sds_up", "integer"),
            ("sdcs", "integer"),
            ("sdcs_up", "integer"),
            ("volumes", "integer"),
            ("pools", "[PoolHealth]"),
            ("time", "string"),
        ],
    ),
    ("HealthOnly", &[("health", "Health")]),
    (
        "Event",
        &[
            ("id", "integer"),
            ("time", "string"),
            ("who", "string"),
            ("what", "string"),
            ("object", "string"),
            ("outcome", "string"),
            ("reason", "string"),
        ],
    ),
    (
        "Retention",
        &[
            ("keep", "integer"),
            ("kept", "integer"),
            ("oldest_id", "integer?"),
            ("newest_id", "integer?"),
        ],
    ),
    (
        "ProtectionDomain",
        &[
            ("id", "integer"),
            ("name", "string"),
            ("sds_ids", "[integer]"),
            ("pool_ids", "[integer]"),
            ("fault_set_ids", "[integer]"),
            ("total_capacity_gb", "number"),
            ("capacity_bytes", "integer"),
        ],
    ),
    (
        "FaultSet",
        &[
            ("id", "integer"),
            ("name", "string"),
            ("protection_domain_id", "integer"),
            ("sds_ids", "[integer]"),
        ],
    ),
    (
        "Pool",
        &[
            ("id", "integer"),
            ("name", "string"),
            ("protection_domain_id", "integer"),
            ("protection_domain", "string?"),
            ("copies", "integer"),
            ("min_copies", "integer"),
            ("ack", "durable|cached"),
            ("reads", "lease|confirm"),
            ("pg_count", "integer"),
            ("health", "Health"),
            ("device_ids", "[integer]"),
            ("total_capacity_gb", "number"),
            ("capacity_bytes", "integer"),
            ("usable_bytes", "integer"),
            ("used_bytes", "integer"),
            ("free_bytes", "integer"),
            ("reserve_bytes", "integer"),
            ("provisioned_bytes", "integer"),
            ("thick_bytes", "integer"),
            ("free_thick_bytes", "integer"),
            ("over_commit", "integer"),
            ("limit_bytes", "integer"),
            ("reserve_percent", "integer"),
            ("capacity_level", "Level"),
            ("rebuild_grace_seconds", "integer"),
            ("rebuild_bytes_per_second", "integer"),
            ("rebuild_policy", "Pacing"),
            ("rebalancing", "boolean"),
        ],
    ),
    (
        "Policy",
        &[
            ("pool_id", "integer"),
            ("pool", "string"),
            ("rebuild_policy", "Pacing"),
            ("rebuild_bytes_per_second", "integer"),
            ("rate_now_bytes_per_second", "integer"),
            ("rebuild_grace_seconds", "integer"),
            ("over_commit", "integer"),
            ("reserve_percent", "integer"),
            ("alert_high_percent", "integer"),
            ("alert_critical_percent", "integer"),
            ("auto_rebalance", "boolean"),
            ("moves_at_once", "integer"),
            ("scrub_bytes_per_second", "integer?"),
            ("scrub_by_server", "boolean"),
        ],
    ),
    (
        "Sds",
        &[
            ("id", "integer"),
            ("name", "string"),
            ("protection_domain_id", "integer"),
            ("fault_set", "integer?"),
            ("fault_set_id", "integer?"),
            ("fault_set_name", "string?"),
            ("node_id", "integer?"),
            ("state", "failed|added|leaving|draining|up|down"),
            ("start", "integer"),
            ("metrics", "string?"),
            ("connected", "boolean"),
            ("last_heartbeat_seconds", "number?"),
            ("applied", "integer"),
            ("confirmed", "integer"),
            ("devices", "[Device]"),
            ("copies", "integer"),
            ("total_capacity_gb", "number"),
            ("capacity_bytes", "integer"),
            ("used_bytes", "integer"),
        ],
    ),
    (
        "Device",
        &[
            ("id", "integer"),
            ("uuid", "string"),
            ("sds_id", "integer"),
            ("sds", "string?"),
            ("pool_id", "integer?"),
            ("pool", "string?"),
            ("path", "string"),
            ("capacity_bytes", "integer"),
            ("used_bytes", "integer"),
            ("copies", "integer"),
            ("state", "ok|opening|failed|down|draining|removed|suspended"),
            ("error", "string?"),
            ("suspended", "string?"),
            ("tried_again_ms", "integer?"),
        ],
    ),
    (
        "Sdc",
        &[
            ("id", "integer"),
            ("name", "string"),
            ("node_id", "integer?"),
            ("state", "up|down|added"),
            ("instance", "integer"),
            ("metrics", "string?"),
            ("volume_ids", "[integer]"),
            ("last_heartbeat_seconds", "number?"),
            ("attachments", "[Attachment]?"),
        ],
    ),
    (
        "Attachment",
        &[
            ("volume", "integer"),
            ("generation", "integer"),
            ("socket", "string?"),
            ("device", "string?"),
            ("error", "string?"),
        ],
    ),
    (
        "Volume",
        &[
            ("id", "integer"),
            ("name", "string"),
            ("pool_id", "integer"),
            ("pool", "string?"),
            ("size_bytes", "integer"),
            ("size_gb", "number"),
            ("provisioning", "thin|thick"),
            ("generation", "integer"),
            ("vtree", "integer"),
            ("created", "string"),
            ("mappings", "[Mapping]"),
        ],
    ),
    (
        "Mapping",
        &[
            ("sdc_id", "integer"),
            ("sdc", "string"),
            ("read_only", "boolean"),
            ("io_timeout_seconds", "number"),
            ("device_wanted", "boolean"),
            ("uri", "string?"),
            ("device", "string?"),
        ],
    ),
    (
        "Mapped",
        &[
            ("volume", "string"),
            ("volume_id", "integer"),
            ("sdc", "string?"),
            ("sdc_id", "integer"),
            ("uri", "string?"),
            ("uri_tcp", "string?"),
            ("device", "string?"),
        ],
    ),
    (
        "Unmapped",
        &[
            ("volume", "string?"),
            ("volume_id", "integer"),
            ("sdc", "string?"),
            ("sdc_id", "integer"),
            ("unmapped", "boolean"),
        ],
    ),
    (
        "Task",
        &[
            ("id", "integer"),
            ("task_id", "integer"),
            ("what", "object"),
            ("state", "running|done|failed|cancelled"),
            ("progress", "integer"),
            ("total", "integer"),
            ("left", "integer"),
            ("bytes_left", "integer?"),
            ("eta_seconds", "integer?"),
            ("created", "string"),
            ("finished", "string?"),
            ("detail", "string"),
            ("waiting_for", "[string]"),
        ],
    ),
    ("Member", &[("device", "integer"), ("sds", "integer"), ("start", "integer")]),
    (
        "PlacementGroup",
        &[
            ("id", "string"),
            ("pool_id", "integer"),
            ("pg", "integer"),
            ("epoch", "integer"),
            ("index", "integer"),
            ("health", "Health"),
            ("primary", "integer?"),
            ("in_sync", "[Member]"),
            ("syncing", "[Member]"),
            ("listed", "[integer]"),
            ("retiring", "[integer]"),
            ("copies", "integer"),
            ("active", "boolean"),
            ("only_stale", "boolean"),
            ("bytes", "integer"),
            ("bytes_degraded", "integer"),
        ],
    ),
    (
        "StaleGroup",
        &[
            ("id", "string"),
            ("epoch", "integer"),
            ("stale_device", "integer"),
            ("stale_sds", "string"),
            ("in_sync_until", "string?"),
            ("stale_epoch", "integer?"),
            ("stale_seq", "integer?"),
            ("good_sds", "[string]"),
            ("good_epoch", "integer?"),
            ("good_seq", "integer?"),
            ("records_lost", "integer?"),
            ("mixed", "boolean"),
            ("volumes", "[string]"),
        ],
    ),
    (
        "StaleLoss",
        &[
            ("dry_run", "boolean"),
            ("plan", "string"),
            ("pool_id", "integer"),
            ("pool", "string"),
            ("groups", "[StaleGroup]"),
            ("volumes", "[string]"),
            ("records_lost", "integer"),
            ("without_copy", "[string]"),
        ],
    ),
    (
        "Rebuild",
        &[
            ("pool_id", "integer"),
            ("pool", "string"),
            ("state", "running|waiting|cancelled|idle"),
            ("bytes_left", "integer"),
            ("bytes_one_copy", "integer"),
            ("rate_bytes_per_second", "integer?"),
            ("eta_seconds", "integer?"),
            ("pgs_syncing", "integer"),
            ("pgs_degraded", "integer"),
            ("pgs_unavailable", "integer"),
            ("pgs_moving", "integer"),
            ("health", "Health"),
            ("reasons", "[string]"),
            ("task_id?", "integer?"),
        ],
    ),
    ("Deleted", &[("deleted", "integer")]),
    (
        "DryRun",
        &[
            ("dry_run", "boolean"),
            ("would", "[Effect]"),
            ("placement_groups_changed", "integer"),
            ("volumes_unavailable", "[string]"),
        ],
    ),
    ("Effect", &[("what", "string"), ("object", "string"), ("reason", "string")]),
    (
        "CanStop",
        &[
            ("node_id", "integer"),
            ("node", "string"),
            ("verdict", "yes|with_care|no"),
            ("can_stop", "boolean"),
            ("reasons", "[string]"),
            ("unavailable_volumes", "[string]"),
            ("unavailable_pgs", "integer"),
            ("unavailable_bytes", "integer"),
            ("one_copy_pgs", "integer"),
            ("one_copy_bytes", "integer"),
            ("mapped_volumes", "[string]"),
            ("is_mdm", "boolean"),
        ],
    ),
    (
        "Explanation",
        &[
            ("kind", "string"),
            ("id", "string"),
            ("name", "string"),
            ("health", "Health"),
            ("summary", "string"),
            ("why", "[string]"),
            ("what_to_do", "[string]"),
            ("bytes_one_copy", "integer"),
            ("bytes_degraded", "integer"),
            ("eta_seconds", "integer?"),
            ("waits_for_devices", "boolean"),
            ("timing", "Timing?"),
            ("groups", "[PlacementGroup]"),
        ],
    ),
    ("Timing", &[("client", "ClientTiming?"), ("servers", "[ServerTiming]")]),
    (
        "ClientTiming",
        &[
            ("writes_per_second", "number"),
            ("write_seconds", "number?"),
            ("reads_per_second", "number"),
            ("read_seconds", "number?"),
        ],
    ),
    (
        "ServerTiming",
        &[
            ("sds", "string"),
            ("device", "integer"),
            ("writes", "integer"),
            ("write_seconds", "number"),
            ("admit_seconds", "number"),
            ("own_seconds", "number?"),
            ("copies", "[CopyTiming]"),
            ("more_copies", "integer"),
        ],
    ),
    (
        "CopyTiming",
        &[("sds", "string"), ("device", "integer"), ("seconds", "number"), ("writes", "integer")],
    ),
    ("Counters", &[("id", "integer"), ("name", "string"), ("counters", "map")]),
    ("Targets", &[("targets", "[string]"), ("labels", "map")]),
];

/// Types that are neither objects nor basic.
const NAMED: &[(&str, &str)] = &[
    ("Health", "ok|degraded|unavailable"),
    ("Level", "normal|high|critical"),
    ("Pacing", "unlimited|limit|favour_application|dynamic"),
];

/// Schema of a type: `integer`, `number`, `string`, `boolean`, `object`, `map`, `any`, `ref` (id or name), `a|b`
/// (one of), `[X]` (array), `X?` (may be null), else the name of an object.
pub fn ty(text: &str) -> Value {
    if let Some(inner) = text.strip_suffix('?') {
        return nullable(ty(inner));
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        return json!({ "type": "array", "items": ty(inner) });
    }
    if text.contains('|') {
        return json!({ "type": "string", "enum": text.split('|').collect::<Vec<_>>() });
    }
    match text {
        "integer" => json!({ "type": "integer", "minimum": 0 }),
        "number" | "string" | "boolean" | "object" => json!({ "type": text }),
        "map" => json!({ "type": "object", "additionalProperties": true }),
        "any" => json!({}),
        "ref" => json!({ "description": "id or name", "anyOf": [
            { "type": "integer", "minimum": 0, "maximum": u32::MAX }, { "type": "string" }] }),
        name => json!({ "$ref": format!("#/components/schemas/{name}") }),
    }
}

/// The same or null.
pub fn nullable(mut schema: Value) -> Value {
    match schema.get("type").cloned() {
        Some(Value::String(t)) => {
            schema["type"] = json!([t, "null"]);
            if let Some(list) = schema.get_mut("enum").and_then(Value::as_array_mut) {
                list.push(Value::Null);
            }
            schema
        }
        _ => json!({ "anyOf": [schema, { "type": "null" }] }),
    }
}

/// `components/schemas`.
pub fn schemas() -> Value {
    let mut all = Map::new();
    for (name, text) in NAMED {
        all.insert((*name).to_string(), ty(text));
    }
    for (name, fields) in OBJECTS {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for (field, kind) in *fields {
            let plain = field.trim_end_matches('?');
            if plain == *field {
                required.push(plain);
            }
            properties.insert(plain.to_string(), ty(kind));
        }
        let schema = json!({ "type": "object", "properties": properties, "required": required });
        all.insert((*name).to_string(), schema);
    }
    Value::Object(all)
}

/// Fields of an object that rows may be filtered by: (name, type).
pub fn filters(object: &str) -> Vec<(&'static str, &'static str)> {
    let fields = OBJECTS.iter().find(|o| o.0 == object).map(|o| o.1).unwrap_or_default();
    let plain = |t: &str| {
        let t = t.trim_end_matches('?');
        matches!(t, "integer" | "number" | "string" | "boolean")
            || t.contains('|')
            || NAMED.iter().any(|n| n.0 == t)
    };
    fields.iter().filter(|f| plain(f.1)).map(|f| (f.0.trim_end_matches('?'), f.1)).collect()
}

/// The words of an enumeration, by name or as written.
pub fn words(kind: &str) -> &str {
    NAMED.iter().find(|n| n.0 == kind).map_or(kind, |n| n.1)
}

pub fn one_of(kind: &str, value: &str) -> bool {
    words(kind).split('|').any(|w| w == value)
}
