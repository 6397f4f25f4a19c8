//! The flags every daemon has, and where a setting comes from: flag, then `QUARRY_*`, then the
//! `--config` file (TOML), then the default.
//!
//! A daemon keeps its settings in one struct of `Option`s that derives `clap::Args`, `Serialize` and
//! `Deserialize`; [`layered`] puts the file under what clap took from flags and environment.

use crate::version::Info;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Bytes of configuration file read at most.
const MAX_FILE: u64 = 1 << 20;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The flags every daemon has.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CommonArgs {
    /// Read settings from this TOML file (keys are the flags' names with underscores)
    #[arg(long, value_name = "FILE", env = "QUARRY_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Check the settings, say what is wrong, and end
    #[arg(long)]
    #[serde(skip)]
    pub check_config: bool,
    /// error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL", env = "QUARRY_LOG")]
    pub log: Option<String>,
    /// How log lines look [default: text]
    #[arg(long, value_name = "FORMAT", env = "QUARRY_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Log to this file instead of stderr; it is renamed to FILE.1 at 16 MiB, four old ones are kept
    #[arg(long, value_name = "FILE", env = "QUARRY_LOG_FILE")]
    pub log_file: Option<PathBuf>,
}

/// What is wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    /// It is not what is expected.
    #[error("{path}: {why}")]
    Bad { path: PathBuf, why: String },
    /// A setting given by flag or environment does not fit.
    #[error("settings: {0}")]
    Settings(String),
}

/// Parses the command line; `--version` and `--help` answer and end the process, mistakes end it
/// with status 2.
pub fn parse<T: clap::Parser>(info: Info) -> T {
    // Once a process, for clap keeps a reference.
    let version: &'static str = Box::leak(info.details().into_boxed_str());
    let matches = T::command().name(info.program).version(version).get_matches();
    T::from_arg_matches(&matches).unwrap_or_else(|e| e.exit())
}

/// Puts the file named by `--config` under the flags: what flags and environment left open is taken
/// from the file. Keys the file has and nobody knows are an error that names them.
pub fn layered<T>(common: CommonArgs, settings: T) -> Result<(CommonArgs, T), ConfigError>
where
    T: Serialize + DeserializeOwned,
{
    let Some(path) = common.config.clone() else {
        return Ok((common, settings));
    };
    let bad = |why: String| ConfigError::Bad { path: path.clone(), why };
    let mut file = normal(read_table(&path)?);
    let mut base = Table::new();
    for key in ["log", "log_format", "log_file"] {
        if let Some(v) = file.remove(key) {
            base.insert(key.to_string(), v);
        }
    }
    over(&mut base, to_table(&common)?);
    over(&mut file, to_table(&settings)?);
    let mut merged: CommonArgs =
        Value::Table(base).try_into().map_err(|e: toml::de::Error| bad(e.message().to_string()))?;
    merged.config = Some(path.clone());
    merged.check_config = common.check_config;
    let settings =
        Value::Table(file).try_into().map_err(|e: toml::de::Error| bad(e.message().to_string()))?;
    Ok((merged, settings))
}

/// Reads a TOML file into `T` (`node.toml`, for one); errors name file, line and key.
pub fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = read_text(path)?;
    let bad =
        |e: toml::de::Error| ConfigError::Bad { path: path.to_path_buf(), why: e.to_string() };
    toml::from_str(&text).map_err(bad)
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    let fail = |source| ConfigError::Read { path: path.to_path_buf(), source };
    let len = std::fs::metadata(path).map_err(fail)?.len();
    if len > MAX_FILE {
        let why = format!("larger than {MAX_FILE} bytes, so not a settings file");
        return Err(ConfigError::Bad { path: path.to_path_buf(), why });
    }
    std::fs::read_to_string(path).map_err(fail)
}

fn read_table(path: &Path) -> Result<Table, ConfigError> {
    read_toml(path)
}

fn to_table<T: Serialize>(v: &T) -> Result<Table, ConfigError> {
    Table::try_from(v).map_err(|e| ConfigError::Settings(e.to_string()))
}

/// `data-dir` and `data_dir` mean the same in a file.
fn normal(file: Table) -> Table {
    file.into_iter().map(|(k, v)| (k.replace('-', "_"), v)).collect()
}

/// Lays what `top` sets over `base`. Empty lists and `false` are what clap gives for a flag that was
/// not there, so they set nothing.
fn over(base: &mut Table, top: Table) {
    for (k, v) in top {
        let unset = match &v {
            Value::Array(a) => a.is_empty(),
            Value::Boolean(b) => !b,
            _ => false,
        };
        if !unset {
            base.insert(k, v);
        }
    }
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
