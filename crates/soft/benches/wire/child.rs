//! One measurement: a server process, a client process, and what the client says at its end.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::{scale, soft, tcp, udp};

/// How both sides of a ping-pong wait, and where they run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ping {
    /// Each looks again and again, on a processor of its own.
    Spin,
    /// Each sleeps, on a processor of its own.
    Block,
    /// Each sleeps, and the kernel puts them where it likes: often both on one processor.
    Unpinned,
}

impl Ping {
    fn name(self) -> &'static str {
        match self {
            Self::Spin => "spin",
            Self::Block => "block",
            Self::Unpinned => "unpinned",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::Spin, Self::Block, Self::Unpinned].into_iter().find(|ping| ping.name() == name)
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Task {
    /// TCP, 1 MiB writes, and a reader's buffer of so many bytes: bytes per second.
    Tcp(usize),
    /// UDP, 64 bytes to and fro: median seconds.
    UdpPing(Ping),
    /// UDP, one `sendto` per 64 bytes: packets per second.
    UdpFlood,
    /// RDMA WRITE of 1 MiB messages: bytes per second.
    SoftWrite,
    /// SEND of 64 bytes to and fro: median seconds.
    SoftPing(Ping),
    /// RDMA WRITE of 64 bytes, 128 in flight: messages per second.
    SoftSmall,
    /// WRITEs over so many queue pairs at once: bytes per second.
    Pairs(usize),
    /// WRITEs from so many devices to one: bytes per second.
    Devices(usize),
    /// CPU of a device on which nothing happens, and bytes of a queue pair on which nothing happens.
    Idle,
}

impl Task {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Tcp(buffer) => format!("tcp_reader_{}k", buffer >> 10),
            Self::UdpPing(ping) => format!("udp_{}", ping.name()),
            Self::UdpFlood => "udp_sendto".to_owned(),
            Self::SoftWrite => "soft_write".to_owned(),
            Self::SoftPing(ping) => format!("soft_{}", ping.name()),
            Self::SoftSmall => "soft_small".to_owned(),
            Self::Pairs(count) => format!("pairs_{count}"),
            Self::Devices(count) => format!("devices_{count}"),
            Self::Idle => "idle".to_owned(),
        }
    }

    fn parse(name: &str) -> Self {
        let number = |text: &str| text.parse::<usize>().unwrap();
        match name {
            "udp_sendto" => Self::UdpFlood,
            "soft_write" => Self::SoftWrite,
            "soft_small" => Self::SoftSmall,
            "idle" => Self::Idle,
            other => {
                if let Some(ping) = other.strip_prefix("udp_").and_then(Ping::parse) {
                    Self::UdpPing(ping)
                } else if let Some(ping) = other.strip_prefix("soft_").and_then(Ping::parse) {
                    Self::SoftPing(ping)
                } else if let Some(count) = other.strip_prefix("pairs_") {
                    Self::Pairs(number(count))
                } else if let Some(count) = other.strip_prefix("devices_") {
                    Self::Devices(number(count))
                } else {
                    let buffer = other.strip_prefix("tcp_reader_").unwrap().strip_suffix('k').unwrap();
                    Self::Tcp(number(buffer) << 10)
                }
            }
        }
    }
}

/// What a measurement found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) value: f64,
    /// Packets dropped at full receive buffers, of both sides.
    pub(crate) drops: f64,
    pub(crate) more: Vec<(String, f64)>,
}

/// One of the two processes.
pub(crate) struct Role {
    server: bool,
    task: Task,
    pub(crate) receive_buffer: usize,
    pub(crate) length: Duration,
}

impl Role {
    /// `--server TASK BUFFER SECONDS`, likewise `--client TASK BUFFER SECONDS ADDRESS`.
    pub(crate) fn parse(arguments: &[String]) -> Option<Self> {
        let server = match arguments.first()?.as_str() {
            "--server" => true,
            "--client" => false,
            _ => return None,
        };
        Some(Self {
            server,
            task: Task::parse(&arguments[1]),
            receive_buffer: arguments[2].parse().unwrap(),
            length: Duration::from_secs_f64(arguments[3].parse().unwrap()),
        })
    }

    /// Both talk through standard input and output: the server prints its address, the client reads it, and prints
    /// `value drops name=value …` at its end.
    pub(crate) fn run(&self) {
        let (buffer, length) = (self.receive_buffer, self.length);
        if let Task::UdpPing(ping) | Task::SoftPing(ping) = self.task
            && ping != Ping::Unpinned
        {
            pin(usize::from(!self.server));
        }
        if self.server {
            match self.task {
                Task::Tcp(reader) => tcp::server(reader),
                Task::UdpPing(ping) => udp::echo(ping == Ping::Spin),
                Task::UdpFlood => udp::sink(buffer),
                Task::SoftWrite | Task::SoftSmall => soft::target(buffer),
                Task::SoftPing(ping) => soft::echo(buffer, ping == Ping::Spin),
                Task::Pairs(count) | Task::Devices(count) => scale::receiver(buffer, count),
                Task::Idle => scale::receiver(buffer, scale::IDLE_PAIRS),
            }
            return;
        }
        let mut address = String::new();
        std::io::stdin().read_line(&mut address).unwrap();
        let address = address.trim().parse().unwrap();
        let found = match self.task {
            Task::Tcp(_) => tcp::client(address, length),
            Task::UdpPing(ping) => udp::ping(address, ping == Ping::Spin, length),
            Task::UdpFlood => udp::flood(address, length),
            Task::SoftWrite => soft::write(address, buffer, length),
            Task::SoftPing(ping) => soft::ping(address, buffer, ping == Ping::Spin, length),
            Task::SoftSmall => soft::small(address, buffer, length),
            Task::Pairs(count) => scale::pairs(address, buffer, count, length),
            Task::Devices(count) => scale::devices(address, buffer, count, length),
            Task::Idle => scale::idle(address, buffer, length),
        };
        let more: Vec<_> = found.more.iter().map(|(name, value)| format!("{name}={value}")).collect();
        println!("{} {} {}", found.value, found.drops, more.join(" "));
    }
}

fn pin(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor).unwrap();
    // Where there is one processor only, there is nothing to choose.
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
}

fn start(side: &str, task: Task, receive_buffer: usize, length: Duration) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([side, &task.name(), &receive_buffer.to_string(), &length.as_secs_f64().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs both processes.
pub(crate) fn measure(task: Task, receive_buffer: usize, length: Duration) -> Found {
    use std::io::{BufRead, BufReader, Write};
    let mut server = start("--server", task, receive_buffer, length);
    let mut address = String::new();
    let mut told = BufReader::new(server.stdout.take().unwrap());
    told.read_line(&mut address).unwrap();
    let mut client = start("--client", task, receive_buffer, length);
    client.stdin.take().unwrap().write_all(address.as_bytes()).unwrap();
    let output = client.wait_with_output().unwrap();
    // The server ends when its standard input does.
    drop(server.stdin.take());
    let mut drops = String::new();
    told.read_line(&mut drops).unwrap();
    server.wait().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut words = text.split_whitespace();
    let mut number = || words.next().unwrap_or_else(|| panic!("{task:?} failed")).parse::<f64>().unwrap();
    let (value, own_drops) = (number(), number());
    let more = words.filter_map(|word| word.split_once('='));
    Found {
        value,
        drops: own_drops + drops.trim().parse::<f64>().unwrap_or(0.0),
        more: more.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect(),
    }
}
