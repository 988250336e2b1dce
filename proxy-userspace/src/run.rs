//! x
mod edges;
