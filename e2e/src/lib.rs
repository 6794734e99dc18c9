//! The test bed: a Kubernetes of real parts (etcd, API server, controllers, kubelets, kube-proxy, containerd, CNI plugins,
//! CoreDNS) in network and mount namespaces of one machine, and real sockets inside its pods to judge what gets through.
//!
//! ```no_run
//! # fn main() -> durward_e2e::Result<()> {
//! use durward_e2e::{Bed, Config, Matrix, Outcome, Server};
//!
//! let bed = Bed::up(Config::new("policies").nodes(2))?;
//! durward_e2e::install(&bed, &[])?;
//! bed.run_pod("default/client", "n1", &[("app", "client")])?;
//! bed.run_pod("default/server", "n2", &[("app", "server")])?;
//! let (client, server) = (bed.pod("default/client")?, bed.pod("default/server")?);
//! let _echo = Server::start(&server.network, 80)?;
//! Matrix::new().tcp(&client, &server, 80, Outcome::Allowed).udp(&client, &server, 80, Outcome::Allowed).hold()?;
//! # Ok(()) }
//! ```
//!
//! | file | what it is |
//! |---|---|
//! | `config` | what a bed is like, and all of its names and addresses (pure) |
//! | `bed` | a bed goes up and down |
//! | `fabric` `control` `node` | its network, its control plane, its nodes |
//! | `sweep` | finds and removes everything that belongs to a bed, also of a killed run |
//! | `programs` `image` `images` | what runs on it: built or found programs, container images |
//! | `namespaces` `process` `wait` | entering namespaces, starting commands and daemons, polling |
//! | `kube` `pod` | kubectl, helm, pods |
//! | `probe` `matrix` `server` `stream` | connections by real sockets, and what became of them |
//! | `durward` | installs Durward on a bed |
//! | `conformance` | runs Kubernetes' own NetworkPolicy suite against it |
//! | `demo` | the guided tour, and the log of verdicts as its readers see it |
//! | `harness` | a test program whose tests share one bed |

mod bed;
mod config;
pub mod conformance;
mod control;
pub mod demo;
mod durward;
mod error;
mod fabric;
mod harness;
pub mod image;
pub mod images;
mod kube;
mod matrix;
mod namespaces;
mod node;
mod pod;
mod probe;
mod process;
pub mod programs;
mod server;
mod stream;
mod sweep;
mod wait;

pub use bed::{Bed, end_with_parent};
pub use config::{Cni, Config, Proxy};
pub use durward::install;
pub use error::{Error, Result};
pub use harness::{Test, run};
pub use image::Image;
pub use matrix::Matrix;
pub use namespaces::Namespaces;
pub use pod::Pod;
pub use probe::{Outcome, Probe, Protocol};
pub use server::Server;
pub use stream::Stream;
pub use wait::{PATIENCE, wait};
