//! The network: links with virtual time, and everything that happens to packets on them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, SocketAddr};

use super::random::Random;
use super::scenario::{Fault, Scenario};

/// Nanoseconds of virtual time.
pub type Time = u64;
pub const MICROSECOND: Time = 1_000;
pub const MILLISECOND: Time = 1_000_000;
pub const SECOND: Time = 1_000_000_000;

/// What became of a packet's bytes on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// As the sender made them.
    Genuine,
    /// Bits were flipped.
    Damaged,
    /// A third party made them.
    Forged,
}

/// A UDP datagram and what of its IP header matters.
#[derive(Clone, Debug)]
pub struct Datagram {
    pub bytes: Vec<u8>,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub ecn: u8,
    /// The IPv4 ID, which the receiver cannot see.
    pub id: u16,
    /// Its index in the sender's batch, of which the receiver may be told.
    pub segment: u16,
    pub origin: Origin,
    /// What a damaged one was.
    pub original: Option<Vec<u8>>,
}

/// One direction between two hosts.
#[derive(Clone, Default)]
struct Link {
    delay: Time,
    jitter: Time,
    loss: u32,
    burst: u32,
    duplicate: u32,
    late: bool,
    reorder: u32,
    corrupt: u32,
    congestion: u32,
    /// Nanoseconds per byte, in 1/1024; 0 is no limit.
    pace: u64,
    /// The longest time in the queue before it.
    queue: Time,
    mtu: usize,
    dead_from: Option<Time>,
    blackholes: bool,
    busy_until: Time,
    lose_next: u32,
}

/// In-flight packets, and what happens to them.
pub struct Network {
    links: Vec<Link>,
    hosts: usize,
    random: Random,
    flying: BinaryHeap<Reverse<(Time, u64, u32)>>,
    slots: Vec<Option<Datagram>>,
    free: Vec<u32>,
    buffers: Vec<Vec<u8>>,
    counter: u64,
    pub carried: u64,
    /// What happens to each packet, where a script says it.
    pub script: Option<std::vec::IntoIter<u8>>,
}

impl Network {
    pub fn new(scenario: &Scenario, hosts: usize) -> Self {
        let mut random = scenario.random(2);
        let links = (0..hosts * hosts).map(|_| Link::draw(scenario, &mut random)).collect();
        Self {
            links,
            hosts,
            random: scenario.random(3),
            flying: BinaryHeap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            buffers: Vec::new(),
            counter: 0,
            carried: 0,
            script: None,
        }
    }

    /// Whether no link loses more than 5 %.
    pub fn is_gentle(&self) -> bool {
        self.links.iter().all(|link| link.loss <= 50_000)
    }

    /// From now on nothing gets through.
    pub fn silence(&mut self) {
        self.links.iter_mut().for_each(|link| link.dead_from = Some(0));
    }

    /// From now on nothing happens to packets any more, and what is dead comes to life.
    pub fn heal(&mut self) {
        self.script = None;
        for link in &mut self.links {
            *link = Link { delay: link.delay.min(10 * MILLISECOND), mtu: usize::MAX, ..Link::default() };
        }
    }

    /// An empty buffer, used before if there is one.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.buffers.pop().unwrap_or_default()
    }

    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.buffers.len() < 512 {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }

    pub fn next_arrival(&self) -> Option<Time> {
        self.flying.peek().map(|Reverse((time, ..))| *time)
    }

    /// The next packet that has arrived by `now`.
    pub fn arrived(&mut self, now: Time) -> Option<Datagram> {
        let Reverse((time, _, slot)) = *self.flying.peek()?;
        if time > now {
            return None;
        }
        self.flying.pop();
        self.free.push(slot);
        self.slots[slot as usize].take()
    }

    pub fn in_flight(&self) -> usize {
        self.flying.len()
    }

    fn fly(&mut self, at: Time, datagram: Datagram) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.slots[slot as usize] = Some(datagram);
        self.counter += 1;
        self.flying.push(Reverse((at, self.counter, slot)));
    }

    /// Puts a packet on the wire that meets no fault: a forged one.
    pub fn inject(&mut self, at: Time, datagram: Datagram) {
        self.fly(at, datagram);
    }

    /// Sends a packet from host `from` to host `to`.
    pub fn send(&mut self, now: Time, from: usize, to: usize, mut datagram: Datagram) {
        self.carried += 1;
        if let Some(byte) = self.script.as_mut().and_then(Iterator::next) {
            return self.send_by_script(now, byte, datagram);
        }
        let link = &mut self.links[from * self.hosts + to];
        let random = &mut self.random;
        let dead = link.dead_from.is_some_and(|from| now >= from);
        let hole = link.blackholes && now % (5 * SECOND) < 2 * SECOND;
        if dead || hole || datagram.bytes.len() > link.mtu {
            return self.recycle(datagram.bytes);
        }
        if link.lose_next > 0 {
            link.lose_next -= 1;
            return self.recycle(datagram.bytes);
        }
        if link.burst > 0 && random.chance(link.burst) {
            link.lose_next = random.range(0, 15) as u32;
            return self.recycle(datagram.bytes);
        }
        if link.loss > 0 && random.chance(link.loss) {
            return self.recycle(datagram.bytes);
        }
        let mut leaves = now;
        if link.pace > 0 {
            let waits = link.busy_until.saturating_sub(now);
            if waits > link.queue {
                return self.recycle(datagram.bytes);
            }
            leaves = now + waits + (((datagram.bytes.len() as u64 + 62) * link.pace) >> 10);
            link.busy_until = leaves;
        }
        let mut arrives = leaves + link.delay;
        if link.jitter > 0 {
            arrives += random.below(link.jitter);
        }
        if link.reorder > 0 && random.chance(link.reorder) {
            // About as long as up to 64 packets take to pass.
            arrives += random.range(1, 64) * 2 * MICROSECOND + random.below(1 + link.delay / 8);
        }
        if link.congestion > 0 && random.chance(link.congestion) {
            datagram.ecn = 3;
        }
        let copies = usize::from(link.duplicate > 0 && random.chance(link.duplicate));
        let late = link.late;
        for _ in 0..copies {
            let lag = if late && self.random.chance(200_000) {
                self.random.below(10 * SECOND)
            } else {
                self.random.below(200 * MICROSECOND)
            };
            let mut bytes = self.buffer();
            bytes.extend_from_slice(&datagram.bytes);
            self.fly(arrives + lag, Datagram { bytes, ..datagram.clone_header() });
        }
        let link = &self.links[from * self.hosts + to];
        if link.corrupt > 0 && self.random.chance(link.corrupt) {
            damage(&mut datagram, &mut self.random);
        }
        self.fly(arrives, datagram);
    }
}

impl Network {
    /// Lets a packet through, loses it, doubles it, delays it or damages it.
    fn send_by_script(&mut self, now: Time, byte: u8, mut datagram: Datagram) {
        let more = Time::from(byte >> 3);
        let arrives = now + 10 * MICROSECOND;
        match byte & 7 {
            4 => return self.recycle(datagram.bytes),
            5 => {
                let mut bytes = self.buffer();
                bytes.extend_from_slice(&datagram.bytes);
                self.fly(arrives + more * 300 * MICROSECOND, Datagram { bytes, ..datagram.clone_header() });
            }
            6 => return self.fly(arrives + more * MILLISECOND, datagram),
            7 => {
                datagram.origin = Origin::Damaged;
                datagram.original = Some(datagram.bytes.clone());
                let at = (more as usize * 7) % datagram.bytes.len();
                datagram.bytes[at] ^= 1 << (more % 8);
            }
            _ => {}
        }
        self.fly(arrives, datagram);
    }
}

impl Datagram {
    /// All but the bytes.
    fn clone_header(&self) -> Self {
        Self { bytes: Vec::new(), original: None, ..*self }
    }
}

impl Link {
    fn draw(scenario: &Scenario, random: &mut Random) -> Self {
        let mut link = Self {
            delay: random.pick(&[1, 10, 50, 500, 5_000]) * MICROSECOND,
            mtu: usize::MAX,
            ..Self::default()
        };
        // Each is drawn whether it is enabled or not, so that shrinking shifts nothing.
        let loss = random.pick(&[1_000, 10_000, 20_000, 50_000, 50_000, 150_000, 300_000]);
        let burst = random.range(200, 5_000) as u32;
        let duplicate = random.pick(&[1_000, 20_000, 100_000, 500_000]);
        let reorder = random.pick(&[1_000, 20_000, 100_000, 300_000]);
        let corrupt = random.pick(&[1_000, 10_000, 50_000, 100_000]);
        let jitter = random.below(2 * link.delay) + 1;
        let delay = random.range(50, 750) * MILLISECOND;
        let megabits = random.pick(&[1, 10, 100]);
        let queue = random.range(2, 100) * MILLISECOND;
        let mtu = random.pick(&[150, 300, 600, 1100, 2100]);
        let dead_from = random.below(10 * SECOND);
        let dead = random.chance(700_000);
        let congestion = random.pick(&[1_000, 50_000, 500_000]);
        let has = |fault| scenario.has(fault);
        if has(Fault::Loss) {
            link.loss = loss;
        }
        if has(Fault::Bursts) {
            link.burst = burst;
        }
        if has(Fault::Duplicates) {
            link.duplicate = duplicate;
        }
        link.late = has(Fault::LateDuplicates);
        if has(Fault::LateDuplicates) && link.duplicate == 0 {
            link.duplicate = 5_000;
        }
        if has(Fault::Reorder) {
            link.reorder = reorder;
        }
        if has(Fault::Corruption) {
            link.corrupt = corrupt;
        }
        if has(Fault::LongDelay) {
            link.delay = delay;
        }
        if has(Fault::Jitter) {
            link.jitter = jitter;
        }
        if has(Fault::SlowLink) {
            // 8 ns per byte and Gbit/s.
            link.pace = 8_000 * 1024 / megabits;
            link.queue = queue;
        }
        if has(Fault::SmallMtu) {
            link.mtu = mtu;
        }
        if has(Fault::DeadLink) && dead {
            link.dead_from = Some(dead_from);
        }
        if has(Fault::Congestion) {
            link.congestion = congestion;
        }
        link.blackholes = has(Fault::Blackholes);
        link
    }
}

/// Flips bits, as a broken switch would: anywhere in the datagram, and in what the ICRC covers of its IP and UDP headers.
fn damage(datagram: &mut Datagram, random: &mut Random) {
    datagram.origin = Origin::Damaged;
    datagram.original = Some(datagram.bytes.clone());
    match random.below(20) {
        0 => datagram.id ^= 1 << random.below(16),
        1 => datagram.source.set_port(datagram.source.port() ^ 1 << random.below(16)),
        2 => datagram.source.set_ip(flip_address(datagram.source.ip(), random)),
        3 => datagram.destination.set_ip(flip_address(datagram.destination.ip(), random)),
        4 => datagram.bytes.truncate(random.index(datagram.bytes.len())),
        5 => datagram.bytes.extend_from_slice(&[0; 7][..random.index(7) + 1]),
        kind => {
            // Often in the headers, where it hurts most.
            let length = if kind < 12 { datagram.bytes.len().min(32) } else { datagram.bytes.len() };
            for _ in 0..random.range(1, 3) {
                let at = random.index(length);
                datagram.bytes[at] ^= 1 << random.below(8);
            }
        }
    }
}

fn flip_address(address: IpAddr, random: &mut Random) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4((u32::from(address) ^ 1 << random.below(32)).into()),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) ^ 1 << random.below(128)).into()),
    }
}
