//! The kernel ABI, generated from `c/abi.h`. Pure.
//!
//! The sizes are asserted in the header for the programs and here for Rust, so that the two
//! compilers agree or neither compiles.

#![allow(
    missing_docs,
    unreachable_pub,
    non_camel_case_types,
    non_upper_case_globals,
    dead_code,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]

use std::net::{IpAddr, Ipv6Addr};

include!(concat!(env!("OUT_DIR"), "/abi.rs"));

/// A type whose every bit pattern is a value and that has no padding: it may be seen as bytes.
///
/// # Safety
///
/// The type must be `repr(C)`, made of integers, and without padding.
pub(crate) unsafe trait Plain: Copy + Default {
    fn bytes(&self) -> &[u8] {
        // SAFETY: `Plain` has no padding, so that all its bytes are initialised.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        assert_eq!(bytes.len(), size_of::<Self>(), "the kernel returned a value of another size");
        let mut value = Self::default();
        // SAFETY: both are valid for the size just compared, and every bit pattern is a value.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), std::ptr::from_mut(&mut value).cast(), bytes.len());
        }
        value
    }
}

macro_rules! plain {
    ($($type:ty = $size:literal),* $(,)?) => { $(
        const _: () = assert!(size_of::<$type>() == $size);
        // SAFETY: generated as `repr(C)` from integers; the size is that of its fields.
        unsafe impl Plain for $type {}
    )* };
}
plain! {
    addr = 16, ep = 64, sourcek = 20, cidrk = 20, rowk = 8, row = 144, pagek = 8, ctk = 40, ctv = 24,
    fragk = 44, fragv = 16, denial = 96, counters = 272, suppk = 16, suppv = 16, event = 80, config = 64,
    timing = 76, vipk = 20, front = 20, clock = 16,
}
const _: () = assert!(size_of::<page>() == 1032);

impl From<IpAddr> for addr {
    fn from(address: IpAddr) -> Self {
        let v6 = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Self::from_bytes(&v6.octets())
    }
}

impl From<addr> for IpAddr {
    fn from(address: addr) -> Self {
        let mut octets = [0; 16];
        octets.copy_from_slice(address.bytes());
        let v6 = Ipv6Addr::from(octets);
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
    }
}
