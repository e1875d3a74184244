//! Dates for templates that write today's. Invariant: a date is always valid and its weekday right.
//!
//! Source: the C library's `strftime` in the C locale, which Python uses; days from the civil calendar
//! by H. Hinnant's `chrono`-compatible algorithms.

use std::time::{SystemTime, UNIX_EPOCH};

/// A moment in some time zone, to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateTime {
    /// Seconds since 1970-01-01 00:00:00 in that zone.
    seconds: i64,
}

const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
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
const DAY: i64 = 86_400;
/// Years 1 to 9999, as in Python.
const FIRST: i64 = -62_135_596_800;
const LAST: i64 = 253_402_300_799;

/// A date taken apart.
struct Civil {
    year: i64,
    /// 1 to 12.
    month: i64,
    /// 1 to 31.
    day: i64,
    /// 0 to 365.
    day_of_year: i64,
    /// 0 is Sunday.
    weekday: i64,
}

impl DateTime {
    /// The moment that is `seconds` after 1970-01-01 00:00:00 in the local zone. Moments outside of
    /// the years 1 to 9999 become the nearest one inside.
    pub fn from_seconds(seconds: i64) -> Self {
        Self { seconds: seconds.clamp(FIRST, LAST) }
    }

    /// Now, in UTC.
    pub fn now_utc() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let seconds = since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(LAST));
        Self::from_seconds(seconds)
    }

    /// The moment in the words of a `strftime` format (English names). Codes that are not known stay
    /// as they are; the zone's name is empty, as it is for Python's dates without a zone.
    pub(super) fn strftime(self, format: &str) -> String {
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(ch) = chars.next() {
            if ch != '%' {
                out.push(ch);
                continue;
            }
            let mut padded = true;
            let mut code = chars.next();
            if code == Some('-') {
                padded = false;
                code = chars.next();
            }
            match code {
                Some(code) => self.write(code, padded, &mut out),
                None => out.push('%'),
            }
        }
        out
    }

    fn write(self, code: char, padded: bool, out: &mut String) {
        let date = self.civil();
        let second_of_day = self.seconds.rem_euclid(DAY);
        let hour = second_of_day / 3600;
        let half_day = (hour + 11) % 12 + 1;
        let number = |value: i64, width: usize| match padded {
            true => format!("{value:0width$}"),
            false => value.to_string(),
        };
        let name = |names: &[&str], index: i64| {
            let index = usize::try_from(index).unwrap_or(0);
            names.get(index).copied().unwrap_or_default().to_owned()
        };
        let short = |name: String| name.chars().take(3).collect::<String>();
        let text = match code {
            'Y' => date.year.to_string(),
            'y' => number(date.year % 100, 2),
            'C' => number(date.year / 100, 2),
            'm' => number(date.month, 2),
            'd' => number(date.day, 2),
            'e' if padded => format!("{:2}", date.day),
            'e' => date.day.to_string(),
            'j' => number(date.day_of_year + 1, 3),
            'H' => number(hour, 2),
            'I' => number(half_day, 2),
            'M' => number(second_of_day / 60 % 60, 2),
            'S' => number(second_of_day % 60, 2),
            'f' => "000000".to_owned(),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'A' => name(&WEEKDAYS, date.weekday),
            'a' => short(name(&WEEKDAYS, date.weekday)),
            'B' => name(&MONTHS, date.month - 1),
            'b' | 'h' => short(name(&MONTHS, date.month - 1)),
            'w' => date.weekday.to_string(),
            'u' => ((date.weekday + 6) % 7 + 1).to_string(),
            'F' => self.strftime("%Y-%m-%d"),
            'T' | 'X' => self.strftime("%H:%M:%S"),
            'R' => self.strftime("%H:%M"),
            'D' | 'x' => self.strftime("%m/%d/%y"),
            'c' => self.strftime("%a %b %e %H:%M:%S %Y"),
            'Z' | 'z' => String::new(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            other => format!("%{other}"),
        };
        out.push_str(&text);
    }

    fn civil(self) -> Civil {
        let days = self.seconds.div_euclid(DAY);
        // Years that begin in March, in eras of 400 years, put the leap day last.
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * from_march + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let before_march = 59 + i64::from(leap);
        Civil {
            year,
            month,
            day: from_march - (153 * march_month + 2) / 5 + 1,
            day_of_year: if month > 2 { from_march + before_march } else { from_march - 306 },
            weekday: (days + 4).rem_euclid(7),
        }
    }
}
