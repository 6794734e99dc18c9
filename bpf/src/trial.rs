//! Packets that are judged but not sent: for canaries, tests and benchmarks. IO.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use crate::{DataPath, Direction, MapError};

/// A packet to try, as the programs would meet it. What it does to connections and counters, it does.
#[derive(Clone, Copy, Debug)]
pub struct Trial<'a> {
    /// Which way it goes.
    pub direction: Direction,
    /// The pod's interface. It must exist, in the network namespace of the calling thread.
    pub ifindex: u32,
    /// The interface that it came in by; 0 for packets that this host made.
    pub came_in_by: u32,
    /// The packet, from its Ethernet header on; at least 14 bytes.
    pub frame: &'a [u8],
    /// How many times it is tried.
    pub repeat: u32,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It passes, and the programs of others see it.
    Passed,
    /// It was dropped.
    Dropped,
}

impl DataPath {
    /// Tries a packet: its fate, and how long the program took on average.
    ///
    /// # Errors
    ///
    /// [`MapError::Program`] if the kernel refuses to try it, as where the interface does not exist.
    pub fn try_packet(&self, trial: Trial<'_>) -> Result<(Fate, Duration), MapError> {
        let program = match trial.direction {
            Direction::Ingress => "to_pod",
            Direction::Egress => "from_pod",
        };
        // `struct __sk_buff` of the kernel's user API, in 32-bit words. All others must be zero.
        const INGRESS_IFINDEX: usize = 9;
        const IFINDEX: usize = 10;
        let mut words = [0_u32; 48];
        words[IFINDEX] = trial.ifindex;
        words[INGRESS_IFINDEX] = trial.came_in_by;
        let mut context: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        let input = libbpf_rs::ProgramInput {
            context_in: Some(&mut context),
            data_in: Some(trial.frame),
            repeat: trial.repeat,
            ..Default::default()
        };
        let (returned, took) = self.run_with(program, input)?;
        const NEXT: u32 = u32::MAX;
        Ok((if returned == NEXT { Fate::Passed } else { Fate::Dropped }, took))
    }

    /// How many instructions the verifier walked for each program. The kernel's limit is a million, and older
    /// kernels walk more than newer ones.
    ///
    /// # Errors
    ///
    /// [`MapError::Program`] if the kernel does not say.
    pub fn verified_instructions(&self) -> Result<Vec<(String, u32)>, MapError> {
        let mut all = Vec::new();
        for program in self.object.progs() {
            let mut info = libbpf_sys::bpf_prog_info::default();
            let mut size = size_of_val(&info) as u32;
            let fd = program.as_fd().as_raw_fd();
            // SAFETY: the descriptor is open, and the kernel writes at most `size` bytes to `info`.
            let answer = unsafe { libbpf_sys::bpf_prog_get_info_by_fd(fd, &mut info, &mut size) };
            if answer < 0 {
                let source = libbpf_rs::Error::from_raw_os_error(-answer);
                return Err(MapError::Program { program: "any", source });
            }
            all.push((program.name().to_string_lossy().into_owned(), info.verified_insns));
        }
        Ok(all)
    }
}
