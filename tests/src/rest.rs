//! A REST client as small as a client can be: one connection per request, JSON in, JSON out.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::answers::Problem;

/// Beyond this something hangs: the slowest answer of the tests takes seconds on a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(60);
const ENGINE_HEADER: &str = "candlemesh-engine";

/// A client of one gateway.
#[derive(Debug, Clone)]
pub struct Rest {
    /// host:port
    address: String,
    engine: Option<&'static str>,
}

/// An answer as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    request: String,
}

impl Rest {
    /// A client of the gateway at `http://host:port`.
    pub fn to(gateway: &str) -> Rest {
        Rest { address: gateway.trim_start_matches("http://").to_owned(), engine: None }
    }

    /// The same client, forcing an engine.
    pub fn with_engine(&self, engine: &'static str) -> Rest {
        Rest { engine: Some(engine), ..self.clone() }
    }

    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send(Method::POST, path, body.to_string().into()).await
    }

    /// Sends a request with a body of any bytes, said to be JSON.
    pub async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Answer> {
        let name = format!("{method} {path}");
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, &self.address);
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(engine) = self.engine {
            request = request.header(ENGINE_HEADER, engine);
        }
        let request = request.body(Full::new(body))?;
        let answer = tokio::time::timeout(TIMEOUT, self.exchange(request)).await;
        let (parts, body) = answer.with_context(|| format!("{name}: no answer"))?.with_context(|| name.clone())?;
        Ok(Answer { status: parts.status, headers: parts.headers, body, request: name })
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(http::response::Parts, Bytes)> {
        let stream = TcpStream::connect(&self.address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        connection.abort();
        Ok((parts, body))
    }
}

impl Answer {
    /// The body of a 200.
    pub fn ok<T: DeserializeOwned>(&self) -> Result<T> {
        if self.status != StatusCode::OK {
            bail!("{}: {}: {}", self.request, self.status, self.text());
        }
        self.parse()
    }

    /// The body of a refusal with this status.
    pub fn refused(&self, status: u16) -> Result<Problem> {
        ensure!(self.status == status, "{}: {} instead of {status}: {}", self.request, self.status, self.text());
        let kind = self.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        ensure!(kind == Some("application/problem+json"), "{}: content type {kind:?}", self.request);
        let problem: Problem = self.parse()?;
        ensure!(problem.status == status, "{}: the body says {}", self.request, problem.status);
        Ok(problem)
    }

    /// The engine that the response header names.
    pub fn engine(&self) -> Option<&str> {
        self.headers.get(ENGINE_HEADER).and_then(|engine| engine.to_str().ok())
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).with_context(|| format!("{}: {}", self.request, self.text()))
    }

    /// The start of the body.
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).chars().take(600).collect()
    }
}

/// Path of an instrument's candles.
pub fn candles_path(instrument_key: &str, timeframe: &str) -> String {
    format!("/api/v1/candles/{}/{timeframe}", utf8_percent_encode(instrument_key, NON_ALPHANUMERIC))
}

/// Path of an instrument's indicators.
pub fn indicators_path(instrument_key: &str, timeframe: &str) -> String {
    format!("/api/v1/indicators/{}/{timeframe}", utf8_percent_encode(instrument_key, NON_ALPHANUMERIC))
}
