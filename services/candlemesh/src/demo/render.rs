//! The report as text for a terminal.

use std::fmt::Write;

use super::report::{Bar, Candles, Indicators, Report, Screen};
use crate::client::short;

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Rows printed of a long list; JSON has them all.
const PRINTED: usize = 8;

/// Renders everything that was found, and what failed.
pub(super) fn text(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_all(&mut out, report);
    out
}

fn write_all(out: &mut String, report: &Report) -> std::fmt::Result {
    let load = &report.load;
    writeln!(out, "candlemesh demo · {}", report.input)?;
    heading(out, "load")?;
    let rate = (load.stored + load.unchanged) as f64 / load.seconds.max(1e-9);
    writeln!(
        out,
        "  {} files: {} stored, {} unchanged, {} rejected in {:.1} s ({rate:.0} rows/s)",
        load.files, load.stored, load.unchanged, load.rejected, load.seconds
    )?;
    list(out, &load.reasons, load.rejected as usize)?;
    heading(out, "coverage")?;
    for item in report.coverage.iter().take(PRINTED) {
        writeln!(
            out,
            "  {:<28} {:<3} {:>8} candles {:>5} dates  {} .. {}",
            item.instrument_key, item.timeframe, item.candles, item.dates, item.first, item.last
        )?;
    }
    more(out, report.coverage.len())?;
    if let Some(candles) = &report.candles {
        write_candles(out, candles)?;
    }
    if let Some(indicators) = &report.indicators {
        write_indicators(out, indicators)?;
    }
    if let Some(sequences) = &report.sequences {
        heading(out, &format!("sequences · {} · 1d", sequences.instrument_key))?;
        writeln!(
            out,
            "  {} candles, {} sequences; quality {:.3}, continuity {:.3}, momentum {:.3}",
            sequences.candles, sequences.sequences, sequences.quality, sequences.continuity, sequences.momentum
        )?;
        list(out, &sequences.patterns, sequences.patterns.len())?;
    }
    if let Some(screen) = &report.screen {
        write_screen(out, screen)?;
    }
    if let Some(study) = &report.study {
        heading(out, &format!("study · {} · SMA crossover · {} trials", study.instrument_key, study.trials))?;
        list(out, &study.best, study.best.len())?;
    }
    if let Some(unknown) = &report.unknown_instrument {
        heading(out, "an instrument nobody loaded")?;
        writeln!(out, "  {} -> {}: {}", unknown.asked, unknown.code, unknown.message)?;
    }
    writeln!(out)?;
    for failure in &report.failures {
        writeln!(out, "FAILED {failure}")?;
    }
    let memory = report.peak_memory_mib.map_or(String::new(), |mib| format!(", at most {mib:.0} MiB resident"));
    let verdict = if report.failures.is_empty() { "everything worked" } else { "not everything worked" };
    writeln!(out, "{verdict}: {:.1} s{memory}", report.seconds)
}

fn heading(out: &mut String, title: &str) -> std::fmt::Result {
    writeln!(out, "\n{title}")
}

fn list(out: &mut String, lines: &[String], total: usize) -> std::fmt::Result {
    for line in lines.iter().take(PRINTED) {
        writeln!(out, "  {line}")?;
    }
    more(out, total)
}

fn more(out: &mut String, total: usize) -> std::fmt::Result {
    match total.checked_sub(PRINTED) {
        None | Some(0) => Ok(()),
        Some(rest) => writeln!(out, "  ... and {rest} more (--json has them)"),
    }
}

fn write_candles(out: &mut String, candles: &Candles) -> std::fmt::Result {
    heading(out, &format!("candles · {}", candles.instrument_key))?;
    writeln!(out, "  5m, the last of {}", candles.five_minute_count)?;
    write_bars(out, &candles.five_minute)?;
    writeln!(out, "  1d, the last of {}", candles.daily_count)?;
    write_bars(out, &candles.daily)?;
    writeln!(out, "  {}", sparkline(&candles.closes))
}

fn write_bars(out: &mut String, bars: &[Bar]) -> std::fmt::Result {
    for bar in bars {
        writeln!(
            out,
            "    {:<21} O {:<9} H {:<9} L {:<9} C {:<9} V {:<11} {}/{}{}",
            bar.open_time,
            short(bar.open),
            short(bar.high),
            short(bar.low),
            short(bar.close),
            short(bar.volume),
            bar.source_count,
            bar.expected_count,
            if bar.complete { "" } else { " partial" }
        )?;
    }
    Ok(())
}

fn write_indicators(out: &mut String, indicators: &Indicators) -> std::fmt::Result {
    heading(out, &format!("indicators · {} · {}", indicators.instrument_key, indicators.timeframe))?;
    for pair in indicators.last.chunks(4) {
        let cells: Vec<String> = pair
            .iter()
            .map(|(name, value)| format!("{name:<28} {:<10}", value.map_or("-".to_owned(), short)))
            .collect();
        writeln!(out, "  {}", cells.join(" ").trim_end())?;
    }
    writeln!(
        out,
        "  {} rows: v1 computed {:.1} ms and answered in {:.1}, v2 {:.1} and {:.1}; largest difference {:.1e}",
        indicators.rows,
        indicators.v1_compute_ms,
        indicators.v1_ms,
        indicators.v2_compute_ms,
        indicators.v2_ms,
        indicators.largest_difference
    )?;
    writeln!(
        out,
        "  second call {:.1} ms, {}",
        indicators.second_call_ms,
        if indicators.second_call_cached { "from the cache" } else { "NOT from the cache" }
    )
}

fn write_screen(out: &mut String, screen: &Screen) -> std::fmt::Result {
    heading(out, &format!("screen · {}", screen.date))?;
    let stages: Vec<String> =
        screen.stages.iter().map(|stage| format!("{} {}/{}", stage.stage, stage.passed, stage.processed)).collect();
    writeln!(out, "  passed: {}", stages.join(" -> "))?;
    for (side, rows) in [("bullish", &screen.bullish), ("bearish", &screen.bearish)] {
        for row in rows {
            writeln!(
                out,
                "  {side} {:<28} close {:<9} {:+.1} % from EMA50, RSI {:.0}, {} strong moves",
                row.instrument_key,
                short(row.last_close),
                row.ema_distance_percent,
                row.rsi,
                row.strong_move_count
            )?;
        }
    }
    let rejected: Vec<String> = screen
        .rejected
        .iter()
        .map(|rejection| format!("{:<28} {:<12} {}", rejection.instrument_key, rejection.stage, rejection.reason))
        .collect();
    list(out, &rejected, rejected.len())
}

/// Values as one line of blocks, lowest to highest.
fn sparkline(values: &[f64]) -> String {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !(low.is_finite() && high.is_finite()) {
        return String::new();
    }
    let step = (high - low) / (BLOCKS.len() - 1) as f64;
    let block = |value: &f64| match step > 0.0 {
        true => BLOCKS[(((value - low) / step).round() as usize).min(BLOCKS.len() - 1)],
        false => BLOCKS[0],
    };
    let line: String = values.iter().map(block).collect();
    format!("{line}  {} .. {}", short(low), short(high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_spans_its_range() {
        assert_eq!(sparkline(&[1.0, 2.0, 8.0]), "▁▂█  1 .. 8");
        assert_eq!(sparkline(&[5.0, 5.0]), "▁▁  5 .. 5");
        assert_eq!(sparkline(&[]), "");
    }
}
