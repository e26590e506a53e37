//! The date for chat templates (`strftime_now`), in UTC: the server's local time is nobody's.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

const SECONDS_PER_DAY: u64 = 86_400;
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// Seconds since 1970; 0 for a clock that is set before.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A unix time as RFC 3339 has it: `2026-11-25T08:00:00Z`.
pub fn utc(seconds: u64) -> String {
    // These directives are known.
    strftime("%FT%TZ", seconds).unwrap_or_default()
}

/// Formats a time as C's `strftime` does; a directive that it does not know is an error.
pub(super) fn strftime(format: &str, seconds: u64) -> Result<String, String> {
    let time = seconds % SECONDS_PER_DAY;
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let date = Date::of(seconds / SECONDS_PER_DAY);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let written = match characters.next() {
            Some('Y') => write!(text, "{}", date.year),
            Some('y') => write!(text, "{:02}", date.year % 100),
            Some('m') => write!(text, "{:02}", date.month + 1),
            Some('d') => write!(text, "{:02}", date.day),
            Some('e') => write!(text, "{:2}", date.day),
            Some('B') => write!(text, "{}", MONTHS[date.month]),
            Some('b' | 'h') => write!(text, "{}", &MONTHS[date.month][..3]),
            Some('A') => write!(text, "{}", WEEKDAYS[date.weekday]),
            Some('a') => write!(text, "{}", &WEEKDAYS[date.weekday][..3]),
            Some('F') => write!(text, "{}-{:02}-{:02}", date.year, date.month + 1, date.day),
            Some('T') => write!(text, "{hour:02}:{minute:02}:{second:02}"),
            Some('H') => write!(text, "{hour:02}"),
            Some('I') => write!(text, "{:02}", (hour + 11) % 12 + 1),
            Some('p') => write!(text, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some('M') => write!(text, "{minute:02}"),
            Some('S') => write!(text, "{second:02}"),
            Some('Z') => write!(text, "UTC"),
            Some('%') => write!(text, "%"),
            Some(other) => return Err(format!("strftime_now does not know %{other}")),
            None => return Err("strftime_now: the format ends with %".to_owned()),
        };
        written.expect("writing to a string cannot fail");
    }
    Ok(text)
}

struct Date {
    year: u64,
    /// From 0.
    month: usize,
    /// From 1.
    day: u64,
    /// From Monday, 0.
    weekday: usize,
}

impl Date {
    /// The date a number of days after 1970-01-01, which was a Thursday.
    fn of(days: u64) -> Self {
        let weekday = usize::try_from((days + 3) % 7).expect("below 7");
        let (mut year, mut day) = (1970 + days / 146_097 * 400, days % 146_097);
        while day >= days_of_year(year) {
            day -= days_of_year(year);
            year += 1;
        }
        let mut month = 0;
        while day >= days_of_month(year, month) {
            day -= days_of_month(year, month);
            month += 1;
        }
        Self { year, month, day: day + 1, weekday }
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of_year(year: u64) -> u64 {
    365 + u64::from(is_leap(year))
}

fn days_of_month(year: u64, month: usize) -> u64 {
    match month {
        1 => 28 + u64::from(is_leap(year)),
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_rfc_3339_has_it() {
        assert_eq!(utc(1_735_689_599), "2024-12-31T23:59:59Z");
    }

    #[test]
    fn dates_are_those_of_date_1() {
        // Each expectation is the output of `date -u -d @SECONDS +FORMAT`.
        let format = "%d %b %Y|%A %e %B %y|%F %T|%I:%M:%S %p|%a %h %H %m %Z %%";
        let cases = [
            (
                0,
                "01 Jan 1970|Thursday  1 January 70|1970-01-01 00:00:00|12:00:00 AM|Thu Jan 00 01 UTC %",
            ),
            (
                951_782_400,
                "29 Feb 2000|Tuesday 29 February 00|2000-02-29 00:00:00|12:00:00 AM|Tue Feb 00 02 UTC %",
            ),
            (
                1_735_689_599,
                "31 Dec 2024|Tuesday 31 December 24|2024-12-31 23:59:59|11:59:59 PM|Tue Dec 23 12 UTC %",
            ),
            (
                4_107_542_400,
                "01 Mar 2100|Monday  1 March 00|2100-03-01 00:00:00|12:00:00 AM|Mon Mar 00 03 UTC %",
            ),
        ];
        for (seconds, expected) in cases {
            assert_eq!(strftime(format, seconds).unwrap(), expected);
        }
    }

    #[test]
    fn unknown_directives_are_errors() {
        assert!(strftime("%Q", 0).unwrap_err().contains("%Q"));
        assert!(strftime("100%", 0).is_err());
    }
}
