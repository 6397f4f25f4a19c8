//! Where settings come from.

use super::*;
use clap::Parser;

#[derive(Debug, Default, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    #[arg(long, env = "QUARRY_TEST_ONLY_DATA_DIR")]
    data_dir: Option<PathBuf>,
    #[arg(long)]
    device: Vec<PathBuf>,
    #[arg(long)]
    shards: Option<u32>,
    #[arg(long)]
    kernel: bool,
}

#[derive(Debug, clap::Parser)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    settings: Settings,
}

fn file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("quarry-cli-{name}-{}.toml", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

fn run(path: &Path, flags: &[&str]) -> Result<(CommonArgs, Settings), ConfigError> {
    let path = path.to_str().unwrap();
    let mut args = vec!["x", "--config", path];
    args.extend_from_slice(flags);
    let cli = Cli::parse_from(args);
    layered(cli.common, cli.settings)
}

#[test]
fn a_flag_beats_the_file_and_the_file_beats_the_default() {
    let f = file(
        "order",
        "data-dir = '/from/file'\ndevice = ['/dev/a', '/dev/b']\nkernel = true\nlog = 'debug'\n",
    );
    let (common, s) = run(&f, &["--data-dir", "/from/flag"]).unwrap();
    assert_eq!(s.data_dir, Some(PathBuf::from("/from/flag")));
    assert_eq!(s.device.len(), 2, "left open by the flags");
    assert!(s.kernel);
    assert_eq!(s.shards, None);
    assert_eq!(common.log.as_deref(), Some("debug"));
    let (common, s) = run(&f, &["--device", "/dev/c", "--log", "warn"]).unwrap();
    assert_eq!(s.device, vec![PathBuf::from("/dev/c")]);
    assert_eq!(common.log.as_deref(), Some("warn"));
    std::fs::remove_file(f).unwrap();
}

#[test]
fn the_environment_beats_the_file() {
    // The variable is set in a child only, so that other tests are not touched.
    let key = "QUARRY_TEST_ONLY_DATA_DIR";
    let f = file("env", "data_dir = '/from/file'\n");
    if std::env::var_os(key).is_none() {
        let me = std::env::current_exe().unwrap();
        let name = "cli::tests::the_environment_beats_the_file";
        let mut child = std::process::Command::new(me);
        let out = child.args([name, "--exact"]).env(key, "/from/env").output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
        let (_, s) = run(&f, &[]).unwrap();
        assert_eq!(s.data_dir, Some(PathBuf::from("/from/file")));
    } else {
        let (_, s) = run(&f, &[]).unwrap();
        assert_eq!(s.data_dir, Some(PathBuf::from("/from/env")));
        let (_, s) = run(&f, &["--data-dir", "/from/flag"]).unwrap();
        assert_eq!(s.data_dir, Some(PathBuf::from("/from/flag")));
    }
    std::fs::remove_file(f).unwrap();
}

#[test]
fn a_key_nobody_knows_is_named() {
    let f = file("unknown", "data_dri = '/x'\n");
    let error = run(&f, &[]).unwrap_err().to_string();
    assert!(error.contains("data_dri") && error.contains(".toml"), "{error}");
    std::fs::remove_file(f).unwrap();
}

#[test]
fn a_wrong_value_and_a_missing_file_are_clear_errors() {
    let f = file("wrong", "shards = 'many'\n");
    let error = run(&f, &[]).unwrap_err().to_string();
    assert!(error.contains("invalid type"), "{error}");
    std::fs::remove_file(&f).unwrap();
    let error = run(&f, &[]).unwrap_err().to_string();
    assert!(error.contains("cannot read"), "{error}");
    let f = file("syntax", "a = = 1\n");
    let error = run(&f, &[]).unwrap_err().to_string();
    assert!(error.contains("line 1"), "{error}");
    std::fs::remove_file(f).unwrap();
}

#[test]
fn without_a_file_the_flags_are_all() {
    let cli = Cli::parse_from(["x", "--shards", "3"]);
    let (_, s) = layered(cli.common, cli.settings).unwrap();
    assert_eq!(s.shards, Some(3));
}
