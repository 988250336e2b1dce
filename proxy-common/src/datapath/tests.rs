//! The datapath on the host.

mod any;
mod choice;
mod completion;
mod errors;
mod garbage;
mod pulls;
mod round_trip;
mod scenes;
mod socket;
