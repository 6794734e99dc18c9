//! Names for addresses: asks the controller, one request at a time, and remembers. IO.

mod cache;

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use durward_proto::wire::control_client::ControlClient;
use durward_proto::{IdentifyRequest, Identity, wire};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::transport::Channel;

pub use cache::{Cache, Name};

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Requests are no closer together than this: what is asked in between goes into the next.
const INTERVAL: Duration = Duration::from_millis(500);
/// After a request that failed, the next one waits for so long.
const RETRY: Duration = Duration::from_secs(1);

/// Asks who has an address.
pub struct Names {
    client: ControlClient<Channel>,
    cache: Cache,
    asking: Option<Asking>,
    next: Instant,
}

struct Asking {
    addresses: Vec<IpAddr>,
    at_ms: i64,
    answer: JoinHandle<Result<Vec<Identity>, String>>,
}

impl Names {
    /// Knows nothing yet.
    pub fn new(channel: Channel) -> Self {
        let client = ControlClient::new(channel);
        Self { client, cache: Cache::default(), asking: None, next: Instant::now() }
    }

    /// What was answered so far.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Asks for these, unless something is being asked or it is too early: says whether it did.
    pub fn ask(&mut self, addresses: &HashSet<IpAddr>, now_ms: i64) -> bool {
        if addresses.is_empty() || self.asking.is_some() || Instant::now() < self.next {
            return false;
        }
        self.next = Instant::now() + INTERVAL;
        let addresses: Vec<_> = addresses.iter().take(IdentifyRequest::MAX).copied().collect();
        let mut client = self.client.clone();
        let request = IdentifyRequest(addresses.clone());
        let answer = tokio::spawn(async move {
            let request = wire::IdentifyRequest::from(&request);
            let asked = request.addresses.len();
            let answer = tokio::time::timeout(TIMEOUT, client.identify(request)).await;
            let answer = answer.map_err(|_| format!("no answer within {TIMEOUT:?}"))?;
            let wire::IdentifyResponse { identities } =
                answer.map_err(|status| status.to_string())?.into_inner();
            if identities.len() != asked {
                return Err(format!("{} identities for {asked} addresses", identities.len()));
            }
            let identities = identities.into_iter().map(Identity::try_from);
            identities.collect::<Result<_, _>>().map_err(|error| error.to_string())
        });
        self.asking = Some(Asking { addresses, at_ms: now_ms, answer });
        true
    }

    /// Waits for the answer to what is being asked, and learns it. Waits for ever if nothing is. Nothing is
    /// lost if this is dropped.
    pub async fn answered(&mut self) {
        let Some(asking) = &mut self.asking else { return std::future::pending().await };
        let answer = (&mut asking.answer).await;
        let Some(Asking { addresses, at_ms, .. }) = self.asking.take() else { return };
        match answer.map_err(|error| error.to_string()).flatten() {
            Ok(identities) => {
                for (address, identity) in addresses.into_iter().zip(identities) {
                    self.cache.learn(address, identity, at_ms);
                }
            }
            Err(error) => {
                tracing::debug!(error, "the controller was asked for names, in vain");
                self.next = Instant::now() + RETRY;
            }
        }
    }
}
