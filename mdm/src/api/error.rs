//! Errors as `{code, message, hint}`.

use crate::state::Reject;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::Json;
use serde_json::json;

/// An answer that is an error.
#[derive(Debug)]
pub struct ApiError(pub Reject);

impl From<Reject> for ApiError {
    fn from(r: Reject) -> ApiError {
        ApiError(r)
    }
}

impl ApiError {
    pub fn new(
        status: u16,
        code: &str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> ApiError {
        ApiError(Reject::new(status, code, message, hint))
    }
    pub fn not_found(kind: &str, id: impl std::fmt::Display) -> ApiError {
        ApiError(Reject::not_found(kind, id))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let r = self.0;
        let status = StatusCode::from_u16(r.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut body = json!({ "code": r.code, "message": r.message, "hint": r.hint });
        if r.status == 503 {
            body["leader"] = serde_json::Value::Null;
        }
        (status, Json(body)).into_response()
    }
}

pub async fn no_route(uri: axum::http::Uri) -> ApiError {
    ApiError::new(
        404,
        "no_such_route",
        format!("there is no {}", uri.path()),
        "GET / lists what there is",
    )
}

pub async fn no_method(method: axum::http::Method, uri: axum::http::Uri) -> ApiError {
    ApiError::new(
        405,
        "method_not_allowed",
        format!("{method} is not possible on {}", uri.path()),
        "GET / lists what there is",
    )
}
