//! How calls to Services are judged on this node: after kube-proxy's translation, by their backend, where that can be
//! seen; else by what all of a Service's backends have in common. IO: asks kube-proxy and the kernel; [`decide`] is pure.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use durward_bpf::{DataPath, LoadError};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::config::Services as Setting;
use crate::status::{Problem, Status};

/// How calls to Services are judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Judging {
    /// By their backend, at the host's forward hook.
    Translated,
    /// By the frontend, at the pod's interface: allowed where every backend is.
    #[default]
    Conservative,
}

/// What kube-proxy says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Proxy {
    /// It translates by the host's conntrack.
    Translates,
    /// It works otherwise: this mode.
    Otherwise(String),
    /// It does not say.
    Silent(String),
}

/// Why kube-proxy's mode is not known.
#[derive(Debug, Error)]
enum AskError {
    #[error("{0}")]
    Connect(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("it answers {0}")]
    Refused(hyper::StatusCode),
    #[error("no answer within {ASK_TIMEOUT:?}")]
    Timeout,
}

/// How long kube-proxy may take to answer, how often it is asked, and how often while it does not answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const ASK_EVERY: Duration = Duration::from_secs(15);
const ASK_SILENT_EVERY: Duration = Duration::from_secs(1);
/// More than any mode's name.
const MAX_ANSWER_BYTES: usize = 64;

/// Decides, again and again.
pub struct Decider {
    /// What the operator wants.
    pub setting: Setting,
    /// Where kube-proxy tells its mode.
    pub kube_proxy: SocketAddr,
    /// The kernel.
    pub path: Arc<DataPath>,
    /// Where problems are told.
    pub status: Arc<Status>,
    /// How an earlier run has judged; kept while kube-proxy does not answer.
    pub kept: Option<Judging>,
}

impl Decider {
    /// Publishes how calls are judged, whenever that changes.
    pub async fn run(self, judging: watch::Sender<Option<Judging>>) {
        let Self { setting, kube_proxy, path, status, mut kept } = self;
        let mut forward: Option<Result<(), String>> = None;
        loop {
            let proxy = match setting {
                Setting::Auto => ask(kube_proxy).await,
                Setting::Exact | Setting::Conservative => Proxy::Translates,
            };
            let (mut decided, mut why) = decide(setting, kept, &proxy, kube_proxy);
            if decided == Judging::Translated {
                // Once a run, so that an upgrade's program takes the place of the old one.
                let attached =
                    forward.get_or_insert_with(|| attach(&path).map_err(|error| error.to_string()));
                if let Err(error) = attached {
                    (decided, why) = (Judging::Conservative, Some(format!("{error}; {CONSERVATIVELY}")));
                }
            }
            match why {
                Some(why) => status.raise(Problem::Services, why),
                None => status.clear(&Problem::Services),
            }
            kept = Some(decided);
            judging.send_if_modified(|last| last.replace(decided) != Some(decided));
            let silent = matches!(proxy, Proxy::Silent(_));
            tokio::time::sleep(if silent { ASK_SILENT_EVERY } else { ASK_EVERY }).await;
        }
    }
}

/// What it means that calls are not judged by their backend.
const CONSERVATIVELY: &str =
    "calls of pods that are isolated on egress to a Service are allowed only where all of its backends are";

fn attach(path: &DataPath) -> Result<(), LoadError> {
    tokio::task::block_in_place(|| path.attach_forward())
}

/// How calls are judged, and what people should know of it.
fn decide(
    setting: Setting,
    kept: Option<Judging>,
    proxy: &Proxy,
    kube_proxy: SocketAddr,
) -> (Judging, Option<String>) {
    match (setting, proxy, kept) {
        (Setting::Exact, ..) | (Setting::Auto, Proxy::Translates, _) => (Judging::Translated, None),
        (Setting::Conservative, ..) => (Judging::Conservative, None),
        // What it has written into the kernel stays there while it is away.
        (Setting::Auto, Proxy::Silent(_), Some(Judging::Translated)) => (Judging::Translated, None),
        (Setting::Auto, Proxy::Otherwise(mode), _) => {
            let why = format!("kube-proxy runs in mode {mode:?}, not iptables or nftables: {CONSERVATIVELY}");
            (Judging::Conservative, Some(why))
        }
        (Setting::Auto, Proxy::Silent(error), _) => {
            let why = format!(
                "kube-proxy does not tell its mode at http://{kube_proxy}/proxyMode ({error}): {CONSERVATIVELY}; if it \
                 listens elsewhere, say where by --kube-proxy, and if it translates by iptables or nftables, \
                 --services=exact says so"
            );
            (Judging::Conservative, Some(why))
        }
    }
}

async fn ask(kube_proxy: SocketAddr) -> Proxy {
    let answer = tokio::time::timeout(ASK_TIMEOUT, get_mode(kube_proxy)).await;
    match answer.unwrap_or(Err(AskError::Timeout)) {
        Ok(mode) if ["iptables", "nftables"].contains(&mode.trim()) => Proxy::Translates,
        Ok(mode) => Proxy::Otherwise(mode.trim().to_owned()),
        Err(error) => Proxy::Silent(error.to_string()),
    }
}

async fn get_mode(kube_proxy: SocketAddr) -> Result<String, AskError> {
    let stream = TcpStream::connect(kube_proxy).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with its last request; what it has to say that request says, too.
    tokio::spawn(connection);
    let mut request = hyper::Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = hyper::Uri::from_static("/proxyMode");
    request.headers_mut().insert(hyper::header::HOST, hyper::header::HeaderValue::from_static("localhost"));
    let response = sender.send_request(request).await?;
    if !response.status().is_success() {
        return Err(AskError::Refused(response.status()));
    }
    let body =
        Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(AskError::Body)?;
    Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::routing::get;

    #[test]
    fn backends_are_judged_where_kube_proxy_is_known_to_translate() {
        use Judging::{Conservative, Translated};
        let at: SocketAddr = "127.0.0.1:10249".parse().unwrap();
        let decided = |setting, kept, proxy: &Proxy| {
            let (judging, why) = decide(setting, kept, proxy, at);
            (judging, why.is_some())
        };
        let (otherwise, silent) = (Proxy::Otherwise("ipvs".into()), Proxy::Silent("refused".into()));
        for kept in [None, Some(Translated), Some(Conservative)] {
            for proxy in [&Proxy::Translates, &otherwise, &silent] {
                assert_eq!(decided(Setting::Exact, kept, proxy), (Translated, false));
                assert_eq!(decided(Setting::Conservative, kept, proxy), (Conservative, false));
            }
            assert_eq!(decided(Setting::Auto, kept, &Proxy::Translates), (Translated, false));
            assert_eq!(decided(Setting::Auto, kept, &otherwise), (Conservative, true));
        }
        assert_eq!(decided(Setting::Auto, Some(Translated), &silent), (Translated, false));
        assert_eq!(decided(Setting::Auto, Some(Conservative), &silent), (Conservative, true));
        assert_eq!(decided(Setting::Auto, None, &silent), (Conservative, true));
    }

    /// Something that answers like kube-proxy.
    async fn proxy(answer: &'static str) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/proxyMode", get(move || async move { answer }));
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    #[tokio::test]
    async fn kube_proxy_is_asked_for_its_mode() {
        assert_eq!(ask(proxy("nftables").await).await, Proxy::Translates);
        assert_eq!(ask(proxy("iptables\n").await).await, Proxy::Translates);
        assert_eq!(ask(proxy("ipvs").await).await, Proxy::Otherwise("ipvs".into()));
        let long =
            proxy("nftables, and so on for longer than the name of any mode would ever become in earnest")
                .await;
        assert!(matches!(ask(long).await, Proxy::Silent(_)));
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(ask(nobody).await, Proxy::Silent(error) if error.contains("refused")));
    }
}
