//! Arrays of the kernel, mapped into this process: reads and aligned stores without a system call. IO.

use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::MapError;
use crate::abi::Plain;

/// A `BPF_F_MMAPABLE` array of `T`, mapped for as long as this lives.
///
/// The kernel writes to it at any time, so there is no `&T`: fields are read and written one by one, through
/// atomics, as the ABI says which fields change and how.
pub(crate) struct Mapped<T> {
    start: NonNull<T>,
    len: usize,
    bytes: usize,
    _of: PhantomData<T>,
}

// SAFETY: it is shared memory that every thread may read and write; all accesses are atomic.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

impl<T: Plain> Mapped<T> {
    pub(crate) fn new(map: &'static str, fd: impl AsFd, len: usize) -> Result<Self, MapError> {
        // The kernel rounds the values of an array up to 8 bytes; a mapping is whole pages.
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 8) };
        let page = 4096;
        let bytes = (size_of::<T>() * len).next_multiple_of(page);
        let length = NonZeroUsize::new(bytes)
            .ok_or_else(|| MapError::Map { map, source: std::io::ErrorKind::InvalidInput.into() })?;
        // SAFETY: a new mapping at an address that the kernel chooses; nothing else is mapped there.
        let start = unsafe {
            mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, fd, 0)
        }
        .map_err(|error| MapError::Map { map, source: error.into() })?;
        Ok(Self { start: start.cast(), len, bytes, _of: PhantomData })
    }

    /// The place of an element's field at a byte offset, as something atomic.
    fn field<A>(&self, index: usize, offset: usize) -> &A {
        assert!(
            index < self.len
                && offset + size_of::<A>() <= size_of::<T>()
                && offset.is_multiple_of(align_of::<A>())
        );
        // SAFETY: within the mapping and aligned, as just asserted; `A` is only ever an atomic integer, for
        // which every bit pattern is a value and which may change under us.
        unsafe { &*self.start.as_ptr().add(index).cast::<u8>().add(offset).cast::<A>() }
    }

    pub(crate) fn u32(&self, index: usize, offset: usize) -> &AtomicU32 {
        self.field(index, offset)
    }

    pub(crate) fn u64(&self, index: usize, offset: usize) -> &AtomicU64 {
        self.field(index, offset)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A copy of an element, word by word. Words are whole, the element need not be: the caller knows that
    /// nobody writes to it now, or which fields he may trust.
    pub(crate) fn copy(&self, index: usize) -> T {
        let words = (0..size_of::<T>() / 8)
            .flat_map(|word| self.u64(index, word * 8).load(Ordering::Acquire).to_ne_bytes());
        T::from_bytes(&words.collect::<Vec<_>>())
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; no reference to it outlives `self`.
        // It fails only for arguments that are no mapping.
        let _ = unsafe { munmap(self.start.cast(), self.bytes) };
    }
}
