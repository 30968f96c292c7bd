//! Connections: how many, how long they may be silent, and how they end.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;

use crate::api::{Api, router};

/// What connections and requests run on.
///
/// # Errors
/// If the system gives no threads.
pub fn runtime() -> std::io::Result<Runtime> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // those that make out what requests ask for: a template may take its time, and memory
    runtime.worker_threads(2).max_blocking_threads(4).enable_all().build()
}

/// How connections are treated.
#[derive(Clone, Copy, Debug)]
pub struct Connections {
    /// How many there may be at a time. More wait to be accepted.
    pub most: usize,
    /// How long a client may take to send the head of a request, to send the next one, or to take what is sent.
    pub silent: Duration,
    /// How long requests may go on when the server ends.
    pub grace: Duration,
}

/// Serves until `stop` is there; then takes no more requests, waits for those that run, and lets go of those that take too long.
/// Whether all ended in time.
pub async fn serve(
    listener: TcpListener,
    api: Arc<Api>,
    connections: Connections,
    stop: impl Future<Output = ()>,
) -> bool {
    let router = router(api.clone());
    let places = Arc::new(Semaphore::new(connections.most));
    let graceful = GracefulShutdown::new();
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            (stream, place) = accept(&listener, &places) => {
                let connection = graceful.watch(talk(stream, &router, connections, true));
                tokio::spawn(async move {
                    // whoever breaks off hears nothing
                    let _ = connection.await;
                    drop(place);
                });
            }
            () = &mut stop => break,
        }
    }
    api.stopping.store(true, Relaxed);
    let mut ended = pin!(tokio::time::timeout(connections.grace, graceful.shutdown()));
    loop {
        tokio::select! {
            ended = &mut ended => {
                api.engine.abandon();
                return ended.is_ok();
            }
            (stream, place) = accept(&listener, &places) => {
                // to be told that there is nothing any more
                let connection = talk(stream, &router, connections, false);
                tokio::spawn(async move {
                    let _ = connection.await;
                    drop(place);
                });
            }
        }
    }
}

/// The next connection, when there is a place for it.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    loop {
        let place = places.clone().acquire_owned().await.ok();
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            // too many open files, or a client that has left already
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

type Service = TowerToHyperService<Router>;
type Io = TokioIo<std::pin::Pin<Box<TimeoutStream<TcpStream>>>>;

fn talk(
    stream: TcpStream,
    router: &Router,
    connections: Connections,
    keep_alive: bool,
) -> http1::Connection<Io, Service> {
    // parts of an answer go out as they come
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(connections.silent));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(connections.silent)
        .keep_alive(keep_alive)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router.clone()))
}

/// Where a listener listens.
///
/// # Errors
/// If it cannot be had.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}
