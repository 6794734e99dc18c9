//! A long-lived TCP connection, and whether it goes on (IO).

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    time::timeout,
};

use crate::{Error, Namespaces, PATIENCE, Result, error::Named, wait};

const PAUSE: Duration = Duration::from_millis(10);
/// How long nothing may move in a connection that is said to be cut.
const SILENCE: Duration = Duration::from_secs(4);

/// A connection to a [`crate::Server`] that sends numbered messages, and gets each back before it sends the next.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    echoed: AtomicU64,
    broken: Mutex<Option<String>>,
}

impl Stream {
    /// Connects from these namespaces.
    pub fn open(from: &Namespaces, to: SocketAddr) -> Result<Self> {
        let (shared, from) = (Arc::new(Shared::default()), from.try_clone()?);
        let (stop, stopped) = oneshot::channel();
        let (ready, connected) = mpsc::channel();
        let state = shared.clone();
        let thread = thread::spawn(move || {
            let connect = || {
                from.enter()?;
                let builder = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = builder.named("starting a runtime")?;
                let stream = runtime.block_on(async { timeout(PATIENCE, TcpStream::connect(to)).await });
                let stream = stream.map_err(std::io::Error::from).and_then(|stream| stream);
                Ok((runtime, stream.named(format!("connecting to {to}"))?))
            };
            match connect() {
                Err(error) => drop(ready.send(Err(error))),
                Ok((runtime, stream)) => {
                    drop(ready.send(Ok(())));
                    runtime.block_on(async {
                        tokio::select! { _ = stopped => (), error = talk(stream, &state) => state.breaks(error) }
                    });
                }
            }
        });
        let stream = Self { shared, stop: Some(stop), thread: Some(thread) };
        connected.recv().map_err(std::io::Error::other).named("starting a stream")??;
        Ok(stream)
    }

    /// How many messages came back so far.
    pub fn echoed(&self) -> u64 {
        self.shared.echoed.load(Ordering::Relaxed)
    }

    /// Waits until 20 more messages came back. Fails at once if the connection broke.
    pub fn flows(&self) -> Result<()> {
        let enough = self.echoed() + 20;
        let broken = wait("the stream flows", || match (self.broken(), self.echoed()) {
            (Some(error), _) => Ok(Some(error)),
            (None, echoed) if echoed >= enough => Ok(None),
            (None, echoed) => Err(format!("{echoed} messages came back")),
        })?;
        broken.map_or(Ok(()), |error| Err(Error::unfit(format!("the stream broke: {error}"))))
    }

    /// Waits until the connection broke, or nothing moves in it any more.
    pub fn is_cut(&self) -> Result<()> {
        let (mut last, mut since) = (self.echoed(), Instant::now());
        wait("the stream is cut", || {
            let echoed = self.echoed();
            if echoed != last {
                (last, since) = (echoed, Instant::now());
            }
            let cut = self.broken().is_some() || since.elapsed() > SILENCE;
            if cut { Ok(()) } else { Err(format!("it flows: {echoed} messages came back")) }
        })
    }

    /// Why it broke, if it did.
    pub fn broken(&self) -> Option<String> {
        self.shared.broken.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn breaks(&self, error: String) {
        *self.broken.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(error);
    }
}

/// Goes on until it fails.
async fn talk(mut stream: TcpStream, shared: &Shared) -> String {
    loop {
        let number = shared.echoed.load(Ordering::Relaxed) + 1;
        let mut answer = [0; 8];
        let exchange = async {
            stream.write_all(&number.to_be_bytes()).await?;
            stream.read_exact(&mut answer).await
        };
        if let Err(error) = exchange.await {
            return error.to_string();
        }
        let answer = u64::from_be_bytes(answer);
        if answer != number {
            return format!("message {number} came back as {answer}");
        }
        shared.echoed.store(number, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
}
