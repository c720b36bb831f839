//! The wire between rxe2 and the namespace `peer`.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use secure_rdma_rdma::Result;
use secure_rdma_roce::Opcode;
use secure_rdma_soft::{SoftDevice, SoftDevices};

use crate::end::{PATIENCE, Single, run_in};

/// The network namespace of the embedded device.
pub(crate) const NAMESPACE: &str = "peer";

/// A test that has the wire for itself, and the embedded device that it uses, which is open for as long as this lives.
pub(crate) struct Alone {
    pub(crate) soft: Single,
    _alone: MutexGuard<'static, ()>,
}

/// Packets over the wire are one test's at a time.
pub(crate) fn alone() -> Alone {
    alone_with(SoftDevices::open_soft)
}

/// The same, with an embedded device that is opened like this.
pub(crate) fn alone_with(open: impl FnOnce() -> Result<Arc<SoftDevice>> + Send + 'static) -> Alone {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    until_no_device_is_open();
    let soft = Single(run_in(true, async move { open() }).unwrap());
    Alone { soft, _alone: alone }
}

/// The last test's embedded device closes its sockets in its own time, and the next one needs their port.
fn until_no_device_is_open() {
    let end = Instant::now() + PATIENCE;
    let is_free = || {
        enter();
        let wildcards = [IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::UNSPECIFIED)];
        wildcards.into_iter().all(|wildcard| UdpSocket::bind((wildcard, 4791)).is_ok())
    };
    while !std::thread::spawn(is_free).join().unwrap() {
        assert!(Instant::now() < end, "UDP 4791 is free in the namespace `{NAMESPACE}`");
    }
}

/// The wire, which loses packets in both directions until it is dropped, or flips bits in them.
pub(crate) struct Wire {
    loss: u32,
}

impl Wire {
    /// `loss` is in percent.
    pub(crate) fn new(loss: u32) -> Self {
        Self::with(loss, 0)
    }

    /// Flips a bit in so many percent of all packets.
    pub(crate) fn corrupting(percent: u32) -> Self {
        Self::with(0, percent)
    }

    fn with(loss: u32, corrupted: u32) -> Self {
        for end in ["-n peer qdisc replace dev p0", "qdisc replace dev v2"] {
            tc(&format!("{end} root netem loss {loss}% corrupt {corrupted}% limit 10000"));
        }
        Self { loss }
    }

    /// That packets were lost is seen, or that none was.
    pub(crate) fn check(&self) {
        for end in ["-n peer -s -j qdisc show dev p0", "-s -j qdisc show dev v2"] {
            let text = tc(end);
            let (_, rest) = text.split_once("\"drops\":").expect("tc tells of drops");
            let dropped: u64 = rest.split([',', '}']).next().unwrap().trim().parse().unwrap();
            println!("{dropped} packets dropped ({end})");
            assert_eq!(dropped > 0, self.loss > 0);
        }
    }
}

/// Batches of the embedded device are cut before the wire until it is dropped, so that each packet is met alone.
pub(crate) struct OneByOne {
    /// Segments of a batch at the most, as it was.
    before: String,
}

impl OneByOne {
    pub(crate) fn new() -> Self {
        let told = run("ip", "-n peer -d -o link show dev p0");
        let mut words = told.split_whitespace();
        let before =
            words.find(|word| *word == "gso_max_segs").and_then(|_| words.next()).unwrap().to_owned();
        run("ip", "-n peer link set dev p0 gso_max_segs 1");
        Self { before }
    }
}

impl Drop for OneByOne {
    fn drop(&mut self) {
        run("ip", &format!("-n peer link set dev p0 gso_max_segs {}", self.before));
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for end in ["-n peer qdisc delete dev p0 root", "qdisc delete dev v2 root"] {
            tc(end);
        }
    }
}

fn tc(arguments: &str) -> String {
    run("tc", arguments)
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments}: {told}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Moves this thread, and those that it will start, into the namespace.
pub(crate) fn enter() {
    let namespace = std::fs::File::open(format!("/run/netns/{NAMESPACE}")).expect("peer.sh has run");
    // SAFETY: the descriptor is open, and the call changes nothing but this thread's network namespace.
    let result = unsafe { libc::setns(std::os::fd::AsRawFd::as_raw_fd(&namespace), libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "setns: {}", std::io::Error::last_os_error());
}

/// A kind of packet on its way to one end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) to_soft: bool,
    pub(crate) opcode: Opcode,
    /// The syndrome in the AETH, where only packets with this one are meant.
    pub(crate) syndrome: Option<u8>,
}

/// Drops what comes to UDP 4791 in either namespace, or changes it, and counts it; until it is dropped itself.
///
/// On the way in: a packet that is dropped on its way out is an error to rxe's send, which then tries again at once.
pub(crate) struct Filter;

impl Filter {
    /// Drops everything.
    pub(crate) fn all() -> Self {
        let rule = "udp dport 4791 counter drop";
        Self::new([rule.to_owned(), rule.to_owned()])
    }

    /// Drops the first packet of each of these kinds. BTH follows the eight bytes of UDP, and AETH the twelve of BTH.
    pub(crate) fn first_of(packets: &[Packet]) -> Self {
        let mut rules = [String::new(), String::new()];
        for Packet { to_soft, opcode, syndrome } in packets {
            let syndrome = syndrome.map_or(String::new(), |byte| format!("@th,160,8 {byte}"));
            let rule = format!(
                "udp dport 4791 @th,64,8 {} {syndrome} numgen inc mod 1073741824 == 0 counter drop\n",
                opcode.code()
            );
            rules[usize::from(*to_soft)].push_str(&rule);
        }
        Self::new(rules)
    }

    /// Drops nothing, but sets what the ICRC does not cover of a BTH: FECN, BECN and six reserved bits.
    pub(crate) fn marking() -> Self {
        let rule = "udp dport 4791 @th,96,8 set 255 counter";
        Self::new([rule.to_owned(), rule.to_owned()])
    }

    /// Rules for rxe's namespace, and for soft's.
    fn new(rules: [String; 2]) -> Self {
        for (prefix, rules) in NAMESPACES.into_iter().zip(rules) {
            let table = format!(
                "table inet wire {{ chain input {{ type filter hook input priority 0;\n{rules}\n}}\n}}\n"
            );
            nft(prefix, &["-f", "-"], &table);
        }
        Self
    }

    /// Packets that each rule has met on their way to soft, or to rxe.
    pub(crate) fn met(&self, to_soft: bool) -> Vec<u64> {
        let text = nft(NAMESPACES[usize::from(to_soft)], &["list", "table", "inet", "wire"], "");
        let counts = text.split("counter packets ").skip(1);
        counts.map(|rest| rest.split(' ').next().unwrap().parse().unwrap()).collect()
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        for prefix in NAMESPACES {
            nft(prefix, &["delete", "table", "inet", "wire"], "");
        }
    }
}

/// What a command begins with that runs in rxe's namespace, and in soft's.
const NAMESPACES: [&[&str]; 2] = [&[], &["ip", "netns", "exec", NAMESPACE]];

/// By its whole name: npm puts the commands of the packages that it has installed first, and one of those is called `nft`.
const NFT: &str = "/usr/sbin/nft";

fn nft(prefix: &[&str], arguments: &[&str], input: &str) -> String {
    let words: Vec<&str> = prefix.iter().copied().chain([NFT]).chain(arguments.iter().copied()).collect();
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{words:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
