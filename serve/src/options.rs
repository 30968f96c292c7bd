//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Parser;
use dsv2::generate::ModelFolder;
use dsv2::memory::Size;
use dsv2::precision::Precision;
use dsv2::{Error, Result, golden};
use dsv2_reference::Dialect;
use tokio::sync::Semaphore;

use crate::api::Api;
use crate::engine::{Engine, Limits};
use crate::request::Defaults;
use crate::server::Connections;

/// The name of the model in the program.
pub const EMBEDDED: &str = "dsv2-embedded";

/// An OpenAI-compatible server of DeepSeek-V2, for evaluation harnesses and clients; not made for production
///
/// It computes on the CPU, on the reference, whose answers have the same bits in any company. (The CUDA kernels are in `dsv2
/// generate`.) Endpoints: /v1/completions, /v1/chat/completions, /v1/models, /health.
#[derive(Clone, Debug, Parser)]
#[command(version, name = "dsv2-serve", max_term_width = 100)]
pub struct Options {
    /// A Hugging Face folder as it is downloaded: config.json, weights, tokenizer.json [default: a small model in the program]
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// What clients call it [default: the folder's name; dsv2-embedded]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// What to compute in: f64, f32, f16 or bf16
    #[arg(long, value_name = "DTYPE", default_value = "f32", value_parser = str::parse::<Precision>)]
    pub dtype: Precision,
    /// Whose DeepSeek-V2: hf, hf-pre-5.15 or deepseek
    #[arg(long, default_value = "hf", value_parser = golden::dialect)]
    pub dialect: Dialect,
    /// Take no more memory than this beside mapped weights, such as 8GB or 512MiB [default: what is free]
    #[arg(long, value_name = "SIZE", value_parser = str::parse::<Size>)]
    pub memory_limit: Option<Size>,
    /// Where to listen; other addresses than those of this machine alone must be asked for
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// The port; 0 for any that is free
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// What clients must know (`Authorization: Bearer KEY`)
    #[arg(long, value_name = "KEY", env = "DSV2_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// How many sequences are computed at a time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_batch: u16,
    /// How many sequences may wait; those beyond are refused with status 429
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub queue: u16,
    /// How many connections there may be; more wait to be accepted
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_connections: u16,
    /// The largest body of a request
    #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = body)]
    pub max_body: Size,
    /// How many seconds a request may take
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = seconds)]
    pub timeout: Duration,
    /// How many seconds a client may take to send a request's head, its body, or the next request, or to take what is sent
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub read_timeout: Duration,
    /// How many seconds requests may go on when the server is told to end
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub grace: Duration,
}

/// Bytes that a semaphore can count.
fn body(text: &str) -> Result<Size> {
    let size = text.parse::<Size>().ok().filter(|size| (1..=1 << 30).contains(&size.0));
    size.ok_or_else(|| Error::request("--max-body", "a size up to 1GiB, such as 4MiB", format!("{text:?}")))
}

fn seconds(text: &str) -> Result<Duration> {
    let refused = || Error::request("seconds", "a number above 0, at most 1000000", format!("{text:?}"));
    let seconds = text.parse::<f64>().ok().filter(|seconds| *seconds > 0.0 && *seconds <= 1e6).ok_or_else(refused)?;
    Ok(Duration::from_secs_f64(seconds))
}

impl Options {
    /// The model, loaded, and what computes.
    ///
    /// # Errors
    /// If a file is missing or at fault, a flag is impossible, or there is not the memory.
    pub fn api(&self) -> Result<Arc<Api>> {
        if matches!(self.dtype, Precision::Tf32 | Precision::Fp8) {
            return Err(Error::request("--dtype", "f64, f32, f16 or bf16", self.dtype));
        }
        if self.api_key.as_ref().is_some_and(|key| key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::request("--api-key", "a key of printable ASCII", "another text"));
        }
        let folder = Arc::new(ModelFolder::open_or_embedded(self.model.as_deref(), self.dialect)?);
        let of_folder = || self.model.as_ref()?.canonicalize().ok()?.file_name()?.to_str().map(str::to_owned);
        let limits = Limits { batch: self.max_batch.into(), queue: self.queue.into(), memory: self.memory_limit };
        Ok(Arc::new(Api {
            name: self.name.clone().or_else(of_folder).unwrap_or_else(|| EMBEDDED.to_owned()),
            defaults: Defaults::of(&folder, self.model.as_deref())?,
            engine: Engine::start(folder.clone(), self.dtype, limits)?,
            folder,
            key: self.api_key.clone(),
            max_body: self.max_body.0,
            reading: Arc::new(Semaphore::new(1)),
            read_timeout: self.read_timeout,
            timeout: self.timeout,
            stopping: AtomicBool::new(false),
        }))
    }

    /// Where to listen.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }

    /// How connections are treated.
    pub fn connections(&self) -> Connections {
        Connections { most: self.max_connections.into(), silent: self.read_timeout, grace: self.grace }
    }
}
