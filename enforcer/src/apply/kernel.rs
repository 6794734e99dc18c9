//! Steps and the kernel's maps: each step is a call or two of durward-bpf. IO.

use std::collections::BTreeSet;

use durward_bpf::{self as bpf, AttachError, DataPath, MapError};
use durward_plan::{Access, Act, Bound, Endpoint, Kernel, LogFlags, Row, RowKey, Step, Word};
use durward_proto::{Block, BlockError, Direction, Frontend, PortKey, Verdict};
use thiserror::Error;

/// Why a step could not be taken, or the kernel's maps could not be read.
#[derive(Debug, Error)]
pub enum StepError {
    /// A map refused.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The programs could not be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A map holds what is no block.
    #[error("the map of blocks holds what is none: {0}")]
    Block(#[from] BlockError),
}

impl StepError {
    /// Whether the interface went while the step was taken: the next look will show it.
    pub(super) fn is_gone(&self) -> bool {
        let gone = |source: &std::io::Error| source.raw_os_error() == Some(nix::libc::ENODEV);
        match self {
            Self::Map(MapError::NoEndpoint { .. }) => true,
            Self::Attach(AttachError::Kernel { source, .. }) => gone(source),
            _ => false,
        }
    }
}

/// Takes over what an earlier run has left: the endpoints whose programs are attached get this version's
/// programs, the others are swept. What the maps hold then.
pub(super) fn take_over(path: &DataPath) -> Result<Kernel, StepError> {
    let links = path.attached()?;
    let live: BTreeSet<u32> = links.iter().filter(|link| link.live).map(|link| link.ifindex).collect();
    for dead in links.iter().map(|link| link.ifindex).filter(|ifindex| !live.contains(ifindex)) {
        path.detach(dead)?;
    }
    let mut kernel = Kernel::default();
    for endpoint in path.endpoints()? {
        let ifindex = endpoint.ifindex;
        // Links live as long as their interface: without one, the index may be another's by now.
        if live.contains(&ifindex) {
            path.attach(ifindex)?;
            kernel.endpoints.insert(ifindex, endpoint_of(endpoint));
        } else {
            path.remove_endpoint(ifindex)?;
        }
    }
    kernel.addresses = path.ip_atoms()?.into_iter().collect();
    for ((address, length), atom) in path.cidr_atoms()? {
        kernel.blocks.insert(Block::containing(address, length)?, atom);
    }
    kernel.frontends = path.frontends().into_iter().map(frontend_of).collect();
    for (set, atom) in path.row_keys() {
        if let Some(bounds) = path.row(set, atom)? {
            kernel.rows.insert(RowKey { set, atom }, row_of(&bounds));
        }
    }
    Ok(kernel)
}

/// Takes one step. `kernel` is what the maps hold before it.
pub(super) fn take(path: &DataPath, kernel: &Kernel, step: &Step) -> Result<(), StepError> {
    match step {
        Step::PutRow(key, row) => path.set_row(key.set, key.atom, &bounds(row))?,
        Step::PutAddress(address, atom) => path.set_ip_atom(*address, *atom)?,
        Step::PutBlock(block, atom) => path.set_cidr_atom(block.address(), block.length(), *atom)?,
        Step::Bind(ifindex, endpoint) => {
            path.set_endpoint(&kernel_endpoint(*ifindex, endpoint))?;
            if let Err(error) = path.attach(*ifindex) {
                // Neither half attached nor half there.
                path.detach(*ifindex)?;
                path.remove_endpoint(*ifindex)?;
                return Err(error.into());
            }
        }
        Step::Refresh(ifindex, endpoint) => {
            let words = kernel.endpoints.get(ifindex).map_or(endpoint.words, |held| held.words);
            path.set_endpoint(&kernel_endpoint(*ifindex, &Endpoint { words, ..endpoint.clone() }))?;
        }
        Step::SetWord(ifindex, direction, word) => {
            let direction = match direction {
                Direction::Ingress => bpf::Direction::Ingress,
                Direction::Egress => bpf::Direction::Egress,
            };
            path.set_word(*ifindex, direction, bpf::Word::new(word.set, word.generation))?;
        }
        Step::Unbind(ifindex) => {
            path.detach(*ifindex)?;
            path.remove_endpoint(*ifindex)?;
        }
        Step::Grace => path.grace_period()?,
        Step::RemoveAddress(address) => drop(path.remove_ip_atom(*address)?),
        Step::RemoveBlock(block) => path.remove_cidr_atom(block.address(), block.length())?,
        Step::RemoveRow(key) => path.remove_row(key.set, key.atom)?,
        Step::PutFrontend(frontend) => path.set_frontend(kernel_frontend(*frontend))?,
        Step::RemoveFrontend(frontend) => drop(path.remove_frontend(kernel_frontend(*frontend))?),
    }
    Ok(())
}

fn kernel_frontend(Frontend { address, port }: Frontend) -> bpf::Frontend {
    bpf::Frontend { address, protocol: port.protocol(), port: port.port() }
}

fn frontend_of(bpf::Frontend { address, protocol, port }: bpf::Frontend) -> Frontend {
    Frontend { address, port: PortKey::new(protocol, port) }
}

fn bounds(row: &Row) -> Vec<bpf::Bound> {
    let act = |act: Act| bpf::Act {
        allow: act.verdict == Verdict::Allow,
        loggable: act.logged,
        attribution: act.attribution,
    };
    row.iter().map(|bound| bpf::Bound { start: bound.start, act: act(bound.act) }).collect()
}

fn row_of(bounds: &[bpf::Bound]) -> Row {
    let act = |act: bpf::Act| Act {
        verdict: if act.allow { Verdict::Allow } else { Verdict::Deny },
        logged: act.loggable,
        attribution: act.attribution,
    };
    bounds.iter().map(|bound| Bound { start: bound.start, act: act(bound.act) }).collect()
}

fn kernel_endpoint(ifindex: u32, endpoint: &Endpoint) -> bpf::Endpoint {
    let Endpoint { namespace: _, nsid, access, words, addresses, log } = endpoint;
    bpf::Endpoint {
        ifindex,
        nsid: u32::try_from(*nsid).ok(),
        flags: bpf::Flags {
            unknown: *access == Access::Closed,
            gateway: *access == Access::Open,
            dhcp: false,
            log_allow: log.allowed || log.delegated,
            log_allow_loggable_only: log.delegated,
            log_deny: log.denied,
        },
        addresses: addresses.clone(),
        words: words.map(|word| bpf::Word::new(word.set, word.generation)),
    }
}

/// The other way; which namespace it is in, the kernel does not say.
fn endpoint_of(endpoint: bpf::Endpoint) -> Endpoint {
    let bpf::Endpoint { ifindex: _, nsid, flags, addresses, words } = endpoint;
    Endpoint {
        namespace: 0,
        nsid: nsid.and_then(|nsid| i32::try_from(nsid).ok()).unwrap_or(-1),
        access: match flags {
            bpf::Flags { unknown: true, .. } => Access::Closed,
            bpf::Flags { gateway: true, .. } => Access::Open,
            _ => Access::Judged,
        },
        words: words.map(|word| Word { set: word.set, generation: word.generation }),
        addresses,
        log: LogFlags {
            allowed: flags.log_allow && !flags.log_allow_loggable_only,
            delegated: flags.log_allow && flags.log_allow_loggable_only,
            denied: flags.log_deny,
        },
    }
}
