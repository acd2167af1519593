//! Which files a job reads: below the configured folder, and nowhere else.

use std::collections::HashSet;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;

use proto::convert::FieldError;
use store::{BackfillCounts, BackfillFileRecord, BackfillState};

use super::{Error, Result};

/// Files of one job: they are rows of the database, written when the job is created.
pub(crate) const MAX_FILES: usize = 100_000;
/// Folders inside each other: deeper is a mistake, and a bound for links that lead in circles.
const MAX_DEPTH: usize = 64;
/// Longest path accepted.
const MAX_PATH_BYTES: usize = 1024;

/// Size and time of a file's content, by which a change is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) size_bytes: u64,
    pub(crate) modified_ns: i64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        let since_epoch = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let modified_ns = since_epoch.and_then(|since| i64::try_from(since.as_nanos()).ok()).unwrap_or_default();
        Stamp { size_bytes: metadata.len(), modified_ns }
    }
}

/// Where a path below the folder really is, links resolved.
///
/// Errors: a path that is no plain relative one or that leads outside, naming `field`; one that does not exist.
pub(crate) fn resolve(folder: &Path, field: &'static str, path: &str) -> Result<PathBuf> {
    let refuse = |reason: &str| Error::Field(FieldError::new(field, format!("'{}' {reason}", shown(path))));
    if path.is_empty() || path.len() > MAX_PATH_BYTES || path.chars().any(char::is_control) {
        return Err(refuse("is no path; name a file or folder below the backfill folder, or . for all of it"));
    }
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(path).components().all(is_plain) {
        return Err(refuse("leads outside of the backfill folder; name a path below it, without .. and not absolute"));
    }
    let root = root(folder)?;
    let resolved = root.join(path).canonicalize().map_err(|source| match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Error::UnknownPath { path: shown(path) },
        _ => Error::Folder { path: shown(path), source },
    })?;
    match resolved.starts_with(&root) {
        true => Ok(resolved),
        false => Err(refuse("is a link that leads outside of the backfill folder")),
    }
}

/// The file at a resolved path, if it is one.
pub(crate) fn stamp(path: &Path) -> std::result::Result<Stamp, String> {
    let metadata = std::fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?;
    match metadata.is_file() {
        true => Ok(Stamp::of(&metadata)),
        false => Err("is not a regular file".to_owned()),
    }
}

/// Errors: the folder is named as a caller names it; where it is on this machine is nobody's business.
fn root(folder: &Path) -> Result<PathBuf> {
    folder.canonicalize().map_err(|source| Error::Folder { path: ".".to_owned(), source })
}

fn shown(path: &str) -> String {
    path.chars().take(200).collect()
}

/// The files of a job, in the order of their paths: a file itself, or all below a folder but hidden ones and those of `except`.
///
/// What is there but cannot be read is listed as failed, with the reason.
pub(crate) fn list(folder: &Path, path: &str, except: &[PathBuf]) -> Result<Vec<BackfillFileRecord>> {
    let start = resolve(folder, "path", path)?;
    let relative: PathBuf = Path::new(path).components().filter(|part| *part != Component::CurDir).collect();
    let mut found: Vec<(PathBuf, std::result::Result<Stamp, String>)> = Vec::new();
    if start.is_dir() {
        let mut walk = Walk { root: root(folder)?, except, seen: HashSet::from([start.clone()]), found: &mut found };
        walk.folder(&start, &relative, 0)?;
    } else {
        found.push((relative, stamp(&start)));
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok((0..).zip(found).map(|(number, (path, stamp))| record(number, &path, stamp)).collect())
}

struct Walk<'a> {
    root: PathBuf,
    except: &'a [PathBuf],
    /// Folders walked already, by where they really are.
    seen: HashSet<PathBuf>,
    found: &'a mut Vec<(PathBuf, std::result::Result<Stamp, String>)>,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path, relative: &Path, depth: usize) -> Result<()> {
        let failed = |source| Error::Folder { path: relative.display().to_string(), source };
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if name.to_string_lossy().starts_with('.') {
                continue;
            }
            self.entry(&entry.path(), relative.join(&name), depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, relative: PathBuf, depth: usize) -> Result<()> {
        let resolved = match path.canonicalize() {
            Err(error) => return self.push(relative, Err(format!("cannot be read: {error}"))),
            Ok(resolved) if !resolved.starts_with(&self.root) => {
                let reason = "is a link that leads outside of the backfill folder".to_owned();
                return self.push(relative, Err(reason));
            }
            Ok(resolved) => resolved,
        };
        if !resolved.is_dir() {
            return match self.except.contains(&resolved) {
                true => Ok(()),
                false => self.push(relative, stamp(&resolved)),
            };
        }
        // A second way to a folder is not a second folder.
        if !self.seen.insert(resolved.clone()) {
            return Ok(());
        }
        if depth >= MAX_DEPTH {
            return self.push(relative, Err(format!("is deeper than {MAX_DEPTH} folders")));
        }
        match self.folder(&resolved, &relative, depth + 1) {
            // One folder that may not be listed is no reason not to load the others.
            Err(Error::Folder { source, .. }) => self.push(relative, Err(format!("cannot be listed: {source}"))),
            outcome => outcome,
        }
    }

    fn push(&mut self, relative: PathBuf, stamp: std::result::Result<Stamp, String>) -> Result<()> {
        if self.found.len() >= MAX_FILES {
            return Err(Error::TooManyFiles { limit: MAX_FILES });
        }
        self.found.push((relative, stamp));
        Ok(())
    }
}

fn record(number: u64, path: &Path, stamp: std::result::Result<Stamp, String>) -> BackfillFileRecord {
    let stamp = match path.to_str() {
        Some(text) if text.chars().any(char::is_control) => Err("has a name with a control character".to_owned()),
        Some(_) => stamp,
        None => Err("has a name that is not UTF-8".to_owned()),
    };
    let error = stamp.as_ref().err().cloned();
    let stamp = stamp.unwrap_or(Stamp { size_bytes: 0, modified_ns: 0 });
    let name = path.to_string_lossy();
    BackfillFileRecord {
        number,
        path: name.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect(),
        state: if error.is_some() { BackfillState::Failed } else { BackfillState::Queued },
        format: String::new(),
        size_bytes: stamp.size_bytes,
        modified_ns: stamp.modified_ns,
        counts: BackfillCounts::default(),
        candles_taken: 0,
        unreadable_taken: 0,
        pending_revision: None,
        details_json: "{}".to_owned(),
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn listed(folder: &Path, path: &str) -> Vec<(String, Option<String>)> {
        list(folder, path, &[]).unwrap().into_iter().map(|file| (file.path, file.error)).collect()
    }

    #[test]
    fn a_folder_is_listed_in_path_order_without_hidden_files() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["b.csv", "a/z.csv", "a/.hidden.csv", ".git/x.csv", "a/b/c.parquet", "notes.txt"] {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let names = |path: &str| listed(folder.path(), path).into_iter().map(|(path, _)| path).collect::<Vec<_>>();
        assert_eq!(names("."), ["a/b/c.parquet", "a/z.csv", "b.csv", "notes.txt"]);
        assert_eq!(names("./a/"), ["a/b/c.parquet", "a/z.csv"]);
        assert_eq!(names("a/z.csv"), ["a/z.csv"]);
        let except = folder.path().canonicalize().unwrap().join("notes.txt");
        assert_eq!(list(folder.path(), ".", &[except]).unwrap().len(), 3);
    }

    #[test]
    fn a_folder_that_is_away_is_not_named_by_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let away = folder.path().join("unmounted");
        let refused = resolve(&away, "path", "a.csv").unwrap_err();
        assert!(matches!(refused, Error::Folder { .. }), "{refused:?}");
        assert!(!refused.to_string().contains("unmounted"), "{refused}");
    }

    #[test]
    fn no_path_leaves_the_folder() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret.csv"), "x").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("in");
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(folder.path().join("in.csv"), "x").unwrap();
        symlink(outside.path(), inside.join("link")).unwrap();
        symlink(outside.path().join("secret.csv"), inside.join("link.csv")).unwrap();
        symlink("../in.csv", inside.join("good.csv")).unwrap();
        symlink("nowhere", inside.join("broken.csv")).unwrap();
        symlink("..", inside.join("up")).unwrap();
        let absolute = outside.path().join("secret.csv").display().to_string();
        for path in ["..", "../x", "in/../..", "in/../in.csv", "/etc/passwd", absolute.as_str(), "", "a\0b", "a\nb"] {
            let refused = resolve(folder.path(), "path", path).unwrap_err();
            assert!(matches!(&refused, Error::Field(field) if field.field == "path"), "{path:?}: {refused:?}");
        }
        for path in ["in/link", "in/link/secret.csv", "in/link.csv"] {
            let refused = resolve(folder.path(), "path", path).unwrap_err();
            assert!(refused.to_string().contains("leads outside"), "{path}: {refused}");
        }
        for path in ["none.csv", "in.csv/x", "in/broken.csv"] {
            assert!(matches!(resolve(folder.path(), "path", path), Err(Error::UnknownPath { .. })), "{path}");
        }
        // A link inside the folder is followed; one that leads outside is a failed file; a circle ends.
        let found = listed(folder.path(), "in");
        let good: Vec<&str> = found.iter().filter(|(_, e)| e.is_none()).map(|(path, _)| path.as_str()).collect();
        assert_eq!(good, ["in/good.csv", "in/up/in.csv"]);
        let failed: Vec<&str> = found.iter().filter(|(_, e)| e.is_some()).map(|(path, _)| path.as_str()).collect();
        assert_eq!(failed, ["in/broken.csv", "in/link", "in/link.csv"]);
    }
}
