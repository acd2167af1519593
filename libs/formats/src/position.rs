//! How far a file has been read, for whoever shows it.

use std::fs::File;
use std::io::{Read, Result, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parquet::errors::Result as ParquetResult;
use parquet::file::reader::{ChunkReader, Length};

/// Bytes of a file, as it lies on the disk, that have been read. Clones tell the same.
#[derive(Debug, Clone, Default)]
pub struct Position(Arc<AtomicU64>);

impl Position {
    /// Somewhat ahead of the last chunk handed over. What is read twice, as the directory of an archive is, counts twice.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A file that tells its position.
pub(crate) struct Watched {
    file: File,
    position: Position,
}

impl Watched {
    pub(crate) fn new(file: File, position: &Position) -> Watched {
        Watched { file, position: position.clone() }
    }
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let read = self.file.read(buffer)?;
        self.position.add(read);
        Ok(read)
    }
}

impl Seek for Watched {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.file.seek(to)
    }
}

impl Length for Watched {
    fn len(&self) -> u64 {
        self.file.len()
    }
}

/// Pages are fetched by range; their headers, a few bytes each, are not counted.
impl ChunkReader for Watched {
    type T = <File as ChunkReader>::T;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        self.file.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<bytes::Bytes> {
        self.position.add(length);
        self.file.get_bytes(start, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_as_they_are_read_and_not_as_they_are_passed_over() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), vec![7; 100]).unwrap();
        let position = Position::default();
        let mut watched = Watched::new(File::open(path.path()).unwrap(), &position);
        let mut buffer = [0; 30];
        watched.read_exact(&mut buffer).unwrap();
        watched.seek(SeekFrom::Start(80)).unwrap();
        assert_eq!(position.bytes(), 30);
        let _ = watched.get_bytes(80, 20).unwrap();
        assert_eq!(position.bytes(), 50);
    }
}
