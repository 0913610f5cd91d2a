//! What the test guest and the VMM agree on.
//!
//! Both sides compile this crate: the guest for bare metal, the VMM as a library. It holds the guest's memory
//! map ([`layout`]), the control block through which one vCPU takes work and answers ([`block`]), the work
//! orders themselves ([`order`]), what every page of the arena contains ([`page`]), and the interpreter that
//! carries an order out ([`work`]), which the software MMU's workers run as well. In a Linux guest an agent
//! takes the place of the bare guest: it shares the control areas with the VMM in the same way, and takes its
//! orders over a byte stream ([`link`]).
//!
//! ```text
//!   VMM                                       guest, ring 3
//!   write block.order ──────────┐
//!   KVM_RUN ────────────────────┴──────────>  read block.order, decode
//!                                             carry it out: touch, time, record stalls
//!   (reads block.touches while it runs;       (polls block.stop)
//!    sets block.stop to end it)
//!   KVM_EXIT_IO on DOORBELL  <──────────────  write block.outcome, ring the doorbell
//! ```
//!
//! Nothing that the other side wrote is believed: an order is decoded before it runs, an outcome is bounds
//! checked before it is used, and neither side ever holds a reference into the other's memory.

#![no_std]

pub mod arch;
pub mod block;
pub mod layout;
pub mod link;
pub mod order;
pub mod page;
pub mod work;
