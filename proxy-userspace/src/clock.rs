//! The wall's clock, for what people read.
//!
//! It jumps: by hand, by NTP, after a suspended virtual machine wakes up. So nothing is decided by
//! it; that goes by [`std::time::Instant`]. The lint knows no other place where it may be asked.

use std::time::SystemTime;

/// What time it is, as far as this machine knows.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}
