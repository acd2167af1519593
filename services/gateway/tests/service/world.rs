//! A gateway between a caller and stand-ins for the other roles.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use gateway::{App, Config, Ports, Upstreams};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use mesh::Drain;
use mesh::config::ServerConfig;
use serde_json::Value;
use store::{StoreOptions, Stores};
use tokio::runtime::{Handle, Runtime};
use tonic::transport::Channel;

use super::upstream::Fake;

pub(crate) struct World {
    pub(crate) address: SocketAddr,
    pub(crate) v1: Fake,
    pub(crate) v2: Fake,
    pub(crate) stores: Stores,
    drain: Drain,
}

impl Drop for World {
    fn drop(&mut self) {
        self.drain.start();
    }
}

/// The optimizer's address, where nothing listens.
const NOBODY: &str = "http://127.0.0.1:9";

impl World {
    pub(crate) async fn new() -> World {
        World::with(Config::default()).await
    }

    /// Everything but V2's aggregation and the optimizer is one upstream.
    pub(crate) async fn with(config: Config) -> World {
        World::build(config, &Handle::current()).await
    }

    /// The upstreams live in a runtime of their own, which can be shut down under them.
    pub(crate) async fn over(upstreams: &Runtime) -> World {
        World::build(Config::default(), upstreams.handle()).await
    }

    async fn build(config: Config, upstreams: &Handle) -> World {
        let drain = Drain::new();
        let (v1, v2) = (Fake::new("one"), Fake::new("two"));
        let mut urls = Vec::new();
        for fake in [v1.clone(), v2.clone()] {
            let drain = drain.clone();
            let address = upstreams.spawn(async move { fake.serve(&drain).await }).await.unwrap();
            urls.push(format!("http://{address}"));
        }
        let (one, two) = (urls[0].clone(), urls[1].clone());
        let upstreams = Upstreams {
            ingestion: one.clone(),
            aggregation: one.clone(),
            aggregation_v2: Some(two),
            indicator: one.clone(),
            indicator_v2: None,
            sequence: one,
            sequence_v2: None,
            optimizer: NOBODY.into(),
        };
        let stores = Stores::open("memory:", &StoreOptions::default()).await.unwrap();
        let ports = Ports { flags: Arc::clone(&stores.flags), upstreams };
        let app = App::build(&ServerConfig::default(), config, ports).await.unwrap();
        let address = app.address();
        let until = drain.clone();
        tokio::spawn(async move { app.serve(until).await.unwrap() });
        World { address, v1, v2, stores, drain }
    }

    pub(crate) async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], Bytes::from(body.to_owned())).await
    }

    /// One HTTP/1.1 request on a connection of its own.
    pub(crate) async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Bytes) -> Answer {
        let stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = http::Request::builder().method(method).uri(path).header("host", "gateway");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(Full::new(body)).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        Answer { status: parts.status, headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Checks that this is a problem of the given status, and returns it.
    pub(crate) fn problem(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["status"], status);
        assert_eq!(problem["request_id"], self.header("x-request-id"));
        problem
    }
}
