//! The fast engine: whole columns.

use kernels::Error;
use kernels::sequence::{Analysis, AnalysisParams, Candles, analyze_columns};

pub(super) fn analyze(candles: &Candles<'_>, params: &AnalysisParams) -> Result<Analysis, Error> {
    analyze_columns(candles, params)
}
