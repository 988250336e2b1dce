//! From what is desired to what the maps hold, by the fewest writes.

mod target;

pub use target::{Capacity, Contents, Target, Write};
