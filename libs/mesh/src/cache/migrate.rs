//! Takes the entries of one Redis to another, of whatever topology, and holds what came out against what went in.
//!
//! Both serve meanwhile: an entry is read by those who still use the one, and found by those who use the other already. A copy that
//! was broken off is run again and passes over what is there.

use std::time::Duration;

use redis::{RedisResult, Value};

use super::entry;
use crate::topology::{Connection, RedisAddress};

/// Keys read, and entries written, together: of usual entries some megabytes.
const STEP: usize = 128;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For a step of large entries over a slow network.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of an entry that tell it from another: version, checksum, size.
const HEAD: isize = 9;

/// How an entry lies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As this release writes it.
    Current,
    /// A checksum and the value, as releases before wrote it.
    ChecksumAndValue,
}

/// The new name of a key, given the store where the key does not name it, and how the entry lies there.
pub type Renamed = fn(&str, Option<&str>) -> Option<(String, Layout)>;

/// Which entries to take, and by which names.
#[derive(Debug, Clone)]
pub struct Migration {
    pub from: RedisAddress,
    pub to: RedisAddress,
    /// What all keys begin with.
    pub prefix: String,
    /// The key under which this release looks for an entry, and how it lies there; nothing for what it would not read.
    pub renamed: Renamed,
    /// Store of the entries whose keys do not name it.
    pub store: Option<String>,
}

/// What became of the entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Keys of the prefix; all of the following together.
    pub found: u64,
    pub copied: u64,
    /// There already, from an earlier run.
    pub present: u64,
    /// Damaged where they lay.
    pub damaged: u64,
    /// Of a release that this one does not read.
    pub foreign: u64,
    /// Gone between being listed and being read.
    pub expired: u64,
    /// Of those copied, written anew as this release lays them out.
    pub upgraded: u64,
    /// Bytes written.
    pub bytes: u64,
}

/// What a comparison found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    /// Entries of the first Redis that this release reads; all of the following together.
    pub compared: u64,
    /// To the byte, with a sound checksum.
    pub equal: u64,
    pub missing: u64,
    pub different: u64,
}

impl Verified {
    pub fn is_good(&self) -> bool {
        self.equal == self.compared
    }
}

/// An entry on its way.
struct Entry {
    key: String,
    stored: Vec<u8>,
    /// Milliseconds left to it; absent: it stays.
    time_to_live: Option<u64>,
    upgraded: bool,
}

enum Read {
    Entry(Entry),
    Damaged,
    Foreign,
    Expired,
}

impl Migration {
    /// Copies every entry with the time left to it; with `dry_run` only counts. Calls back after every step.
    pub async fn copy(&self, dry_run: bool, mut told: impl FnMut(&Moved)) -> RedisResult<Moved> {
        let mut moved = Moved::default();
        let to = self.to.connect(CONNECT_TIMEOUT, ANSWER_TIMEOUT).await?;
        for mut from in self.from.connect_parts(CONNECT_TIMEOUT, ANSWER_TIMEOUT).await? {
            let mut walk = Walk::default();
            while let Some(keys) = walk.next(&mut from, &self.prefix).await? {
                let mut entries = Vec::new();
                for read in self.read(&mut from, &keys).await? {
                    moved.found += 1;
                    match read {
                        Read::Entry(entry) => entries.push(entry),
                        Read::Damaged => moved.damaged += 1,
                        Read::Foreign => moved.foreign += 1,
                        Read::Expired => moved.expired += 1,
                    }
                }
                let heads: Vec<Vec<u8>> = each(&to, &entries, |entry| {
                    let mut head = redis::cmd("GETRANGE");
                    head.arg(&entry.key).arg(0).arg(HEAD - 1);
                    head
                })
                .await?;
                let is_there = |(entry, head): &(&Entry, Vec<u8>)| entry.stored.starts_with(head) && !head.is_empty();
                let (there, new): (Vec<_>, Vec<_>) = entries.iter().zip(heads).partition(is_there);
                moved.present += there.len() as u64;
                let new: Vec<&Entry> = new.into_iter().map(|(entry, _)| entry).collect();
                moved.copied += new.len() as u64;
                moved.upgraded += new.iter().filter(|entry| entry.upgraded).count() as u64;
                moved.bytes += new.iter().map(|entry| entry.stored.len() as u64).sum::<u64>();
                if !dry_run {
                    each::<_, ()>(&to, &new, |entry| set(entry)).await?;
                }
                told(&moved);
            }
        }
        Ok(moved)
    }

    /// Compares every entry of the one with that of the other. What has expired meanwhile is passed over.
    pub async fn verify(&self, mut told: impl FnMut(&Verified)) -> RedisResult<Verified> {
        let mut verified = Verified::default();
        let to = self.to.connect(CONNECT_TIMEOUT, ANSWER_TIMEOUT).await?;
        for mut from in self.from.connect_parts(CONNECT_TIMEOUT, ANSWER_TIMEOUT).await? {
            let mut walk = Walk::default();
            while let Some(keys) = walk.next(&mut from, &self.prefix).await? {
                let read = self.read(&mut from, &keys).await?;
                let entries: Vec<Entry> = read
                    .into_iter()
                    .filter_map(|read| match read {
                        Read::Entry(entry) => Some(entry),
                        Read::Damaged | Read::Foreign | Read::Expired => None,
                    })
                    .collect();
                if entries.is_empty() {
                    continue;
                }
                let copies: Vec<Option<Vec<u8>>> = each(&to, &entries, |entry| {
                    let mut get = redis::cmd("GET");
                    get.arg(&entry.key);
                    get
                })
                .await?;
                for (entry, copy) in entries.iter().zip(copies) {
                    verified.compared += 1;
                    match copy {
                        None => verified.missing += 1,
                        Some(copy) if copy == entry.stored && entry::is_sound(&copy) => verified.equal += 1,
                        Some(_) => verified.different += 1,
                    }
                }
                told(&verified);
            }
        }
        Ok(verified)
    }

    async fn read(&self, from: &mut Connection, keys: &[String]) -> RedisResult<Vec<Read>> {
        let mut pipeline = redis::pipe();
        for key in keys {
            pipeline.cmd("GET").arg(key).cmd("PTTL").arg(key);
        }
        let answers: Vec<Value> = pipeline.query_async(from).await?;
        let read = keys.iter().zip(answers.chunks_exact(2)).map(|(key, answer)| {
            let [Value::BulkString(stored), Value::Int(left)] = answer else { return Read::Expired };
            let Some((key, layout)) = (self.renamed)(key, self.store.as_deref()) else { return Read::Foreign };
            let stored = match layout {
                Layout::Current => Some(stored.clone()).filter(|stored| entry::is_sound(stored)),
                Layout::ChecksumAndValue => entry::unseal_checksum_and_value(stored).map(entry::seal),
            };
            match (stored, *left) {
                // Of -2 nothing is left; -1 stays for ever.
                (_, -2 | 0) => Read::Expired,
                (None, _) => Read::Damaged,
                (Some(stored), left) => {
                    let upgraded = layout != Layout::Current;
                    Read::Entry(Entry { key, stored, time_to_live: u64::try_from(left).ok(), upgraded })
                }
            }
        });
        Ok(read.collect())
    }
}

/// Asks one thing for each entry, all at the same time. Not a pipeline: in a Cluster one must not cross slots.
async fn each<E, T>(to: &Connection, entries: &[E], command: impl Fn(&E) -> redis::Cmd) -> RedisResult<Vec<T>>
where
    T: redis::FromRedisValue,
{
    let asked = entries.iter().map(|entry| {
        let (mut to, command) = (to.clone(), command(entry));
        async move { command.query_async(&mut to).await }
    });
    futures::future::try_join_all(asked).await
}

fn set(entry: &Entry) -> redis::Cmd {
    let mut set = redis::cmd("SET");
    set.arg(&entry.key).arg(&entry.stored);
    if let Some(left) = entry.time_to_live {
        set.arg("PX").arg(left);
    }
    set
}

/// A walk over the keys of one server.
#[derive(Default)]
struct Walk {
    cursor: u64,
    is_over: bool,
    waiting: Vec<String>,
}

impl Walk {
    /// The next keys, at most [`STEP`]; nothing at the end. A key may come twice, as SCAN's do.
    async fn next(&mut self, from: &mut Connection, prefix: &str) -> RedisResult<Option<Vec<String>>> {
        while self.waiting.len() < STEP && !self.is_over {
            let (cursor, keys): (u64, Vec<String>) = redis::cmd("SCAN")
                .arg(self.cursor)
                .arg("MATCH")
                .arg(format!("{}*", super::literal(prefix)))
                .arg("COUNT")
                .arg(STEP)
                .query_async(from)
                .await?;
            self.waiting.extend(keys);
            (self.cursor, self.is_over) = (cursor, cursor == 0);
        }
        let count = self.waiting.len().min(STEP);
        Ok((count > 0).then(|| self.waiting.drain(..count).collect()))
    }
}
