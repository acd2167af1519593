//! Backfill jobs over real files, run by one or more replicas of the service over one store.

mod faults;
mod faulty;
mod states;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use market::{Candle, InstrumentKey, TimeRange, Timeframe};
use mesh::Drain;
use mesh::client::MeshChannel;
use mesh::config::ServerConfig;
use proto::ingestion::backfill_service_client::BackfillServiceClient;
use proto::ingestion::{
    Backfill, BackfillFile, BackfillState, CreateBackfillRequest, GetBackfillRequest, WatchBackfillRequest,
};
use store::Stores;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::fault;

/// Longest wait for something to happen.
const WAIT: Duration = Duration::from_secs(30);
/// 1 January 2024, a minute after midnight.
const START: i64 = 1_704_067_260_000;
const HEADER: &str = "timestamp,open,high,low,close,volume\n";

/// A replica; dropped, it drains.
struct Replica {
    client: BackfillServiceClient<MeshChannel>,
    drain: Drain,
    task: JoinHandle<()>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.drain.start();
    }
}

fn config(folder: Option<&Path>) -> ingestion::Config {
    ingestion::Config {
        backfill_folder: folder.map(Path::to_path_buf),
        backfill_lease: Duration::from_secs(1),
        ..Default::default()
    }
}

async fn replica(stores: &Stores, config: ingestion::Config) -> Replica {
    let ports = ingestion::Ports { stores: stores.clone(), bus: mesh::bus::Bus::in_process() };
    let app = ingestion::App::build(&ServerConfig::default(), config, ports).await.unwrap();
    let (address, drain) = (format!("http://{}", app.address()), Drain::new());
    let serving = app.serve(drain.clone());
    let task = tokio::spawn(async move { serving.await.unwrap() });
    Replica { client: BackfillServiceClient::new(mesh::client::connect(&address).unwrap()), drain, task }
}

impl Replica {
    async fn create(&self, request: CreateBackfillRequest) -> Result<Backfill, Status> {
        Ok(self.client.clone().create_backfill(request).await?.into_inner().backfill.unwrap())
    }

    /// Creates a job for files of one instrument.
    async fn load(&self, path: &str) -> Backfill {
        self.create(request(path)).await.unwrap()
    }

    async fn get(&self, id: &str) -> (Backfill, Vec<BackfillFile>) {
        let request = GetBackfillRequest { backfill_id: id.to_owned(), page_size: 1000, ..Default::default() };
        let answer = self.client.clone().get_backfill(request).await.unwrap().into_inner();
        (answer.backfill.unwrap(), answer.files)
    }

    /// Watches a job to its end.
    async fn ended(&self, id: &str) -> Backfill {
        let request = WatchBackfillRequest { backfill_id: id.to_owned() };
        let mut updates = self.client.clone().watch_backfill(request).await.unwrap().into_inner();
        let mut last = None;
        let watching = async {
            while let Some(update) = updates.message().await.unwrap() {
                last = update.backfill;
            }
        };
        tokio::time::timeout(WAIT, watching).await.expect("the job ends");
        last.expect("a watch begins with the job as it is")
    }

    /// Polls until the job is as wanted.
    async fn until(&self, id: &str, wanted: impl Fn(&Backfill) -> bool) -> Backfill {
        let asked = Instant::now();
        loop {
            let (job, _) = self.get(id).await;
            if wanted(&job) {
                return job;
            }
            assert!(asked.elapsed() < WAIT, "{job:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn request(path: &str) -> CreateBackfillRequest {
    CreateBackfillRequest { path: path.to_owned(), instrument_key: "NSE_EQ|A".to_owned(), ..Default::default() }
}

fn minutes(rows: std::ops::Range<i64>) -> Vec<Candle> {
    let candle = |row: i64| {
        let price = 100.0 + (row % 977) as f64 / 8.0;
        let (open, high, low, close) = (price, price + 1.0, price - 1.0, price + 0.5);
        Candle { open_time: START + row * 60_000, open, high, low, close, volume: row as f64, open_interest: None }
    };
    rows.map(candle).collect()
}

fn csv(rows: &[Candle]) -> String {
    let mut text = HEADER.to_owned();
    for c in rows {
        let time = market::format_millis(c.open_time);
        text.push_str(&format!("{time},{},{},{},{},{}\n", c.open, c.high, c.low, c.close, c.volume));
    }
    text
}

fn gzipped(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// The same rows of several instruments, one after the other.
fn parquet(keys: &[&str], rows: &[Candle]) -> Vec<u8> {
    use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMillisecondArray};
    let all = || keys.iter().flat_map(|_| rows);
    let column = |value: fn(&Candle) -> f64| -> ArrayRef { Arc::new(Float64Array::from_iter_values(all().map(value))) };
    let times = TimestampMillisecondArray::from_iter_values(all().map(|c| c.open_time)).with_timezone("UTC");
    let keys = StringArray::from_iter_values(keys.iter().flat_map(|key| rows.iter().map(move |_| *key)));
    let batch = RecordBatch::try_from_iter([
        ("key", Arc::new(keys) as ArrayRef),
        ("timestamp", Arc::new(times)),
        ("open", column(|c| c.open)),
        ("high", column(|c| c.high)),
        ("low", column(|c| c.low)),
        ("close", column(|c| c.close)),
        ("volume", column(|c| c.volume)),
    ]);
    let batch = batch.unwrap();
    let mut bytes = Vec::new();
    let mut writer = ::parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// What is stored of an instrument's minutes, by open time.
async fn stored(stores: &Stores, key: &str) -> BTreeMap<i64, [u64; 5]> {
    let key: InstrumentKey = key.parse().unwrap();
    let blocks: Vec<store::Block> =
        stores.candles.read(&key, Timeframe::M1, TimeRange::ALL, None).try_collect().await.unwrap();
    blocks.iter().flat_map(|block| block.frame.candles().map(|candle| row(&candle)).collect::<Vec<_>>()).collect()
}

fn row(c: &Candle) -> (i64, [u64; 5]) {
    (c.open_time, [c.open, c.high, c.low, c.close, c.volume].map(f64::to_bits))
}

fn rows_of(candles: &[Candle]) -> BTreeMap<i64, [u64; 5]> {
    candles.iter().map(row).collect()
}

/// rows_read, stored, unchanged, rejected.
fn counts(job: &Backfill) -> [u64; 4] {
    [job.rows_read, job.stored, job.unchanged, job.rejected]
}

/// The job's sums are those of its files, and every row has one outcome.
fn check_sums(job: &Backfill, files: &[BackfillFile]) {
    let sum = |of: fn(&BackfillFile) -> u64| files.iter().map(of).sum::<u64>();
    let files_sum = [sum(|f| f.rows_read), sum(|f| f.stored), sum(|f| f.unchanged), sum(|f| f.rejected)];
    assert_eq!(counts(job), files_sum, "{job:?}");
    assert_eq!(job.rows_read, job.stored + job.unchanged + job.rejected, "{job:?}");
    assert_eq!(files.iter().filter(|f| f.state() == BackfillState::Failed).count() as u32, job.files_failed);
}

#[tokio::test]
async fn good_dirty_truncated_and_other_files_each_have_their_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let good = minutes(0..40_000);
    write(folder.path(), "in/a.csv", csv(&good[..20_000]));
    write(folder.path(), "in/b/b.csv.gz", gzipped(&csv(&good[20_000..])));
    // Lines: 1 header, 2 good, 3 no number, 4 high below low, 5 no time, 6 and 7 one time twice, 8 good.
    let lines = [
        "2024-03-01T00:00:00Z,1,2,0.5,1.5,10",
        "2024-03-01T00:01:00Z,1,x,0.5,1.5,10",
        "2024-03-01T00:02:00Z,1,0.4,0.5,1.5,10",
        "never,1,2,0.5,1.5,10",
        "2024-03-01T00:03:00Z,1,2,0.5,1.5,10",
        "2024-03-01T00:03:00Z,1,2,0.5,1.25,10",
        "2024-03-01T00:04:00Z,1,2,0.5,1.5,10",
    ];
    write(folder.path(), "in/dirty.csv", format!("{HEADER}{}\n", lines.join("\n")));
    write(folder.path(), "in/c.parquet", parquet(&["NSE_EQ|P", "NSE_EQ|Q"], &good[..1000]));
    write(folder.path(), "in/notes.txt", "remember the milk");
    write(folder.path(), "in/.hidden.csv", "no candles");
    let whole = gzipped(&csv(&minutes(100_000..140_000)));
    write(folder.path(), "in/truncated.csv.gz", &whole[..whole.len() / 2]);

    let stores = Stores::memory();
    let service = replica(&stores, config(Some(folder.path()))).await;
    let created = service.load("in").await;
    assert_eq!((created.files_total, created.rows_read), (6, 0));
    let job = service.ended(&created.backfill_id).await;
    let (again, files) = service.get(&created.backfill_id).await;
    assert_eq!(job, again);
    check_sums(&job, &files);
    assert_eq!((job.state(), job.files_done, job.files_failed), (BackfillState::Failed, 6, 2));
    assert_eq!(job.error, "2 of 6 files could not be read to their end");
    let names: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(
        names,
        ["in/a.csv", "in/b/b.csv.gz", "in/c.parquet", "in/dirty.csv", "in/notes.txt", "in/truncated.csv.gz"]
    );
    let [a, b, columns, dirty, notes, truncated] = files.as_slice() else { panic!("{files:?}") };
    for file in [a, b] {
        assert_eq!((file.state(), file.stored, file.rejected), (BackfillState::Done, 20_000, 0), "{file:?}");
        assert_eq!(file.instrument_keys, ["NSE_EQ|A"]);
    }
    assert_eq!((dirty.state(), dirty.rows_read, dirty.stored, dirty.rejected), (BackfillState::Done, 7, 3, 4));
    assert_eq!((columns.state(), columns.stored), (BackfillState::Done, 2000), "{columns:?}");
    assert_eq!(columns.instrument_keys, ["NSE_EQ|P", "NSE_EQ|Q"]);
    for key in ["NSE_EQ|P", "NSE_EQ|Q"] {
        assert_eq!(stored(&stores, key).await, rows_of(&good[..1000]));
    }
    let lines: Vec<u64> = dirty.first_rejected.iter().map(|row| row.row).collect();
    assert_eq!(lines, [3, 4, 5, 6], "{dirty:?}");
    let superseded = &dirty.first_rejected[3].reason;
    assert!(superseded.contains("line 7"), "{superseded}");
    assert!(dirty.first_rejected[0].reason.contains("'x'"), "{dirty:?}");
    assert_eq!((notes.state(), notes.rows_read), (BackfillState::Failed, 0));
    assert!(!notes.error.is_empty() && !notes.error.contains(folder.path().to_str().unwrap()), "{notes:?}");
    assert_eq!(truncated.state(), BackfillState::Failed);
    assert!(truncated.stored > 1000 && truncated.error.contains("truncated"), "{truncated:?}");

    let mut want = rows_of(&good);
    want.extend(rows_of(&minutes(100_000..100_000 + truncated.stored as i64)));
    for (minute, close) in [(0, 1.5), (3, 1.25), (4, 1.5)] {
        let open_time = market::parse_millis("2024-03-01T00:00:00Z").unwrap() + minute * 60_000;
        want.extend([row(&Candle {
            open_time,
            open: 1.0,
            high: 2.0,
            low: 0.5,
            close,
            volume: 10.0,
            open_interest: None,
        })]);
    }
    assert!(stored(&stores, "NSE_EQ|A").await == want, "every good row is stored, and no other");

    // The file is whole again: resumed, the job loads it alone, from its start, and is done.
    write(folder.path(), "in/truncated.csv.gz", &whole);
    std::fs::remove_file(folder.path().join("in/notes.txt")).unwrap();
    write(folder.path(), "in/notes.txt", csv(&[]));
    let resume = proto::ingestion::ResumeBackfillRequest { backfill_id: created.backfill_id.clone() };
    service.client.clone().resume_backfill(resume).await.unwrap();
    service.ended(&created.backfill_id).await;
    let (job, files) = service.get(&created.backfill_id).await;
    check_sums(&job, &files);
    assert_eq!((files[5].state(), files[5].rows_read), (BackfillState::Done, 40_000));
    assert_eq!((files[5].stored, files[5].unchanged), (40_000 - truncated.stored, truncated.stored));
    assert_eq!(files[0], *a, "what was done is not done again");
}

#[tokio::test]
async fn a_dry_run_tells_what_a_run_will_do_and_stores_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let rows = minutes(0..30_000);
    write(folder.path(), "a.csv", csv(&rows));
    write(folder.path(), "before.csv", csv(&rows[5000..6000]));
    let stores = Stores::memory();
    let service = replica(&stores, config(Some(folder.path()))).await;
    let before = service.load("before.csv").await;
    assert_eq!(counts(&service.ended(&before.backfill_id).await), [1000, 1000, 0, 0]);
    let revision = stores.candles.last_sequence().await.unwrap();

    let dry = service.create(CreateBackfillRequest { dry_run: true, ..request("a.csv") }).await.unwrap();
    let dry = service.ended(&dry.backfill_id).await;
    assert_eq!((dry.state(), dry.dry_run, counts(&dry)), (BackfillState::Done, true, [30_000, 29_000, 1000, 0]));
    assert_eq!(stores.candles.last_sequence().await.unwrap(), revision);
    assert_eq!(stored(&stores, "NSE_EQ|A").await.len(), 1000);
    let wet = service.load("a.csv").await;
    let wet = service.ended(&wet.backfill_id).await;
    assert_eq!(counts(&wet), counts(&dry));
    assert_eq!(wet.bytes_read, wet.bytes_total);
    assert_eq!(stored(&stores, "NSE_EQ|A").await, rows_of(&rows));
}

#[tokio::test]
async fn paths_outside_the_folder_and_other_bad_requests_are_refused() {
    let outside = tempfile::tempdir().unwrap();
    write(outside.path(), "secret.csv", csv(&minutes(0..10)));
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.csv", csv(&minutes(0..10)));
    std::os::unix::fs::symlink(outside.path(), folder.path().join("link")).unwrap();
    let service = replica(&Stores::memory(), config(Some(folder.path()))).await;
    let absolute = outside.path().join("secret.csv").display().to_string();
    let bad = |request| async { fault(service.create(request).await.unwrap_err()) };
    for path in ["../a.csv", "link/secret.csv", "link", "", "/", absolute.as_str(), "a.csv/../../x"] {
        let refused = bad(request(path)).await;
        assert_eq!(refused.code, Code::InvalidArgument, "{path}: {refused:?}");
        assert!(refused.message.starts_with("path"), "{path}: {refused:?}");
    }
    assert_eq!(bad(request("none.csv")).await.code, Code::NotFound);
    let field = async |request: CreateBackfillRequest, field: &str| {
        let refused = bad(request).await;
        assert_eq!(refused.code, Code::InvalidArgument, "{refused:?}");
        assert!(refused.message.starts_with(field), "{field}: {refused:?}");
    };
    field(CreateBackfillRequest { format: "excel".into(), ..request("a.csv") }, "format").await;
    field(CreateBackfillRequest { timeframe: "7q".into(), ..request("a.csv") }, "timeframe").await;
    field(CreateBackfillRequest { instrument_key: "oops".into(), ..request("a.csv") }, "instrument_key").await;
    field(CreateBackfillRequest { manifest: "../m.csv".into(), ..request("a.csv") }, "manifest").await;
    field(CreateBackfillRequest { manifest: "a.csv".into(), ..request("a.csv") }, "manifest").await;
    field(CreateBackfillRequest { request_id: "x".repeat(200), ..request("a.csv") }, "request_id").await;

    let without = replica(&Stores::memory(), config(None)).await;
    let refused = fault(without.create(request("a.csv")).await.unwrap_err());
    assert_eq!(refused.code, Code::FailedPrecondition);
    assert!(refused.message.contains("CANDLEMESH_INGESTION__BACKFILL_FOLDER"), "{refused:?}");
}
