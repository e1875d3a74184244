//! Connections: accepted, served with time limits, drained at the end.
//!
//! Invariants: a client that sends its headers slowly, or takes its answer slowly, is given up and hinders nobody;
//! once told to stop, the server takes no new connection, and lets running requests end within the time for that. A client
//! that shuts its side down has left, even after a whole request: nothing else tells of one that went away, and its pages
//! are to be free within a step.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, Sleep};

use crate::{App, ModelOptions, ServerOptions, routes};

/// Bytes of a request's headers.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// Number of a request's headers.
const MAX_HEADERS: usize = 100;

/// Why a server does not start or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Options that contradict one another, or would let strangers in.
    #[error("{0}")]
    Options(String),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The first model cannot be loaded.
    #[error("{id} cannot be loaded: {message}")]
    Model {
        /// What clients would have called it.
        id: String,
        /// Why.
        message: String,
        /// What is wrong with the options, or something that failed.
        kind: pelton::ErrorKind,
    },
    /// The system refuses threads or signals.
    #[error("cannot serve: {0}")]
    System(#[from] io::Error),
}

/// A server that listens; [`Server::run`] answers.
pub struct Server {
    app: Arc<App>,
    listener: std::net::TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Checks the options and begins to listen.
    ///
    /// # Errors
    /// [`ServerError::Options`] or [`ServerError::Listen`].
    pub fn bind(options: ServerOptions, models: ModelOptions) -> Result<Server, ServerError> {
        let address = options.address;
        let app = Arc::new(App::new(options, models).map_err(ServerError::Options)?);
        let failed = |source| ServerError::Listen { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Server { app, listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until SIGTERM or Ctrl-C; a second one ends it at once.
    ///
    /// # Errors
    /// Where the first model cannot be loaded, or the system refuses threads.
    pub fn run(self) -> Result<(), ServerError> {
        // The engine's threads are what the cores are for.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(16)
            .thread_name("pelton-http")
            .enable_all()
            .build()?;
        let result = runtime.block_on(async {
            let (told, stop) = watch::channel(0u32);
            tokio::spawn(async move {
                while signal().await.is_ok() {
                    told.send_modify(|n| *n += 1);
                }
            });
            self.serve_until(stop).await
        });
        runtime.shutdown_timeout(Duration::from_secs(1));
        result
    }

    /// Serves until `stop` ends.
    ///
    /// # Errors
    /// As [`Server::run`].
    pub async fn serve(self, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), ServerError> {
        let (told, watched) = watch::channel(0u32);
        tokio::spawn(async move {
            stop.await;
            told.send_modify(|n| *n += 1);
            // Keeps the channel open until the server has ended.
            told.closed().await;
        });
        self.serve_until(watched).await
    }

    /// `stop` counts how often the server was told to stop.
    async fn serve_until(self, mut stop: watch::Receiver<u32>) -> Result<(), ServerError> {
        let listener = TcpListener::from_std(self.listener)?;
        let app = self.app;
        let (drained, mut all_drained) = mpsc::channel::<()>(1);
        let mut first_load = pin!(app.registry.load_default());
        let mut loading = true;
        let mut idle_check = tokio::time::interval(Duration::from_secs(1));
        let places = Arc::new(Semaphore::new(app.options.max_connections));
        loop {
            tokio::select! {
                biased;
                _ = stop.changed() => break,
                loaded = &mut first_load, if loading => {
                    loading = false;
                    loaded?;
                }
                _ = idle_check.tick() => {
                    let registry = app.registry.clone();
                    registry.look_for_losses();
                    tokio::spawn(async move { registry.let_go_of_idle().await });
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        // Beyond the limit a connection is closed at once.
                        let Ok(place) = places.clone().try_acquire_owned() else { continue };
                        let (app, stop, drained) = (app.clone(), stop.clone(), drained.clone());
                        tokio::spawn(async move {
                            let _open = Open::new(&app);
                            connection(stream, &app, stop).await;
                            drop((place, drained));
                        });
                    }
                    // Out of file handles, or a client that left already: others come.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                },
            }
        }
        drop((listener, drained));
        app.draining.store(true, Relaxed);
        (app.options.log)("stopping: no new requests; running ones may end");
        tokio::select! {
            _ = all_drained.recv() => {}
            () = tokio::time::sleep(app.options.drain) => (app.options.log)("stopping: the time is up"),
            _ = stop.changed() => (app.options.log)("stopping: now"),
        }
        Ok(())
    }
}

/// Waits for a signal that tells to stop.
#[cfg(unix)]
async fn signal() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

#[cfg(not(unix))]
async fn signal() -> io::Result<()> {
    tokio::signal::ctrl_c().await
}

/// Counts a connection while it is open, whatever becomes of it.
struct Open(Arc<App>);

impl Open {
    fn new(app: &Arc<App>) -> Open {
        app.metrics.open_connections.fetch_add(1, Relaxed);
        Open(app.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.metrics.open_connections.fetch_sub(1, Relaxed);
    }
}

/// Serves one connection until it ends or the server does.
async fn connection(stream: TcpStream, app: &Arc<App>, mut stop: watch::Receiver<u32>) {
    // Tokens are small, and each one counts.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(Patient::new(stream, app.options.write_timeout));
    let service = TowerToHyperService::new(routes::router(app));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(app.options.read_timeout)
        .max_buf_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS);
    let mut serving = pin!(http.serve_connection(io, service));
    // What goes wrong on a connection is its client's affair.
    tokio::select! {
        _ = serving.as_mut() => {}
        _ = stop.changed() => {
            serving.as_mut().graceful_shutdown();
            let _ = serving.await;
        }
    }
}

/// A stream that gives up when the other side takes nothing for too long.
struct Patient {
    stream: TcpStream,
    timeout: Duration,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(stream: TcpStream, timeout: Duration) -> Patient {
        Patient { stream, timeout, waiting: None }
    }

    /// The result of a write, unless it has been waited for too long.
    fn watched<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.waiting = None;
            return result;
        }
        let timeout = self.timeout;
        let sleep = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + timeout)));
        match sleep.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, data);
        self.watched(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.watched(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.watched(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watched(cx, result)
    }
}
