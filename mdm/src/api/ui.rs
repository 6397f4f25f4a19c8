//! The web console at `/ui`: files compiled into the program, no build step, nothing from elsewhere.
//!
//! The files need no token, for there is nothing secret in them; what they ask the API for does. The content policy lets the
//! page load and reach this server only, and run no script but these files.

use super::Api;
use axum::extract::Path;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::Router;

const POLICY: &str =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const JS: &str = "text/javascript; charset=utf-8";

macro_rules! files {
    ($($name:literal: $kind:expr),* $(,)?) => {
        /// (name, type, content)
        const FILES: &[(&str, &str, &str)] = &[$(($name, $kind, include_str!(concat!("../../ui/", $name)))),*];
    };
}

files! {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "app.js": JS,
    "api.js": JS,
    "dom.js": JS,
    "chart.js": JS,
    "dialogs.js": JS,
    "actions.js": JS,
    "table.js": JS,
    "views.js": JS,
}

pub fn routes() -> Router<Api> {
    Router::new()
        .route("/ui", get(|| async { file("index.html") }))
        .route("/ui/", get(|| async { file("index.html") }))
        .route("/ui/{file}", get(|Path(name): Path<String>| async move { file(&name) }))
}

/// Whether a path is one of the console's, which need no token.
pub fn is_ui(path: &str) -> bool {
    path == "/ui" || path.starts_with("/ui/")
}

fn file(name: &str) -> Response {
    let Some((_, kind, text)) = FILES.iter().find(|f| f.0 == name) else {
        return super::error::ApiError::new(
            404,
            "no_such_file",
            "the console has no such file",
            "open /ui",
        )
        .into_response();
    };
    let headers = [
        (CONTENT_TYPE, *kind),
        // A new release is seen at the next load.
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, *text).into_response()
}

#[cfg(test)]
mod tests {
    use super::FILES;

    #[test]
    fn the_console_needs_nothing_from_elsewhere_and_parses_no_html() {
        for (name, _, text) in FILES {
            for bad in [
                "innerHTML",
                "outerHTML =",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "https://",
            ] {
                assert!(!text.contains(bad), "{name} has {bad}");
            }
            let outside = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!outside.contains("http://"), "{name} names another host");
            // Every module that is imported is served.
            for part in text.split(" from \"./").skip(1) {
                let module = part.split('"').next().unwrap();
                assert!(FILES.iter().any(|f| f.0 == module), "{name} imports {module}");
            }
        }
    }
}
