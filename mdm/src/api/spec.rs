//! The table of routes. It builds the router and the OpenAPI document, so that the two cannot differ.
//!
//! Bodies are declared with [`body!`]: one declaration gives the struct that is read and its schema.

use super::schema::ty;
use super::Api;
use axum::handler::Handler;
use axum::routing::{delete, get, post, MethodRouter};
use axum::Router;
use serde_json::{json, Map, Value};

/// A route: what it takes, what it answers, who answers.
pub struct Route {
    pub method: &'static str,
    pub path: &'static str,
    pub summary: &'static str,
    /// Needs no token.
    pub open: bool,
    /// Name, type (see [`ty`]), meaning.
    pub query: Vec<(&'static str, &'static str, &'static str)>,
    /// Query parameters that must be given.
    pub needs: Vec<&'static str>,
    /// The list's rows may be filtered by the fields of this object.
    pub rows: Option<&'static str>,
    /// Schema and whether it must be there.
    pub body: Option<(Value, bool)>,
    /// Status and type of the answer.
    pub answers: Vec<(u16, &'static str)>,
    /// Content type of a success other than JSON.
    pub text: Option<&'static str>,
    /// Takes an `Idempotency-Key`.
    pub keyed: bool,
    handler: MethodRouter<Api>,
}

fn new(
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    h: MethodRouter<Api>,
) -> Route {
    Route {
        method,
        path,
        summary,
        open: false,
        query: Vec::new(),
        needs: Vec::new(),
        rows: None,
        body: None,
        answers: Vec::new(),
        text: None,
        keyed: false,
        handler: h,
    }
}

impl Route {
    pub fn get<H: Handler<T, Api>, T: 'static>(
        path: &'static str,
        summary: &'static str,
        h: H,
    ) -> Route {
        new("get", path, summary, get(h))
    }
    pub fn post<H: Handler<T, Api>, T: 'static>(
        path: &'static str,
        summary: &'static str,
        h: H,
    ) -> Route {
        new("post", path, summary, post(h))
    }
    pub fn delete<H: Handler<T, Api>, T: 'static>(
        path: &'static str,
        summary: &'static str,
        h: H,
    ) -> Route {
        new("delete", path, summary, delete(h))
    }
    /// Success with this status and an object of this type.
    pub fn gives(mut self, status: u16, what: &'static str) -> Route {
        self.answers.push((status, what));
        self
    }
    /// An array of these, paged and filtered by their fields.
    pub fn list(mut self, object: &'static str, array: &'static str) -> Route {
        self.rows = Some(object);
        self.gives(200, array)
    }
    pub fn body<B: Described>(mut self) -> Route {
        self.body = Some((B::schema(), B::needed()));
        self
    }
    pub fn query(mut self, name: &'static str, kind: &'static str, doc: &'static str) -> Route {
        self.query.push((name, kind, doc));
        self
    }
    /// A query parameter that must be given.
    pub fn needs(mut self, name: &'static str, kind: &'static str, doc: &'static str) -> Route {
        self.needs.push(name);
        self.query(name, kind, doc)
    }
    /// `dry_run=true` says what would happen and does nothing.
    pub fn dry(self) -> Route {
        self.query("dry_run", "boolean", "say what would happen, do nothing").gives(200, "DryRun")
    }
    pub fn open(mut self) -> Route {
        self.open = true;
        self
    }
    pub fn keyed(mut self) -> Route {
        self.keyed = true;
        self
    }
    pub fn text(mut self, content: &'static str) -> Route {
        self.text = Some(content);
        self.gives(200, "string")
    }
}

/// The router of a table.
pub fn router(routes: Vec<Route>) -> Router<Api> {
    routes.into_iter().fold(Router::new(), |r, x| r.route(x.path, x.handler))
}

/// Something that is read from a request's body.
pub trait Described {
    /// JSON schema.
    fn schema() -> Value;
    /// It has a field that must be given.
    fn needed() -> bool;
}

/// A field's type.
pub trait Typed {
    const NEEDED: bool = true;
    fn typed() -> Value;
}

macro_rules! typed {
    ($($t:ty => $text:expr;)*) => { $(impl Typed for $t {
        fn typed() -> Value { ty($text) }
    })* };
}
typed! {
    String => "string";
    bool => "boolean";
    super::input::Ref => "ref";
    crate::state::Ack => "durable|cached";
    crate::state::Reads => "lease|confirm";
    crate::state::Provisioning => "thin|thick";
    crate::state::Pacing => "unlimited|limit|favour_application|dynamic";
    quarry_control::Capability => "MDM|SDS|SDC";
}
impl Typed for f64 {
    fn typed() -> Value {
        json!({ "type": "number", "minimum": 0 })
    }
}
impl Typed for u64 {
    fn typed() -> Value {
        json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX })
    }
}
impl Typed for u32 {
    fn typed() -> Value {
        json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX })
    }
}
impl Typed for u8 {
    fn typed() -> Value {
        json!({ "type": "integer", "minimum": 0, "maximum": u8::MAX })
    }
}
impl<T: Typed> Typed for Option<T> {
    const NEEDED: bool = false;
    fn typed() -> Value {
        super::schema::nullable(T::typed())
    }
}
impl<T: Typed> Typed for Vec<T> {
    fn typed() -> Value {
        json!({ "type": "array", "items": T::typed() })
    }
}

/// Schema of a body from its fields: name, schema, must be given, meaning.
pub fn object(fields: &[(&str, Value, bool, &str)]) -> Value {
    let mut properties = Map::new();
    for (name, schema, _, doc) in fields {
        let mut schema = schema.clone();
        if !doc.trim().is_empty() {
            schema["description"] = json!(doc.trim());
        }
        properties.insert(name.trim_start_matches("r#").to_string(), schema);
    }
    let needed: Vec<&str> = fields.iter().filter(|f| f.2).map(|f| f.0).collect();
    let mut v =
        json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if !needed.is_empty() {
        v["required"] = json!(needed);
    }
    v
}

/// Declares a request's body: a struct that refuses unknown fields, and its schema.
macro_rules! body {
    ($(#[$m:meta])* $v:vis struct $name:ident { $($(#[doc = $doc:literal])* $f:ident: $t:ty,)* }) => {
        $(#[$m])*
        #[derive(Clone, Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        $v struct $name { $($(#[doc = $doc])* $v $f: $t,)* }
        impl $crate::api::spec::Described for $name {
            fn schema() -> serde_json::Value {
                $crate::api::spec::object(&[$((
                    stringify!($f),
                    <$t as $crate::api::spec::Typed>::typed(),
                    <$t as $crate::api::spec::Typed>::NEEDED,
                    concat!($($doc,)* ""),
                )),*])
            }
            fn needed() -> bool {
                false $(|| <$t as $crate::api::spec::Typed>::NEEDED)*
            }
        }
    };
}
pub(crate) use body;

body! {
    /// No field at all.
    pub struct Empty {}
}
