//! Steps: single writes to the kernel's maps. Pure.

use std::net::IpAddr;

use durward_proto::{Block, Direction, Frontend};

use crate::{Endpoint, Row, RowKey, Word};

/// One write. The kernel is complete before and after each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Writes what a set says of an atom, anew or over what was there.
    PutRow(RowKey, Row),
    /// Gives an exact remote address its atom, by one store if the address is there.
    PutAddress(IpAddr, u32),
    /// Gives a remote block its atom.
    PutBlock(Block, u32),
    /// Writes a whole endpoint and attaches the programs to its interface. Nothing is attached there yet.
    Bind(u32, Endpoint),
    /// Writes all of an attached endpoint but its words.
    Refresh(u32, Endpoint),
    /// Stores one word of an endpoint.
    SetWord(u32, Direction, Word),
    /// Detaches an interface that is no endpoint any more, and forgets its endpoint and connections.
    Unbind(u32),
    /// Waits until no packet is under way that read what the steps before have unlinked.
    Grace,
    /// Takes an exact remote address away: a block, or nothing, says the same of it by now.
    RemoveAddress(IpAddr),
    /// Takes a remote block away: a shorter block, or nothing, says the same of it by now.
    RemoveBlock(Block),
    /// Says that a Service is called there. Calls are judged by where they end from now on.
    PutFrontend(Frontend),
    /// Says that it is not any more.
    RemoveFrontend(Frontend),
    /// Takes a row away to which no packet can come any more.
    RemoveRow(RowKey),
}
