//! What the demo loads: files with the instrument and timeframe of each.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use market::Timeframe;

use super::{DemoArgs, market as generated};
use formats::{FileSpec, Format, Manifest};

/// Files to load, and how to call them in the report.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) description: String,
    pub(super) is_generated: bool,
    pub(super) files: Vec<FileSpec>,
}

/// Resolves the input; a generated market is written below `scratch`.
pub(super) fn prepare(args: &DemoArgs, scratch: &Path) -> Result<Source> {
    let Some(input) = &args.input else {
        let folder = scratch.join("generated");
        let files = generated::write(&folder).context("generated market")?;
        return Ok(Source { description: generated::DESCRIPTION.to_owned(), is_generated: true, files });
    };
    let description = input.display().to_string();
    let files = match input.is_dir() {
        true => folder(input)?,
        false => vec![FileSpec { instrument: args.instrument.clone(), ..FileSpec::new(input) }],
    };
    if !input.exists() {
        bail!("{description} does not exist");
    }
    Ok(Source { description, is_generated: false, files })
}

/// Minutes and days of every manifest in a folder.
fn folder(folder: &Path) -> Result<Vec<FileSpec>> {
    let mut manifests: Vec<PathBuf> = std::fs::read_dir(folder)
        .with_context(|| folder.display().to_string())?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("instruments") && name.ends_with(".csv")
        })
        .collect();
    manifests.sort();
    if manifests.is_empty() {
        bail!("{}: no manifest (instruments*.csv with columns key, file, interval) in this folder", folder.display());
    }
    let mut files = Vec::new();
    for path in manifests {
        let manifest = Manifest::read(&path)?;
        for path in manifest.files() {
            let Some(entry) = manifest.find(&path) else { continue };
            let shown = matches!(entry.timeframe, None | Some(Timeframe::M1 | Timeframe::D1));
            if shown && entry.format != Format::Ticks {
                files.push(entry.spec(&path));
            }
        }
    }
    Ok(files)
}
