//! The status line at the bottom of a terminal: erased before other text, drawn again when no text waits. A terminal that is not
//! read so gets one such line, and not one each second.

use std::time::{Duration, Instant};

/// The interval at which its time is updated.
pub const TICK: Duration = Duration::from_secs(1);
/// Moves to the begin of the line and clears it.
pub const ERASE: &str = "\r\x1b[2K";

/// The status line.
#[derive(Debug)]
pub struct Status {
    text: String,
    begun: Instant,
    /// When it was drawn; `None` if it is not on the terminal.
    drawn: Option<Instant>,
}

impl Status {
    /// `text` is one line without control characters; it is cut to the terminal's width.
    pub fn new(text: String) -> Self {
        Self { text, begun: Instant::now(), drawn: None }
    }

    /// The sequence that erases the line, if it is on the terminal.
    pub fn erase(&mut self) -> Option<&'static str> {
        self.drawn.take().map(|_| ERASE)
    }

    /// The line, if it is not on the terminal or its time has changed.
    pub fn draw(&mut self, now: Instant, width: usize) -> Option<String> {
        if self.drawn.is_some_and(|drawn| now < drawn + TICK) {
            return None;
        }
        self.drawn = Some(now);
        let time = format!(" ({} s)", now.saturating_duration_since(self.begun).as_secs());
        // A line that fills the last column may wrap, and could not be erased.
        let room = width.saturating_sub(time.len() + 1);
        let text: String = self.text.chars().take(room).collect();
        Some(format!("{ERASE}{text}{time}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_drawn_each_second_and_after_it_was_erased() {
        let mut status = Status::new("[1/2] sparse".to_owned());
        let begun = status.begun;
        assert_eq!(status.erase(), None, "it is not there");
        assert_eq!(status.draw(begun, 80).unwrap(), "\r\x1b[2K[1/2] sparse (0 s)");
        assert_eq!(status.draw(begun + TICK / 2, 80), None);
        assert_eq!(status.draw(begun + TICK, 80).unwrap(), "\r\x1b[2K[1/2] sparse (1 s)");
        assert_eq!(status.erase(), Some(ERASE));
        assert_eq!(status.erase(), None);
        assert!(status.draw(begun + TICK, 80).is_some());
    }

    #[test]
    fn it_never_fills_a_line() {
        for width in 0..40 {
            let mut status = Status::new("x".repeat(100));
            let line = status.draw(status.begun, width).unwrap();
            let shown = line.strip_prefix(ERASE).unwrap();
            assert!(shown.len() < width.max(" (0 s)".len() + 1), "{width}: {shown}");
        }
    }
}
