//! The reference engine: candle by candle.

use kernels::Error;
use kernels::sequence::{Analysis, AnalysisParams, Candles, analyze_rows};

pub(super) fn analyze(candles: &Candles<'_>, params: &AnalysisParams) -> Result<Analysis, Error> {
    analyze_rows(candles, params)
}
