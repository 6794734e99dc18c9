//! The guided tour: what Durward does, step by step, with kubectl on the Online Boutique. Each step is checked (IO).

mod boutique;
mod lines;
mod terminal;

use std::{process::Command, time::Instant};

use serde_json::{Value, json};

use crate::{Bed, Config, Error, Result, end_with_parent, images, process, programs::timed};
use boutique::{MANIFESTS, Request, requests};
pub use lines::{Connection, End, Line, Policy, lines, table};
use terminal::Terminal;

const POLICY: &str = include_str!("demo/redis-cart-allow-from-cartservice.yaml");
const POLICY_NAME: &str = "redis-cart-allow-from-cartservice";
const CHART: &str = "charts/durward";
const ROGUE: &str = "default/rogue-1";
/// How many requests of cartservice say that it goes on.
const SEVERAL: usize = 5;

/// Walks through it on a bed of its own. Fails at the first step that is not as it should be.
pub fn run() -> Result<()> {
    end_with_parent()?;
    let start = Instant::now();
    // Before the bed: what takes long when nothing is cached.
    let product = images::durward()?;
    let bed = timed("bringing up a Kubernetes with two nodes", || Bed::up(Config::new("demo").nodes(2)))?;
    timed("giving its nodes the images", || {
        boutique::load_images(&bed)?;
        product.iter().try_for_each(|archive| bed.load_archive(archive))
    })?;
    let tour = Tour { bed: &bed, terminal: Terminal { bed: &bed } };
    tour.open_the_shop()?;
    tour.install()?;
    tour.rogue_gets_in()?;
    let redis = tour.redis()?;
    tour.policy_keeps_it_out()?;
    tour.denial_is_logged(&redis)?;
    tour.denials_are_logged_on_request(&redis)?;
    tour.connections_are_logged_on_request(&redis)?;
    println!(
        "\nAll steps are as they should be, after {} s. Taking the cluster down.",
        start.elapsed().as_secs()
    );
    Ok(())
}

struct Tour<'a> {
    bed: &'a Bed,
    terminal: Terminal<'a>,
}

/// redis-cart's pod.
struct Redis {
    pod: String,
    node: String,
}

/// What the rogue's ping gets.
#[derive(PartialEq)]
enum Ping {
    Pong,
    /// No answer, until it was given up.
    Silence,
}

impl Tour<'_> {
    fn open_the_shop(&self) -> Result<()> {
        self.terminal.heading("The Online Boutique, before there is any policy");
        self.terminal.say("kubectl apply -f online-boutique.yaml");
        self.bed.apply(MANIFESTS)?;
        self.bed.kubectl(&[
            "run",
            "rogue-1",
            "--image=redis:alpine",
            "--command",
            "--",
            "sleep",
            "infinity",
        ])?;
        timed("the shop opens", || {
            self.bed.wait("all deployments are available", || {
                let wait = ["wait", "--for=condition=Available", "deployment", "--all", "--timeout=5s"];
                self.bed.kubectl(&wait).map(Some)
            })
        })?;
        self.terminal.kubectl(&["get", "deployments"]).map(drop)
    }

    fn install(&self) -> Result<()> {
        self.terminal.heading("1. Durward is installed");
        let chart = format!("{}/../{CHART}", env!("CARGO_MANIFEST_DIR"));
        let place = ["--namespace", "durward-system", "--create-namespace"];
        let command = |chart| [&["install", "durward", chart], place.as_slice()].concat();
        self.terminal.helm(&command(CHART), &command(&chart))?;
        for daemon in ["deployment/durward-controller", "daemonset/durward-enforcer"] {
            self.bed.wait(&format!("{daemon} is ready"), || {
                let status = ["-n", "durward-system", "rollout", "status", daemon, "--timeout=5s"];
                self.bed.kubectl(&status).map(Some)
            })?;
        }
        self.terminal.kubectl(&["-n", "durward-system", "get", "pods", "-o", "wide"])?;
        self.bed.wait("the controller makes the NetworkLogging object", || {
            self.bed.kubectl(&["get", "nl", "default"]).map(Some)
        })?;
        self.terminal.kubectl(&["get", "nl", "default", "-o", "yaml"])?;
        let object = self.bed.json(&["get", "nl", "default"])?;
        let off = json!({"log": false, "delegate": false});
        let all_off = json!({"allow": off, "deny": off});
        check(object["spec"]["cluster"] == all_off, || format!("not all false: {}", object["spec"]))?;
        self.terminal.note("the controller made the object: nothing is logged yet");
        Ok(())
    }

    fn rogue_gets_in(&self) -> Result<()> {
        self.terminal.heading("2. Without a policy any pod talks with redis-cart");
        self.terminal.say("kubectl run rogue-1 --image=redis:alpine --command -- sleep infinity");
        self.bed.pod(ROGUE)?;
        self.bed.wait("rogue-1 gets its PONG", || Ok((self.attempt()? == Ping::Pong).then_some(())))?;
        self.told(&Ping::Pong);
        self.cart_goes_on()?;
        self.terminal
            .note("rogue-1 gets its PONG through the Service redis-cart, and cartservice its answers");
        Ok(())
    }

    fn policy_keeps_it_out(&self) -> Result<()> {
        self.terminal.heading("3. A policy: only cartservice may");
        let before = self.failures()?;
        self.terminal.apply(POLICY)?;
        self.bed.wait("rogue-1 hangs", || Ok((self.attempt()? == Ping::Silence).then_some(())))?;
        self.told(&Ping::Silence);
        let requests = self.cart_goes_on()?;
        check(self.failures()? == before, || format!("cartservice failed: {requests:?}"))?;
        self.terminal.kubectl(&["logs", "deployment/cartservice", "--tail=3"])?;
        self.terminal.note("rogue-1 hangs; of cartservice's requests not one failed");
        Ok(())
    }

    fn denial_is_logged(&self, redis: &Redis) -> Result<()> {
        self.terminal.heading("4. Denials are logged");
        self.terminal.logging(&json!({"deny": {"log": true}}))?;
        self.told(&Ping::Silence);
        // A ping may be over before its packet is sent again: then there is nothing to fold.
        let line = self.bed.wait("a line for all packets of rogue-1's ping", || {
            check(self.attempt()? == Ping::Silence, || "rogue-1 gets through".into())?;
            let lines = lines(self.bed, &redis.node)?;
            Ok(lines.into_iter().find(|line| line.disposition == "deny" && line.count > 1))
        })?;
        self.show(redis, std::slice::from_ref(&line));
        check_denial(&line, redis)?;
        self.terminal
            .note("one line for all packets of the ping: who, to whom, and which policy isolates it");
        Ok(())
    }

    fn denials_are_logged_on_request(&self, redis: &Redis) -> Result<()> {
        self.terminal.heading("5. Denials are logged where a namespace asks for it");
        self.terminal.logging(&json!({"deny": {"log": true, "delegate": true}}))?;
        let delegated = self.now()?;
        check(self.attempt()? == Ping::Silence, || "rogue-1 gets through".into())?;
        self.told(&Ping::Silence);
        let annotated = self.now()?;
        let annotation = "policy.network.gke.io/enable-deny-logging=true";
        self.terminal.kubectl(&["annotate", "namespace", "default", annotation])?;
        // What is denied now and is in the log comes after whatever was denied before, in the log as in time.
        let line = self.bed.wait("rogue-1's denied pings are logged again", || {
            check(self.attempt()? == Ping::Silence, || "rogue-1 gets through".into())?;
            let lines = lines(self.bed, &redis.node)?;
            Ok(lines.into_iter().find(|line| line.disposition == "deny" && line.timestamp > annotated))
        })?;
        self.show(redis, std::slice::from_ref(&line));
        check_denial(&line, redis)?;
        let between = lines(self.bed, &redis.node)?;
        let between: Vec<_> =
            between.iter().filter(|l| l.timestamp > delegated && l.timestamp <= annotated).collect();
        check(between.is_empty(), || format!("logged without being asked for: {between:?}"))?;
        self.terminal.note("no line for the first ping; with the annotation there are lines again");
        Ok(())
    }

    fn connections_are_logged_on_request(&self, redis: &Redis) -> Result<()> {
        self.terminal.heading("6. Allowed connections are logged where a policy asks for it");
        let before = self.failures()?;
        let annotation = "policy.network.gke.io/enable-logging=true";
        self.terminal.kubectl(&["annotate", "networkpolicy", POLICY_NAME, annotation])?;
        self.terminal.logging(&json!({"allow": {"log": true, "delegate": true}}))?;
        let logged = self.bed.wait("each connection of cartservice has its line", || {
            Ok(logged_requests(&requests(self.bed)?, &allowed(self.bed, redis)?))
        })?;
        self.show(redis, &logged);
        for line in &logged {
            let right = line.names() == [POLICY_NAME]
                && line.src.workload_name.as_deref() == Some("cartservice")
                && line.dest.is(&redis.pod)
                && (line.count, line.connection.direction.as_str()) == (1, "ingress");
            check(right, || format!("a wrong line: {line:?}"))?;
        }
        let twice = allowed(self.bed, redis)?;
        let mut sources: Vec<_> = twice.iter().map(Line::source).collect();
        sources.sort();
        sources.dedup();
        check(sources.len() == twice.len(), || format!("connections with two lines: {twice:?}"))?;
        check(self.failures()? == before, || "requests of cartservice failed".into())?;
        self.terminal.note("one line for each connection of cartservice, naming the policy that allows it");
        Ok(())
    }

    /// Shows the rogue's ping, and what it got.
    fn told(&self, answer: &Ping) {
        self.terminal.say("kubectl exec rogue-1 -- timeout 4 redis-cli -h redis-cart ping");
        println!("{}", if *answer == Ping::Pong { "PONG" } else { "(no answer within 4 s)" });
    }

    fn attempt(&self) -> Result<Ping> {
        let ping = ["timeout", "4", "redis-cli", "-h", "redis-cart", "ping"];
        match self.bed.exec(ROGUE, &ping) {
            Ok(text) if text.trim() == "PONG" => Ok(Ping::Pong),
            Ok(text) => Err(Error::Unfit(format!("redis-cart answered rogue-1: {text}"))),
            // How `timeout` says that it ended the command.
            Err(Error::Command { output, .. }) if output.contains("exit code 143") => Ok(Ping::Silence),
            Err(error) => Err(error),
        }
    }

    /// Waits for further requests of cartservice that were answered.
    fn cart_goes_on(&self) -> Result<Vec<Request>> {
        let answered = |requests: &[Request]| {
            requests.iter().filter(|request| matches!(request, Request::Ok(_))).count()
        };
        let enough = answered(&requests(self.bed)?) + SEVERAL;
        self.bed.wait("cartservice goes on", || {
            let requests = requests(self.bed)?;
            Ok((answered(&requests) >= enough).then_some(requests))
        })
    }

    fn failures(&self) -> Result<usize> {
        let requests = requests(self.bed)?;
        Ok(requests.iter().filter(|request| matches!(request, Request::Failed(_))).count())
    }

    fn redis(&self) -> Result<Redis> {
        let pods = self.bed.json(&["get", "pods", "-l", "app=redis-cart"])?;
        let pod = &pods["items"][0];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Redis {
            pod: format!("default/{}", text(&pod["metadata"]["name"])),
            node: text(&pod["spec"]["nodeName"]),
        })
    }

    fn show(&self, redis: &Redis, lines: &[Line]) {
        self.terminal
            .say(&format!("tail /var/log/network/policy_action.log   # on {}, as a table", redis.node));
        print!("{}", table(lines));
    }

    /// The time, as in the log.
    fn now(&self) -> Result<String> {
        let text = process::output(Command::new("date").args(["--utc", "+%FT%T.%NZ"]))?;
        Ok(text.trim().to_owned())
    }
}

fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Unfit(otherwise())) }
}

fn check_denial(line: &Line, redis: &Redis) -> Result<()> {
    let workload = line.dest.workload_kind.as_deref().zip(line.dest.workload_name.as_deref());
    let right = line.src.is(ROGUE)
        && line.dest.is(&redis.pod)
        && workload == Some(("Deployment", "redis-cart"))
        && line.connection.direction == "ingress"
        && line.connection.dest_port == Some(6379)
        && line.policies.is_empty()
        && line.names() == [POLICY_NAME]
        && line.node_name == redis.node;
    check(right, || format!("a wrong line: {line:?}"))
}

fn allowed(bed: &Bed, redis: &Redis) -> Result<Vec<Line>> {
    let lines = lines(bed, &redis.node)?;
    Ok(lines.into_iter().filter(|line| line.disposition == "allow").collect())
}

/// The lines of several requests one after the other, from the first that has a line; none before all of them have.
fn logged_requests(requests: &[Request], lines: &[Line]) -> Option<Vec<Line>> {
    let line = |request: &Request| match request {
        Request::Ok(source) => lines.iter().find(|line| line.source() == Some(*source)).cloned(),
        Request::Failed(_) => None,
    };
    let first = requests.iter().position(|request| line(request).is_some())?;
    requests.get(first..first + SEVERAL)?.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_without_its_line_is_noticed() {
        let line = |port: u16| Line {
            connection: Connection {
                src_ip: [10, 0, 0, 1].into(),
                src_port: Some(port),
                dest_ip: [10, 0, 0, 2].into(),
                dest_port: Some(6379),
                protocol: "tcp".into(),
                direction: "ingress".into(),
            },
            disposition: "allow".into(),
            policies: vec![],
            isolated_by: vec![],
            src: End::default(),
            dest: End::default(),
            count: 1,
            node_name: "n1".into(),
            timestamp: String::new(),
        };
        let request = |port: u16| Request::Ok(([10, 0, 0, 1], port).into());
        let requests: Vec<_> = (1..=7).map(request).collect();
        let of = |ports: &[u16]| {
            let lines: Vec<_> = ports.iter().map(|&port| line(port)).collect();
            logged_requests(&requests, &lines).map(|lines| lines.len())
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[3, 4, 5, 6, 7]), Some(5));
        assert_eq!(of(&[2, 3, 5, 6, 7]), None);
        assert_eq!(of(&[4, 5, 6, 7]), None);
    }
}
