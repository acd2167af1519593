//! Facts about a disk without space, on a small file system in memory that the test mounts where it may.

use std::path::Path;
use std::process::Command;

use market::Timeframe;
use store::{Error, Stores};

use crate::candles::{DAY, Model, OPEN, frame, key, model, nse, stored};
use crate::sqlite;

/// Enough for the empty database, not for the candles of the test.
const SIZE: &str = "size=4m";

/// Ends the mount with the test.
struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn at(folder: &'a Path) -> Option<Self> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(folder).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(folder))
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

/// Sessions that compress badly, of one date each.
fn rows(day: i64) -> market::Frame {
    let noise =
        |minute: i64| ((day * 1_000 + minute).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64) >> 24) as f64 / 7.0;
    frame((0..375).map(|minute| (OPEN + day * DAY + minute * 60_000, noise(minute), 1.0, None)))
}

async fn everything(stores: &Stores) -> Model {
    stored(stores, &key("NSE_EQ|A"), Timeframe::M1, None).await
}

#[tokio::test]
async fn a_full_disk_keeps_what_was_acknowledged_and_goes_on_when_there_is_space() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::at(folder.path()) else {
        println!("skipped: mounting a small file system is not permitted");
        return;
    };
    let stores = sqlite(folder.path()).await;
    let ballast = folder.path().join("ballast");
    std::fs::write(&ballast, vec![0; 1 << 20]).unwrap();
    let (key, calendar) = (key("NSE_EQ|A"), nse());
    let mut acknowledged = Model::new();
    let mut refused = None;
    for day in 0..2_000 {
        match stores.candles.put(&key, Timeframe::M1, &calendar, &rows(day), 1).await {
            Ok(outcome) => {
                assert_eq!(outcome.stored, 375);
                acknowledged.extend(model(&rows(day)));
            }
            Err(error) => {
                refused = Some((day, error));
                break;
            }
        }
    }
    let (day, error) = refused.expect("four megabytes cannot hold seven hundred and fifty thousand candles");
    assert!(matches!(error, Error::Full(_)), "{error:?}");
    assert!(day > 0);
    assert_eq!(everything(&stores).await, acknowledged);
    std::fs::remove_file(&ballast).unwrap();
    assert_eq!(stores.candles.put(&key, Timeframe::M1, &calendar, &rows(day), 2).await.unwrap().stored, 375);
    acknowledged.extend(model(&rows(day)));
    assert_eq!(everything(&stores).await, acknowledged);
    let report = stores.check(10).await.unwrap();
    assert_eq!((report.findings_total, report.candles), (0, acknowledged.len() as u64), "{report:?}");
    stores.close().await;
    // The file system goes before its folder.
    drop(mount);
}
