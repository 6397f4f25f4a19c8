//! What can go wrong, and the exit status it has.

use serde_json::{json, Value};

/// Exit statuses; scripts rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The request was refused or went wrong.
    Failed,
    /// The command line is wrong.
    Usage,
    /// No such object.
    NotFound,
    /// Another object or state stands in the way.
    Conflict,
    /// No MDM answers, or those that answer have no quorum.
    NoMdm,
    /// Token missing, wrong, or not allowed to do this.
    NotPermitted,
    /// `--wait` ran out; the task goes on.
    TimedOut,
}

impl Exit {
    /// The process's exit status.
    pub fn code(self) -> u8 {
        match self {
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotFound => 3,
            Exit::Conflict => 4,
            Exit::NoMdm => 5,
            Exit::NotPermitted => 6,
            Exit::TimedOut => 7,
        }
    }

    /// The exit status for an HTTP status that is no success.
    pub fn of_http(status: u16) -> Exit {
        match status {
            400 => Exit::Usage,
            401 | 403 => Exit::NotPermitted,
            404 => Exit::NotFound,
            409 => Exit::Conflict,
            503 => Exit::NoMdm,
            _ => Exit::Failed,
        }
    }
}

/// An error as it is shown.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    pub exit: Exit,
    /// One word for programs, `snake_case`.
    pub code: String,
    /// What went wrong, with the names involved.
    pub message: String,
    /// What to do about it; empty when there is nothing to say.
    pub hint: String,
}

impl CliError {
    /// An error without a hint.
    pub fn new(exit: Exit, code: &str, message: impl Into<String>) -> CliError {
        CliError { exit, code: code.to_string(), message: message.into(), hint: String::new() }
    }

    /// The same with a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> CliError {
        self.hint = hint.into();
        self
    }

    /// What the API said, in its words.
    pub fn from_api(status: u16, body: &Value) -> CliError {
        let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or("").to_string();
        let (mut code, mut message, mut hint) = (text("code"), text("message"), text("hint"));
        if code.is_empty() {
            code = format!("http_{status}");
            if hint.is_empty() && status == 404 {
                hint = "is this the MDM's API? give --api URL or set QUARRY_API".to_string();
            }
        }
        if message.is_empty() {
            message = format!("the MDM answered with HTTP status {status} and no reason");
        }
        if hint.is_empty() && matches!(status, 401 | 403) {
            hint = "give --token or set QUARRY_TOKEN".to_string();
        }
        CliError { exit: Exit::of_http(status), code, message, hint: in_commands(hint) }
    }

    /// For people.
    pub fn to_text(&self) -> String {
        if self.hint.is_empty() {
            return format!("error: {}\n", self.message);
        }
        format!("error: {}\nhint:  {}\n", self.message, self.hint)
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({"code": self.code, "message": self.message, "hint": self.hint})
    }
}

/// The API's hints name its routes; here the command that does the same is named.
fn in_commands(hint: String) -> String {
    let commands = [
        ("GET /vol/list", "scli volume list"),
        ("GET /tasks/list", "scli task list"),
        ("GET /fault_set/list", "scli fault-set list"),
        ("GET /cluster/nodes", "scli node list"),
        ("GET /pg/list?pool_id=N", "scli pg list --pool NAME"),
        ("GET /pg/list", "scli pg list"),
        ("GET /pool/list", "scli pool list"),
        ("GET /device/list", "scli device list"),
        ("GET /sds/list", "scli sds list"),
        ("GET /sdc/list", "scli sdc list"),
        ("GET /pd/list", "scli pd list"),
        ("GET /tasks/", "scli task get --id "),
        ("GET /explain/pg/", "scli explain pg "),
        ("GET / lists", "scli --help lists"),
        ("POST /sds/{id}/fault_set", "scli fault-set assign"),
        ("POST /sds/add with protection_domain_id", "scli sds add --pd"),
    ];
    let hint = commands.iter().fold(hint, |h, (route, command)| h.replace(route, command));
    for (route, command) in [("device", "scli device drain --id "), ("sds", "scli sds drain --id ")]
    {
        let Some((before, rest)) = hint.split_once(&format!("POST /{route}/")) else { continue };
        if let Some((id, rest)) = rest.split_once("/drain") {
            return format!("{before}{command}{id}{rest}");
        }
    }
    hint
}

impl From<std::io::Error> for CliError {
    fn from(e: std::io::Error) -> Self {
        CliError::new(Exit::Failed, "io", e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_error_keeps_its_words_and_gets_its_exit_status() {
        let body = json!({"code": "name_taken", "message": "v exists", "hint": "choose another"});
        let e = CliError::from_api(409, &body);
        assert_eq!((e.exit, e.exit.code()), (Exit::Conflict, 4));
        assert_eq!(e.to_json(), body);
        assert_eq!(e.to_text(), "error: v exists\nhint:  choose another\n");
    }

    #[test]
    fn hints_speak_of_commands_not_of_routes() {
        let hint = |h: &str| CliError::from_api(404, &json!({"hint": h})).hint;
        assert_eq!(hint("first: POST /device/4/drain"), "first: scli device drain --id 4");
        assert_eq!(hint("first: POST /sds/4/drain"), "first: scli sds drain --id 4");
        assert_eq!(
            hint("list what there is: GET /vol/list"),
            "list what there is: scli volume list"
        );
        assert_eq!(
            hint("GET /pg/list?pool_id=N lists those"),
            "scli pg list --pool NAME lists those"
        );
    }

    #[test]
    fn an_answer_without_words_still_makes_sense() {
        let e = CliError::from_api(500, &Value::Null);
        assert_eq!((e.exit, e.code.as_str()), (Exit::Failed, "http_500"));
        assert!(e.message.contains("500"));
    }
}
