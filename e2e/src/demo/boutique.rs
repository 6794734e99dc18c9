//! The Online Boutique: twelve deployments, with stand-ins under the original images' names, and what cartservice says of
//! its requests. Only the bed does IO.

use std::net::SocketAddr;

use crate::{Bed, Image, Result, images};

/// The manifests.
pub(super) const MANIFESTS: &str = include_str!("online-boutique.yaml");

const SERVERS: [&str; 9] = [
    "frontend",
    "adservice",
    "currencyservice",
    "recommendationservice",
    "checkoutservice",
    "emailservice",
    "paymentservice",
    "shippingservice",
    "productcatalogservice",
];

const SERVE: &str = r#"mkdir -p /tmp/www && hostname >/tmp/www/index.html && httpd -p "$PORT" -h /tmp/www"#;

/// Every request is a connection of its own. Its line says from where redis saw it come, or what went wrong.
const SHOP: &str = r#"
    while :; do
      answer=$(printf 'incr carts\nclient info\n' |
        timeout 60 redis-cli -h "${REDIS_ADDR%:*}" -p "${REDIS_ADDR#*:}" 2>&1)
      from=$(echo "$answer" | sed -n 's/^id=.* addr=\([^ ]*\) .*/\1/p')
      if [ -n "$from" ]; then echo "ok $from"; else echo "failed $answer"; fi
      sleep 0.3
    done"#;

const LOAD: &str = r#"while :; do wget -q -O /dev/null "http://$FRONTEND_ADDR/"; sleep 1; done"#;

/// Gives the nodes all images that the manifests name.
pub(super) fn load_images(bed: &Bed) -> Result<()> {
    let shell = |image: Image, script: &str| image.entrypoint(&["/bin/sh", "-c", script]);
    let [first, others @ ..] = SERVERS;
    let servers =
        others.iter().fold(images::shell()?.renamed(name(first)), |image, other| image.also(name(other)));
    let servers = shell(servers, &format!("{SERVE} && exec sleep infinity"));
    let load = shell(images::shell()?.renamed(name("loadgenerator")), LOAD);
    let cart = shell(images::redis()?.renamed(name("cartservice")), &format!("{SERVE}; {SHOP}"));
    [servers, load, cart, images::redis()?].iter().try_for_each(|image| bed.load(image))
}

fn name(service: &str) -> String {
    format!("us-central1-docker.pkg.dev/online-boutique-ci/microservices-demo/{service}:v0.10.6")
}

/// What became of a request of cartservice to redis-cart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// It was answered; redis saw it come from here.
    Ok(SocketAddr),
    /// It failed, and why.
    Failed(String),
}

/// All requests of cartservice, oldest first.
pub(super) fn requests(bed: &Bed) -> Result<Vec<Request>> {
    Ok(bed.kubectl(&["logs", "deployment/cartservice"])?.lines().filter_map(request).collect())
}

fn request(line: &str) -> Option<Request> {
    let (outcome, rest) = line.split_once(' ')?;
    match outcome {
        "ok" => rest.parse().ok().map(Request::Ok),
        "failed" => Some(Request::Failed(rest.to_owned())),
        // A further line of what redis-cli said.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read() {
        assert_eq!(request("ok 10.0.0.1:80"), Some(Request::Ok("10.0.0.1:80".parse().unwrap())));
        assert_eq!(request("failed Error: no"), Some(Request::Failed("Error: no".into())));
        assert_eq!(request("AUTH failed"), None);
    }
}
