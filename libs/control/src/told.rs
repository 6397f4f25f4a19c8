//! The newest change that a daemon was told of, kept in its data directory over its restarts.
//!
//! A session says in its registration what was the newest change it heard of; an MDM whose state is older was restored
//! from a backup. Without this file only processes that ran on meanwhile would know. What was told in the last second
//! before a crash may be missing: then the registration names an older change, which is no harm unless the backup is as
//! fresh as that.

use crate::replace_file;
use quarry_base::ConfigIndex;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;

/// Name of the file in the data directory.
const FILE: &str = "told.json";
const VERSION: u32 = 1;
/// Between two writes of the file.
const PAUSE: Duration = Duration::from_secs(1);

/// Content of the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    /// Cluster whose changes these are.
    cluster: String,
    /// Log index of the newest one.
    index: ConfigIndex,
}

/// What is known, and the task that writes it down.
pub(crate) struct Told {
    cluster: Option<String>,
    index: ConfigIndex,
    news: Option<watch::Sender<Option<Content>>>,
}

impl Told {
    /// Begins with what the file in `dir` says of `cluster`; without a directory nothing is kept. A file that cannot be
    /// read is told in the log and counts as none.
    pub fn load(dir: Option<&Path>, cluster: Option<String>) -> Told {
        let Some(path) = dir.map(|d| d.join(FILE)) else {
            return Told { cluster, index: ConfigIndex::ZERO, news: None };
        };
        let known = read(&path).filter(|c| Some(&c.cluster) == cluster.as_ref());
        let index = known.as_ref().map_or(ConfigIndex::ZERO, |c| c.index);
        let (tx, rx) = watch::channel(None);
        tokio::spawn(keep(path, rx));
        Told { cluster, index, news: Some(tx) }
    }

    pub fn index(&self) -> ConfigIndex {
        self.index
    }

    /// The process belongs to this cluster from now on.
    pub fn belongs_to(&mut self, cluster: &str) {
        if self.cluster.as_deref() != Some(cluster) {
            (self.cluster, self.index) = (Some(cluster.to_string()), ConfigIndex::ZERO);
        }
    }

    /// The MDM has told of this change.
    pub fn note(&mut self, index: ConfigIndex) {
        if index <= self.index {
            return;
        }
        self.index = index;
        if let (Some(news), Some(cluster)) = (&self.news, &self.cluster) {
            let cluster = cluster.clone();
            news.send_replace(Some(Content { version: VERSION, cluster, index }));
        }
    }
}

fn read(path: &Path) -> Option<Content> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "what the MDM told before cannot be read");
            return None;
        }
    };
    match serde_json::from_slice::<Content>(&text) {
        Ok(c) if c.version == VERSION => return Some(c),
        Ok(Content { version, .. }) => {
            tracing::warn!(path = %path.display(), version, "what the MDM told before is of another version; it is written anew")
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "what the MDM told before is damaged; it is written anew")
        }
    }
    None
}

/// Writes what is new, at most once a `PAUSE`, and the last of it when the session ends before its process does.
async fn keep(path: PathBuf, mut news: watch::Receiver<Option<Content>>) {
    let mut told = false;
    while news.changed().await.is_ok() {
        let Some(content) = news.borrow_and_update().clone() else { continue };
        let to = path.clone();
        let write = move || replace_file(&to, &serde_json::to_vec(&content)?, 0o644);
        let written = tokio::task::spawn_blocking(write).await;
        match written {
            Ok(Err(error)) if !told => {
                // The daemon works without; once is enough.
                told = true;
                tracing::warn!(path = %path.display(), %error, "what the MDM tells cannot be kept");
            }
            _ => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);
    impl Dir {
        fn new(name: &str) -> Dir {
            let d = std::env::temp_dir().join(format!("quarry-told-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&d).unwrap();
            Dir(d)
        }
    }
    impl Drop for Dir {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).ok();
        }
    }

    fn cluster(n: u8) -> Option<String> {
        Some(format!("{n:032x}"))
    }

    async fn written(d: &Dir, index: u64) {
        let path = d.0.join(FILE);
        while read(&path).map(|c| c.index) != Some(ConfigIndex(index)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn what_was_told_is_known_after_a_restart_and_only_of_the_same_cluster() {
        let d = Dir::new("restart");
        let mut t = Told::load(Some(&d.0), None);
        assert_eq!(t.index(), ConfigIndex::ZERO);
        t.belongs_to(&cluster(1).unwrap());
        t.note(ConfigIndex(7));
        t.note(ConfigIndex(5));
        assert_eq!(t.index(), ConfigIndex(7), "it never goes back");
        written(&d, 7).await;
        assert_eq!(Told::load(Some(&d.0), cluster(1)).index(), ConfigIndex(7));
        assert_eq!(Told::load(Some(&d.0), cluster(2)).index(), ConfigIndex::ZERO);
        assert_eq!(Told::load(None, cluster(1)).index(), ConfigIndex::ZERO);
    }

    #[tokio::test]
    async fn the_last_of_many_changes_is_written_though_not_each() {
        let d = Dir::new("many");
        let mut t = Told::load(Some(&d.0), cluster(1));
        (1..=500).for_each(|i| t.note(ConfigIndex(i)));
        drop(t);
        written(&d, 500).await;
    }

    #[tokio::test]
    async fn a_damaged_file_counts_as_none_and_is_replaced() {
        let d = Dir::new("damaged");
        std::fs::write(d.0.join(FILE), "{").unwrap();
        let mut t = Told::load(Some(&d.0), cluster(1));
        assert_eq!(t.index(), ConfigIndex::ZERO);
        t.note(ConfigIndex(3));
        written(&d, 3).await;
    }
}
