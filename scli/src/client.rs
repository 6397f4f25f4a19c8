//! The REST client: one request, tried at each MDM in turn.

use crate::args::Global;
use crate::error::{CliError, Exit};
use serde_json::Value;
use std::time::Duration;
use ureq::http::Method;

/// Bytes of an answer read at most.
const MAX_ANSWER: u64 = 64 << 20;
/// MDMs a `--api` list may name.
const MAX_APIS: usize = 16;
/// How often a "the leader is over there" is followed.
const MAX_REDIRECTS: usize = 4;

/// A successful or refused answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

/// Talks to the MDMs of one cluster.
pub struct Client {
    agent: ureq::Agent,
    apis: Vec<String>,
    token: Option<String>,
}

impl Client {
    /// A client as the global flags say.
    pub fn new(global: &Global) -> Result<Client, CliError> {
        let apis = split_apis(&global.apis())?;
        let limit = Duration::from_secs(global.timeout.clamp(1, 86_400));
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(limit))
            .timeout_connect(Some(limit.min(Duration::from_secs(5))))
            // The MDM is reached directly; proxies of the environment are for the web.
            .proxy(None)
            .max_redirects(0)
            .user_agent(format!("scli/{}", quarry_metrics::version::RELEASE))
            .build();
        let token = global.token().filter(|t| !t.is_empty());
        Ok(Client { agent: config.new_agent(), apis, token })
    }

    /// GET that must succeed.
    pub fn get(&self, path: &str) -> Result<Value, CliError> {
        self.checked(Method::GET, path, None).map(|a| a.body)
    }
    /// GET with whatever status, as long as an MDM answers.
    pub fn get_any(&self, path: &str) -> Result<Answer, CliError> {
        self.send(Method::GET, path, None)
    }
    /// POST that must succeed; the status tells done (200, 201) from begun (202).
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer, CliError> {
        self.checked(Method::POST, path, Some(body))
    }
    /// DELETE that must succeed.
    pub fn delete(&self, path: &str) -> Result<Answer, CliError> {
        self.checked(Method::DELETE, path, None)
    }

    fn checked(&self, m: Method, path: &str, body: Option<&Value>) -> Result<Answer, CliError> {
        let answer = self.send(m, path, body)?;
        if (200..300).contains(&answer.status) {
            return Ok(answer);
        }
        Err(CliError::from_api(answer.status, &answer.body))
    }

    /// Tries each MDM until one answers with something else than 503. The same idempotency key goes
    /// with every attempt, so that a request whose answer was lost is not done twice.
    fn send(&self, m: Method, path: &str, body: Option<&Value>) -> Result<Answer, CliError> {
        let key = uuid::Uuid::new_v4().to_string();
        let mut queue: Vec<String> = self.apis.iter().rev().cloned().collect();
        let (mut unready, mut errors) = (None, Vec::new());
        let mut followed = 0;
        while let Some(api) = queue.pop() {
            match self.attempt(&api, &m, path, body, &key) {
                Ok(answer) if answer.status == 503 => {
                    let leader = answer.body.get("leader").and_then(Value::as_str);
                    if let Some(leader) = leader.filter(|l| is_http(l) && *l != api) {
                        if followed < MAX_REDIRECTS {
                            followed += 1;
                            queue.push(leader.trim_end_matches('/').to_string());
                        }
                    }
                    unready = Some(answer);
                }
                Ok(answer) => return Ok(answer),
                Err(why) => errors.push(format!("{api}: {why}")),
            }
        }
        if let Some(answer) = unready {
            return Ok(answer);
        }
        let message = format!("no MDM answers ({})", errors.join("; "));
        let hint = "is the cluster up? give --api URL or set QUARRY_API (scripts/cluster status)";
        Err(CliError::new(Exit::NoMdm, "no_mdm", message).hint(hint))
    }

    fn attempt(
        &self,
        api: &str,
        m: &Method,
        path: &str,
        body: Option<&Value>,
        key: &str,
    ) -> Result<Answer, String> {
        let mut request = ureq::http::Request::builder()
            .method(m.clone())
            .uri(format!("{api}{path}"))
            .header("accept", "application/json");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let text = if *m == Method::POST {
            request = request.header("content-type", "application/json");
            request = request.header("idempotency-key", key);
            body.map(Value::to_string).unwrap_or_default()
        } else {
            String::new()
        };
        let sent = if *m == Method::POST {
            self.agent.run(request.body(text).map_err(|e| e.to_string())?)
        } else {
            self.agent.run(request.body(()).map_err(|e| e.to_string())?)
        };
        let mut response = sent.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let text = response
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER)
            .read_to_string()
            .map_err(|e| e.to_string())?;
        if text.trim().is_empty() {
            return Ok(Answer { status, body: Value::Null });
        }
        match serde_json::from_str(&text) {
            Ok(body) => Ok(Answer { status, body }),
            // A refusal from something that is no MDM still is one.
            Err(_) if status >= 400 => Ok(Answer { status, body: Value::Null }),
            Err(_) => Err("the answer is not JSON; is this an MDM?".to_string()),
        }
    }
}

fn is_http(url: &str) -> bool {
    url.starts_with("http://")
}

fn split_apis(list: &str) -> Result<Vec<String>, CliError> {
    let apis: Vec<String> = list
        .split(',')
        .map(|a| a.trim().trim_end_matches('/').to_string())
        .filter(|a| !a.is_empty())
        .collect();
    let bad = |why: String| {
        CliError::new(Exit::Usage, "bad_api", why).hint("for example --api http://127.0.0.1:7400")
    };
    if apis.is_empty() || apis.len() > MAX_APIS {
        return Err(bad(format!("--api wants 1 to {MAX_APIS} URLs")));
    }
    match apis.iter().find(|a| !is_http(a) || a.len() <= "http://".len()) {
        Some(a) => Err(bad(format!("'{a}' is no URL of an MDM: it begins with http://"))),
        None => Ok(apis),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_mdms_is_checked() {
        let got = split_apis(" http://a:1/, http://b:2").unwrap();
        assert_eq!(got, ["http://a:1", "http://b:2"]);
        for bad in ["", ",", "a:1", "https://a:1", "http://"] {
            assert_eq!(split_apis(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }
}
