//! Standard output of the commands.

use std::io::{ErrorKind, Write};

/// Prints like `print!`, but a reader that went away (`| head`) is no panic.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::write(format_args!($($text)*)) };
}

/// Prints like `println!`, but a reader that went away (`| head`) is no panic.
macro_rules! say_line {
    () => { $crate::output::write(format_args!("\n")) };
    ($($text:tt)*) => { $crate::output::write(format_args!("{}\n", format_args!($($text)*))) };
}

pub(crate) use {say, say_line};

/// Writes to standard output. What nobody reads any more is dropped; a disk that is full ends the process, as a
/// truncated answer must not pass for a whole one.
pub(crate) fn write(text: std::fmt::Arguments<'_>) {
    match std::io::stdout().lock().write_fmt(text) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("candlemesh: standard output: {error}");
            std::process::exit(1);
        }
        _ => {}
    }
}
