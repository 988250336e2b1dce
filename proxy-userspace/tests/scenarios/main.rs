//! The control plane from events to map contents, without a kernel.

mod build;
mod capacity;
mod cluster;
mod maps;
mod properties;
mod rules;
mod text;
mod writes;
