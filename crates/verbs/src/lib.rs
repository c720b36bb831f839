//! The libibverbs device of secure-rdma: NICs, and the kernel's soft-RoCE.
//!
//! [`Verbs`] lists and opens devices; everything else is behind the traits of `secure-rdma-rdma`. Neither
//! libibverbs nor librdmacm is linked: both are loaded at run time, so that a program with this crate in it starts
//! where rdma-core is not installed.
//!
//! RoCE is proven against the kernel's `rdma_rxe`. InfiniBand (LIDs in the address vector, a GRH only across
//! subnets) is covered by unit tests only. iWARP is refused by name.

mod body;
mod chain;
mod context;
mod core;
mod device;
mod errno;
mod establish;
mod events;
mod fork;
mod gone;
mod interfaces;
mod library;
mod listing;
mod memlock;
mod modify;
mod posting;
mod private;
mod queue_pair;
mod region;
mod resolve;
mod service;
mod shared;
mod slots;
mod sysfs;
#[doc(hidden)]
pub mod testing;
mod window;

pub use device::Verbs;
