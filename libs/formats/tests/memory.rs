//! A file larger than memory should hold is read through a pipe; only what the reader keeps may be resident.
#![allow(clippy::unwrap_used, reason = "the lint spares test functions, not what they share")]

use std::io::Write;
use std::os::fd::AsRawFd;

use formats::{BadRow, Chunk, FileSpec, Sink};

/// Bytes written by default; `CANDLEMESH_TEST_FILE_BYTES` says otherwise.
const DEFAULT_BYTES: u64 = 100_000_000;
/// Resident at most: rows remembered for comparing (about 60 MB), chunks, buffers, the test itself.
const MAX_RESIDENT_KIB: u64 = 160 * 1024;
/// 2001-09-09, the first minute with thirteen digits.
const START_MS: u64 = 1_000_000_020_000;

#[derive(Default)]
struct Counted {
    rows: u64,
    bad: u64,
}

impl Sink for Counted {
    fn chunk(&mut self, chunk: Chunk) -> bool {
        self.rows += chunk.rows.len() as u64;
        true
    }

    fn bad_row(&mut self, _: BadRow) -> bool {
        self.bad += 1;
        true
    }
}

/// Minutes, until `bytes` are written. Returns how many.
fn generate(mut to: impl Write, bytes: u64) -> u64 {
    let mut buffer = b"timestamp,open,high,low,close,volume\n".to_vec();
    let (mut rows, mut written) = (0, 0);
    while written < bytes {
        while buffer.len() < 1 << 20 {
            let (at, cents) = (START_MS + rows * 60_000, rows % 100);
            writeln!(buffer, "{at},1077.{cents:02},1081.600,1067.950,1080.750,{}.00000000", 46_656 + cents).unwrap();
            rows += 1;
        }
        to.write_all(&buffer).unwrap();
        written += buffer.len() as u64;
        buffer.clear();
    }
    rows
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn memory_does_not_grow_with_the_file() {
    let bytes = std::env::var("CANDLEMESH_TEST_FILE_BYTES").map_or(DEFAULT_BYTES, |text| text.parse().unwrap());
    let (reader, writer) = std::io::pipe().unwrap();
    let spec = FileSpec {
        instrument: Some("US|BIG".parse().unwrap()),
        ..FileSpec::new(format!("/proc/self/fd/{}", reader.as_raw_fd()))
    };
    let started = std::time::Instant::now();
    let generator = std::thread::spawn(move || generate(writer, bytes));
    let mut counted = Counted::default();
    let detected = formats::read(&spec, &mut counted).unwrap();
    drop(reader);
    let rows = generator.join().unwrap();
    let profile = &detected.profiles[0];
    assert_eq!((counted.rows, counted.bad, profile.rows), (rows, 0, rows));
    assert_eq!((profile.gaps, profile.repeated, profile.steps_backwards), (0, 0, 0));
    println!("{bytes} bytes, {rows} rows, {:.1?}, peak {} KiB", started.elapsed(), peak_kib());
    assert!(peak_kib() < MAX_RESIDENT_KIB, "{} KiB", peak_kib());
}
