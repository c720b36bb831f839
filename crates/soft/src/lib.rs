//! The embedded device: RoCEv2 reliable connections in userspace, over UDP.
//!
//! [`engine`] is the transport itself, without socket, clock or thread: packets and instants go in, packets,
//! completions and deadlines come out. The rest of the crate gives it a socket, and makes the device of
//! `secure-rdma-rdma` of it.

#![deny(unsafe_code)]

pub mod engine;
