//! The Python that runs the clients of `tests/clients`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The interpreter of `CANDLEMESH_PYTHON`, else that of the workspace's `.venv`. `None` with a printed line where there is none;
/// `CANDLEMESH_REQUIRE_SERVERS=1` makes that an error.
pub fn interpreter() -> Result<Option<PathBuf>> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let named = std::env::var_os("CANDLEMESH_PYTHON").map(PathBuf::from);
    let python = named.unwrap_or_else(|| workspace.join(".venv/bin/python"));
    if python.is_file() {
        return Ok(Some(python));
    }
    let advice = format!("there is no Python at {}: tests/run makes one", python.display());
    if std::env::var("CANDLEMESH_REQUIRE_SERVERS").is_ok_and(|value| value == "1") {
        bail!("{advice} (CANDLEMESH_REQUIRE_SERVERS=1 forbids skipping)");
    }
    eprintln!("skipped: {advice}");
    Ok(None)
}

/// Path of a client script.
pub fn client(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}
