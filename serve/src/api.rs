//! The endpoints.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use dsv2::generate::ModelFolder;
use dsv2_foreign::Foreign;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::JoinSet;
use tokio::time::{timeout, timeout_at};

use crate::engine::{Engine, Job};
use crate::error::{ApiError, Result, json_response};
use crate::reply::{Kind, Reply, in_parts};
use crate::request::{Asked, Defaults, Fields, chat, completions};

/// What all requests share.
pub struct Api {
    /// The model.
    pub folder: Arc<ModelFolder>,
    /// What it is called.
    pub name: String,
    /// What its folder says of settings that a client leaves out.
    pub defaults: Defaults,
    /// What computes.
    pub engine: Engine,
    /// What a client must know.
    pub key: Option<String>,
    /// The largest body, in bytes.
    pub max_body: u64,
    /// For a large body whose text is made into tokens: the turn to do so.
    pub reading: Arc<Semaphore>,
    /// How long a client may take to send a body.
    pub read_timeout: Duration,
    /// How long a request may take.
    pub timeout: Duration,
    /// Whether no new requests are taken.
    pub stopping: AtomicBool,
}

type Shared = State<Arc<Api>>;

/// All endpoints.
pub fn router(api: Arc<Api>) -> Router {
    let of_clients = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/completions", post(complete))
        .route("/v1/chat/completions", post(talk))
        .route_layer(from_fn_with_state(api.clone(), admit));
    let unknown =
        || async { ApiError::new(StatusCode::NOT_FOUND, Some("unknown_url"), "there is nothing at this path") };
    let other_method = || async {
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_allowed"), "this path is for another method")
    };
    of_clients.route("/health", get(health)).fallback(unknown).method_not_allowed_fallback(other_method).with_state(api)
}

/// Lets clients in that know the key, as long as the server does not end.
async fn admit(State(api): Shared, request: Request, next: Next) -> Response {
    if let Some(key) = &api.key {
        let given = request.headers().get(AUTHORIZATION).and_then(|value| value.as_bytes().split_at_checked(7));
        let given = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer ")).map(|(_, key)| key);
        if !bool::from(given.unwrap_or_default().ct_eq(key.as_bytes())) {
            let message = "expected `Authorization: Bearer KEY` with the server's key";
            return ApiError::new(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), message).into_response();
        }
    }
    if api.stopping.load(Relaxed) {
        return ApiError::stopping().into_response();
    }
    next.run(request).await
}

async fn health(State(api): Shared) -> Response {
    let (running, waiting) = api.engine.load();
    match api.stopping.load(Relaxed) {
        true => ApiError::stopping().into_response(),
        false => json_response(StatusCode::OK, &json!({"status": "ok", "running": running, "waiting": waiting})),
    }
}

async fn models(State(api): Shared) -> Response {
    json_response(StatusCode::OK, &json!({"object": "list", "data": [described(&api)]}))
}

async fn model(State(api): Shared, name: Result<Path<String>, PathRejection>) -> Result<Response> {
    let Path(name) = name.map_err(|refused| ApiError::new(StatusCode::NOT_FOUND, None, refused.body_text()))?;
    is_served(&api, &name)?;
    Ok(json_response(StatusCode::OK, &described(&api)))
}

fn described(api: &Api) -> Value {
    let context = api.folder.config.max_position_embeddings;
    json!({"id": api.name, "object": "model", "created": 0, "owned_by": "dsv2", "max_model_len": context})
}

fn is_served(api: &Api, name: &str) -> Result<()> {
    if name == api.name {
        return Ok(());
    }
    let message = format!("the model `{}` does not exist; this server has `{}`", Foreign(name), Foreign(&api.name));
    let error = ApiError::new(StatusCode::NOT_FOUND, Some("model_not_found"), message);
    Err(ApiError { param: Some("model".to_owned()), ..error })
}

async fn complete(State(api): Shared, request: Request) -> Result<Response> {
    answer(api, request, Kind::Completion).await
}

async fn talk(State(api): Shared, request: Request) -> Result<Response> {
    answer(api, request, Kind::Chat).await
}

async fn answer(api: Arc<Api>, request: Request, kind: Kind) -> Result<Response> {
    let deadline = Instant::now() + api.timeout;
    let body = body(&api, request).await?;
    let asked = understand(&api, body, kind, deadline).await?;
    let reply = submit(&api, asked, kind, deadline)?;
    match reply {
        (reply, true) => in_parts(reply).await,
        (reply, false) => reply.whole().await,
    }
}

/// Bodies that are read without waiting for others.
const SMALL: usize = 64 << 10;

/// What a body asks for, made out on a thread of its own: tokenizers and templates may take a while, and cannot be ended meanwhile.
/// Large bodies come one after another, since a tokenizer takes some hundred times the memory of its text: so all others have threads.
async fn understand(api: &Arc<Api>, body: Vec<u8>, kind: Kind, deadline: Instant) -> Result<Asked> {
    let shared = api.clone();
    let understood = async {
        let turn = match body.len() {
            ..=SMALL => None,
            _ => api.reading.clone().acquire_owned().await.ok(),
        };
        // in a set, so that nothing begins whose client has left
        let mut threads = JoinSet::new();
        threads.spawn_blocking(move || {
            let asked = asked(&shared, &body, kind);
            drop(turn);
            asked
        });
        threads.join_next().await
    };
    match timeout_at(deadline.into(), understood).await {
        Err(_) => Err(ApiError::timeout()),
        Ok(Some(Ok(asked))) => asked,
        Ok(_) => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, None, "the request could not be read")),
    }
}

fn asked(api: &Api, body: &[u8], kind: Kind) -> Result<Asked> {
    let mut fields = Fields::of(body)?;
    is_served(api, &fields.need::<String>("model")?)?;
    match kind {
        Kind::Completion => completions::asked(&api.folder, &api.defaults, &api.engine, fields),
        Kind::Chat => chat::asked(&api.folder, &api.defaults, fields),
    }
}

/// Gives each answer a place, or none of them. Whether it is to come in parts.
fn submit(api: &Api, asked: Asked, kind: Kind, deadline: Instant) -> Result<(Reply, bool)> {
    let sequences: Vec<(usize, usize)> = (0..asked.prompts.len() * asked.n)
        .map(|index| (asked.prompts[index / asked.n].tokens.len(), asked.new[index / asked.n]))
        .collect();
    let places = api.engine.places(&sequences)?;
    let (events, heard) = unbounded_channel();
    let rules = Arc::new(asked.rules.clone());
    for (index, (place, (_, new))) in places.into_iter().zip(sequences).enumerate() {
        api.engine.submit(Job {
            prompt: asked.prompts[index / asked.n].tokens.clone(),
            rules: rules.clone(),
            new,
            logprobs: asked.logprobs,
            scores_prompt: asked.echo && asked.logprobs.is_some(),
            deadline,
            index,
            events: events.clone(),
            place,
        })?;
    }
    let stream = asked.stream;
    Ok((Reply::new(kind, api.folder.clone(), &api.name, asked, heard), stream))
}

/// Reads a body that is not too large and does not take too long.
async fn body(api: &Api, request: Request) -> Result<Vec<u8>> {
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let mut body = request.into_body();
    let slow = || {
        let message = format!("the body was not there after {} s", api.read_timeout.as_secs_f64());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, Some("read_timeout"), message)
    };
    let read = timeout(api.read_timeout, read(&mut body, api.max_body, announced)).await.map_err(|_| slow())??;
    match read {
        Some(bytes) => Ok(bytes),
        None => {
            // many clients listen only when they have sent all
            let _ = timeout(Duration::from_secs(1), async { while let Some(Ok(_)) = body.frame().await {} }).await;
            let message = format!("expected a body of at most {} bytes (--max-body), found more", api.max_body);
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large"), message))
        }
    }
}

/// The bytes, or nothing if there are too many.
async fn read(body: &mut Body, most: u64, announced: Option<u64>) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    if announced.is_some_and(|length| length > most) {
        return Ok(None);
    }
    while let Some(frame) = body.frame().await {
        let broken = |error| ApiError::new(StatusCode::BAD_REQUEST, None, format!("the body broke off: {error}"));
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if (bytes.len() + data.len()) as u64 > most {
            return Ok(None);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Some(bytes))
}
