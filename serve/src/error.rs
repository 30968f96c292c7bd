//! What is said to a client whose request cannot be met, in OpenAI's shape.

use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use dsv2_foreign::Words;
use serde_json::{Value, json};

/// The result of everything that a client can be refused.
pub type Result<V, E = ApiError> = std::result::Result<V, E>;

/// A refusal.
#[derive(Clone, Debug)]
pub struct ApiError {
    /// The status of the answer.
    pub status: StatusCode,
    /// OpenAI's name for the kind of error.
    pub kind: &'static str,
    /// What, where, expected, found.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// A name for programs.
    pub code: Option<&'static str>,
}

/// A client may call a field what it likes.
const LONGEST_PARAM: usize = 100;

impl ApiError {
    /// One with this status, of OpenAI's kind for it.
    pub fn new(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        let kind = match status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        ApiError { status, kind, message: message.into(), param: None, code }
    }

    /// A field that is not as it should be.
    pub fn field(name: &str, message: impl std::fmt::Display) -> Self {
        let message = format!("`{}`: {}", dsv2_foreign::Foreign(name), Words(message));
        let param = name.chars().take(LONGEST_PARAM).collect();
        ApiError { param: Some(param), ..Self::new(StatusCode::BAD_REQUEST, None, message) }
    }

    /// The same with a name for programs.
    #[must_use]
    pub fn with_code(self, code: &'static str) -> Self {
        ApiError { code: Some(code), ..self }
    }

    /// The server is ending.
    pub fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("stopping"), "the server is ending")
    }

    /// It took too long.
    pub fn timeout() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, Some("timeout"), "the request took longer than the server's --timeout")
    }

    /// What is sent.
    pub fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

/// How OpenAI calls the settings of a generation.
const NAMES: [(&str, &str); 4] = [
    ("max_new_tokens", "max_tokens"),
    ("min_new_tokens", "min_tokens"),
    ("stop_strings", "stop"),
    ("sequence_bias", "logit_bias"),
];

impl From<dsv2::Error> for ApiError {
    fn from(error: dsv2::Error) -> Self {
        match error {
            dsv2::Error::Text(error) => error.into(),
            other => Self::new(StatusCode::BAD_REQUEST, None, other.to_string()),
        }
    }
}

impl From<dsv2_text::Error> for ApiError {
    fn from(error: dsv2_text::Error) -> Self {
        use dsv2_text::Error::{Message, Raised, Setting, Template};
        let param = match &error {
            Setting { field, expected, found } => {
                let name = NAMES.iter().find(|(name, _)| name == field).map_or(&**field, |(_, openai)| openai);
                return Self::field(name, format_args!("expected {expected}, found {found}"));
            }
            Message { .. } | Raised { .. } | Template { .. } => Some("messages".to_owned()),
            _ => None,
        };
        ApiError { param, ..Self::new(StatusCode::BAD_REQUEST, None, error.to_string()) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.body());
        let headers = response.headers_mut();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// An answer of JSON.
pub fn json_response(status: StatusCode, body: &Value) -> Response {
    (status, [("content-type", "application/json")], body.to_string()).into_response()
}
